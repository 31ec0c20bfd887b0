"""Which of CUDA's libraries open, in the order in which TensorFlow's loader looks for them."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mnist_dist.gpu_doctor.libraries import LIBRARIES, try_libraries
from tests import nvml


def test_they_are_those_of_the_installed_tensorflow(tf: ModuleType) -> None:
    build = tf.sysconfig.get_build_info()
    if not build["is_cuda_build"]:
        pytest.skip("this TensorFlow knows no CUDA")
    assert f"libcudart.so.{build['cuda_version'].split('.')[0]}" in LIBRARIES
    assert f"libcudnn.so.{build['cudnn_version'].split('.')[0]}" in LIBRARIES


def test_each_is_opened_and_the_first_place_counts(driver: Path, tmp_path: Path) -> None:
    """One that lies in a folder of LD_LIBRARY_PATH stands before all others, also if it is broken."""
    (tmp_path / "libcudnn.so.9").write_text("no library")
    places = {"LD_LIBRARY_PATH": f"{tmp_path}:{driver / 'cuda'}"}
    command = [sys.executable, "-m", "mnist_dist.gpu_doctor.libraries"]
    done = subprocess.run(command, env=nvml.environment(driver, **places), check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert {name: opens for name, (opens, _) in found.items()} == {name: name != "libcudnn.so.9" for name in LIBRARIES}
    assert found["libnccl.so.2"][1] == "from LD_LIBRARY_PATH" and str(tmp_path) in found["libcudnn.so.9"][1]


def test_a_process_that_ends_or_hangs_by_it_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, hangs = ("kill -ABRT $$", 60, "opening them ended the process"), ("sleep 60", 0.5, "no answer within 0.5 s")
    for script, seconds, reason in (ends, hangs):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nexec /bin/sh -c '{script}'\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        found = try_libraries(seconds)
        assert set(found) == set(LIBRARIES)
        assert all(not opens and text.startswith(reason) for opens, text in found.values())
