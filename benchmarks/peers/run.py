"""Measures contestants: each repeat runs all of them once, in fresh processes and in a random order of its own."""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.measure import runner
from mnist_dist.benchmarks.measure.runner import Study
from mnist_dist.benchmarks.peers.contestants import GIVE_UP_SECONDS, Contestant, Environment, Script, python_of
from mnist_dist.benchmarks.peers.runs import Evaluation, Folder, Measured, Mode, PeerStudy, Run, read_measured
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.environment import find_git, find_hardware, find_software, known_variables
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.progress import Progress, make_progress

MODES: tuple[Mode, ...] = ("throughput", "accuracy")
STARTING_SECONDS = 300.0  # A process that has not begun to train by then never will.
TYPICAL_SECONDS = {"throughput": 15.0, "accuracy": 40.0}

Plan = list[tuple[Contestant, Mode, int]]


def measure_peers(
    wanted: Sequence[tuple[Contestant, Mode]],
    environment: Environment,
    folder: Folder,
    *,
    repeats: int,
    seconds: float,
    resume: bool = False,
) -> list[Run]:
    """Measures what is wanted and not there yet, and returns all runs of the folder.

    Args:
        seconds: of steady training in each measurement of a throughput.

    Raises:
        UserError: the folder holds a comparison that cannot go on.
    """
    study = PeerStudy(
        date=datetime.now(timezone.utc).date().isoformat(),
        seconds=seconds,
        hardware=find_hardware(),
        software=find_software(),
        pytorch=environment.pytorch_version,
        environment={
            key: value for key, value in known_variables(os.environ).items() if not key.startswith(("SLURM_", "SRUN_"))
        },
        git=find_git(),
    )
    folder.open(study, resume)
    known = folder.runs()
    done = {run.key for run in known if run.status in ("ok", "skipped")}
    plan = [item for item in order_of_runs(wanted, repeats) if (item[0].name, item[1], item[2]) not in done]
    with make_progress(len(plan)) as progress, tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        for number, (contestant, mode, repeat) in enumerate(plan):
            label = f"{contestant.name}, {mode}, repeat {repeat + 1}"
            progress.begin(number, label, estimate_seconds(plan[number:], known))
            run = run_once(contestant, mode, repeat, environment, seconds, Path(scratch), progress)
            folder.add(run)
            known.append(run)
            progress.end(f"{label}: {describe(run)}", estimate_seconds(plan[number + 1 :], known))
    return folder.runs()


def order_of_runs(wanted: Sequence[tuple[Contestant, Mode]], repeats: int, seed: int = 0) -> Plan:
    """Interleaves: everything once in a random order, then again in another one, so that drift falls on all alike."""
    plan: Plan = []
    for repeat in range(repeats):
        of_repeat = sorted(wanted, key=lambda item: (item[0].name, item[1]))
        random.Random(f"{seed}/{repeat}").shuffle(of_repeat)  # noqa: S311 - an order, not a secret.
        plan += [(contestant, mode, repeat) for contestant, mode in of_repeat]
    return plan


def run_once(
    contestant: Contestant,
    mode: Mode,
    repeat: int,
    environment: Environment,
    seconds: float,
    scratch: Path,
    progress: Progress,
) -> Run:
    """Measures one contestant once; `repeat` is also the seed. Never raises for what the contestant does."""
    work = contestant.work(mode)
    if work is None:
        raise ValueError(f"{contestant.name}: has no {mode}")
    started_at, began = datetime.now(timezone.utc).isoformat(timespec="milliseconds"), time.monotonic()
    if reason := environment.skip_reason(work):
        return Run(
            contestant=contestant.name,
            mode=mode,
            repeat=repeat,
            status="skipped",
            reason=reason,
            started_at=started_at,
            seconds=0.0,
        )
    limit = STARTING_SECONDS + (seconds if mode == "throughput" else GIVE_UP_SECONDS)
    # Within a Slurm job, too, all run on this host and without srun: a peer would not know what to do with it.
    machine = dataclasses.replace(environment.machine, hosts=None)
    study = Study("peers", "peers", limit, machine, scratch)
    if isinstance(work, Case):
        outcome = _outcome_of(runner.run_case(study, work, repeat, progress.tick))
    else:
        outcome = _run_script(study, work, mode, repeat, environment, seconds, progress.tick)
    lasted = time.monotonic() - began
    return Run(contestant=contestant.name, mode=mode, repeat=repeat, started_at=started_at, seconds=lasted, **outcome)


def _run_script(
    study: Study,
    script: Script,
    mode: Mode,
    seed: int,
    environment: Environment,
    seconds: float,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Runs a peer's script in the harness' process group, time limit and cores; returns fields of a Run."""
    cores = set(sorted(os.sched_getaffinity(0))[: script.cores])
    with tempfile.TemporaryDirectory(dir=study.scratch) as name:
        log, out = Path(name) / "output.log", Path(name) / "result.json"
        limit = seconds if mode == "throughput" else GIVE_UP_SECONDS
        command = script.command(python_of(script, environment), mode, limit, seed, out)
        outcome = runner.run_command(command, cores, log, study, tick)
        if outcome.status != "ok":
            return {"status": outcome.status, "reason": outcome.reason, "output_tail": tuple(outcome.tail)}
        try:
            return {"status": "ok", "measured": read_measured(out)}
        except ValueError as error:
            return {"status": "failed", "reason": f"it ended well, but left no whole result: {error}"}


def _outcome_of(record: Record) -> dict[str, Any]:
    """Turns the record of one of our cases into fields of a Run."""
    outcome: dict[str, Any] = {
        "status": record.status,
        "reason": record.reason,
        "output_tail": record.output_tail,
    }
    if record.measurements is not None:
        outcome["measured"] = _measured_of(record)
    return outcome


def _measured_of(record: Record) -> Measured:
    measured, software = record.measurements or {}, record.identity.software
    if "flops_per_second" in measured:  # Matrix products.
        rates = measured["flops_per_second"]
        work = round(max(rates))  # Each timing is of equal work; here, of as much as the fastest does in a second.
        return Measured(
            window_work=[work] * len(rates),
            window_seconds=[[work / rate for rate in rates]],
            precision=measured["dtype"],
            versions=software,
        )
    batch = record.case.global_batch_size
    windows = {
        "window_work": [steps * batch for steps in measured["window_steps"]],
        "window_seconds": measured["window_seconds"],
    }
    if "first_step_seconds" not in measured:  # The input pipeline alone.
        return Measured(**windows, versions=software)
    return Measured(
        **windows,
        first_step_seconds=max(measured["first_step_seconds"]),
        images_trained=batch * (1 + sum(measured["window_steps"])),
        evaluations=[
            Evaluation(
                step=each["step"],
                seconds=each["training_seconds"] + each["evaluation_seconds"],
                accuracy=each["accuracy"],
            )
            for each in measured["evaluations"]
            if each["split"] == "test"
        ],
        flops_per_image=measured["flops_per_image"],
        device=measured["device"],
        precision=measured["precision"],
        versions=software,
    )


def describe(run: Run) -> str:
    """Says in a few words what came of a run."""
    if run.measured is None:
        return f"{run.status.replace('_', ' ')}: {run.reason}"
    parts = []
    if run.measured.window_work and run.mode == "throughput":
        slowest = max(sum(seconds) for seconds in run.measured.window_seconds)
        parts.append(f"{sum(run.measured.window_work) / slowest:,.0f} per second")
    if run.mode == "accuracy" and run.measured.evaluations:
        last = run.measured.evaluations[-1]
        parts.append(f"test accuracy {100 * last.accuracy:.2f} % after {last.seconds:.1f} s")
    return ", ".join([*parts, f"{run.seconds:.0f} s"])


def estimate_seconds(plan: Plan, known: Iterable[Run]) -> float:
    """Estimates how long some runs take: as long as their like did, or else as is typical."""
    seen: dict[tuple[str, str], list[float]] = {}
    for run in known:
        seen.setdefault(run.key[:2], []).append(run.seconds)
    total = 0.0
    for contestant, mode, _ in plan:
        before = seen.get((contestant.name, mode))
        total += sum(before) / len(before) if before else TYPICAL_SECONDS[mode]
    return total


def wanted_runs(contestants: Mapping[str, Contestant], modes: Sequence[Mode]) -> list[tuple[Contestant, Mode]]:
    return [(each, mode) for each in contestants.values() for mode in modes if each.work(mode) is not None]
