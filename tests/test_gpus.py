"""Which GPUs a process may use, by the driver's word and by CUDA's rules."""

import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist import gpus
from mnist_dist.gpus import driver_gpus, visible_gpus
from tests import nvml

UUIDS = ["GPU-1a2b", "GPU-3c4d", "GPU-3c99"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-3c99,GPU-1a", [2, 0]),
        ("GPU-3c", [1]),
    ],
)
def test_gpus_that_cuda_shows(value: str | None, expected: list[int]) -> None:
    assert visible_gpus(UUIDS, {} if value is None else {"CUDA_VISIBLE_DEVICES": value}) == expected


def test_of_parts_of_gpus_cuda_takes_the_first() -> None:
    uuids = ["MIG-1", "MIG-2", "GPU-3"]
    assert visible_gpus(uuids, {}) == [0]
    assert visible_gpus(uuids, {"CUDA_VISIBLE_DEVICES": "GPU-3,MIG-2,MIG-1"}) == [1]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["GPU-0", "GPU-1"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["GPU-1"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"MIG": "1", "CUDA_VISIBLE_DEVICES": "1"}, ["MIG-11"]),
        ({"FORBID": "DeviceGetUUID", "OF0": "1"}, ["", "GPU-1"]),
        ({"LOST": "1"}, ["GPU-1"]),
    ],
)
def test_the_drivers_gpus(driver: Path, variables: dict[str, str], expected: list[str]) -> None:
    command = [sys.executable, "-c", "from mnist_dist.gpus import driver_gpus; print(driver_gpus())"]
    environment = nvml.environment(driver, **variables)
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == repr(expected)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, [set(), set()]), ({"NEAR": "1"}, [{70}, {0, 1}]), ({"NEAR": "1", "CUDA_VISIBLE_DEVICES": "1"}, [{0, 1}])],
)
def test_cores_near_gpus(driver: Path, variables: dict[str, str], expected: list[set[int]]) -> None:
    """So many that they do not fit into one word of the driver's."""
    command = [sys.executable, "-c", "from mnist_dist.gpus import cores_near_gpus; print(cores_near_gpus())"]
    done = subprocess.run(
        command, env=nvml.environment(driver, **variables), check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == repr([frozenset(each) for each in expected])


def test_without_nvml_devices_count_that_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that has asked for no GPU sees the files, and may not open them."""
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_gpus({}) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia2").mkdir()  # Which nobody opens for writing, root neither.
    assert driver_gpus({}) == ["", ""]
    assert driver_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == [""]
    assert driver_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
