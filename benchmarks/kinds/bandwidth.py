"""Memory bandwidth of one device, and that of copies from the host to it; on a CPU, of copies in its memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.records.kinds import Measurements, WorkerKind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.labels import label_devices, label_three_digits
from mnist_dist.benchmarks.report.sections import Section
from mnist_dist.benchmarks.report.table import Column, make_table
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import Config, PositiveFloat, PositiveInt
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.distributed.turns import Turns
from mnist_dist.loops import repeat
from mnist_dist.runtime import Runtime
from mnist_dist.strategies import BASELINE

if TYPE_CHECKING:
    import tensorflow as tf

    from mnist_dist.benchmarks.analysis.study import Analysis

BYTES = 2**28  # More than caches hold, of a GPU or a share of a CPU.
FIELDS = {"memory": "memory_bytes_per_second", "copies": "copy_bytes_per_second"}


class Bandwidths(Measurements):
    bytes: PositiveInt = Field(description="Of the array that is read and written, or copied.")
    memory_bytes_per_second: list[PositiveFloat] = Field(description="[timings]: read and written by the device.")
    copy_bytes_per_second: list[PositiveFloat] = Field(description="[timings]: copied from the host to the device.")


class Bandwidth(WorkerKind):
    name = "bandwidth"
    description = "memory bandwidth, and that of copies from the host to the device"
    prefix = "bandwidth: "
    explains = True
    measurements = Bandwidths
    seconds = 1.5
    variants = tuple(FIELDS)

    def fits(self, strategy: str, devices: int) -> bool:
        return strategy == BASELINE  # A process measures its own device only.

    def measure(self, config: Config, strategy: Strategy, runtime: Runtime, turns: Turns) -> dict[str, Any]:
        """Adds an array to another in place, which reads two and writes one, and copies one from the host."""
        import tensorflow as tf

        array, ones = tf.Variable(tf.zeros([BYTES // 4])), tf.ones([BYTES // 4])
        with tf.device("CPU:0"):
            on_host = tf.zeros([BYTES // 4])
        source, target = np.zeros(BYTES // 4, np.float32), np.ones(BYTES // 4, np.float32)
        has_gpu = bool(tf.config.list_logical_devices("GPU"))

        def step(_: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            array.assign_add(ones)  # In place: a new array each time would measure how the host hands out memory.
            return array[0]

        @tf.function(autograph=False)
        def add(count: tf.Tensor) -> tf.Tensor:
            return repeat(count, step, tf.zeros([]))

        def copy(count: int) -> None:
            for _ in range(count):
                if not has_gpu:
                    np.copyto(target, source)
                    continue
                with tf.device("GPU:0"):
                    tf.identity(on_host)[0].numpy()  # Waits until it is there.

        runs = {"memory": lambda count: add(tf.constant(count)).numpy(), "copies": copy}
        moved = {"memory": 3 * BYTES, "copies": BYTES}
        timings = take_timings(runs, turns)
        rates = {FIELDS[name]: [moved[name] * each.count / each.seconds for each in timings[name]] for name in FIELDS}
        return {"bytes": BYTES, **rates}

    def aspects(self, record: Record) -> Mapping[str, float]:
        measured = record.measurements or {}
        return {name: float(np.log(np.median(measured[field]))) for name, field in FIELDS.items()}

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        """The rate is the geometric mean of both bandwidths."""
        logs = [list(self.aspects(record).values()) for record in records]
        return [Series(np.ones(1), np.exp([-np.mean(each)])) for each in logs]

    def sections(self, summaries: Sequence[CaseSummary], analysis: Analysis) -> Iterator[Section]:
        measured = [each for each in summaries if each.records]
        columns = [
            Column[CaseSummary]("devices", lambda each: label_devices(each.case), numeric=False),
            *(Column[CaseSummary](name, functools.partial(self._cell, name), "GB/s") for name in FIELDS),
        ]
        if measured:
            yield Section("bandwidth", "Bandwidth", tables=[make_table(columns, measured, "Of memory, and of copies")])

    def _cell(self, aspect: str, summary: CaseSummary) -> str:
        logs = [self.aspects(record)[aspect] for record in summary.records]
        return label_three_digits(float(np.exp(np.median(logs))) / 1e9)


KIND = Bandwidth()
