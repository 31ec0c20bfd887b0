"""The registry: what it says is so, and a row is all that others need of a strategy."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.strategies import BASELINE, STRATEGIES, check_name, choose, either


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_leads_to_its_class(name: str) -> None:
    row = STRATEGIES[name]
    assert row.name == name
    assert issubclass(row.load(), Strategy)
    assert (row.package is None) == (row.install is None)


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 100])
def test_auto_finds_one(devices: int, launched: bool) -> None:
    row = STRATEGIES[choose(devices, launched=launched)]
    assert row.one_process != launched
    assert row.several_devices == (launched or devices > 1)


def test_the_baseline_is_one_device() -> None:
    assert not STRATEGIES[BASELINE].several_devices


def test_names() -> None:
    for name in STRATEGIES:
        assert check_name(name) == RuntimeConfig(strategy=name).strategy == name
    assert check_name("auto", "auto") == RuntimeConfig().strategy == "auto"
    for wrong in ("auto", "Single", None, [], 3):
        with pytest.raises(ValueError, match=f"^{either(repr(name) for name in STRATEGIES)}$"):
            check_name(wrong)


MADE_UP = """
from mnist_dist.distributed.strategies.single import Single

class MadeUp(Single):
    pass
"""
REGISTER = """
from mnist_dist.strategies import STRATEGIES, Row
STRATEGIES["made-up"] = Row("made-up", "a class and a row", "made_up:MadeUp", several_devices=False, one_process=True)
"""
SUITE = """
{description: A new strategy., minutes: 1, repeats: 1, strategies: [single, made-up], devices: 1,
 blocks: [{measure_seconds: 3}]}
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_a_new_strategy_takes_a_class_and_a_row(tmp_path: Path) -> None:
    """It trains, is planned and measured in a suite, and has its place in the report and in Slurm studies."""
    (tmp_path / "made_up.py").write_text(MADE_UP)
    (tmp_path / "sitecustomize.py").write_text(REGISTER)  # Every Python that finds it begins with it.
    (tmp_path / "suite.yaml").write_text(SUITE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def mnist_dist(*arguments: str) -> str:
        command = [sys.executable, "-m", "mnist_dist", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "made-up: a class and a row" in " ".join(mnist_dist("train", "--help").split())
    assert "strategy   made-up, 1 replica\n" in mnist_dist("train", "--strategy", "made-up", "--steps", "3")
    assert "made-up, 1 " in mnist_dist("bench", "run", "suite.yaml", "--dry-run")
    mnist_dist("bench", "run", "suite.yaml", "--results", "study")
    with (tmp_path / "study" / "report.csv").open(newline="") as file:
        rows = [(row["strategy"], row["runs"], row["failures"]) for row in csv.DictReader(file)]
    assert rows == [("single", "1", "0"), ("made-up", "1", "0")]
    assert "made-up" in (tmp_path / "study" / "report.md").read_text()
