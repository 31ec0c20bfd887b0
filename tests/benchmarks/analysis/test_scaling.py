"""Which cases make a scaling curve, and how efficient they are."""

import math
from typing import Any

import pytest

from mnist_dist.benchmarks.analysis.scaling import Curve, find_curves, independent_ratio, is_oversubscribed
from mnist_dist.benchmarks.analysis.summary import CaseSummary, summarize
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.statistics.stats import Estimate
from tests.benchmarks.factory import (
    BFLOAT16,
    EXPOSED_SHARE,
    GRADIENT_BYTES,
    INPUT_SHARE,
    MULTI_HOST,
    OVERSUBSCRIBED,
    ablations,
    all_reduce_seconds,
    compute_seconds,
    make_study,
    strong,
    train,
)

SINGLE = train("single", 1)


def summaries_of(*cases: Case, **options: Any) -> list[CaseSummary]:
    records = make_study(cases, 3, **options)
    return [summarize([record for record in records if record.case_id == case.case_id]) for case in cases]


def names(curve: Curve) -> tuple[Any, ...]:
    points = [(point.summary.case.strategy, point.devices) for point in curve.points]
    return curve.scaling, curve.strategy, points


def test_curves_start_at_the_single_device() -> None:
    curves = find_curves(summaries_of(train("horovod", 4), SINGLE, train("horovod", 2)))
    assert [names(curve) for curve in curves] == [("weak", "horovod", [("single", 1), ("horovod", 2), ("horovod", 4)])]
    assert curves[0].points[0].efficiency == Estimate(1.0, 1.0, 1.0, 3)


def test_a_strategy_on_one_device_is_compared_with_single() -> None:
    (curve,) = find_curves(summaries_of(SINGLE, train("horovod", 1), train("horovod", 2)))
    assert names(curve) == ("weak", "horovod", [("horovod", 1), ("horovod", 2)])
    assert curve.baseline.case == SINGLE
    assert curve.points[0].efficiency.value != 1


def test_weak_and_strong_share_their_baseline() -> None:
    timed = train("single", 1, measure_seconds=6.0)
    weak = train("mirrored", 2, measure_seconds=6.0)
    curves = find_curves(summaries_of(timed, weak, strong("mirrored", 2)))
    assert [(curve.scaling, curve.points[-1].summary.case.global_batch_size) for curve in curves] == [
        ("weak", 256),
        ("strong", 128),
    ]


@pytest.mark.parametrize(
    "other",
    [
        train("horovod", 2, settings=BFLOAT16),
        train("horovod", 2, cores_per_device=4),
        train("horovod", 2, measure_seconds=6.0),
        train("horovod", 2, global_batch_size=192),
        ablations(train("horovod", 2))[0],
        train("horovod", 2, kind="collectives"),
    ],
    ids=["precision", "cores", "duration", "batch", "ablation", "kind"],
)
def test_what_differs_in_more_than_its_devices_is_no_point(other: Case) -> None:
    assert find_curves(summaries_of(SINGLE, other)) == []


def test_no_curve_without_a_baseline_that_has_a_throughput() -> None:
    assert find_curves(summaries_of(train("horovod", 1), train("horovod", 2))) == []
    assert find_curves(summaries_of(SINGLE, train("horovod", 2), unstable=[SINGLE])) == []
    assert find_curves(summaries_of(SINGLE, train("horovod", 2), failing=[SINGLE])) == []


def test_points_without_a_throughput_are_left_out() -> None:
    failing = train("horovod", 4)
    (curve,) = find_curves(summaries_of(SINGLE, train("horovod", 2), failing, failing=[failing]))
    assert [point.devices for point in curve.points] == [1, 2]


def test_several_hosts_belong_to_the_curve() -> None:
    # Not three epochs: so many devices take too few steps in them to settle.
    cases = [case.model_copy(update={"measure_seconds": 6.0}) for case in (SINGLE, MULTI_HOST)]
    (curve,) = find_curves(summaries_of(*cases))
    assert curve.points[-1].summary.case.hosts == 2


@pytest.mark.parametrize("case", [train("mirrored", 2), train("multiworker", 4), train("horovod", 4)])
def test_efficiency_is_what_the_costs_behind_the_records_say(case: Case) -> None:
    (curve,) = find_curves(summaries_of(SINGLE, case))
    single = compute_seconds(SINGLE).max() * (1 + INPUT_SHARE)
    step = compute_seconds(case).max() * (1 + INPUT_SHARE) + EXPOSED_SHARE * all_reduce_seconds(case, GRADIENT_BYTES)
    assert curve.points[-1].efficiency.value == pytest.approx(single / step, rel=0.03)


def test_the_interval_of_a_ratio_adds_both_uncertainties() -> None:
    ten_percent = Estimate(200.0, 200 / 1.1, 200 * 1.1, 5)
    result = independent_ratio(ten_percent, Estimate(200.0, 200 / 1.1, 200 * 1.1, 3))
    half = math.sqrt(2) * math.log(1.1)
    assert (result.value, result.low, result.high) == pytest.approx((1.0, math.exp(-half), math.exp(half)))
    assert result.repeats == 3


def test_each_bound_of_a_ratio_uses_the_opposite_bound_of_the_baseline() -> None:
    exact = Estimate(100.0, 100.0, 100.0, 3)
    result = independent_ratio(exact, Estimate(100.0, 50.0, 110.0, 3))
    assert (result.low, result.high) == pytest.approx((100 / 110, 2.0))


def test_an_unknown_bound_stays_unknown() -> None:
    known = Estimate(100.0, 90.0, 110.0, 3)
    result = independent_ratio(Estimate(90.0, math.nan, math.nan, 1), known)
    assert result.value == pytest.approx(0.9)
    assert math.isnan(result.low) and math.isnan(result.high)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (OVERSUBSCRIBED, True),
        (MULTI_HOST, False),
        (train("horovod", 4), False),
        (train("single", 1, cores_per_device=None), False),
        (train("horovod", 3, cores_per_device=3, global_batch_size=384), True),
    ],
)
def test_oversubscribed(case: Case, expected: bool) -> None:
    (summary,) = summaries_of(case)
    assert is_oversubscribed(summary) is expected
