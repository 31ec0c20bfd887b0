"""All-reduce over message sizes: the latency of small messages and the bandwidth of large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from mnist_dist.benchmarks.analysis.limits import AllReduce, slowest_seconds
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.labels import label_bytes, label_count, label_devices, label_range, label_three_digits
from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.records.kinds import Measurements, NoRateError, WorkerKind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.sections import Section
from mnist_dist.benchmarks.report.table import Column, make_table
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import Config, NonNegativeInt, PositiveFloat, PositiveInt
from mnist_dist.config import Section as Fields
from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.turns import FULL, Turns
from mnist_dist.lazy import tf
from mnist_dist.loops import repeat
from mnist_dist.runtime import Runtime

MESSAGE_BYTES = tuple(4 * 8**exponent for exponent in range(9))  # 4 B to 64 MiB.
GPU_MESSAGE_BYTES = (*MESSAGE_BYTES, 2**28, 2**30)  # Links of GPUs are at their fastest with the largest alone.


def make_reduce_many(strategy: Strategy, size: int) -> Callable[[int], Any]:
    """Returns a function that sums a message of ones so often; of n replicas on this host, it returns n squared.

    The float32 message of each replica takes `size` bytes.
    """
    with strategy.scope():  # So that each replica finds the message on its own device.
        message = tf.Variable(tf.ones([size // 4]), trainable=False)

    def reduce_once(before: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([before]):  # Each begins when the one before has ended.
            return strategy.reduce(tf.identity(message))[0]

    def step(_: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        befores = tf.fill([strategy.shard.local_replicas], last)
        return strategy.local_sum(strategy.run(reduce_once, (befores,)))

    @tf.function(autograph=False)
    def reduce_many(calls: tf.Tensor) -> tf.Tensor:
        return repeat(calls, step, tf.zeros([]))

    return lambda calls: reduce_many(tf.constant(calls)).numpy()


class Message(Fields):
    bytes: PositiveInt = Field(description="Size of the float32 message on each rank.")
    calls: PositiveInt = Field(description="All-reduces, one after the other, in each timing.")
    seconds: list[list[PositiveFloat]] = Field(description="[ranks][timings], each of all its calls together.")
    cycles: list[NonNegativeInt] | None = Field(None, description="[timings]: the cycle of the turn of each.")

    @model_validator(mode="after")
    def _check_rows(self) -> Message:
        lengths = sorted({len(row) for row in self.seconds})
        if len(lengths) > 1:
            raise ValueError(f"seconds in rows of equally many values, not of {lengths}")
        return self


class Messages(Measurements):
    messages: list[Message]
    backend: str | None = Field(None, description="What summed them: NCCL, gRPC, Gloo, MPI or memory.")


class Collectives(WorkerKind):
    name = "collectives"
    description = "all-reduce over message sizes"
    prefix = "all-reduce: "
    measurements = Messages
    explains = True
    seconds = 0.8
    variants = tuple(map(str, MESSAGE_BYTES))

    def variants_on(self, gpus: bool) -> tuple[str, ...]:
        return tuple(map(str, GPU_MESSAGE_BYTES if gpus else MESSAGE_BYTES))

    def fits(self, strategy: str, devices: int) -> bool:
        return devices > 1

    def measure(self, config: Config, strategy: Strategy, runtime: Runtime, turns: Turns) -> dict[str, Any]:
        """Sums messages of growing sizes over all replicas, one all-reduce after the other."""
        names = self.variants_on(runtime.device.kind == "GPU")
        runs = {name: make_reduce_many(strategy, int(name)) for name in names}
        messages = []
        for name, timings in take_timings(runs, turns).items():
            seconds = all_gather(strategy, [each.seconds / each.count for each in timings]).tolist()
            cycles = [each.cycle for each in timings]
            messages.append({"bytes": int(name), "calls": 1, "seconds": seconds, "cycles": cycles})
        return {"messages": messages, "backend": strategy.backend}

    def aspects(self, record: Record) -> Mapping[str, float]:
        return {"all-reduce": self.series([record], [record])[0].log_rate}

    def rates_by_cycle(self, record: Record, variant: str = FULL) -> Mapping[int, float]:
        """In all-reduces per second, as the geometric mean over the message sizes, where all had a turn."""
        seconds = slowest_seconds(record)
        logs: dict[int, dict[int, list[float]]] = {}  # By cycle and size, which may have several turns in a cycle.
        for message in record.measured.get("messages", ()):
            size = message["bytes"]
            for cycle, log_seconds in zip(message.get("cycles") or (), np.log(seconds[size]).tolist(), strict=False):
                logs.setdefault(cycle, {}).setdefault(size, []).append(log_seconds)
        return {
            cycle: float(np.exp(-np.mean([np.mean(turns) for turns in by_size.values()])))
            for cycle, by_size in logs.items()
            if len(by_size) == len(seconds)
        }

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        """The rate is that of all-reduces, as the geometric mean over the message sizes of all runs."""
        sizes = set.intersection(*(set(slowest_seconds(record)) for record in both))
        if not sizes:
            raise NoRateError("no message size was measured in all runs")
        medians = [[float(np.median(slowest_seconds(record)[size])) for size in sizes] for record in records]
        return [Series(np.ones(1), np.exp([np.mean(np.log(each))])) for each in medians]

    def sections(self, summaries: Sequence[CaseSummary], analysis: Analysis) -> Iterator[Section]:
        small = [each for each in analysis.all_reduces if each.is_latency]
        large = [each for each in analysis.all_reduces if not each.is_latency]
        tables = [make_table(MESSAGE + LATENCY, small, "Latency of small messages, slowest rank")] if small else []
        tables += [make_table(MESSAGE + BANDWIDTH, large, "Bandwidth of large messages, slowest rank")] if large else []
        if tables:
            yield Section("collectives", "All-reduce", tables=tables, pictures=("all_reduce",))


MESSAGE: list[Column[AllReduce]] = [
    Column("strategy", lambda each: each.case.strategy, numeric=False),
    Column("devices", lambda each: label_devices(each.case, each.on_gpus), numeric=False),
    Column("message", lambda each: label_bytes(each.size_bytes), "of each rank"),
]
LATENCY: list[Column[AllReduce]] = [
    Column("latency", lambda each: f"{1e6 * each.seconds:,.0f}", "µs"),
    Column("5th to 95th percentile", lambda each: label_range(1e6 * each.low, 1e6 * each.high, label_count), "µs"),
]
BANDWIDTH: list[Column[AllReduce]] = [
    Column("time", lambda each: label_three_digits(1e3 * each.seconds), "ms"),
    Column(
        "5th to 95th percentile", lambda each: label_range(1e3 * each.low, 1e3 * each.high, label_three_digits), "ms"
    ),
    Column("algbw", lambda each: label_three_digits(each.algorithm_bandwidth / 1e9), "GB/s per rank"),
    Column("busbw", lambda each: label_three_digits(each.bus_bandwidth / 1e9), "GB/s per rank"),
]

KIND = Collectives()
