"""Scaling efficiency: throughput on N devices against N times that of one, in the same study.

Weak: each device keeps its share of a batch. Strong: the devices share the batch of one. In both,
E(N) = X(N) / (N X(1)), where X(1) is the throughput of the strategy `single` with the cores one device has at N
(definitions: Hoefler and Belli, "Scientific benchmarking of parallel computing systems", SC 2015).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import STRATEGIES, Case
from mnist_dist.benchmarks.statistics.stats import Estimate

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
    curves = []
    for baseline in filter(_is_baseline, summaries):
        settings = _other_fields(baseline.case)
        comparable = [each for each in summaries if _other_fields(each.case) == settings]
        for scaling in ("weak", "strong"):
            fitting = [each for each in comparable if _keeps_batch(each.case, baseline.case, scaling)]
            curves += _curves_of(baseline, fitting, scaling)
    return curves


def efficiency(throughput: Estimate, devices: int, baseline: Estimate) -> Estimate:
    """Returns E(N) as a share, with the interval of a ratio of two independent estimates.

    The interval is Zou and Donner's (MOVER, Statistics in Medicine 27, 2008) on the logarithms, where a ratio is a
    difference: each bound adds the squares of both estimates' distances to their bounds.
    """
    if throughput is baseline:
        return Estimate(1.0, 1.0, 1.0, baseline.repeats)  # By definition.
    value = throughput.value / (devices * baseline.value)
    below = math.hypot(_log_ratio(throughput.value, throughput.low), _log_ratio(baseline.high, baseline.value))
    above = math.hypot(_log_ratio(throughput.high, throughput.value), _log_ratio(baseline.value, baseline.low))
    repeats = min(throughput.repeats, baseline.repeats)
    return Estimate(value, value * math.exp(-below), value * math.exp(above), repeats)


def is_oversubscribed(summary: CaseSummary) -> bool:
    """Whether the devices of a host were promised more cores than it has."""
    case = summary.case
    if case.cores_per_device is None:
        return False
    needed = case.devices / case.hosts * case.cores_per_device
    records = summary.records + summary.failures
    return any(needed > record.identity.hardware.cores for record in records)


def _curves_of(baseline: CaseSummary, fitting: Iterable[CaseSummary], scaling: Scaling) -> list[Curve]:
    by_strategy: dict[str, list[Point]] = {}
    for point in _points([baseline, *fitting], baseline):
        by_strategy.setdefault(point.summary.case.strategy, []).append(point)
    curves = []
    for strategy in STRATEGIES:
        points = by_strategy.get(strategy, [])
        if points and points[-1].devices > 1:
            start = [] if points[0].devices == 1 else by_strategy["single"]
            curves.append(Curve(scaling, strategy, baseline, (*start, *points)))
    return curves


def _points(summaries: Iterable[CaseSummary], baseline: CaseSummary) -> list[Point]:
    """The cases that have a throughput, each once, by rising numbers of devices."""
    single = baseline.images_per_second
    points = [
        Point(each, each.images_per_second, efficiency(each.images_per_second, each.case.devices, single))
        for each in {summary.case_id: summary for summary in summaries}.values()
        if each.images_per_second and single
    ]
    return sorted(points, key=lambda point: (point.devices, point.summary.case.hosts))


def _is_baseline(summary: CaseSummary) -> bool:
    case = summary.case
    is_single = case.kind == "train" and case.strategy == "single" and case.devices == 1 and not case.is_ablation
    return is_single and summary.images_per_second is not None


def _keeps_batch(case: Case, baseline: Case, scaling: Scaling) -> bool:
    batch = case.images_per_device if scaling == "weak" else case.global_batch_size
    return batch == baseline.global_batch_size


def _other_fields(case: Case) -> str:
    """What the points of a curve share, besides the strategy and the batch."""
    varying = {"strategy", "devices", "hosts", "global_batch_size"}
    return json.dumps(case.model_dump(mode="json", exclude=varying), sort_keys=True)


def _log_ratio(high: float, low: float) -> float:
    return math.inf if low <= 0 else math.log(high / low)  # nan, where a bound is not known, stays nan.
