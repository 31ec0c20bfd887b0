"""All-reduce over message sizes: latency, algorithm and bus bandwidth, as nccl-tests define them.

https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record

LARGEST_LATENCY_BYTES = 64 * 2**10  # Of messages whose time is mostly latency, so that a bandwidth says little.


@dataclass(frozen=True)
class AllReduce:
    """One message size of one case.

    Attributes:
        seconds: of one all-reduce on the slowest rank: the median over the timings of all repeats.
        low: the 5th percentile of these timings.
        high: their 95th percentile.
    """

    case: Case
    size_bytes: int
    seconds: float
    low: float
    high: float
    repeats: int

    @property
    def algorithm_bandwidth(self) -> float:
        """Bytes of one rank's message per second."""
        return self.size_bytes / self.seconds

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second that each rank's link must carry, comparable between numbers of ranks."""
        return self.algorithm_bandwidth * 2 * (self.case.devices - 1) / self.case.devices

    @property
    def is_latency(self) -> bool:
        return self.size_bytes <= LARGEST_LATENCY_BYTES


def slowest_seconds(record: Record) -> dict[int, np.ndarray]:
    """Returns the times of one all-reduce on the slowest rank, float64 [timings], by the bytes of its message."""
    messages = (record.measurements or {}).get("messages", ())
    return {each["bytes"]: np.max(each["seconds"], axis=0) / each["calls"] for each in messages}


def measured_all_reduces(summaries: Iterable[CaseSummary]) -> list[AllReduce]:
    """Returns every message size of the cases that measure collectives, by case and size."""
    found = []
    for summary in summaries:
        timings: dict[int, list[float]] = {}
        for record in summary.records:
            for size, slowest in slowest_seconds(record).items():
                timings.setdefault(size, []).extend(slowest.tolist())
        for size, seconds in sorted(timings.items()):
            low, median, high = map(float, np.percentile(seconds, [5, 50, 95]))
            found.append(AllReduce(summary.case, size, median, low, high, len(summary.records)))
    return sorted(found, key=lambda each: (each.case.strategy, each.case.devices, each.case.hosts, each.size_bytes))
