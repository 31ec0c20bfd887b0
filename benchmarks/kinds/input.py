"""The input pipeline alone, without training: how many times faster it is than what training consumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.kinds.windows import Windows, WindowsKind
from mnist_dist.benchmarks.labels import MISSING, label_case, label_count
from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.records.kinds import WorkerKind
from mnist_dist.benchmarks.records.record import on_gpus
from mnist_dist.benchmarks.report.sections import Section
from mnist_dist.benchmarks.report.table import Cell, Column, estimate_cell, make_table
from mnist_dist.config import Config
from mnist_dist.data.dataset import load_arrays, make_train_dataset
from mnist_dist.data.resident import Resident
from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.turns import FULL, Turns
from mnist_dist.lazy import tf
from mnist_dist.loops import repeat
from mnist_dist.runtime import Runtime, decide_resident

Row = tuple[CaseSummary, TrainedCase | None]  # A pipeline, and the fastest training with its devices.


class Input(WindowsKind, WorkerKind):
    name = "input"
    description = "the input pipeline alone"
    prefix = "input alone: "
    explains = True
    measurements = Windows
    seconds = 4.0

    def measure(self, config: Config, strategy: Strategy, runtime: Runtime, turns: Turns) -> dict[str, Any]:
        """Reads training batches and does nothing with them."""
        arrays = load_arrays(config.data)
        resident = None
        if decide_resident(config.data.resident, runtime.device).value == "on":
            resident = Resident(arrays.train_images, arrays.train_labels, strategy.devices)
        batches = strategy.distribute(
            lambda shard: make_train_dataset(
                arrays.train_images,
                arrays.train_labels,
                batch_size=config.training.batch_size,
                seed=config.seed,
                shard=shard,
                shift_pixels=config.data.shift_pixels,
                resident=resident is not None,
            )
        )

        def use(*batch: Any) -> tf.Tensor:
            images, labels = resident.take(*batch) if resident else batch
            return tf.cast(labels[0], tf.float32) + tf.cast(images[0, 0, 0, 0], tf.float32)  # Not optimised away.

        @tf.function(autograph=False)
        def read(count: tf.Tensor) -> tf.Tensor:
            def step(_: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
                return total + strategy.local_sum(strategy.run(use, batches.get_next(), whole=bool(resident)))

            return repeat(count, step, tf.constant(0.0))

        def run(count: int) -> Any:
            return read(tf.constant(count)).numpy()

        timings = take_timings({FULL: run}, turns)[FULL]
        return {
            "window_steps": [each.count for each in timings],
            "window_seconds": all_gather(strategy, [each.seconds for each in timings]).tolist(),
            "window_cycles": [each.cycle for each in timings],
        }

    def sections(self, summaries: Sequence[CaseSummary], analysis: Analysis) -> Iterator[Section]:
        common = analysis.common_settings
        rows = [(each, fastest_training(each, analysis.main_cases)) for each in summaries if each.records]
        columns: list[Column[Row]] = [
            Column("pipeline", lambda row: label_case(row[0].case, on_gpus(row[0].records), common), numeric=False),
            Column("images/s", _rate_cell, "total, 95 % interval"),
            Column("multiple", _multiple, "of what training takes"),
            Column(
                "that training",
                lambda row: label_case(row[1].case, row[1].on_gpus, common) if row[1] else MISSING,
                "the fastest",
                numeric=False,
            ),
        ]
        if rows:
            table = make_table(columns, rows, "The input pipeline without training")
            yield Section("input", "Input pipeline", tables=[table], on_terminal=len(rows) > 1)


def fastest_training(pipeline: CaseSummary, trained: Iterable[TrainedCase]) -> TrainedCase | None:
    """Returns the fastest training on the devices of a pipeline, which would have to feed it."""
    devices = (pipeline.case.devices, pipeline.case.cores_per_device)
    rates = {
        rate.value: each
        for each in trained
        if (rate := each.summary.images_per_second) and (each.case.devices, each.case.cores_per_device) == devices
    }
    return rates[max(rates)] if rates else None


def _rate_cell(row: Row) -> Cell:
    rate = row[0].images_per_second
    return estimate_cell(rate, label_count) if rate else Cell("unstable")


def _multiple(row: Row) -> str:
    supplied, consumed = (each.images_per_second if each else None for each in (row[0], row[1] and row[1].summary))
    return f"{supplied.value / consumed.value:.1f}" if supplied and consumed else MISSING


KIND = Input()
