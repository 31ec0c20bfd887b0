"""Records in the formats of other tools: MLPerf's log lines and TensorBoard's events.

Records hold durations, so the times of day in both are reconstructed: the start of the case plus what was measured.
Imports no TensorFlow.
"""

import io
import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from mnist_dist.benchmarks.records.environment import CODE_FOLDER
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.distributed.turns import FULL
from mnist_dist.errors import UserError
from mnist_dist.files import atomic_write, write_text, writing
from mnist_dist.lazy import Lazy

constants = Lazy("mlperf_logging.mllog.constants")

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000  # Of MNIST; records do not say how many an own data set has.


class Point(NamedTuple):
    """A value after a step, and when it was there."""

    tag: str
    step: int
    unix_seconds: float
    value: float


def write_mlperf_log(records: Iterable[Record], folder: Path) -> list[Path]:
    """Writes one log of `:::MLLOG` lines for each training, and returns the files.

    They tell what is true of the run and are no submission: MNIST is not among MLPerf's benchmarks, so there is neither
    a division nor an organisation. The status `success` says that a run ended as planned, whatever its accuracy.

    Raises:
        UserError: mlperf-logging is not installed, or the folder cannot be written.
    """
    files = []
    for record in records:
        if record.case.kind == "train" and record.status != "skipped":
            path = Path(folder) / f"{run_name(record)}.log"
            with writing(path):
                write_text(path, render_mlperf_log(record))
            files.append(path)
    return files


def write_tensorboard(records: Iterable[Record], folder: Path) -> list[Path]:
    """Writes a run with the `points` of each record that has windows, and returns the runs' folders.

    Raises:
        UserError: the folder cannot be written.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    runs = []
    for record in records:
        if "window_steps" not in record.measured:
            continue
        run = Path(folder) / run_name(record)
        path = run / "events.out.tfevents.0.benchmarks"  # Always this name: a second export replaces the first.
        with writing(path), atomic_write(path) as file:
            writer = RecordWriter(file)
            writer.write(Event(wall_time=_started(record), file_version="brain.Event:2").SerializeToString())
            for point in points(record):
                summary = Summary(value=[Summary.Value(tag=point.tag, simple_value=point.value)])
                event = Event(wall_time=point.unix_seconds, step=point.step, summary=summary)
                writer.write(event.SerializeToString())
        runs.append(run)
    return runs


def run_name(record: Record) -> str:
    """Returns a name for files that says what ran and that no other record has."""
    case = record.case
    return f"{case.kind}-{case.strategy}-{case.devices}-{case.case_id}-r{record.repeat}-{record.record_id[:8]}"


def points(record: Record) -> Iterator[Point]:
    """Yields what TensorBoard shows of a record with windows.

    `images_per_second/total` of each window, which the slowest rank decides, and `/per_device`; `accuracy/test` and
    `loss/test` (or `/holdout`) of each evaluation. Not what was measured after a training had come to its end.
    """
    values, evaluations = record.measured, record.measured.get("evaluations", [])
    variants = values.get("window_variants") or itertools.repeat(FULL)
    last_step = evaluations[-1]["step"] if evaluations else math.inf
    now, step = _first_step(record), 0
    if "first_step_seconds" in values:  # Training: its first step is in no window.
        now, step = now + max(values["first_step_seconds"]), 1
    windows = zip(values["window_steps"], *values["window_seconds"], strict=True)
    for variant, (steps, *seconds) in zip(variants, windows, strict=False):
        if variant != FULL or step >= last_step:
            continue
        now, step = now + max(seconds), step + steps
        between = [evaluation["evaluation_seconds"] for evaluation in evaluations if evaluation["step"] < step]
        unix_seconds = now + max(between, default=0.0)
        rate = steps * record.case.global_batch_size / max(seconds)
        yield Point("images_per_second/total", step, unix_seconds, rate)
        yield Point("images_per_second/per_device", step, unix_seconds, rate / record.case.devices)
    for evaluation in evaluations:
        unix_seconds = _first_step(record) + evaluation["training_seconds"] + evaluation["evaluation_seconds"]
        for name in sorted({"accuracy", "loss"} & evaluation.keys()):  # Another's training may tell no loss.
            yield Point(f"{name}/{evaluation['split']}", evaluation["step"], unix_seconds, evaluation[name])


def render_mlperf_log(record: Record) -> str:
    """Returns the lines of one training; of a failed one what is known: how it began, and that it was aborted.

    Raises:
        UserError: mlperf-logging is not installed.
    """
    try:
        from mlperf_logging.mllog import mllog
    except ImportError:
        raise UserError(
            "mlperf-logging: the package is not installed, which MLPerf's log lines need; "
            "install it with `pip install mlperf-logging`."
        ) from None
    stream = io.StringIO()
    logger = logging.Logger("mlperf")  # Not `getLogger`, whose loggers live as long as the process.
    logger.addHandler(logging.StreamHandler(stream))
    log = mllog.MLLogger(logger, root_dir=re.escape(str(CODE_FOLDER)))
    started = _milliseconds(_started(record))
    for key, value in _mlperf_settings(record).items():
        log.event(key, value, time_ms=started)
    log.start(constants.INIT_START, time_ms=started)
    if record.measurements is None:
        ended = _milliseconds(_started(record) + record.seconds)
        log.end(constants.RUN_STOP, metadata={"status": constants.ABORTED, "reason": record.reason}, time_ms=ended)
    else:
        _log_training(log, record, record.measurements)
    return stream.getvalue()


def _log_training(log: Any, record: Record, measurements: dict[str, Any]) -> None:
    """Logs training in blocks, each up to an evaluation or the end of the run."""
    first_step = _first_step(record)
    now, trained, evaluated = first_step, 0, 0.0

    def log_block(ended: float, step: int) -> None:
        log.start(constants.BLOCK_START, metadata=_progress(record, trained), time_ms=_milliseconds(now))
        log.end(constants.BLOCK_STOP, metadata=_progress(record, step), time_ms=_milliseconds(ended))

    log.end(constants.INIT_STOP, time_ms=_milliseconds(first_step))
    log.start(constants.RUN_START, time_ms=_milliseconds(first_step))
    for evaluation in measurements["evaluations"]:
        progress = _progress(record, evaluation["step"])
        began = first_step + evaluation["training_seconds"] + evaluated
        log_block(began, evaluation["step"])
        trained, evaluated = evaluation["step"], evaluation["evaluation_seconds"]
        now = first_step + evaluation["training_seconds"] + evaluated
        log.start(constants.EVAL_START, metadata=progress, time_ms=_milliseconds(began))
        metadata = progress | {"split": evaluation["split"]}
        log.event(constants.EVAL_ACCURACY, evaluation["accuracy"], metadata, time_ms=_milliseconds(now))
        log.end(constants.EVAL_STOP, metadata=progress, time_ms=_milliseconds(now))
    if not measurements["evaluations"]:  # Else the run ended with one; what was measured after it is no training.
        variants = measurements.get("window_variants") or [FULL] * len(measurements["window_steps"])
        full = [index for index, variant in enumerate(variants) if variant == FULL]
        steps = 1 + sum(measurements["window_steps"][index] for index in full)
        each_rank = zip(measurements["first_step_seconds"], measurements["window_seconds"], strict=True)
        ended = first_step + max(first + sum(windows[index] for index in full) for first, windows in each_rank)
        log_block(ended, steps)
        now, trained = ended, steps
    metadata = {"status": constants.SUCCESS, **_progress(record, trained)}
    log.end(constants.RUN_STOP, metadata=metadata, time_ms=_milliseconds(now))


def _mlperf_settings(record: Record) -> dict[str, Any]:
    hardware, config = record.identity.hardware, record.identity.config
    gpus = f", {len(hardware.gpus)} x {hardware.gpus[0].name}" if hardware.gpus else ""
    train_images, evaluation_images = _images(record)
    settings = {
        constants.SUBMISSION_BENCHMARK: "mnist",
        constants.SUBMISSION_PLATFORM: f"{record.case.hosts} x ({hardware.cpu_model}, {hardware.cores} cores{gpus})",
        constants.SEED: record.seed,
        constants.GLOBAL_BATCH_SIZE: record.case.global_batch_size,
        constants.GRADIENT_ACCUMULATION_STEPS: config.get("training", {}).get("accumulation_steps"),
        constants.OPT_NAME: config.get("optimizer", {}).get("name"),
        constants.TRAIN_SAMPLES: train_images,
        constants.EVAL_SAMPLES: evaluation_images,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _progress(record: Record, step: int) -> dict[str, Any]:
    """Returns where the run is after a step; the number of epochs only where the size of the data is known."""
    progress: dict[str, Any] = {"step_num": step, "samples_count": step * record.case.global_batch_size}
    images, _ = _images(record)
    if images is not None:  # A last, smaller batch is left out.
        progress["epoch_num"] = step / max(images // record.case.global_batch_size, 1)
    return progress


def _images(record: Record) -> tuple[int | None, int | None]:
    """Returns how many images were for training and how many were evaluated, as far as that is known."""
    data, evaluations = record.identity.config.get("data", {}), record.measured.get("evaluations", [])
    if data.get("kind") != "mnist" or data.get("path") is not None:
        return None, None
    holdout, splits = int(data.get("holdout_images", 0)), {evaluation["split"] for evaluation in evaluations}
    return TRAIN_IMAGES - holdout, (TEST_IMAGES if splits == {"test"} else holdout) if splits else None


def _started(record: Record) -> float:
    return datetime.fromisoformat(record.started_at).timestamp()


def _first_step(record: Record) -> float:
    """Returns when the last rank began its first step, or the case itself where that was not measured."""
    return _started(record) + max(record.measured.get("startup_seconds", [0.0]))


def _milliseconds(unix_seconds: float) -> int:
    return round(unix_seconds * 1000)
