"""Matrix products: the rate that the devices reach, to which MFU relates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import Series, estimate_rate


@dataclass(frozen=True)
class MatmulRate:
    """Floating-point operations per second of all devices of a case together, over the timings of all repeats.

    Attributes:
        size: n of the product of two n x n matrices, which takes 2 n^3 operations.
        value: all operations over all seconds; `low` and `high` are the 5th and 95th percentile of the timings.
    """

    case: Case
    dtype: str
    size: int
    value: float
    low: float
    high: float
    repeats: int


def matmul_series(record: Record) -> Series:
    """Returns the timings of a run: all of equal work, so that their total rate is the harmonic mean of their rates."""
    rates = np.asarray((record.measurements or {})["flops_per_second"])
    return Series(np.ones(len(rates)), 1 / rates)


def measured_rates(summaries: Iterable[CaseSummary]) -> list[MatmulRate]:
    """Returns the rate of every case that multiplies matrices, by type and number of devices."""
    found = []
    for summary in summaries:
        by_product: dict[tuple[str, int], list[Series]] = {}
        for record in summary.records:
            measured = record.measurements or {}
            if "flops_per_second" in measured:
                by_product.setdefault((measured["dtype"], measured["size"]), []).append(matmul_series(record))
        for (dtype, size), repeats in by_product.items():
            low, high = np.percentile(np.concatenate([1 / each.seconds for each in repeats]), [5, 95]).tolist()
            rate = estimate_rate(repeats).at_level().value
            found.append(MatmulRate(summary.case, dtype, size, rate, low, high, len(summary.records)))
    return sorted(found, key=lambda each: (each.dtype, each.case.devices, each.case.hosts))
