"""What devices and the links between them reach by themselves: matrix products and all-reduces.

Latency, algorithm and bus bandwidth are as nccl-tests define them:
https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, on_gpus
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import Series, estimate_rate

LARGEST_LATENCY_BYTES = 64 * 2**10  # Of messages whose time is mostly latency, so that a bandwidth says little.


@dataclass(frozen=True)
class AllReduce:
    """One message size of one case.

    Attributes:
        seconds: of one all-reduce on the slowest rank: the median over the timings of all repeats.
        low, high: the 5th and 95th percentile of these timings.
    """

    case: Case
    size_bytes: int
    seconds: float
    low: float
    high: float
    on_gpus: bool = False

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
    messages = record.measured.get("messages", ())
    return {each["bytes"]: np.max(each["seconds"], axis=0) / each["calls"] for each in messages}


def measured_all_reduces(summaries: Iterable[CaseSummary]) -> list[AllReduce]:
    """Returns every message size of the cases that measure collectives, by case and size."""
    found = []
    for summary in summaries:
        messages = [message for record in summary.records for message in slowest_seconds(record).items()]
        for size, of_size in group_by(messages, lambda message: message[0]).items():
            low, median, high = np.percentile(np.concatenate([times for _, times in of_size]), [5, 50, 95]).tolist()
            found.append(AllReduce(summary.case, size, median, low, high, on_gpus(summary.records)))
    return sorted(found, key=lambda each: (each.case.strategy, each.case.devices, each.case.hosts, each.size_bytes))


@dataclass(frozen=True)
class MatmulRate:
    """Floating-point operations per second of all devices of a case together, over the timings of all repeats.

    Attributes:
        size: n of the product of two n x n matrices, which takes 2 n^3 operations.
        value: all operations over all seconds; `low` and `high` are the 5th and 95th percentile of the timings.
    """

    case: Case
    on_gpus: bool
    dtype: str
    size: int
    value: float
    low: float
    high: float


def matmul_series(record: Record) -> Series:
    """Returns the timings of a run: all of equal work, so that their total rate is the harmonic mean of their rates."""
    rates = np.asarray(record.measured["flops_per_second"])
    return Series(np.ones(len(rates)), 1 / rates)


def measured_rates(summaries: Iterable[CaseSummary]) -> list[MatmulRate]:
    """Returns the rate of every case that multiplies matrices, by type and number of devices."""
    found = []
    for summary in summaries:
        products = [each for each in summary.records if "flops_per_second" in each.measured]
        by_product = group_by(products, lambda record: (record.measured["dtype"], record.measured["size"]))
        for (dtype, size), of_product in by_product.items():
            repeats = [matmul_series(record) for record in of_product]
            low, high = np.percentile(np.concatenate([1 / each.seconds for each in repeats]), [5, 95]).tolist()
            rate = estimate_rate(repeats).at_level().value
            found.append(MatmulRate(summary.case, on_gpus(summary.records), dtype, size, rate, low, high))
    return sorted(found, key=lambda each: (each.dtype, each.case.devices, each.case.hosts))
