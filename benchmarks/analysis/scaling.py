"""Scaling efficiency: throughput on N devices against N times that of one, in the same study.

Weak: each device keeps its share of a batch. Strong: the devices share the batch of one. In both,
E(N) = X(N) / (N X(1)), where X(1) is the throughput of the strategy `single` with the cores one device has at N
(definitions: Hoefler and Belli, "Scientific benchmarking of parallel computing systems", SC 2015).
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mnist_dist.benchmarks.analysis.compare import DAY_HALF_WIDTH
from mnist_dist.benchmarks.analysis.in_turns import of_fresh_processes, ratio_of_total_rates
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.strategies import BASELINE, STRATEGIES

Scaling = Literal["weak", "strong"]


@dataclass(frozen=True)
class Point:
    """One case on a curve. `efficiency` is a share: 1 is ideal."""

    summary: CaseSummary
    throughput: Estimate
    efficiency: Estimate

    @property
    def devices(self) -> int:
        return self.summary.case.devices


@dataclass(frozen=True)
class Curve:
    """Cases of one strategy that differ in their number of devices only, with rising numbers.

    The first point is the strategy on one device where that was measured, else the baseline, which is always `single`.
    """

    scaling: Scaling
    strategy: str
    baseline: CaseSummary
    points: tuple[Point, ...]


def find_curves(summaries: Sequence[CaseSummary]) -> list[Curve]:
    """Returns the weak and strong curves that have a baseline and a measured point on several devices."""
    comparable = group_by(summaries, lambda summary: _other_fields(summary.case))
    curves = []
    for baseline in (each for each in summaries if each.case.is_baseline and each.images_per_second):
        others, images = comparable[_other_fields(baseline.case)], baseline.case.global_batch_size
        weak = [each for each in others if each.case.images_per_device == images]
        strong = [each for each in others if each.case.global_batch_size == images]
        curves += [*_curves_of(baseline, weak, "weak"), *_curves_of(baseline, strong, "strong")]
    return curves


def efficiency(summary: CaseSummary, baseline: CaseSummary) -> Estimate:
    """Returns E(N) as a share of two cases that have a throughput.

    Cases that took turns are compared within each cycle, as what slows the machine down meanwhile slows both. Others,
    as of several Slurm jobs, are independent.
    """
    devices, own, single = summary.case.devices, summary.images_per_second, baseline.images_per_second
    if own is None or single is None:
        raise ValueError("expected cases with a throughput")
    if own is single:
        return Estimate(1.0, 1.0, 1.0, single.repeats)  # By definition.
    in_turns = ratio_of_total_rates(summary.records, baseline.records)
    ratio = in_turns.at_level() if in_turns else independent_ratio(own, single)
    return Estimate(ratio.value / devices, ratio.low / devices, ratio.high / devices, ratio.repeats)


def rate_ratio(new: CaseSummary, base: CaseSummary, third: CaseSummary) -> Estimate:
    """Returns how many times as fast one case is as another, of cases that have a throughput.

    Cases that shared no round, but each one with a third, are compared by way of that, as the machine may have had
    another pace. The interval includes what `bench compare` assumes where a single round or run does not tell it.
    """
    if ratio := _ratio_in_turns(new, base):
        return ratio
    by_third = _ratio_in_turns(new, third), _ratio_in_turns(base, third)
    if by_third[0] and by_third[1]:
        return independent_ratio(by_third[0], by_third[1])
    own, other = new.images_per_second, base.images_per_second
    if own is None or other is None:
        raise ValueError("expected cases with a throughput")
    ratio = independent_ratio(own, other)
    days = Estimate(1.0, math.exp(-DAY_HALF_WIDTH), math.exp(DAY_HALF_WIDTH), 1)
    return independent_ratio(ratio, days) if ratio.repeats == 1 else ratio


def _ratio_in_turns(new: CaseSummary, base: CaseSummary) -> Estimate | None:
    ratio = ratio_of_total_rates(new.records, base.records)
    return of_fresh_processes(ratio).at_level() if ratio else None


def independent_ratio(new: Estimate, base: Estimate) -> Estimate:
    """Returns the ratio of two independent estimates.

    The interval is Zou and Donner's (MOVER, Statistics in Medicine 27, 2008) on the logarithms, where a ratio is a
    difference: each bound adds the squares of both estimates' distances to their bounds.
    """
    value = new.value / base.value
    below = math.hypot(_log_ratio(new.value, new.low), _log_ratio(base.high, base.value))
    above = math.hypot(_log_ratio(new.high, new.value), _log_ratio(base.value, base.low))
    return Estimate(value, value * math.exp(-below), value * math.exp(above), min(new.repeats, base.repeats))


def is_oversubscribed(summary: CaseSummary) -> bool:
    """Whether the devices of a host were promised more cores than it has."""
    case = summary.case
    if case.cores_per_device is None:
        return False
    needed = case.devices / case.hosts * case.cores_per_device
    records = summary.records + summary.failures
    return any(needed > record.identity.hardware.cores for record in records)


def _curves_of(baseline: CaseSummary, fitting: Iterable[CaseSummary], scaling: Scaling) -> list[Curve]:
    by_strategy = group_by(_points([baseline, *fitting], baseline), lambda point: point.summary.case.strategy)
    curves = []
    for strategy in STRATEGIES:
        points = by_strategy.get(strategy, [])
        if points and points[-1].devices > 1:
            start = [] if points[0].devices == 1 else by_strategy[BASELINE]
            curves.append(Curve(scaling, strategy, baseline, (*start, *points)))
    return curves


def _points(summaries: Iterable[CaseSummary], baseline: CaseSummary) -> list[Point]:
    """The cases that have a throughput, each once, by rising numbers of devices."""
    points = [
        Point(each, each.images_per_second, efficiency(each, baseline))
        for each in {summary.case_id: summary for summary in summaries}.values()
        if each.images_per_second
    ]
    return sorted(points, key=lambda point: (point.devices, point.summary.case.hosts))


def _other_fields(case: Case) -> str:
    """What the points of a curve share, besides the strategy and the batch."""
    varying = {"strategy", "devices", "hosts", "global_batch_size"}
    return json.dumps(case.model_dump(mode="json", exclude=varying), sort_keys=True)


def _log_ratio(high: float, low: float) -> float:
    return math.inf if low <= 0 else math.log(high / low)  # nan, where a bound is not known, stays nan.
