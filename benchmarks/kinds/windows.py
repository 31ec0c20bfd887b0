"""What the kinds have in common that move images: windows of steps, and a rate in images per second."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field, model_validator

from mnist_dist.benchmarks.analysis.summary import RunSummary, why_unstable
from mnist_dist.benchmarks.records.kinds import Kind, Measurements, NoRateError
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import PositiveFloat, PositiveInt


class Windows(Measurements):
    window_steps: list[PositiveInt] = Field(
        description="Steps of each window; the first step, which compiles, is in none."
    )
    window_seconds: list[list[PositiveFloat]] = Field(
        description="[ranks][windows]: each rank's time between two synchronised edges, at the same steps on all ranks."
    )

    @model_validator(mode="after")
    def _check_rows(self) -> Windows:
        lengths, windows = sorted({len(row) for row in self.window_seconds}), len(self.window_steps)
        if set(lengths) - {windows}:
            raise ValueError(f"window_seconds: received rows of {lengths} values, expected {windows}")
        return self


class WindowsKind(Kind):
    """A kind whose measurements are windows."""

    has_batches = True

    def describe(self, record: Record) -> Sequence[str]:
        run = RunSummary(record)
        rate = f"{math.exp(run.series.log_rate):,.0f} images/s"
        return [f"{rate} (not settled)" if run.steady_state.reason_unstable else rate]

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        runs = [RunSummary(record) for record in records]
        if unstable := why_unstable([run.steady_state for run in runs]):
            raise NoRateError(f"unstable: {unstable}")
        return [run.series for run in runs]
