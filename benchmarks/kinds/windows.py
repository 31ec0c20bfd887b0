"""What the kinds have in common that move images: windows of steps, and a rate in images per second."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from mnist_dist.benchmarks.analysis.summary import RunSummary, why_unstable
from mnist_dist.benchmarks.records.kinds import Kind, Measurements, NoRateError
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from mnist_dist.distributed.turns import FULL


class Windows(Measurements):
    window_steps: list[PositiveInt] = Field(
        description="Steps of each window; the first step, which compiles, is in none."
    )
    window_seconds: list[list[PositiveFloat]] = Field(
        description="[ranks][windows]: each rank's time between two synchronised edges, at the same steps on all ranks."
    )

    window_cycles: list[int] | None = Field(
        None, description="[windows]: the cycle of the turn in which each was computed; -1 before measuring began."
    )
    window_variants: list[str] | None = Field(
        None, description="[windows]: full, or what was left out: resident (input), unreduced (all-reduce), or both."
    )

    @model_validator(mode="after")
    def _check_rows(self) -> Windows:
        windows = len(self.window_steps)
        lengths = sorted({len(row) for row in self.window_seconds})
        if set(lengths) - {windows}:
            raise ValueError(f"window_seconds: received rows of {lengths} values, expected {windows}")
        for name in ("window_cycles", "window_variants"):
            values = getattr(self, name)
            if values is not None and len(values) != windows:
                raise ValueError(f"{name}: received {len(values)} values, expected {windows}")
        return self


class TimedAccuracy(Section):
    step: NonNegativeInt
    training_seconds: NonNegativeFloat = Field(description="In training until then, tracing included.")
    evaluation_seconds: NonNegativeFloat = Field(description="In evaluations until then, this one included.")
    split: Literal["test", "holdout"]
    accuracy: Annotated[float, Field(ge=0, le=1)]


class WindowsKind(Kind):
    """A kind whose measurements are windows."""

    has_batches = True

    def describe(self, record: Record) -> Sequence[str]:
        run = RunSummary(record)
        rate = f"{math.exp(run.series.log_rate):,.0f} images/s"
        # Whether the machine drifted or the run, only the others of a round can tell.
        is_unsettled = run.steady_state.reason_unstable and not record.took_turns
        return [f"{rate} (not settled)" if is_unsettled else rate]

    def rates_by_cycle(self, record: Record, variant: str = FULL) -> Mapping[int, float]:
        """In images of all devices per second, by the slowest rank of each cycle."""
        run = RunSummary(record, variant)
        numbers, places = np.unique(run.cycles, return_inverse=True)
        if not len(numbers):
            return {}
        images = np.bincount(places, self.images(record)[run.chosen])
        seconds = np.max([np.bincount(places, row) for row in run.measured_windows[1]], axis=0)
        return dict(zip(numbers.tolist(), (images / seconds).tolist(), strict=True))

    def images(self, record: Record) -> np.ndarray:
        """Returns the images of all devices in each window, int64 [windows]."""
        return record.case.global_batch_size * np.asarray(record.measured["window_steps"], np.int64)

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        runs = [RunSummary(record) for record in records]
        if unstable := why_unstable([run.steady_state for run in runs]):
            raise NoRateError(f"unstable: {unstable}")
        return [run.series for run in runs]
