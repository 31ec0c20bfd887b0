"""Matrix products: the rate that the devices reach, the reference for MFU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from mnist_dist.benchmarks.analysis.limits import MatmulRate, matmul_series
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.labels import label_devices, label_range, label_three_digits
from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.records.kinds import Measurements, WorkerKind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.sections import Section
from mnist_dist.benchmarks.report.table import Column, make_table
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import Config, NonNegativeInt, PositiveFloat, PositiveInt
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.distributed.turns import FULL, Turns
from mnist_dist.lazy import keras, tf
from mnist_dist.loops import repeat
from mnist_dist.runtime import Runtime
from mnist_dist.strategies import BASELINE

SIZE, GPU_SIZE = 2048, 8192  # A product of 2048 takes an H100 25 us, less than to start it and those beside it.


class Products(Measurements):
    size: PositiveInt = Field(description="n of the product of two n x n matrices.")
    dtype: str
    flops_per_second: list[PositiveFloat] = Field(
        description="One for each timing, of all devices of the case together; 2 n^3 for one product."
    )
    cycles: list[NonNegativeInt] | None = Field(None, description="[timings]: the cycle of the turn of each.")


class Matmul(WorkerKind):
    name = "matmul"
    description = "the rate of matrix products, the reference for MFU"
    prefix = "matrix products: "
    explains = True
    measurements = Products
    seconds = 1.5
    # One product at a time has to keep all cores busy; the fused form would give it one thread, to run several.
    settings: ClassVar = {"runtime.kernels": "plain"}

    def fits(self, strategy: str, devices: int) -> bool:
        return strategy == BASELINE  # A process measures its own products only.

    def measure(self, config: Config, strategy: Strategy, runtime: Runtime, turns: Turns) -> dict[str, Any]:
        """Multiplies square matrices in the type that training computes in."""
        dtype = keras.dtype_policies.get(runtime.precision.value).compute_dtype
        size = GPU_SIZE if runtime.device.kind == "GPU" else SIZE
        left, right = (tf.random.normal([size, size], seed=seed) for seed in (0, 1))
        left, right = tf.cast(left, dtype), tf.cast(right / size**0.5, dtype)  # So that products keep their scale.

        def step(_: tf.Tensor, product: tf.Tensor) -> tf.Tensor:
            return tf.matmul(product, right)

        @tf.function(autograph=False)
        def multiply(count: tf.Tensor) -> tf.Tensor:
            return repeat(count, step, left)[0, 0]

        def run(count: int) -> Any:
            return multiply(tf.constant(count)).numpy()

        timings = take_timings({FULL: run}, turns)[FULL]
        return {
            "size": size,
            "dtype": dtype,
            "flops_per_second": [2 * size**3 * each.count / each.seconds for each in timings],
            "cycles": [each.cycle for each in timings],
        }

    def describe(self, record: Record) -> Sequence[str]:
        return [f"{math.exp(matmul_series(record).log_rate) / 1e9:,.0f} GFLOP/s in {record.measured['dtype']}"]

    def aspects(self, record: Record) -> Mapping[str, float]:
        return {"compute": matmul_series(record).log_rate}

    def rates_by_cycle(self, record: Record, variant: str = FULL) -> Mapping[int, float]:
        """In floating-point operations per second."""
        by_cycle = zip(record.measured.get("cycles") or (), record.measured["flops_per_second"], strict=False)
        return {cycle: rate for cycle, rate in by_cycle if cycle >= 0}

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        return [matmul_series(record) for record in records]

    def sections(self, summaries: Sequence[CaseSummary], analysis: Analysis) -> Iterator[Section]:
        if analysis.matmul_rates:
            table = make_table(
                COLUMNS, analysis.matmul_rates, "Measured rate of matrix products, the reference for MFU"
            )
            yield Section("matmul", "Matrix products", tables=[table])


COLUMNS: list[Column[MatmulRate]] = [
    Column("type", lambda each: each.dtype, numeric=False),
    Column("devices", lambda each: label_devices(each.case, each.on_gpus), numeric=False),
    Column("n", lambda each: f"{each.size:,}", "of an n x n matrix"),
    Column("TFLOP/s", lambda each: label_three_digits(each.value / 1e12), "total"),
    Column(
        "5th to 95th percentile",
        lambda each: label_range(each.low / 1e12, each.high / 1e12, label_three_digits),
        "TFLOP/s",
    ),
]

KIND = Matmul()
