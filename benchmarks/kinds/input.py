"""The input pipeline alone, without training: how many times faster it is than what training consumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.kinds.windows import Windows, WindowsKind
from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.records.kinds import WorkerKind
from mnist_dist.benchmarks.report.labels import MISSING, label_case, label_count, label_range
from mnist_dist.benchmarks.report.rows import Row
from mnist_dist.benchmarks.report.sections import Section
from mnist_dist.benchmarks.report.table import TextTable
from mnist_dist.config import Config
from mnist_dist.data.dataset import load_arrays, make_train_dataset
from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.turns import FULL, Turns
from mnist_dist.loops import repeat
from mnist_dist.runtime import Runtime

if TYPE_CHECKING:
    import tensorflow as tf

    from mnist_dist.benchmarks.report.findings import Findings


class Input(WindowsKind, WorkerKind):
    name = "input"
    description = "the input pipeline alone"
    prefix = "input alone: "
    measurements = Windows
    seconds = 4.0

    def measure(self, config: Config, strategy: Strategy, runtime: Runtime, turns: Turns | None) -> dict[str, Any]:
        """Reads training batches and does nothing with them."""
        import tensorflow as tf

        arrays = load_arrays(config.data)
        batches = strategy.distribute(
            lambda shard: make_train_dataset(
                arrays.train_images,
                arrays.train_labels,
                batch_size=config.training.batch_size,
                seed=config.seed,
                shard=shard,
                shift_pixels=config.data.shift_pixels,
            )
        )

        @tf.function(autograph=False)
        def read(count: tf.Tensor) -> tf.Tensor:
            def step(_: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
                images, labels = batches.get_next()
                return total + labels[0] + tf.cast(images[0, 0, 0, 0], tf.int32)  # So that it is not optimised away.

            return repeat(count, step, tf.constant(0))

        def run(count: int) -> Any:
            return read(tf.constant(count)).numpy()

        timings = take_timings({FULL: run}, strategy, turns, self.seconds)[FULL]
        return {
            "window_steps": [each.count for each in timings],
            "window_seconds": all_gather(strategy, [each.seconds for each in timings]).tolist(),
            "window_cycles": [each.cycle for each in timings],
        }

    def sections(self, summaries: Sequence[CaseSummary], findings: Findings) -> Iterator[Section]:
        rows = []
        for summary in (each for each in summaries if each.records):
            rate, training = summary.images_per_second, fastest_training(summary, findings.main_rows)
            consumed = training.summary.images_per_second if training else None
            rows.append(
                (
                    label_case(summary.case, without=findings.common_settings),
                    label_count(rate.value) if rate else "unstable",
                    (label_range(rate.low, rate.high, label_count) if rate else "") or MISSING,
                    f"{rate.value / consumed.value:.1f}" if rate and consumed else MISSING,
                    label_case(training.case, without=findings.common_settings) if training else MISSING,
                )
            )
        multiple = ("times what training takes", "that training (the fastest)")
        heads = ("pipeline", "images/s, total", "95 % interval", *multiple)
        table = TextTable("The input pipeline without training", heads, rows, (False, True, True, True, False))
        if rows:
            yield Section("input", "Input pipeline", tables=[table], on_terminal=len(rows) > 1)


def fastest_training(summary: CaseSummary, rows: Sequence[Row]) -> Row | None:
    """Returns the fastest training on the same devices, which this pipeline would have to feed."""
    place = (summary.case.devices, summary.case.cores_per_device)
    rates = {
        row.summary.images_per_second.value: row
        for row in rows
        if row.summary.images_per_second and (row.case.devices, row.case.cores_per_device) == place
    }
    return rates[max(rates)] if rates else None


KIND = Input()
