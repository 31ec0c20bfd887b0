"""The check of `make image-test` accepts a full report and names what a broken one lacks."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.recipe import DOCKER

FULL = [
    {"strategy": name, "devices": "2", "case_id": name[0], "runs": "2", "failures": "0", "test_accuracy": "0.985"}
    for name in ("single", "mirrored", "multiworker", "horovod")
] + [{"strategy": "single", "devices": "1", "case_id": "x", "runs": "1", "failures": "0", "test_accuracy": ""}]


def check(folder: Path, rows: list[dict[str, str]]) -> subprocess.CompletedProcess[str]:
    for name in ("report.html", "report.md"):
        (folder / name).touch()
    with (folder / "report.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    command = [sys.executable, str(DOCKER / "check_report.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


def test_full_report(tmp_path: Path) -> None:
    done = check(tmp_path, FULL)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (3, {"strategy": "mirrored"}, "report.csv: no row of horovod\n"),
        (1, {"failures": "1"}, "report.csv: mirrored on 2 devices, case m: 2 runs, 1 failures\n"),
        (4, {"runs": "0"}, "report.csv: single on 1 devices, case x: 0 runs, 0 failures\n"),
        (2, {"test_accuracy": "0.1"}, "expected some, and all of at least 0.97\n"),
    ],
)
def test_broken_report(tmp_path: Path, row: int, change: dict[str, str], message: str) -> None:
    done = check(tmp_path, [old | change if number == row else old for number, old in enumerate(FULL)])
    assert done.returncode == 1 and done.stderr.endswith(message), done.stderr


def test_missing_report(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCKER / "check_report.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "has no report.html" in done.stderr
