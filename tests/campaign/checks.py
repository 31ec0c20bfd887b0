"""What has to be true after a fault, whatever it was."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnist_dist.training.checkpoint import Checkpoints
from tests.campaign.trial import SECONDS_TO_END, STEPS, Trial, all_gone
from tests.processes.conftest import Run

NO_USER_SHOULD_SEE = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|Exception ignored|core dumped")
ERROR = re.compile(r"^mnist-dist: error: ", re.MULTILINE)
PARTS = ("**/.*.tmp*", "**/.study-*.json", "**/core")  # Of files, and where they would be left.


@dataclass(frozen=True)
class Reference:
    """What the same training comes to when nothing disturbs it."""

    weights: dict[str, np.ndarray]
    losses: dict[int, float]


def read_reference(run: Run) -> Reference:
    return Reference(run.weights, run.losses)


def check_end(trial: Trial, run: Run, codes: Collection[int], says: str = "", one_error: bool = True) -> int:
    """Waits for the end of a run, and checks that all of it has ended, and what it said.

    Args:
        codes: with which it may end.
        says: a pattern that its output must have.
        one_error: whether one line has to tell of it, if there was one: a study tells of each case.
    """
    try:
        code = run.finish(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still there after {SECONDS_TO_END:.0f} s:\n{shortened(run)}") from None
    assert all_gone(trial), f"it left processes behind:\n{shortened(run)}"
    assert code in codes, f"it ended with {code}, expected one of {sorted(codes)}:\n{shortened(run)}"
    assert not NO_USER_SHOULD_SEE.search(run.output), f"a traceback:\n{shortened(run)}"
    expected = 1 if code in (1, 2) else 0
    assert not one_error or len(ERROR.findall(run.output)) == expected, (
        f"expected {expected} lines of error with code {code}:\n{shortened(run)}"
    )
    check_says(run, says)
    return code


def check_says(run: Run, says: str) -> None:
    assert re.search(says, run.output), f"it does not say {says!r}:\n{shortened(run)}"


def shortened(run: Run) -> str:
    """Returns what a run has said without the lines of its steps."""
    return "\n".join(line for line in run.lines if "images/s" not in line)


def check_kept(trial: Trial, acknowledged: Collection[int]) -> None:
    """Checks that the newest checkpoint that readers could see can be read, or one after it."""
    if acknowledged:
        damaged: list[str] = []
        loaded = Checkpoints(trial.workdir / "checkpoints", 99, damaged.append).load_latest()
        assert not damaged, damaged
        assert loaded is not None and loaded[1]["step"] >= max(acknowledged), f"lost one of {sorted(acknowledged)}"


def check_resumed(trial: Trial, reference: Reference, says: str = "") -> None:
    """Resumes the run, which has to come to what an undisturbed one comes to, and to leave nothing else."""
    resumed = trial.start("--resume")
    check_end(trial, resumed, {0}, says)
    check_done(trial, resumed, reference)


def check_done(trial: Trial, run: Run, reference: Reference) -> None:
    result = run.result
    assert (result["status"], result["steps"]) == ("completed", STEPS), result
    assert result["seconds"] > 0 and result["images_per_second"] >= 0, result
    weights = run.weights
    assert weights.keys() == reference.weights.keys()
    different = [name for name, value in reference.weights.items() if not np.array_equal(value, weights[name])]
    assert not different, f"other weights: {different}"
    assert run.losses == reference.losses, "other losses in metrics.jsonl"
    assert (trial.workdir / "model.keras").stat().st_size
    check_nothing_left(trial, trial.workdir)


def check_nothing_left(trial: Trial, folder: Path) -> None:
    left = [str(path) for pattern in PARTS for path in folder.glob(pattern)]
    left += [str(path) for path in trial.temporary.rglob("*")]
    assert not left, f"left behind: {left}"
