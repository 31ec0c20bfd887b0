"""Goals and verdicts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.peers.contestants import OURS
from mnist_dist.benchmarks.peers.goals import (
    Goal,
    exit_code,
    groups,
    judge,
    load_goals,
    write_goals,
)
from tests.benchmarks.peers.made import CONTESTANTS, bad_record, rate_record, rate_records, time_record

GOALS = {goal.name: goal for goal in load_goals()}


def test_every_goal_names_contestants_that_measure_it() -> None:
    for goal in GOALS.values():
        for name in (goal.numerator, *goal.denominators):
            assert CONTESTANTS[name].case(goal.mode) is not None, f"{goal.name}: {name}"


def test_an_unknown_goal_is_named(user_error: Callable[..., str]) -> None:
    assert "Did you mean 'pytorch'?" in user_error(load_goals, ["pytorchs"])


def test_goals_that_share_a_contestant_are_measured_together() -> None:
    found = [{goal.name for goal in group} for group in groups(load_goals())]
    assert sorted(map(sorted, found)) == [
        ["input-cost", "input-rate", "keras-fit", "matmul", "pytorch"],
        ["ranks-horovod", "ranks-multiworker"],
        ["time-fast-mnist", "time-keras"],
    ]


@pytest.mark.parametrize(
    ("rates", "outcome", "code"),
    [([5000, 5100, 4900], "reached", 0), ([3000, 3100, 2900], "missed", 1), ([3000, 4000, 5500], "open", 3)],
)
def test_the_interval_decides(rates: list[float], outcome: str, code: int) -> None:
    runs = rate_records(OURS, rates) + rate_records("keras-fit-seed", [1000] * 3)
    verdict = judge(GOALS["keras-fit"], CONTESTANTS, runs)
    assert verdict.outcome == outcome
    assert exit_code([verdict]) == code


def test_the_hardest_denominator_decides() -> None:
    runs = rate_records(OURS, [4000] * 3) + rate_records("pytorch-float32", [1000] * 3)
    verdict = judge(GOALS["pytorch"], CONTESTANTS, runs + rate_records("pytorch-bfloat16", [2000] * 3))
    assert (verdict.outcome, verdict.against) == ("missed", "pytorch-bfloat16")
    unknown = judge(GOALS["pytorch"], CONTESTANTS, [*runs, bad_record("pytorch-bfloat16", "throughput", 0, "skipped")])
    assert (unknown.outcome, unknown.against, unknown.failed) == ("open", "pytorch-bfloat16", False)
    assert "SomeError" in unknown.detail
    assert exit_code([unknown]) == 3
    failed = judge(GOALS["pytorch"], CONTESTANTS, [*runs, bad_record("pytorch-bfloat16", "throughput", 0)])
    assert exit_code([failed]) == 1


def test_operations_against_matrix_products_say_what_is_counted() -> None:
    records = rate_records("matmul-bfloat16", [2e10] * 3) + rate_records("matmul-float32", [1e10] * 3)
    records += rate_records(OURS, [1000] * 3)
    judged = judge(GOALS["matmul"], CONTESTANTS, records)
    assert judged.ratio and judged.ratio.value == pytest.approx(0.648, rel=0.02)
    assert judged.against == "matmul-bfloat16"
    assert " / 20 GFLOP/s, at 12.96 MFLOP" in judged.detail
    assert judge(GOALS["matmul"], CONTESTANTS, records, on_gpus=True).outcome == "not for GPUs"


def test_a_variant_of_our_own_steps() -> None:
    record = rate_record(OURS, 0, [3960.0, 4000.0] * 20)
    measured = dict(record.measurements or {})
    measured["window_cycles"] = [cycle // 2 for cycle in range(40)]
    measured["window_variants"] = ["full", "resident"] * 20
    judged = judge(GOALS["input-cost"], CONTESTANTS, [record.model_copy(update={"measurements": measured})])
    assert judged.outcome == "reached" and judged.ratio and judged.ratio.value == pytest.approx(0.99, rel=0.005)
    without = judge(GOALS["input-cost"], CONTESTANTS, [record])
    assert without.outcome == "open" and without.detail == "synthetic: not measured"


def test_a_repeat_that_ended_well_at_last_has_not_failed() -> None:
    records = [bad_record(OURS, "throughput", 0), *rate_records(OURS, [5000] * 3)]
    judged = judge(GOALS["keras-fit"], CONTESTANTS, records + rate_records("keras-fit-seed", [1000] * 3))
    assert judged.outcome == "reached" and not judged.failed


def test_times_are_compared_so_that_more_is_better() -> None:
    fast = "speedrun"
    runs = [time_record(fast, repeat, (2.0 + repeat / 50, 0.991)) for repeat in range(3)]
    runs += [time_record("keras-fit", repeat, (80.0, 0.985), (90.0 + repeat, 0.99)) for repeat in range(3)]
    verdict = judge(GOALS["time-keras"], CONTESTANTS, runs)
    assert verdict.outcome == "reached" and verdict.ratio and 44 < verdict.ratio.value < 46
    never = judge(GOALS["time-keras"], CONTESTANTS, [*runs[:3], time_record("keras-fit", 0, (80.0, 0.985))])
    assert never.outcome == "open" and "keras-fit: none of 1 run reached 99 %" in never.detail


def test_verdicts_are_written(tmp_path: Path) -> None:
    records = rate_records(OURS, [5000] * 3)
    judged = [judge(goal, CONTESTANTS, records) for goal in GOALS.values()]
    text = write_goals(tmp_path, "mnist-dist bench perf", records, judged)
    assert (tmp_path / "perf.md").read_text() == text
    assert all(f"`{name}`" in text for name in GOALS)
    goals = json.loads((tmp_path / "perf.json").read_text())["goals"]
    assert [goal["outcome"] for goal in goals] == ["open"] * len(GOALS)


def test_a_goal_is_a_ratio_above_zero() -> None:
    with pytest.raises(ValueError):
        Goal(name="a", description="b", numerator="c", denominators=["d"], at_least=0.0)
