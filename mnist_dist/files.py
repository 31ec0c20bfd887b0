"""Files that are either whole or not there."""

import contextlib
import glob
import itertools
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mnist_dist.errors import UserError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix, that replaces it once it has reached the disk.

    A reader sees the old content or the new, never a part, whatever kills the writer. What a writer of `path` left that
    was killed on this host is removed.

    Raises:
        UserError: the folder cannot be written or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.stem)
        prefix = f".{path.stem}.{_host()}-{os.getpid()}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=f".tmp{path.suffix}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # Some shares refuse it, and set modes of their own.
            temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide results from a colleague.
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def remove_abandoned(folder: Path, stem: str | None = None) -> None:
    """Removes what processes of this host that died in `atomic_path` left in a folder: of one stem, or all of it."""
    for path in folder.glob(f".{'*' if stem is None else glob.escape(stem)}.{_host()}-*.tmp*"):
        process = path.name.rpartition(f".{_host()}-")[2].partition(".")[0]
        if process.isdecimal() and not Path("/proc", process).exists():  # Else a host's name begins like this one's.
            with contextlib.suppress(OSError):
                path.unlink()


def _host() -> str:
    """Returns this host's name as far as it can stand in a pattern of file names."""
    return re.sub(r"[^\w-]", "", socket.gethostname())[:32]


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` when it is complete; see `atomic_path`."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def named_or_dated(path: Path | None, parent: str, name: str) -> Iterator[Path]:
    """Yields `path`, or else a new folder `parent/name-DATE-TIME`, numbered where another process has taken that name.

    Raises UserError where it cannot be made. It is gone afterwards if it has stayed empty.
    """
    if path is not None:
        yield path
        return
    folder = first = Path(parent) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
            folder = first.with_name(f"{first.name}-{number}")
    except OSError as error:
        raise UserError(f"cannot make '{folder}': {reason_of(error)}; name a folder elsewhere.") from None
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def user_folder(variable: str, below_home: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Returns a folder of the user's own, such as XDG_CACHE_HOME or ~/.cache, or None for a user without a home."""
    with contextlib.suppress(RuntimeError):
        return Path(environment.get(variable) or Path.home() / below_home) / "mnist_dist"
    return None


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names `path`, a place for results, in the UserError that is raised where it cannot be written."""
    try:
        yield
    except (UserError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"results: cannot write '{path}': {reason_of(cause)}; free some space or name another folder."
        ) from cause


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"workdir: cannot write '{path}': {reason_of(error)}; free some space or name another folder with --workdir."
    )


def reason_of(error: OSError) -> str:
    """Returns why something cannot be made or written."""
    if isinstance(error, FileExistsError):  # So `mkdir` says it of a folder whose disk was purged, too.
        return "a file or a broken link is in the way"
    return os.strerror(error.errno) if error.errno else str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut; some network file systems refuse, and lose nothing by it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
