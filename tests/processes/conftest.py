"""Real runs of the command, as processes, and what they leave."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.data.dataset import Arrays
from mnist_dist.strategies import beside_the_baseline, with_processes
from mnist_dist.training.checkpoint import Checkpoints
from mnist_dist.training.writers import read_rows

COMMAND = [sys.executable, "-m", "mnist_dist", "train"]
# Three replicas do not divide 2,003 images, and 16 images per replica do not fill them.
IMAGES, TEST_IMAGES, BATCH_SIZE = 2003, 501, 48
MULTI_PROCESS, STRATEGIES = with_processes(), beside_the_baseline()


class Finished:
    """What a run has left in its folder."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.workdir / "result.json").read_text())

    @property
    def losses(self) -> dict[int, float]:
        """The mean training loss since the line before, by step."""
        rows = read_rows(self.workdir / "metrics.jsonl")
        return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return self.weights_in(self.workdir)

    @staticmethod
    def weights_in(workdir: Path) -> dict[str, np.ndarray]:
        loaded = Checkpoints(workdir / "checkpoints", 1, report=pytest.fail).load_latest()
        assert loaded, "no checkpoint"
        return {name: array for name, array in loaded[0].items() if name.startswith("model/")}


class Run(Finished):
    """One training process (or launcher) in a folder."""

    def __init__(self, workdir: Path, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        super().__init__(workdir)
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, "--workdir", str(workdir), *arguments],
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> str:
        """Reads output up to the first line that contains the text."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if text in line:
                return line
        raise AssertionError(f"the run ended without saying {text!r}:\n{self.output}")

    def finish(self, timeout: float = 500) -> int:
        rest, _ = self.process.communicate(timeout=timeout)
        self.lines += rest.splitlines()
        return self.process.returncode

    def succeed(self) -> Run:
        assert self.finish() == 0, self.output
        return self

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def kill_group(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


StartRun = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path, odd_mnist: Path) -> Iterator[StartRun]:
    """Starts `mnist-dist train` on the odd-sized data in a folder of the test, with the guard on."""
    with _make_start(tmp_path, odd_mnist) as start_run:
        yield start_run


@pytest.fixture(scope="session")
def start_once(tmp_path_factory: pytest.TempPathFactory, odd_mnist: Path) -> Iterator[Callable[..., Finished]]:
    """The same, for runs that tests compare theirs with: what one has started, those of other workers use, too."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "references"
    folder.mkdir(exist_ok=True)
    with _make_start(folder, odd_mnist) as start_run:

        def start_or_reuse(name: str, *arguments: str) -> Finished:
            name = f"{name} {zlib.crc32(repr(arguments).encode()):08x}"
            finished = Finished(folder / name)
            with (folder / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (finished.workdir / "result.json").exists():
                    start_run(name, *arguments).succeed()
            return finished

        yield start_or_reuse


@contextlib.contextmanager
def _make_start(folder: Path, data: Path) -> Iterator[StartRun]:
    runs = []

    def start_run(name: str, *arguments: str, environment: dict[str, str] | None = None) -> Run:
        settings = [
            f"data.path={data}",
            "runtime.guard=true",
            "runtime.deterministic=true",
            "logging.tensorboard=false",
            "logging.every_steps=4",
        ]
        flags = ["--batch-size", str(BATCH_SIZE), "--precision", "float32", "--steps", "12"]
        flags += [flag for setting in settings for flag in ("--set", setting)]
        run = Run(folder / name, [*flags, *arguments], environment)
        runs.append(run)
        return run

    yield start_run
    for run in runs:
        run.kill_group()


@pytest.fixture(scope="session")
def odd_mnist(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "odd_mnist.npz"
    np.savez(
        file,
        x_train=arrays.train_images[:IMAGES],
        y_train=arrays.train_labels[:IMAGES],
        x_test=arrays.test_images[:TEST_IMAGES],
        y_test=arrays.test_labels[:TEST_IMAGES],
    )
    return file


def assert_close(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Compares weights by the largest difference, relative to the largest weight of each variable."""
    assert actual.keys() == expected.keys()
    for name in expected:
        if np.issubdtype(expected[name].dtype, np.floating):
            scale = max(float(np.abs(expected[name]).max()), 1e-3)
            difference = float(np.abs(actual[name] - expected[name]).max()) / scale
            assert difference < tolerance, f"{name} differs by {difference:.2g} of its largest value"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def rank_processes(launcher: int) -> dict[int, int]:
    """Returns the process of every rank that a launcher has started."""
    ranks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        values = dict(item.split(b"=", 1) for item in environment if b"=" in item)
        is_zombie = stat.rpartition(")")[2].split()[0] == "Z"
        if values.get(b"MNIST_DIST_LAUNCHER_PID") == str(launcher).encode() and not is_zombie:
            ranks[int(values[b"MNIST_DIST_RANK"])] = int(folder.name)
    return ranks
