"""Memory bandwidth of one device, and that of copies from the host to it; on a CPU, of copies in its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from mnist_dist.benchmarks.labels import label_three_digits
from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.records.kinds import Measurements, WorkerKind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import Config, PositiveFloat, PositiveInt
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.distributed.turns import Turns
from mnist_dist.lazy import tf
from mnist_dist.loops import repeat
from mnist_dist.runtime import Runtime
from mnist_dist.strategies import BASELINE

BYTES = 2**28  # More than caches hold, of a GPU or a share of a CPU.
MOVED = {"memory": 3 * BYTES, "copies": BYTES}  # A sum reads two arrays and writes one.


class Bandwidths(Measurements):
    bytes: PositiveInt = Field(description="Of an array.")
    memory: list[PositiveFloat] = Field(description="[timings]: bytes/s that the device reads and writes.")
    copies: list[PositiveFloat] = Field(description="[timings]: bytes/s from the host to the device.")


class Bandwidth(WorkerKind):
    name = "bandwidth"
    description = "memory bandwidth, and that of copies from the host to the device"
    prefix = "bandwidth: "
    explains = True
    measurements = Bandwidths
    seconds = 1.5
    variants = tuple(MOVED)

    def fits(self, strategy: str, devices: int) -> bool:
        return strategy == BASELINE  # A process measures its own device only.

    def measure(self, config: Config, strategy: Strategy, runtime: Runtime, turns: Turns) -> dict[str, Any]:
        """Adds an array to another in place, and copies one from the host."""
        target, ones = tf.Variable(tf.zeros([BYTES // 4])), tf.ones([BYTES // 4])
        with tf.device("CPU:0"):
            source = tf.zeros([BYTES // 4])
        on_host, copied = source.numpy(), np.ones(BYTES // 4, np.float32)
        has_gpu = bool(tf.config.list_logical_devices("GPU"))

        def step(_: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            target.assign_add(ones)  # In place: a new array each time would measure how the host hands out memory.
            return target[0]

        @tf.function(autograph=False)
        def add(count: tf.Tensor) -> tf.Tensor:
            return repeat(count, step, tf.zeros([]))

        def copy(count: int) -> None:
            for _ in range(count):
                if has_gpu:
                    with tf.device("GPU:0"):
                        tf.identity(source)[0].numpy()  # Waits until it is there.
                else:
                    np.copyto(copied, on_host)

        timings = take_timings({"memory": lambda count: add(tf.constant(count)).numpy(), "copies": copy}, turns)
        rates = {name: [MOVED[name] * each.count / each.seconds for each in timings[name]] for name in MOVED}
        return {"bytes": BYTES, **rates}

    def describe(self, record: Record) -> Sequence[str]:
        rates = self.aspects(record).items()
        return [f"{name} {label_three_digits(float(np.exp(rate)) / 1e9)} GB/s" for name, rate in rates]

    def aspects(self, record: Record) -> Mapping[str, float]:
        return {name: float(np.log(np.median(record.measured[name]))) for name in MOVED}

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        """The rate is the geometric mean of both bandwidths."""
        logs = [list(self.aspects(record).values()) for record in records]
        return [Series(np.ones(1), np.exp([-np.mean(each)])) for each in logs]


KIND = Bandwidth()
