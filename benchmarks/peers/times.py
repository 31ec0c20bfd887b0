"""How long contestants take to an accuracy, and how many times longer one takes than another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.summary import seconds_to_accuracy
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import LogEstimate, expected_running_time


@dataclass(frozen=True)
class TimeTo:
    """How long one contestant takes to reach an accuracy, from the beginning of its first step, in its own turns."""

    reached: int
    runs: int  # Among them those that failed.
    expected_seconds: float  # See `statistics.stats.expected_running_time`; inf if no run reached it.
    outcomes: dict[int, tuple[float, bool]]  # By repeat: seconds, and whether the accuracy was reached in them.


def time_to(records: Sequence[Record], accuracy: float) -> TimeTo | None:
    """Returns how long one contestant takes to an accuracy on the test set; None if that was not measured.

    The evaluations that tell are part of the time. A run that failed has not reached it in all of its seconds.
    """
    outcomes = {}
    for record in records:
        if record.status == "skipped":
            continue
        has_evaluations = record.measured.get("evaluations")
        outcome = seconds_to_accuracy(record, accuracy) if has_evaluations else (record.seconds, False)
        outcomes[record.repeat] = outcome
    if not outcomes:
        return None
    seconds, reached = zip(*outcomes.values(), strict=True)
    return TimeTo(sum(reached), len(reached), expected_running_time(seconds, reached), outcomes)


def time_ratio(a: TimeTo, b: TimeTo) -> LogEstimate | None:
    """Estimates the logarithm of the expected time of `a` over that of `b`; None if either has none.

    The variance of the logarithm of an expected time, sum(t) / sum(r) over runs of t seconds with r = 1 where the
    accuracy was reached, is that of the mean of t / mean(t) - r / mean(r) (the delta method for ratios: Cochran,
    "Sampling techniques", 1977, section 6.3), here of the differences within repeats, whose runs took turns.
    """
    common = sorted(a.outcomes.keys() & b.outcomes.keys())
    tables = [np.array([each.outcomes[repeat] for repeat in common], float).reshape(-1, 2) for each in (a, b)]
    if not common or any(table[:, 1].sum() == 0 for table in tables):
        return None
    logs = [math.log(table[:, 0].sum() / table[:, 1].sum()) for table in tables]
    if len(common) == 1:
        return LogEstimate(logs[0] - logs[1], math.nan, math.nan, 1)
    influence = [table[:, 0] / table[:, 0].mean() - table[:, 1] / table[:, 1].mean() for table in tables]
    variance = float(np.var(influence[0] - influence[1], ddof=1)) / len(common)
    return LogEstimate(logs[0] - logs[1], variance, len(common) - 1, len(common))
