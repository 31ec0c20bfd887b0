"""The training run, from configuration to result, as one visible loop."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mnist_dist
from mnist_dist.actions import (
    Action,
    Evaluate,
    LogMetrics,
    Progress,
    SaveCheckpoint,
    images_per_second,
    is_due,
    steps_until_due,
)
from mnist_dist.checkpoint import Checkpoints, assign_variables, variables_by_name
from mnist_dist.config import Config
from mnist_dist.dataset import (
    Arrays,
    Shard,
    load_arrays,
    make_eval_dataset,
    make_synthetic_dataset,
    make_train_dataset,
    num_eval_steps,
)
from mnist_dist.errors import TrainingError, UserError
from mnist_dist.evaluate import Evaluation, predict, summarize
from mnist_dist.files import atomic_path, write_json
from mnist_dist.model import build_inference_model, build_model
from mnist_dist.optimizers import build_optimizer
from mnist_dist.runtime import Runtime, configure_runtime
from mnist_dist.schedule import learning_rates
from mnist_dist.steps import make_eval_steps, make_train_steps
from mnist_dist.strategies import Strategy, make_strategy
from mnist_dist.workdir import Workdir, check_workdir, claim_workdir
from mnist_dist.writers import Console, JsonLines, TensorBoard, Writer, make_console, read_rows

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

MAX_STEPS = 10_000_000


def train(config: Config, workdir: Path, resume: bool = False) -> dict[str, Any]:
    """Trains in `workdir` and returns the content of its result.json.

    Args:
        resume: continue the run in the folder from its newest intact checkpoint; start it where there is none.

    Raises:
        UserError: the input is bad, see its message; nothing that existed was overwritten.
        TrainingError: the loss was not finite.
    """
    started = time.perf_counter()
    folder = check_workdir(workdir, config, resume)
    if (finished := folder.read_result()) and finished["status"] == "completed":
        return finished
    arrays = load_arrays(config.data)
    plan = make_plan(config, len(arrays.train_images))
    runtime = configure_runtime(config.runtime, config.seed)
    strategy = make_strategy(config.runtime)
    rates = learning_rates(
        config.schedule, config.optimizer.learning_rate, config.training.batch_size, plan.total_steps
    )
    with claim_workdir(folder, config), make_console(plan.total_steps, config.training.batch_size) as console:
        for line in introduce(config, runtime, strategy, plan, float(rates.max()), folder):
            console.say(line)

        with strategy.scope():
            model = build_model(config.model, precision=runtime.precision.value, seed=config.seed)
            float16 = runtime.precision.value == "mixed_float16"
            optimizer = build_optimizer(config.optimizer, rates, loss_scaling=float16)
            optimizer.build(model.trainable_variables)
        variables = variables_by_name(model, optimizer)
        checkpoints = Checkpoints(folder.checkpoints, config.checkpoint.keep, report=console.say)
        progress = restore(checkpoints, variables, console) if resume else Progress()
        earlier_seconds = progress.wall_seconds

        def wall_seconds() -> float:
            return earlier_seconds + time.perf_counter() - started

        batches = make_batches(config, arrays, strategy, progress.step)
        train_steps = make_train_steps(
            model,
            optimizer,
            strategy,
            batch_size=config.training.batch_size,
            label_smoothing=config.training.label_smoothing,
            xla=runtime.xla.value == "on",
        )
        writers = make_writers(config, folder, progress, console)
        actions: list[Action] = [
            LogMetrics(config.logging.every_steps, writers, rates, config.training.batch_size, plan.steps_per_epoch),
            make_evaluate(config, arrays, plan, model, strategy, writers),
            SaveCheckpoint(
                config.checkpoint.every_steps or plan.steps_per_epoch, checkpoints, variables, wall_seconds
            ),
        ]
        first_call = True
        while progress.step < plan.total_steps:
            count = min(config.runtime.steps_per_call, steps_until_due(actions, progress.step, plan.total_steps))
            count = 1 if first_call else count  # Alone, so that compiling is timed apart.
            edge = time.perf_counter()
            metrics = train_steps(batches, count).numpy()
            seconds = time.perf_counter() - edge
            progress.advance(metrics, seconds, first_call)
            first_call = False
            stop_unless_finite(metrics[:, 0], progress)
            console.advance(progress.step, seconds / count)
            for action in actions:
                if is_due(action, progress.step, plan.total_steps):
                    action(progress)

        evaluation = save_deliverables(config, arrays, model, folder)
        result = describe_run(config, runtime, strategy, plan, progress) | {
            "status": "completed",
            "test_accuracy": evaluation.accuracy,
            "test_loss": evaluation.loss,
            "seconds": wall_seconds(),
        }
        write_json(folder.result_file, result)
    return result


@dataclass(frozen=True)
class Plan:
    """A run in steps; what users say in epochs ends here."""

    steps_per_epoch: int
    total_steps: int


def make_plan(config: Config, train_images: int) -> Plan:
    """Converts epochs to steps.

    Raises:
        UserError: the batch is larger than the training set or does not divide over the replicas, or the run would
            have too many steps.
    """
    batch_size, replicas = config.training.batch_size, config.runtime.devices
    if batch_size > train_images:
        raise UserError(
            f"training.batch_size: received {batch_size}, expected at most the {train_images} training images."
        )
    if batch_size % replicas:
        fitting = max(batch_size // replicas, 1) * replicas
        raise UserError(
            f"training.batch_size: received {batch_size} for {replicas} replicas, expected a multiple of {replicas}; "
            f"for example {fitting}."
        )
    steps_per_epoch = train_images // batch_size
    total_steps = config.training.steps or config.training.epochs * steps_per_epoch
    if total_steps > MAX_STEPS:
        raise UserError(f"training: {total_steps:,} steps were asked for, expected at most {MAX_STEPS:,}.")
    return Plan(steps_per_epoch, total_steps)


def introduce(
    config: Config, runtime: Runtime, strategy: Strategy, plan: Plan, peak_learning_rate: float, folder: Workdir
) -> Iterator[str]:
    """Says what is about to run and what `auto` decided, with the reasons."""
    replicas = strategy.shard.num_replicas
    yield f"device     {runtime.device.kind}, {runtime.device.name}"
    yield f"strategy   {strategy.name}, {replicas} replica{'s' if replicas > 1 else ''}"
    yield f"precision  {runtime.precision.value} ({runtime.precision.reason})"
    yield f"XLA        {runtime.xla.value} ({runtime.xla.reason})"
    yield (
        f"training   {plan.total_steps:,} steps of {config.training.batch_size} images (global batch), "
        f"{config.optimizer.name}, peak learning rate {peak_learning_rate:.3g}"
    )
    yield f"workdir    {folder.path}"


def restore(checkpoints: Checkpoints, variables: dict[str, keras.Variable], console: Console) -> Progress:
    """Sets all variables from the newest intact checkpoint and returns its progress."""
    loaded = checkpoints.load_latest()
    if loaded is None:
        console.say("No checkpoint to resume from: starting at step 0.")
        return Progress()
    arrays, note = loaded
    assign_variables(variables, arrays)
    progress = Progress.from_dict(note)
    console.say(f"Resuming after step {progress.step}.")
    return progress


def make_batches(config: Config, arrays: Arrays, strategy: Strategy, start_step: int) -> Iterator[Any]:
    """Returns the endless iterator over training batches from `start_step` on."""

    def make_dataset(shard: Shard) -> tf.data.Dataset:
        images, labels, batch_size = arrays.train_images, arrays.train_labels, config.training.batch_size
        if config.data.kind == "synthetic":
            return make_synthetic_dataset(images, labels, batch_size=batch_size, shard=shard)
        return make_train_dataset(
            images,
            labels,
            batch_size=batch_size,
            seed=config.seed,
            start_step=start_step,
            shard=shard,
            shift_pixels=config.data.shift_pixels,
        )

    return strategy.distribute(make_dataset)


def make_evaluate(
    config: Config, arrays: Arrays, plan: Plan, model: keras.Model, strategy: Strategy, writers: list[Writer]
) -> Evaluate:
    """Evaluates between epochs on the held-out images where there are some, or else on the test images."""
    held_out = len(arrays.holdout_images) > 0
    images, labels = (
        (arrays.holdout_images, arrays.holdout_labels) if held_out else (arrays.test_images, arrays.test_labels)
    )
    batch_size = config.evaluation.batch_size
    return Evaluate(
        period=config.evaluation.every_epochs * plan.steps_per_epoch or plan.total_steps,
        split="holdout" if held_out else "test",
        eval_steps=make_eval_steps(model, strategy),
        make_batches=lambda: strategy.distribute(
            lambda shard: make_eval_dataset(images, labels, batch_size=batch_size, shard=shard)
        ),
        num_steps=num_eval_steps(len(images), batch_size, strategy.shard.num_replicas),
        writers=writers,
        steps_per_epoch=plan.steps_per_epoch,
    )


def make_writers(config: Config, folder: Workdir, progress: Progress, console: Console) -> list[Writer]:
    writers: list[Writer] = [JsonLines(folder.metrics_file, progress.step), console]
    return [*writers, TensorBoard(folder.tensorboard)] if config.logging.tensorboard else writers


def stop_unless_finite(losses: np.ndarray, progress: Progress) -> None:
    """Ends the run on a loss that is NaN or infinite, before anything of it is saved.

    Args:
        losses: float32 [steps] of the steps just taken.

    Raises:
        TrainingError: names the step.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        step = progress.step - len(losses) + int(bad[0]) + 1
        raise TrainingError(
            f"training: the loss at step {step} is {losses[bad[0]]}, expected a finite number; "
            "lower --learning-rate, or train with --precision float32."
        )


def save_deliverables(config: Config, arrays: Arrays, model: keras.Model, folder: Workdir) -> Evaluation:
    """Saves model.keras, tests that very model on every test image, and draws the plots."""
    from mnist_dist import plots

    inference_model = build_inference_model(config.model, model)
    with atomic_path(folder.model_file) as file:
        inference_model.save(file)
    probabilities = predict(inference_model, arrays.test_images)
    evaluation = summarize(arrays.test_labels, probabilities)
    plots.save_curves(folder.plots / "curves.png", read_rows(folder.metrics_file))
    plots.save_confusion_matrix(folder.plots / "confusion_matrix.png", evaluation.confusion)
    plots.save_samples(folder.plots / "samples.png", arrays.test_images, arrays.test_labels, probabilities)
    return evaluation


def describe_run(
    config: Config, runtime: Runtime, strategy: Strategy, plan: Plan, progress: Progress
) -> dict[str, Any]:
    """Returns what result.json says of how the run was done; times in seconds, throughput of all replicas."""
    batch_size = config.training.batch_size
    return {
        "epochs": progress.step / plan.steps_per_epoch,
        "steps": progress.step,
        "global_batch_size": batch_size,
        "images_per_second": images_per_second(progress.timed_steps, progress.timed_seconds, batch_size),
        "training_seconds": progress.training_seconds,
        "first_step_seconds": progress.first_step_seconds,
        "strategy": strategy.name,
        "replicas": strategy.shard.num_replicas,
        "device": f"{runtime.device.kind}, {runtime.device.name}",
        "precision": runtime.precision.value,
        "xla": runtime.xla.value,
        "versions": {
            "mnist_dist": mnist_dist.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        },
    }
