"""Throughputs, times to an accuracy, and their ratios."""

import math

import numpy as np
import pytest

from mnist_dist.benchmarks.peers.estimates import throughput, throughput_ratio, time_ratio, time_to
from tests.benchmarks.peers.runs import bad_run, rate_runs, time_run


def test_throughput_and_ratio() -> None:
    base, new = throughput(rate_runs("base", [1000] * 3)), throughput(rate_runs("other", [4000] * 3))
    assert base.rate and base.rate.value == pytest.approx(1000, rel=0.01)
    assert base.rate.low < base.rate.value < base.rate.high
    ratio = throughput_ratio(base, new)
    assert ratio and ratio.repeats == 3
    assert ratio.low < 4 < ratio.high or ratio.value == pytest.approx(4, rel=0.01)
    assert ratio.high / ratio.low < 1.1


def test_what_slows_a_whole_repeat_does_not_widen_the_ratio() -> None:
    drift = np.array([1.0, 0.5, 0.7])
    base, new = throughput(rate_runs("base", 1000 * drift)), throughput(rate_runs("other", 2000 * drift))
    ratio = throughput_ratio(base, new)
    assert base.rate and base.rate.high / base.rate.low > 2, "apart, the repeats differ"
    assert ratio and ratio.high / ratio.low < 1.1


def test_only_common_repeats_are_compared() -> None:
    base = throughput([*rate_runs("base", [1000, 1000]), bad_run("base", "throughput", 2)])
    new = throughput(rate_runs("other", [2000, 2000, 9000]))
    ratio = throughput_ratio(base, new)
    assert ratio and ratio.repeats == 2 and ratio.value == pytest.approx(2, rel=0.02)


def test_operations_are_counted_where_asked_for() -> None:
    runs = rate_runs("base", [1000] * 2, flops_per_image=12)
    assert throughput(runs, per_image=True).rate.value == pytest.approx(12_000, rel=0.01)  # type: ignore[union-attr]
    assert throughput(runs).rate.value == pytest.approx(1000, rel=0.01)  # type: ignore[union-attr]
    assert throughput(rate_runs("base", [1000]), per_image=True).rate is None


def test_a_rate_that_is_not_steady_is_none() -> None:
    runs = rate_runs("base", [1000] * 2)
    for run in runs:
        assert run.measured
        run.measured.window_seconds[0][:] = np.linspace(1, 3, 40).tolist()
    found = throughput(runs)
    assert found.rate is None and found.why_unknown and found.why_unknown.startswith("unstable")
    assert throughput(runs, steady=False).rate is not None
    assert throughput_ratio(found, throughput(rate_runs("other", [1] * 2))) is None


def test_the_first_evaluation_that_reaches_the_accuracy_counts() -> None:
    runs = [time_run("a", 0, (2.0, 0.97), (4.0, 0.985), (6.0, 0.992)), time_run("a", 1, (3.0, 0.98), (5.0, 0.99))]
    time = time_to(runs, 0.98)
    assert time and (time.reached, time.runs, time.expected_seconds) == (2, 2, pytest.approx(3.5))
    assert time_to(runs, 0.99).expected_seconds == pytest.approx(5.5)  # type: ignore[union-attr]
    assert time_to([], 0.98) is None


def test_runs_that_miss_or_fail_cost_their_time() -> None:
    runs = [time_run("a", 0, (2.0, 0.99)), time_run("a", 1, (2.0, 0.98)), bad_run("a", "accuracy", 2, seconds=7.0)]
    time = time_to([*runs, bad_run("a", "accuracy", 3, "skipped")], 0.99)
    assert time and (time.reached, time.runs, time.expected_seconds) == (1, 3, 11.0)
    never = time_to(runs, 0.995)
    assert never and math.isinf(never.expected_seconds)
    assert time_ratio(never, time) is None


def test_time_ratio() -> None:
    slow = [time_run("slow", repeat, (40.0 + repeat, 0.99)) for repeat in range(4)]
    fast = [time_run("fast", repeat, (2.0 + repeat / 20, 0.99)) for repeat in range(4)]
    times = time_to(slow, 0.99), time_to(fast, 0.99)
    assert times[0] and times[1]
    ratio = time_ratio(times[0], times[1])
    assert ratio and ratio.value == pytest.approx(166 / 8.3)
    assert ratio.high / ratio.low < 1.02, "both slow down together by the same share"
    single = time_ratio(*(time_to(runs[:1], 0.99) for runs in (slow, fast)))  # type: ignore[arg-type]
    assert single and single.value == pytest.approx(20) and math.isnan(single.low)


@pytest.mark.parametrize("success", [1.0, 0.7])
def test_the_interval_of_a_time_ratio_holds_the_truth_as_often_as_it_says(success: float) -> None:
    rng = np.random.default_rng(1)
    held = known = 0
    for _ in range(400):
        runs = {
            name: [
                time_run(name, repeat, (mean * rng.lognormal(0, 0.1), 0.99 if rng.random() < success else 0.9))
                for repeat in range(40)
            ]
            for name, mean in (("slow", 20.0), ("fast", 2.0))
        }
        ratio = time_ratio(*(time_to(runs[name], 0.99) for name in ("slow", "fast")))  # type: ignore[arg-type]
        if ratio:
            known += 1
            held += ratio.low <= 10 <= ratio.high
    assert known > 390
    assert 0.91 <= held / known <= 0.98
