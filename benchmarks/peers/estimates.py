"""What the runs of contestants say together: throughputs, times to an accuracy, and ratios of either with intervals.

All contestants of a repeat ran one after the other, so ratios are taken pair by pair: what slowed the machine down
during a repeat slowed both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.summary import why_unstable
from mnist_dist.benchmarks.peers.runs import Run
from mnist_dist.benchmarks.statistics.stats import (
    Estimate,
    LogEstimate,
    Series,
    estimate_rate,
    estimate_ratio,
    expected_running_time,
)
from mnist_dist.benchmarks.statistics.steady_state import SteadyState, find_steady_state, merge_windows


@dataclass(frozen=True, eq=False)
class Throughput:
    """Work over seconds of one contestant.

    Attributes:
        rate: work of all devices per second; None if it is not known.
        why_unknown: in words; None if the rate is known.
        series: the steady windows of each repeat, by its number.
    """

    rate: Estimate | None
    why_unknown: str | None
    series: dict[int, Series]


@dataclass(frozen=True)
class TimeTo:
    """How long one contestant takes to reach an accuracy, from the beginning of its first step.

    Attributes:
        reached: of `runs` runs, among them those that failed.
        expected_seconds: what repeating until success takes, see `statistics.stats.expected_running_time`; inf if no
            run reached it.
        outcomes: seconds, and whether the accuracy was reached in them, by repeat.
    """

    reached: int
    runs: int
    expected_seconds: float
    outcomes: dict[int, tuple[float, bool]]


def throughput(runs: Sequence[Run], *, steady: bool = True, per_image: bool = False) -> Throughput:
    """Estimates the throughput of one contestant.

    Args:
        steady: leave the warm-up out, and give no rate where no steady state is found.
        per_image: count the floating-point operations of the images instead of the images.
    """
    ok = {run.repeat: run.measured for run in runs if run.mode == "throughput" and run.measured is not None}
    if not ok:
        return Throughput(None, why_none([run for run in runs if run.mode == "throughput"]), {})
    states = {repeat: SteadyState(0, 0) for repeat in ok}
    if steady:
        states = {repeat: find_steady_state(each.window_work, each.window_seconds) for repeat, each in ok.items()}
        unstable = why_unstable(list(states.values()))
        if unstable:
            return Throughput(None, f"unstable: {unstable}", {})
    series = {}
    for repeat, measured in ok.items():
        first = states[repeat].first_window
        work, seconds, _ = merge_windows(measured.window_work[first:], [row[first:] for row in measured.window_seconds])
        slowest = seconds[np.argmax(seconds.sum(axis=1))]
        if per_image and measured.flops_per_image is None:
            return Throughput(None, "the floating-point operations of an image are not known", {})
        series[repeat] = Series(work * float(measured.flops_per_image or 1 if per_image else 1), slowest)
    return Throughput(estimate_rate(list(series.values())).at_level(), None, series)


def throughput_ratio(base: Throughput, new: Throughput) -> Estimate | None:
    """Returns the rate of `new` over that of `base`; None where one is not known."""
    common = sorted(base.series.keys() & new.series.keys())
    if not common:
        return None
    pairs = [[each.series[repeat] for repeat in common] for each in (base, new)]
    return estimate_ratio(*pairs, paired=True).at_level()


def time_to(runs: Sequence[Run], accuracy: float) -> TimeTo | None:
    """Returns how long one contestant takes to an accuracy; None if that was not measured.

    The evaluations that tell are part of the time. A run that failed has not reached it in all of its seconds.
    """
    outcomes = {}
    for run in runs:
        if run.mode != "accuracy" or run.status == "skipped":
            continue
        evaluations = run.measured.evaluations if run.measured else []
        first = next((each for each in evaluations if each.accuracy >= accuracy), None)
        decisive = first or (evaluations[-1] if evaluations else None)
        outcomes[run.repeat] = (decisive.seconds if decisive else run.seconds, first is not None)
    if not outcomes:
        return None
    seconds, reached = zip(*outcomes.values(), strict=True)
    return TimeTo(sum(reached), len(reached), expected_running_time(seconds, reached), outcomes)


def time_ratio(base: TimeTo, new: TimeTo) -> Estimate | None:
    """Returns how many times faster `new` is: the expected time of `base` over that of `new`; None if either has none.

    The variance of the logarithm of an expected time, sum(t) / sum(r) over runs of t seconds with r = 1 where the
    accuracy was reached, is that of the mean of t / mean(t) - r / mean(r) (the delta method for ratios: Cochran,
    "Sampling techniques", 1977, section 6.3), here of the differences within pairs.
    """
    common = sorted(base.outcomes.keys() & new.outcomes.keys())
    tables = [np.array([each.outcomes[repeat] for repeat in common], float).reshape(-1, 2) for each in (base, new)]
    if not common or any(table[:, 1].sum() == 0 for table in tables):
        return None
    logs = [math.log(table[:, 0].sum() / table[:, 1].sum()) for table in tables]
    if len(common) == 1:
        return LogEstimate(logs[0] - logs[1], math.nan, math.nan, 1).at_level()
    influence = [table[:, 0] / table[:, 0].mean() - table[:, 1] / table[:, 1].mean() for table in tables]
    variance = float(np.var(influence[0] - influence[1], ddof=1)) / len(common)
    return LogEstimate(logs[0] - logs[1], variance, len(common) - 1, len(common)).at_level()


def why_none(runs: Sequence[Run]) -> str:
    """Says why runs measured nothing."""
    reasons = [f"{run.status.replace('_', ' ')}: {run.reason}" for run in runs if run.reason]
    return reasons[0] if reasons else "not measured"
