"""What several tests share: the embedded MNIST, a small part of it, a quiet TensorFlow, and a disk to fill."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_dist.config import DataConfig
from mnist_dist.cpuinfo import cpu_flags
from mnist_dist.data.dataset import Arrays, load_arrays
from mnist_dist.errors import UserError
from mnist_dist.runtime import import_tensorflow
from tests import nvml

# A shell's background jobs ignore it, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONUNBUFFERED", None)  # Programs must show what they say without it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # For the processes that tests start, too.
if "avx2" in cpu_flags():  # As `import_tensorflow` asks; some tests are the first to import it in another way.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

TESTS = Path(__file__).parent
# What takes longest starts first, so that none of it is left for the end, and what waits beside what computes.
LONGEST_FIRST = (
    "campaign",
    "slurm/test_survey",
    "distributed/test_horovod_build",
    "slurm/test_studies",
    "training/test_trainer",
    "benchmarks/measure/test_rounds",
    "processes",
    "slurm/test_r",
    "benchmarks/analysis/test_planted",
    "slurm/test_t",
    "benchmarks/measure",
    "benchmarks/peers",
    "slurm",
    "test_main",
)


@pytest.hookimpl(tryfirst=True)  # Before pytest chooses by marks.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tf" in getattr(item, "fixturenames", ()):  # Whoever runs others alone need not wait for TensorFlow.
            item.add_marker("slow")

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(TESTS).as_posix()
        return next((place for place, first in enumerate(LONGEST_FIRST) if name.startswith(first)), len(LONGEST_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def tf() -> ModuleType:
    return import_tensorflow()


@pytest.fixture(scope="session")
def arrays() -> Arrays:
    """The embedded MNIST. Shared: copy before changing."""
    return load_arrays(DataConfig())


@pytest.fixture(scope="session")
def tiny_mnist(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz file of the first 2,000 training and 500 test images."""
    file = tmp_path_factory.mktemp("data") / "tiny_mnist.npz"
    np.savez(
        file,
        x_train=arrays.train_images[:2000],
        y_train=arrays.train_labels[:2000],
        x_test=arrays.test_images[:500],
        y_test=arrays.test_labels[:500],
    )
    return file


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver's library for hosts that have no GPU; see tests/nvml.py."""
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        pytest.skip("this host has a GPU")
    folder = nvml.build(tmp_path_factory.mktemp("driver"))
    if folder is None:
        pytest.skip("this host has no compiler to stand in for a driver")
    return folder


@pytest.fixture
def user_error() -> Callable[..., str]:
    """A function that calls another one and returns the line of the UserError that it must raise."""

    def line_of(call: Callable[..., Any], *args: Any, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            call(*args, **options)
        line = str(caught.value)
        assert line.strip() and len(line.splitlines()) == 1, f"not one line: {line!r}"
        assert len(line) < 600, "too long to read"
        return line

    return line_of


@pytest.fixture
def is_quick() -> Callable[[Callable[[], object]], bool]:
    """A function that says whether a process takes less than 20 starts of Python, half a second on a usual CPU.

    They take turns, and processor time counts, of both the least: a busy machine slows both.
    """

    def seconds(call: Callable[[], object]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def judge(call: Callable[[], object]) -> bool:
        starts, calls = [], []
        for _ in range(10):
            starts.append(seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True)))
            calls.append(seconds(call))
            if min(calls) < 20 * min(starts):
                return True
        return False

    return judge


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; needs the right to mount."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("filling a disk needs the command mount")
    if done.returncode:
        pytest.skip(f"filling a disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def fill() -> Callable[[Path], None]:
    """A function that leaves no byte free on the disk of a folder."""

    def fill_disk(folder: Path) -> None:
        handle = os.open(folder / "filling", os.O_CREAT | os.O_WRONLY)
        try:
            while True:
                os.write(handle, bytes(512))
        except OSError:
            os.close(handle)

    return fill_disk
