"""Goals and verdicts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.measure.suite import Machine
from mnist_dist.benchmarks.peers.contestants import OURS, make_contestants
from mnist_dist.benchmarks.peers.goals import (
    Goal,
    exit_code,
    judge,
    load_goals,
    needed_runs,
    write_goals,
)
from tests.benchmarks.peers.runs import STUDY, bad_run, rate_runs, time_run

CPUS = make_contestants(5.0, Machine(cores=2, gpus=0, devices_per_host=2))
GOALS = {goal.name: goal for goal in load_goals()}


def test_every_goal_names_contestants_that_measure_it() -> None:
    for goal in GOALS.values():
        for name in (goal.numerator, *goal.denominators):
            assert CPUS[name].work(goal.mode) is not None, f"{goal.name}: {name}"


def test_an_unknown_goal_is_named(user_error: Callable[..., str]) -> None:
    assert "Did you mean 'pytorch'?" in user_error(load_goals, ["pytorchs"])


def test_each_contestant_is_measured_once() -> None:
    needed = needed_runs(load_goals(), CPUS, on_gpus=False)
    keys = [(contestant.name, mode) for contestant, mode in needed]
    assert len(keys) == len(set(keys))
    assert {("ours", "throughput"), ("independent", "throughput"), ("keras-fit", "accuracy")} <= set(keys)
    on_gpus = {contestant.name for contestant, _ in needed_runs(load_goals(), CPUS, on_gpus=True)}
    assert "independent" not in on_gpus and "keras-fit-seed" in on_gpus


@pytest.mark.parametrize(
    ("rates", "outcome", "code"),
    [([5000, 5100, 4900], "reached", 0), ([3000, 3100, 2900], "missed", 1), ([3000, 4000, 5500], "open", 3)],
)
def test_the_interval_decides(rates: list[float], outcome: str, code: int) -> None:
    runs = rate_runs(OURS, rates) + rate_runs("keras-fit-seed", [1000] * 3)
    verdict = judge(GOALS["keras-fit"], CPUS, runs)
    assert verdict.status == outcome
    assert exit_code([verdict]) == code


def test_one_repeat_cannot_tell() -> None:
    verdict = judge(GOALS["keras-fit"], CPUS, rate_runs(OURS, [9000]) + rate_runs("keras-fit-seed", [1000]))
    assert verdict.status == "open" and verdict.ratio and verdict.ratio.value == pytest.approx(9, rel=0.01)


def test_the_hardest_denominator_decides() -> None:
    runs = rate_runs(OURS, [4000] * 3) + rate_runs("pytorch-float32", [1000] * 3)
    verdict = judge(GOALS["pytorch"], CPUS, runs + rate_runs("pytorch-bfloat16", [2000] * 3))
    assert (verdict.status, verdict.against) == ("missed", "pytorch-bfloat16")
    unknown = judge(GOALS["pytorch"], CPUS, [*runs, bad_run("pytorch-bfloat16", "throughput", 0, "skipped")])
    assert (unknown.status, unknown.against, unknown.failed) == ("open", "pytorch-bfloat16", False)
    assert "SomeError" in unknown.detail
    assert exit_code([unknown]) == 3
    failed = judge(GOALS["pytorch"], CPUS, [*runs, bad_run("pytorch-bfloat16", "throughput", 0)])
    assert exit_code([failed]) == 1


def test_operations_against_matrix_products_say_what_is_counted() -> None:
    products = []
    for dtype, rate in (("bfloat16", 2e10), ("float32", 1e10)):
        for run in rate_runs(f"matmul-{dtype}", [20_000.0] * 3):
            assert run.measured
            run.measured.window_work[:] = [round(rate * seconds) for seconds in run.measured.window_seconds[0]]
            products.append(run)
    runs = rate_runs(OURS, [1000] * 3, flops_per_image=12_960_000)
    verdict = judge(GOALS["matmul"], CPUS, products + runs)
    assert verdict.ratio and verdict.ratio.value == pytest.approx(0.648, rel=0.02)
    assert verdict.against == "matmul-bfloat16"
    assert "12.96 MFLOP" in verdict.detail
    assert judge(GOALS["matmul"], CPUS, products + runs, on_gpus=True).status == "not for GPUs"


def test_times_are_compared_so_that_more_is_better() -> None:
    fast = "speedrun"
    runs = [time_run(fast, repeat, (2.0 + repeat / 50, 0.991)) for repeat in range(3)]
    runs += [time_run("keras-fit", repeat, (80.0, 0.985), (90.0 + repeat, 0.99)) for repeat in range(3)]
    verdict = judge(GOALS["time-keras"], CPUS, runs)
    assert verdict.status == "reached" and verdict.ratio and 44 < verdict.ratio.value < 46
    never = judge(GOALS["time-keras"], CPUS, [*runs[:3], time_run("keras-fit", 0, (80.0, 0.985))])
    assert never.status == "open" and "keras-fit: none of 1 runs reached 99 %" in never.detail


def test_verdicts_are_written(tmp_path: Path) -> None:
    verdicts = [judge(goal, CPUS, rate_runs(OURS, [5000] * 3)) for goal in GOALS.values()]
    text = write_goals(tmp_path, "mnist-dist bench perf", STUDY, verdicts)
    assert (tmp_path / "perf.md").read_text() == text
    assert all(f"`{name}`" in text for name in GOALS)
    goals = json.loads((tmp_path / "perf.json").read_text())["goals"]
    assert [goal["outcome"] for goal in goals] == ["open"] * len(GOALS)


def test_a_goal_is_a_ratio_above_zero() -> None:
    with pytest.raises(ValueError):
        Goal(name="a", description="b", numerator="c", denominators=["d"], at_least=0.0)
