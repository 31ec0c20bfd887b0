"""Runs a whole suite into a results folder: interleaved, resumable, and to its end whatever a case does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mnist_dist.benchmarks.analysis.matmul import matmul_series
from mnist_dist.benchmarks.analysis.summary import RunSummary
from mnist_dist.benchmarks.measure import runner
from mnist_dist.benchmarks.measure.runner import Study
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase, Suite, order_of_runs
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.benchmarks.report.labels import label_case
from mnist_dist.benchmarks.report.progress import Progress, clock
from mnist_dist.errors import UserError

# For estimates, before a case has run: what starting TensorFlow and leaving the results takes, and a pace.
STARTUP_SECONDS, IMAGES_PER_SECOND, EPOCH_IMAGES = 6.0, 18_000.0, 60_000
HOW_LONG = {
    "training.epochs",
    "training.steps",
    "evaluation.every_epochs",
    "logging.every_steps",
    "runtime.steps_per_call",
}
OTHER_KIND_SECONDS = {"input": 6.0, "collectives": 20.0, "matmul": 4.0}

Run = tuple[PlannedCase, int]


def open_study(
    folder: Path,
    suite_name: str,
    suite: Suite,
    machine: Machine,
    cases: Sequence[PlannedCase],
    resume: bool,
) -> tuple[Study, Store]:
    """Lays down the plan of a new study, or goes on with the folder's own.

    Raises:
        UserError: the folder holds a study that was not asked to continue, or another one.
    """
    store = Store(folder)
    if store.study_file.exists() and not resume:
        raise UserError(f"--results: '{folder}' already holds a study; add --resume to go on, or name another folder.")
    # The folder may have got another name since.
    name = str(store.study()["name"]) if store.study_file.exists() else folder.resolve().name
    store.write_study(
        {
            "name": name,
            "suite": suite_name,
            "seed": 0,
            "repeats": max(case.repeats for case in cases),
            "cases": sorted((case.case.model_dump(mode="json") for case in cases), key=str),
        }
    )
    # Not relative: the case's processes run in another folder.
    return Study(name, suite_name, suite.timeout_seconds, machine, folder.resolve() / "scratch"), store


def runs_left(cases: Sequence[PlannedCase], store: Store, study: Study, only: Iterable[int] | None) -> list[Run]:
    """Returns what is still to measure, in its order; `only` keeps the cases with that many devices."""
    finished = store.finished(study.name)
    skipped = {(record.case_id, record.repeat) for record in store.records() if record.status == "skipped"}
    return [
        (planned, repeat)
        for planned, repeat in order_of_runs(choose(cases, only), 0)
        if (planned.case.case_id, repeat) not in (finished | skipped if planned.skip_reason else finished)
    ]


def choose(cases: Sequence[PlannedCase], only: Iterable[int] | None) -> list[PlannedCase]:
    """Returns the cases with one of some numbers of devices; all, if there are none.

    Raises:
        UserError: there is no such case.
    """
    if only is None:
        return list(cases)
    chosen = [planned for planned in cases if planned.case.devices in set(only)]
    if not chosen:
        known = sorted({planned.case.devices for planned in cases})
        raise UserError(
            f"--only: received {', '.join(map(str, only))}, expected some of the study's numbers of devices: "
            f"{', '.join(map(str, known))}."
        )
    return chosen


def run_study(study: Study, store: Store, runs: Sequence[Run], progress: Progress) -> list[Record]:
    """Measures what is left; each record is in the store before the next case begins.

    Returns:
        The new records.
    """
    records = []
    known = store.records()
    for number, (planned, repeat) in enumerate(runs):
        label = f"{label_run(planned.case, study.machine)}, repeat {repeat + 1}"
        progress.begin(number, label, estimate_seconds(runs[number:], known))
        if planned.skip_reason:
            record = runner.skipped(study, planned.case, repeat, planned.skip_reason)
        else:
            record = runner.run_case(study, planned.case, repeat, progress.tick)
        store.add(record)
        records.append(record)
        known.append(record)
        progress.end(f"{label}: {describe(record)}", estimate_seconds(runs[number + 1 :], known))
    return records


def label_run(case: Case, machine: Machine) -> str:
    """Names a case in a few words; for a training, without the settings that say only how long it lasts."""
    kind = "" if case.kind == "train" else f"{case.kind}, "
    quiet = {key: value for key, value in case.settings.items() if key not in HOW_LONG}
    return kind + label_case(case.model_copy(update={"settings": quiet}), bool(machine.gpus))


def describe(record: Record) -> str:
    """Says in a few words what came of a case."""
    if record.status != "ok":
        return f"{record.status.replace('_', ' ')}: {record.reason}"
    measured = record.measurements or {}
    parts = []
    if "window_steps" in measured:
        run = RunSummary(record)
        settled = "" if run.steady_state.reason_unstable is None else " (not settled)"
        parts.append(f"{math.exp(run.series.log_rate):,.0f} images/s{settled}")
    if measured.get("test_accuracy") is not None:
        parts.append(f"test accuracy {100 * measured['test_accuracy']:.2f} %")
    if "flops_per_second" in measured:
        rate = math.exp(matmul_series(record).log_rate)
        parts.append(f"{rate / 1e9:,.0f} GFLOP/s in {measured['dtype']}")
    return ", ".join([*parts, f"{record.seconds:.0f} s"])


def estimate_seconds(runs: Sequence[Run], known: Sequence[Record]) -> float:
    """Estimates how long some runs take: as long as their like did, or else by a rule of thumb."""
    seen: dict[str, list[float]] = {}
    for record in known:
        if record.status == "ok":
            seen.setdefault(record.case_id, []).append(record.seconds)
    return sum(_estimate_case(case, seen) for case, _ in runs if case.skip_reason is None)


def _estimate_case(planned: PlannedCase, seen: dict[str, list[float]]) -> float:
    case = planned.case
    if before := seen.get(case.case_id):
        return sum(before) / len(before)
    if case.kind != "train":
        return OTHER_KIND_SECONDS[case.kind]
    epochs = float(case.settings.get("training.epochs", 3))
    training = case.measure_seconds or epochs * EPOCH_IMAGES / IMAGES_PER_SECOND
    return STARTUP_SECONDS + training


def list_cases(cases: Sequence[PlannedCase], machine: Machine) -> str:
    """Renders the cases of a suite, a line each, with the estimated time of all."""
    lines = []
    for planned in cases:
        label = label_run(planned.case, machine)
        reason = f"  (skipped: {planned.skip_reason})" if planned.skip_reason else ""
        reason = reason or _crowded(planned.case, machine)
        lines.append(f"{planned.case.case_id}  {planned.repeats} x  {label}{reason}")
    runs = order_of_runs(cases, 0)
    lines.append(f"{len(cases)} cases, {len(runs)} runs, about {clock(estimate_seconds(runs, []))}")
    return "\n".join(lines)


def _crowded(case: Case, machine: Machine) -> str:
    cores = case.devices // case.hosts * (case.cores_per_device or 0)
    return f"  (oversubscribed: {cores} cores on a host of {machine.cores})" if cores > machine.cores else ""
