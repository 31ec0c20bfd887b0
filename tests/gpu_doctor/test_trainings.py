"""Real trainings on one and two devices of the CPU: equal weights, and what makes them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mnist_dist.doctor import BROKEN, OK
from mnist_dist.gpu_doctor import trainings
from mnist_dist.gpu_doctor.run import Examination

OTHERS = ("mirrored 1", "multiworker 1", "multiworker 2", "horovod 1", "horovod 2")
SMALL = {"model.filters": [4, 8], "model.dense_units": 16, "runtime.guard": True}


def small(runs: trainings.Trainings, data: Path) -> dict[str, dict[str, Any]]:
    return {name: {**settings, **SMALL, "data.path": str(data)} for name, settings in runs.items()}


def test_each_strategy_trains_on_one_device_and_on_all_with_one_batch() -> None:
    names = {f"{name} {count}" for name in ("mirrored", "multiworker", "horovod") for count in (1, 6)}
    runs = trainings.of_strategies(6)
    assert next(iter(runs)) == "single 1" and set(runs) <= {"single 1", *names}
    assert {settings["training.batch_size"] for settings in runs.values()} == {132}, "a multiple of six from 128 on"
    assert {settings["training.steps"] for settings in runs.values()} == {200}


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("names", [("mirrored 2",), OTHERS], ids=["one", "others"])
def test_equal_weights(names: tuple[str, ...], tiny_mnist: Path, tmp_path: Path) -> None:
    """Another seed is what ranks have that do not take the chief's weights."""
    runs = small(trainings.of_strategies(2, steps=8), tiny_mnist)
    chosen = {name: runs[name] for name in ("single 1", *names)}
    chosen["apart"] = {**runs["single 1"], "seed": 1}
    examination = Examination(tmp_path / "found.json", total_seconds=2000.0)
    examination.train(chosen, trainings.compare_weights, limit_seconds=400.0)
    assert {each.subject: each.status for each in examination.findings} == {
        **dict.fromkeys(("single 1", *names), OK),
        "apart": BROKEN,
    }, examination.findings


@pytest.mark.thorough
@pytest.mark.slow
def test_step_times(tiny_mnist: Path, tmp_path: Path) -> None:
    runs = small(trainings.of_step_times(batches=[128], seconds=0.5), tiny_mnist)
    assert [settings["runtime.xla"] for settings in runs.values()] == ["off", "on", "on"]
    plain = runs["batch 128 plain"]
    runs = {"batch 128 plain": plain, "too large": {**plain, "training.batch_size": 4096}}
    examination = Examination(tmp_path / "found.json", total_seconds=2000.0)
    examination.train(runs, trainings.tell_step_time, limit_seconds=400.0)
    time, failure = examination.findings
    assert (time.subject, time.status) == ("batch 128 plain", OK) and " ms per step over " in time.detail
    assert (failure.subject, failure.status) == ("too large", BROKEN)
    assert "training.batch_size: received 4096, expected at most the 2000 training images" in failure.detail
