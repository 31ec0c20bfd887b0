"""Times to an accuracy, and their ratios."""

import math

import numpy as np
import pytest

from mnist_dist.benchmarks.peers.times import time_ratio, time_to
from tests.benchmarks.peers.made import bad_record, time_record


def test_the_first_evaluation_that_reaches_the_accuracy_counts() -> None:
    runs = [
        time_record("keras-fit", 0, (2.0, 0.97), (4.0, 0.985), (6.0, 0.992)),
        time_record("keras-fit", 1, (3.0, 0.98), (5.0, 0.99)),
    ]
    time = time_to(runs, 0.98)
    assert time and (time.reached, time.runs, time.expected_seconds) == (2, 2, pytest.approx(3.5))
    assert time_to(runs, 0.99).expected_seconds == pytest.approx(5.5)  # type: ignore[union-attr]
    assert time_to([], 0.98) is None


def test_runs_that_miss_or_fail_cost_their_time() -> None:
    runs = [
        time_record("keras-fit", 0, (2.0, 0.99)),
        time_record("keras-fit", 1, (2.0, 0.98)),
        bad_record("keras-fit", "accuracy", 2, seconds=7.0),
    ]
    time = time_to([*runs, bad_record("keras-fit", "accuracy", 3, "skipped")], 0.99)
    assert time and (time.reached, time.runs, time.expected_seconds) == (1, 3, 11.0)
    never = time_to(runs, 0.995)
    assert never and math.isinf(never.expected_seconds)
    assert time_ratio(time, never) is None


def test_time_ratio() -> None:
    slow = time_to([time_record("keras-fit", repeat, (40.0 + repeat, 0.99)) for repeat in range(4)], 0.99)
    fast = time_to([time_record("speedrun", repeat, (2.0 + repeat / 20, 0.99)) for repeat in range(4)], 0.99)
    assert slow and fast
    ratio = time_ratio(slow, fast).at_level()  # type: ignore[union-attr]
    assert ratio.value == pytest.approx(166 / 8.3)
    assert ratio.high / ratio.low < 1.02, "both slow down together by the same share"
    single = time_ratio(*(time_to([time_record(name, 0, (2.0, 0.99))], 0.99) for name in ("keras-fit", "speedrun")))  # type: ignore[arg-type]
    assert single and single.value == pytest.approx(0) and math.isnan(single.at_level().low)


@pytest.mark.parametrize("success", [1.0, 0.7])
def test_the_interval_of_a_time_ratio_holds_the_truth_as_often_as_it_says(success: float) -> None:
    rng = np.random.default_rng(1)
    held = known = 0
    records = {name: [time_record(name, repeat, (1.0, 0.0)) for repeat in range(40)] for name in ("keras-fit", "ours")}
    for _ in range(400):
        times = []
        for name, mean in (("keras-fit", 20.0), ("ours", 2.0)):
            for record in records[name]:
                (row,) = (record.measurements or {})["evaluations"]
                row["training_seconds"] = mean * rng.lognormal(0, 0.1) - 0.5
                row["accuracy"] = 0.99 if rng.random() < success else 0.9
            times.append(time_to(records[name], 0.99))
        if found := time_ratio(*times):  # type: ignore[arg-type]
            ratio = found.at_level()
            known += 1
            held += ratio.low <= 10 <= ratio.high
    assert known > 390
    assert 0.91 <= held / known <= 0.98
