"""Matrix products: the rate that the devices reach, to which MFU relates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case


@dataclass(frozen=True)
class MatmulRate:
    """Floating-point operations per second of all devices of a case together, over the timings of all repeats.

    Attributes:
        size: n of the product of two n x n matrices, which takes 2 n^3 operations.
        value: the median; `low` and `high` are the 5th and 95th percentile.
    """

    case: Case
    dtype: str
    size: int
    value: float
    low: float
    high: float
    repeats: int


def measured_rates(summaries: Iterable[CaseSummary]) -> list[MatmulRate]:
    """Returns the rate of every case that multiplies matrices, by type and number of devices."""
    found = []
    for summary in summaries:
        timings: dict[tuple[str, int], list[float]] = {}
        for measured in (record.measurements or {} for record in summary.records):
            if "flops_per_second" in measured:
                timings.setdefault((measured["dtype"], measured["size"]), []).extend(measured["flops_per_second"])
        for (dtype, size), rates in timings.items():
            low, median, high = map(float, np.percentile(rates, [5, 50, 95]))
            found.append(MatmulRate(summary.case, dtype, size, median, low, high, len(summary.records)))
    return sorted(found, key=lambda each: (each.dtype, each.case.devices, each.case.hosts))
