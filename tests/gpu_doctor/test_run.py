"""The command with checks that hang or abort, without a GPU, and with a driver that alone answers."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.doctor import BROKEN, OK, Finding
from mnist_dist.gpu_doctor import checks, run
from mnist_dist.gpu_doctor.run import Examination
from tests import nvml
from tests.speeds import thorough_but_for


def findings_of(file: Path) -> dict[str, tuple[str, str]]:
    content = json.loads(file.read_text())
    assert content["format"] == "mnist-dist doctor --gpu 1"
    return {each["subject"]: (each["status"], each["detail"]) for each in content["findings"]}


def test_what_hangs_or_aborts_is_a_finding_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program in Python's place has the name of the check as its third argument, and a file as its fourth."""
    python = tmp_path / "python"
    line = json.dumps({"subject": "first", "status": "ok", "detail": "fine"})
    python.write_text(f"""#!/bin/sh
echo '{line}' > $4
case $3 in
    hangs) sleep 60 & sleep 60;;
    aborts) echo "Fatal: Xid 79" >&2; kill -ABRT $$;;
    fails) exit 3;;
esac
""")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    examination = Examination(tmp_path / "found.json")
    for name in ("hangs", "aborts", "fails", "works"):
        examination.check(name, 5.0 if name == "hangs" else 60.0)
    assert [(each.subject, each.status, each.detail) for each in examination.findings] == [
        ("first", OK, "fine"),
        ("hangs", BROKEN, "no answer within 5 s; last output: nothing"),
        ("first", OK, "fine"),
        ("aborts", BROKEN, "ended with code -6; last output: Fatal: Xid 79"),
        ("first", OK, "fine"),
        ("fails", BROKEN, "ended with code 3; last output: nothing"),
        ("first", OK, "fine"),
    ]
    assert "        works (at most 60 s)\n" in capsys.readouterr().out, "a line of progress"


def test_every_check_that_is_started_is_there() -> None:
    """Those that compute would be missed on a machine with a GPU alone."""
    defined = [name.removeprefix("check_") for name in vars(checks) if name.startswith("check_")]
    imported = ["devices", "strategies"]
    assert sorted([*run.LOOKING, *run.COMPUTING, *imported]) == sorted(defined)


def test_when_all_time_is_over_nothing_is_started(tmp_path: Path) -> None:
    examination = Examination(tmp_path / "found.json", total_seconds=0.0)
    examination.check("driver", 20.0)
    assert findings_of(examination.file) == {"driver": ("-", "not tried: the time for all checks together is used up")}


def test_the_file_is_whole_at_any_time_and_without_names(tmp_path: Path) -> None:
    examination = Examination(tmp_path / "found.json")
    text = f"/home/{getpass.getuser()}/x.so on {platform.node()} failed"
    for count in (1, 2):
        examination.add(Finding(f"check {count}", BROKEN, text))
        assert len(findings_of(examination.file)) == count
    (detail,) = {detail for _, detail in findings_of(examination.file).values()}
    assert detail == "(withheld) on (withheld) failed"
    assert [each.name for each in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.slow
@pytest.mark.parametrize("has_driver", thorough_but_for(True, [True, False]))
def test_a_gpu_that_tensorflow_does_not_find_and_none(driver: Path, tmp_path: Path, has_driver: bool) -> None:
    """The driver's library is made up; CUDA's are not there, as where a GPU was added to a machine for CPUs."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\nprintf '\\033[4mGPU0\\033[0m X NV18\\n\\nLegend:\\n'\n")
    smi.chmod(0o755)
    code = "from mnist_dist.gpu_doctor import run; run.LOOKING = dict.fromkeys(run.LOOKING, 900); exit(run.run(2000))"
    command = [sys.executable, "-c", code]  # With time for a busy machine.
    environment, said = dict(os.environ), ""
    if has_driver:
        environment = dict(nvml.environment(driver, HEALTHY="1", PATH=f"{smi.parent}:{os.environ['PATH']}"))
        said = "Look at: libcudart.so.12 (broken)"
    environment["PYTHONPATH"] = str(Path(run.__file__).parents[2])
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(said) and "There is no GPU here that TensorFlow can use. All findings are in " in last
    (file,) = tmp_path.glob("gpu-doctor-*.json")
    assert re.search(r"gpu-doctor-[\d-]+-[0-9a-f]{4}\.json", last)[0] == file.name  # type: ignore[index]
    found = findings_of(file)
    assert "tensorflow 2." in found["software"][1]
    if has_driver:
        assert found["topology"][1].endswith("\nGPU0 X NV18") and found["topology"][0] == OK
        assert found["GPU"][0] == BROKEN and "TensorFlow finds none" in found["GPU"][1]
    else:
        assert found["driver"] == ("-", "NVIDIA's driver shows no GPU to this process")
