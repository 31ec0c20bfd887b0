"""The folder of one run: what it holds, whose it is, and when it may be continued."""

import contextlib
import errno
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_dist.config import Config, changed_setting, config_to_yaml, load_config
from mnist_dist.errors import UserError
from mnist_dist.files import cannot_write, write_text


class Workdir:
    """Names of everything in a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.result_file = path / "result.json"
        self.step_times_file = path / "step_times.json"
        self.model_file = path / "model.keras"
        self.plots = path / "plots"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def check_there(self) -> None:
        """Raises UserError where a run no longer has its folder: what it wrote there on its own nobody could use."""
        if not self.config_file.exists():
            raise UserError(f"workdir: '{self.path}' was deleted during the run; name another folder with --workdir.")

    def read_result(self) -> dict[str, Any] | None:
        """Returns the content of result.json, or None when the run has not written one."""
        try:
            result = json.loads(self.result_file.read_text())
            if not isinstance(result, dict) or "status" not in result:
                raise ValueError("it has no status")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"workdir: cannot read '{self.result_file}' ({error}); remove it to go on.") from None
        return result


def check_workdir(path: Path, config: Config, resume: bool) -> Workdir:
    """Checks, without writing anything, that a run of this configuration may use the folder.

    Raises:
        UserError: the folder is something else, holds a run that was not asked to continue, or another
            configuration's run; or model.keras could not be written for the time.
    """
    if (year := time.localtime().tm_year) < 1980:  # As on a board without a battery.
        raise UserError(f"workdir: the clock says {year}, expected 1980 or later, as in a zip file; set the clock.")
    folder = Workdir(path)
    if not path.exists():
        return folder
    if not path.is_dir():
        raise UserError(f"--workdir: '{path}' is a file; expected a new folder, or the folder of a run with --resume.")
    if not folder.config_file.exists():
        # The lock and a part of the configuration are what a run leaves that was killed before its first line.
        if not all(entry.name.startswith((".lock", ".config.")) for entry in path.iterdir()):
            raise UserError(f"--workdir: '{path}' holds other files; expected a new or empty folder.")
        return folder
    if not resume:
        raise UserError(
            f"--workdir: '{path}' already holds a run; add --resume to continue it, or name another folder."
        )
    changed = changed_setting(load_config(str(folder.config_file)), config)
    if changed:
        key, before, now = changed
        start = "without; leave it out" if before is None else f"with {before!r}; resume with the same value"
        raise UserError(
            f"{key}: received {now!r}, but the run in '{path}' was started {start}, or name another folder with "
            "--workdir."
        )
    return folder


@contextlib.contextmanager
def claim_workdir(folder: Workdir, config: Config, resume: bool = False) -> Iterator[None]:
    """Makes the folder this process' own for the time of the training and records the configuration of a new run.

    Raises:
        UserError: the folder cannot be written, another process trains in it, or has done so since it was checked.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = (folder.path / ".lock").open("a")
    except OSError as error:
        raise cannot_write(folder.path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"--workdir: another process is training in '{folder.path}'; wait for it or name another folder."
                ) from None
            # Some network file systems have no locks; training without one is better than not at all.
        check_workdir(folder.path, config, resume)  # Another run may have come and gone meanwhile.
        for place in (folder.path, folder.checkpoints, folder.plots, folder.tensorboard):
            for unfinished in place.glob(".*.tmp*"):  # Of a run that was killed while it wrote.
                if unfinished.is_file():
                    unfinished.unlink(missing_ok=True)
        if not folder.config_file.exists():
            record_config(folder, config)
        yield


def record_config(folder: Workdir, config: Config) -> None:
    write_text(folder.config_file, config_to_yaml(config))
