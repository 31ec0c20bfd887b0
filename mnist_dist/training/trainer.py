"""The training run, from configuration to result, as one visible loop."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.config import Config
from mnist_dist.data import dataset
from mnist_dist.data.resident import Resident
from mnist_dist.distributed.cluster import Cluster, find_cluster, shared_cores
from mnist_dist.distributed.launch import join_ranks
from mnist_dist.distributed.signals import Preemption
from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.strategies.resolve import make_strategy, resolve_strategy
from mnist_dist.distributed.strategies.unreduced import Unreduced
from mnist_dist.distributed.turns import FULL, Turns, join_turns
from mnist_dist.distributed.watchdog import EXIT_LOST_RANKS, Watchdog
from mnist_dist.errors import TrainingError, UserError, counted
from mnist_dist.files import write_json
from mnist_dist.lazy import keras, tf
from mnist_dist.network.forward import Form, choose_form
from mnist_dist.network.model import build_model
from mnist_dist.network.optimizers import build_optimizer
from mnist_dist.network.schedule import doubt_peak, learning_rates
from mnist_dist.runtime import Decision, Runtime, configure_runtime, decide_resident
from mnist_dist.training import guard
from mnist_dist.training.actions import (
    Action,
    Evaluate,
    Guard,
    LogMetrics,
    Profile,
    Progress,
    SaveCheckpoint,
    diverged,
    images_per_second,
    is_due,
    steps_until_due,
)
from mnist_dist.training.by_turns import ByTurns
from mnist_dist.training.checkpoint import Checkpoints, assign_variables, variables_by_name
from mnist_dist.training.plan import PROFILED_STEPS, Plan, make_plan
from mnist_dist.training.results import library_versions, save_deliverables
from mnist_dist.training.step_times import StepClock, gather_step_times
from mnist_dist.training.steps import StepCall, make_eval_steps, make_train_steps
from mnist_dist.training.variants import VARIANTS
from mnist_dist.training.workdir import Workdir, check_workdir, claim_workdir, record_config
from mnist_dist.training.writers import Console, JsonLines, TensorBoard, Writer, open_console

AGREEMENT_SECONDS = 0.2  # Between two agreements, about; the length of a window of a run that only measures.


def train(config: Config, workdir: Path, resume: bool = False) -> dict[str, Any]:
    """Trains in `workdir` and returns the content of its result.json.

    Every rank of a run calls this with the same arguments; only the chief touches the folder.

    Args:
        resume: continue the run in the folder from its newest intact checkpoint; start it where there is none.

    Raises:
        UserError: the input is bad, see its message; nothing that existed was overwritten.
        TrainingError: the loss was not finite, or the guard found a fault.
    """
    clock = StepClock()
    cluster = find_cluster(os.environ)
    config = config.model_copy(update={"runtime": resolve_strategy(config.runtime, cluster)})
    folder = check_workdir(workdir, config, resume) if cluster.is_chief else Workdir(workdir)
    if resume and (result := folder.read_result()) and result["status"] == "completed":
        return result
    arrays = dataset.load_arrays(config.data)
    plan = make_plan(config, len(arrays.train_images))
    with contextlib.ExitStack() as stack:
        tells = cluster.is_chief and cluster.launcher != "mnist-dist"  # Which answers for its ranks.
        preemption = stack.enter_context(Preemption(tells))
        # Joining takes two waits: for the roll call, which ends itself, and for TensorFlow or Horovod.
        watchdog = stack.enter_context(Watchdog(cluster, 2 * config.runtime.join_timeout_seconds))
        stack.enter_context(join_ranks(cluster, config.runtime))
        runtime = configure_runtime(
            config.runtime,
            config.seed,
            local_rank=cluster.local_rank,
            local_size=cluster.local_size,
            batch_norm=config.model.batch_norm,
        )
        line = shared_cores(runtime.replicas, os.sched_getaffinity(0), "replicas")
        if line and runtime.device.kind == "CPU":
            print(line, file=sys.stderr)
        form = choose_form(config.runtime, runtime, batch_norm=config.model.batch_norm)
        strategy = make_strategy(config.runtime, cluster)
        preemption.listen()
        watchdog.enter("preparing", config.runtime.stall_timeout_seconds)
        if cluster.is_chief:
            stack.enter_context(claim_workdir(folder, config, resume))
        turns = stack.enter_context(join_turns(os.environ, cluster.rank, cluster.size, watchdog))
        console = stack.enter_context(open_console(plan.total_steps, config.training.batch_size, cluster.is_chief))
        session = Session(
            config, arrays, plan, cluster, runtime, form, strategy, folder, console, watchdog, preemption, turns, clock
        )
        with lost_ranks_explained(cluster):
            result = run_session(session, resume)
            watchdog.enter("ending")
            strategy.barrier()  # No rank leaves while another still needs it.
    return result


@dataclass(frozen=True)
class Session:
    """One process' part in a run, from its start to its end."""

    config: Config
    arrays: dataset.Arrays
    plan: Plan
    cluster: Cluster
    runtime: Runtime
    form: Form
    strategy: Strategy
    folder: Workdir
    console: Console
    watchdog: Watchdog
    preemption: Preemption
    turns: Turns | None  # With other groups of processes, where a harness of benchmarks grants them.
    clock: StepClock

    @property
    def resident(self) -> Decision:
        """Whether the images live on the devices."""
        return decide_resident(self.config.data.resident, self.runtime.device)

    @property
    def decisions(self) -> dict[str, Decision]:
        """What `auto` may decide by the device, by setting."""
        precision, xla, kernels = self.runtime.precision, self.runtime.xla, self.form.kernels
        of_runtime = {"runtime.precision": precision, "runtime.xla": xla, "runtime.kernels": kernels}
        return of_runtime | {"data.resident": self.resident}


def run_session(session: Session, resume: bool) -> dict[str, Any]:
    """Builds everything, trains to the last step or to a signal, and leaves the results."""
    config, plan, strategy, console = session.config, session.plan, session.strategy, session.console
    rates = learning_rates(
        config.schedule, config.optimizer.learning_rate, config.training.batch_size, plan.total_steps
    )
    for line in introduce(session, float(rates.max())):
        console.say(line)
    compare_decisions(session)

    model, optimizer = build(session, rates)
    variables = variables_by_name(model, optimizer)
    checkpoints = Checkpoints(session.folder.checkpoints, config.checkpoint.keep, report=console.say)
    progress = restore(session, checkpoints, variables) if resume else Progress()
    strategy.broadcast(list(variables.values()))

    earlier_seconds = progress.wall_seconds
    save_checkpoint = SaveCheckpoint(
        period=config.checkpoint.every_steps or plan.steps_per_epoch,
        checkpoints=checkpoints if strategy.is_chief else None,
        variables=variables,
        precision=session.runtime.precision.value,
        wall_seconds=lambda: earlier_seconds + own_seconds(session),
    )
    actions = make_actions(session, model, optimizer, rates, progress)
    if config.training.measure_seconds is None:
        actions.append(save_checkpoint)
    if config.runtime.guard:
        check_shards(session)

    call_of = make_step_calls(session, model, optimizer, progress.step)
    by_turns = ByTurns(session.turns, session.clock, session.preemption)
    train_steps_to_the_end(session, call_of(FULL), progress, actions, by_turns)
    result = leave_results(session, model, progress, save_checkpoint)
    by_turns.measure(call_of)
    step_times = gather_step_times(session.clock, strategy, session.cluster.hosts)
    if strategy.is_chief:
        session.folder.check_there()
        write_json(session.folder.step_times_file, step_times)
        write_json(session.folder.result_file, result)
    return result


def own_seconds(session: Session) -> float:
    """Returns how long this process' part has taken, without the turns of others."""
    waited = session.turns.waited_seconds if session.turns else 0.0
    return time.perf_counter() - session.clock.began - waited


def build(session: Session, rates: np.ndarray) -> tuple[keras.Model, keras.Optimizer]:
    """Returns the model and its optimizer, within the strategy's scope; `rates` are float32 [total steps]."""
    config, strategy = session.config, session.strategy
    precision = session.runtime.precision.value
    with strategy.scope():
        model = build_model(config.model, precision=precision, seed=config.seed, replica_mean=strategy.replica_mean)
        optimizer = build_optimizer(
            config.optimizer,
            rates,
            loss_scaling=precision == "mixed_float16",
            one_operation=session.form.fuses_updates,
        )
        optimizer.build(model.trainable_variables)
    return model, optimizer


def make_step_calls(
    session: Session, model: keras.Model, optimizer: keras.Optimizer, start_step: int
) -> Callable[[str], StepCall]:
    """Returns a function from a variant's name to the call that takes steps of it, built when first asked for."""
    config, strategy = session.config, session.strategy

    @functools.cache
    def call_of(name: str) -> StepCall:
        variant = VARIANTS[name]
        synthetic = variant.resident or config.data.kind == "synthetic"
        batches, resident = make_batches(session, session.arrays.train_labels, start_step, synthetic)
        train_steps = make_train_steps(
            model,
            optimizer,
            strategy if variant.reduced and config.runtime.all_reduce else Unreduced(strategy),
            batch_size=config.training.batch_size,
            label_smoothing=config.training.label_smoothing,
            accumulation_steps=config.training.accumulation_steps,
            gradient_compression=config.optimizer.gradient_compression,
            xla=session.runtime.xla.value == "on",
            forward=session.form.make_forward(model),
            resident=resident,
        )
        return lambda count: train_steps(batches, count).numpy()

    return call_of


def train_steps_to_the_end(
    session: Session, take_steps: StepCall, progress: Progress, actions: Sequence[Action], by_turns: ByTurns
) -> None:
    """Trains until the plan or the time to measure is over, or a rank was told to stop; `progress` says how far."""
    config, plan, clock = session.config, session.plan, session.clock
    harness_measures = session.turns is not None and config.training.measure_seconds is not None
    clock.start()
    first_call = True
    time_is_up = False
    window = 1 if config.training.measure_seconds else config.runtime.steps_per_call
    agreement_step, is_alone = 0, session.strategy.shard.local_replicas == session.strategy.shard.num_replicas
    while progress.step < plan.total_steps and not session.preemption.agreed and not time_is_up:
        count = min(window, steps_until_due(actions, progress.step, plan.total_steps))
        # The first alone, so that compiling is timed apart.
        count = 1 if first_call else by_turns.allow(count)
        if count == 0:
            break
        session.watchdog.enter(f"step {progress.step + count}")
        metrics = take_steps(count)
        seconds = clock.stop_window(count)
        progress.advance(metrics, seconds, first_call)
        first_call = False
        stop_unless_finite(metrics[:, 0], progress)
        session.console.advance(progress.step, seconds / count)
        for action in actions:
            if is_due(action, progress.step, plan.total_steps):
                session.watchdog.enter(f"{type(action).__name__} after step {progress.step}")
                with contextlib.nullcontext() if isinstance(action, LogMetrics) else clock.paused():
                    action(progress)
        # The same on all ranks; but a process that is alone need not wait with a signal.
        if progress.step < agreement_step and not harness_measures and not (is_alone and session.preemption.received):
            continue
        session.watchdog.enter(f"agreement after step {progress.step}")
        # Ranks that run freely must not show each other's pace in their windows.
        with contextlib.nullcontext() if config.runtime.all_reduce else clock.paused():
            time_is_up, slowest_step_seconds = agree(session, seconds / count)
        time_is_up |= harness_measures  # Measured from here on as the harness says.
        steps = max(round(AGREEMENT_SECONDS / slowest_step_seconds), 1)
        agreement_step = progress.step + steps
        if config.training.measure_seconds:  # Windows long enough by time, and enough of them to see them settle.
            window = steps


def leave_results(
    session: Session, model: keras.Model, progress: Progress, save_checkpoint: SaveCheckpoint
) -> dict[str, Any]:
    """Writes what a run leaves in its workdir, or a checkpoint where it was stopped, and returns result.json."""
    config, strategy = session.config, session.strategy
    session.watchdog.enter(f"results after step {progress.step}")
    result = describe_run(session, progress)
    if config.training.measure_seconds:
        result["status"] = "measured"
    elif progress.step < session.plan.total_steps:
        save_checkpoint(progress)
        result |= {"status": "preempted", "signal": session.preemption.agreed or session.preemption.received}
    elif strategy.is_chief:
        evaluation = save_deliverables(config, session.arrays, model, session.folder, session.console.say)
        result |= {"test_accuracy": evaluation.accuracy, "test_loss": evaluation.loss}
    result["seconds"] = save_checkpoint.wall_seconds()
    return result


@contextlib.contextmanager
def lost_ranks_explained(cluster: Cluster) -> Iterator[None]:
    """Turns what a collective raises when another rank has ended into one line."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.UnknownError,
        tf.errors.InternalError,
        tf.errors.AbortedError,
        tf.errors.DeadlineExceededError,  # Of a rank that stands still.
    ) as error:
        if cluster.size == 1:
            raise
        lines = [line for line in str(error).splitlines() if "aborted by" in line or "shut down" in line] or [
            str(error)
        ]
        reason = " ".join(lines[0].split())[:200]
        lost = TrainingError(
            f"training: rank {cluster.rank} lost the other ranks ({reason}); see which one ended first."
        )
        lost.exit_code = EXIT_LOST_RANKS
        raise lost from None


def introduce(session: Session, peak_learning_rate: float) -> Iterator[str]:
    """Says what is about to run and what `auto` decided, with the reasons."""
    config, runtime, replicas = session.config, session.runtime, session.strategy.shard.num_replicas
    yield f"device     {runtime.device.kind}, {runtime.device.name}"
    shared = ", each with a share of the CPU's cores" if replicas > 1 and runtime.device.kind == "CPU" else ""
    yield f"strategy   {config.runtime.strategy}, {replicas} replica{'s' if replicas > 1 else ''}{shared}"
    yield f"precision  {runtime.precision.value} ({runtime.precision.reason})"
    yield f"XLA        {runtime.xla.value} ({runtime.xla.reason})"
    yield f"resident   {session.resident.value} ({session.resident.reason})"
    yield f"kernels    {session.form.kernels.value} ({session.form.kernels.reason})"
    given = config.optimizer.learning_rate
    scaled = f" (scaled to the batch from {given:g})" if not math.isclose(peak_learning_rate, given) else ""
    yield (
        f"training   {counted(session.plan.total_steps, 'step')} of {config.training.batch_size} images (all "
        f"replicas), {config.optimizer.name}, peak learning rate {peak_learning_rate:.3g}{scaled}"
    )
    yield f"workdir    {session.folder.path}"
    if config.training.measure_seconds is None and session.cluster.is_chief:  # A model is to come of it.
        if rate := doubt_peak(config.schedule, config.optimizer, config.training.batch_size):
            yield f"warning    {rate}"
        yield from (f"warning    {doubt}" for doubt in (dataset.doubts(session.arrays) if config.data.path else ()))


def compare_decisions(session: Session) -> None:
    """Ends the run on all ranks where their devices differ so much that `auto` has decided differently.

    Ranks would wait for messages of other sizes, or add up gradients of which some are scaled against overflow.

    Raises:
        UserError: names the setting, and a rank that differs from rank 0.
    """
    # As numbers that are exact in float64.
    own = [float(zlib.crc32(decision.value.encode())) for decision in session.decisions.values()]
    of_ranks = all_gather(session.strategy, own).T
    for (name, decision), values in zip(session.decisions.items(), of_ranks, strict=True):
        if (others := np.flatnonzero(values != values[0])).size:
            places = [f"rank {rank} ({session.cluster.hosts[rank]})" for rank in (others[0], 0)]
            raise UserError(
                f"{name}: 'auto' resolved differently on {places[0]} than on {places[1]}, as their devices differ; "
                f"here to '{decision.value}' ({decision.reason}). Set it to a value that all ranks support."
            )


def restore(session: Session, checkpoints: Checkpoints, variables: dict[str, keras.Variable]) -> Progress:
    """Sets the chief's variables from the newest intact checkpoint; returns its progress, the step on all ranks."""
    loaded = checkpoints.load_latest() if session.strategy.is_chief else None
    progress = Progress()
    if loaded is not None:
        arrays, note = loaded
        progress = Progress.from_dict(note)
        if progress.precision != session.runtime.precision.value:
            raise UserError(
                f"runtime.precision: this device would continue in {session.runtime.precision.value}, but the run "
                f"began in {progress.precision}; add --precision {progress.precision}."
            )
        assign_variables(variables, arrays)
    if session.strategy.is_chief:
        record_config(session.folder, session.config)  # Not before it is known to fit the checkpoint.
    progress.step = int(all_gather(session.strategy, [progress.step]).sum())  # Zero on all but the chief.
    anew = f"No checkpoint to resume from in '{session.folder.path}': starting anew."
    session.console.say(f"Resuming after step {progress.step}." if progress.step else anew)
    return progress


def make_batches(
    session: Session, labels: np.ndarray, start_step: int, synthetic: bool = False
) -> tuple[tf.data.Iterator, Resident | None]:
    """Returns the endless iterator over training batches from `start_step` on, and the images that it only refers to.

    Args:
        labels: integers [train_images].
        synthetic: over one batch that stays in memory.
    """
    config, images = session.config, session.arrays.train_images
    batch_size, resident = config.training.batch_size, session.resident.value == "on"

    def make_dataset(shard: dataset.Shard) -> tf.data.Dataset:
        if synthetic:
            return dataset.make_synthetic_dataset(images, labels, batch_size=batch_size, shard=shard, resident=resident)
        return dataset.make_train_dataset(
            images,
            labels,
            batch_size=batch_size,
            seed=config.seed,
            start_step=start_step,
            shard=shard,
            shift_pixels=config.data.shift_pixels,
            resident=resident,
        )

    batches = session.strategy.distribute(make_dataset)
    return batches, Resident(images, labels, session.strategy.devices) if resident else None


def make_actions(
    session: Session, model: keras.Model, optimizer: keras.Optimizer, rates: np.ndarray, progress: Progress
) -> list[Action]:
    """Returns what happens between steps, in its order; the same on all ranks, but only the chief writes."""
    config, plan, strategy = session.config, session.plan, session.strategy
    writers: list[Writer] = []
    if strategy.is_chief:
        writers = [JsonLines(session.folder.metrics_file, progress.step), session.console]
        if config.logging.tensorboard:
            writers.append(TensorBoard(session.folder.tensorboard, progress.step, session.console.say))
    actions: list[Action] = [
        LogMetrics(
            plan.total_steps if config.training.measure_seconds else config.logging.every_steps,  # No bound of windows.
            writers,
            rates,
            config.training.batch_size,
            plan.steps_per_epoch,
        ),
    ]
    if config.training.measure_seconds is None:
        actions.append(make_evaluate(session, model, writers))
    if config.logging.profile and plan.total_steps - progress.step >= PROFILED_STEPS:
        actions.append(Profile(session.folder.tensorboard if strategy.is_chief else None, session.console.say))
    if config.runtime.guard:
        actions.append(Guard(plan.steps_per_epoch, model, optimizer, rates, strategy))
    return actions


def make_evaluate(session: Session, model: keras.Model, writers: list[Writer]) -> Evaluate:
    """Evaluates between epochs on the held-out images where there are some, or else on the test images."""
    arrays, strategy, evaluation = session.arrays, session.strategy, session.config.evaluation
    held_out = len(arrays.holdout_images) > 0
    images, labels = (
        (arrays.holdout_images, arrays.holdout_labels) if held_out else (arrays.test_images, arrays.test_labels)
    )
    return Evaluate(
        period=max(1, round(evaluation.every_epochs * session.plan.steps_per_epoch))
        if evaluation.every_epochs
        else session.plan.total_steps,
        split="holdout" if held_out else "test",
        eval_steps=make_eval_steps(model, strategy, session.form.make_forward(model)),
        make_batches=lambda: strategy.distribute(
            lambda shard: dataset.make_eval_dataset(images, labels, batch_size=evaluation.batch_size, shard=shard)
        ),
        num_steps=dataset.num_eval_steps(len(images), evaluation.batch_size, strategy.shard.num_replicas),
        num_images=len(images),
        writers=writers,
        steps_per_epoch=session.plan.steps_per_epoch,
    )


def check_shards(session: Session) -> None:
    """Runs the guard's check of one epoch through this run's own pipeline."""
    if session.config.data.kind == "synthetic":
        return  # Every replica repeats one batch, on purpose.
    indices = np.arange(session.plan.train_images, dtype=np.int32)
    batches, resident = make_batches(session, indices, start_step=0)
    batch_size = session.config.training.batch_size
    guard.check_shards(session.strategy, batches, session.plan.train_images, batch_size, resident)


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
        raise diverged(f"the loss at step {step}", losses[bad[0]])


def agree(session: Session, step_seconds: float) -> tuple[bool, float]:
    """Lets all ranks agree, after the same step, on what must not differ between them, as a signal that came to one.

    Returns:
        Whether the end of the measuring time came to any; the slowest rank's seconds of a step.
    """
    limit = session.config.training.measure_seconds or float("inf")
    signalled = signal.Signals[session.preemption.received] if session.preemption.received else 0
    own = [float(signalled), float(session.clock.measured_seconds >= limit), step_seconds]
    signalled, time_is_up, slowest = all_gather(session.strategy, own).max(axis=0)
    session.preemption.agreed = signal.Signals(int(signalled)).name if signalled else None
    return bool(time_is_up), float(slowest)


def describe_run(session: Session, progress: Progress) -> dict[str, Any]:
    """Returns what result.json says of how the run was done; times in seconds, throughput of all replicas together."""
    batch_size = session.config.training.batch_size
    return {
        "status": "completed",
        "epochs": progress.step / session.plan.steps_per_epoch,
        "steps": progress.step,
        "global_batch_size": batch_size,
        "images_per_second": images_per_second(progress.timed_steps, progress.timed_seconds, batch_size),
        "training_seconds": progress.training_seconds,
        "first_step_seconds": progress.first_step_seconds,
        "strategy": session.config.runtime.strategy,
        "replicas": session.strategy.shard.num_replicas,
        "all_reduce_backend": session.strategy.backend if session.config.runtime.all_reduce else "none",
        "device": f"{session.runtime.device.kind}, {session.runtime.device.name}",
        "precision": session.runtime.precision.value,
        "xla": session.runtime.xla.value,
        "resident": session.resident.value,
        "kernels": session.form.kernels.value,
        "flops_per_image": session.form.flops_per_image(session.config.model),
        "versions": library_versions(),
    }
