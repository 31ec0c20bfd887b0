"""Runs a whole suite into a results folder: interleaved, resumable, and to its end whatever a case does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from mnist_dist.benchmarks.measure import runner
from mnist_dist.benchmarks.measure.runner import Study
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase, Suite, order_of_runs
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store, finished
from mnist_dist.errors import UserError

Run = tuple[PlannedCase, int]


class Progress(Protocol):
    """Is told how far a study is."""

    def begin(self, case: Case, repeat: int, left_seconds: float, of: str = "") -> None:
        """Learns which case begins, of which side of a comparison, and how long it and all after it will take."""

    def tick(self) -> None:
        """Is called about once a second while a case runs."""

    def end(self, record: Record, left_seconds: float) -> None:
        """Learns what came of the case, and how long those after it will take."""


def open_study(
    folder: Path, suite_name: str, suite: Suite, machine: Machine, cases: Sequence[PlannedCase], resume: bool
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


def runs_left(
    cases: Sequence[PlannedCase], known: Collection[Record], study: Study, only: Iterable[int] | None
) -> list[Run]:
    """Returns what is still to measure, in its order.

    Args:
        known: the records that there are.
        only: keeps the cases with one of these numbers of devices.
    """
    done = finished(known, study.name)
    skipped = {(record.case_id, record.repeat) for record in known if record.status == "skipped"}
    return [
        (planned, repeat)
        for planned, repeat in order_of_runs(choose(cases, only), 0)
        if (planned.case_id, repeat) not in (done | skipped if planned.skip_reason else done)
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


def run_study(
    study: Study, store: Store, runs: Sequence[Run], progress: Progress, known: Iterable[Record] = ()
) -> list[Record]:
    """Measures what is left; each record is in the store before the next case begins.

    Args:
        known: earlier records, which tell how long their like takes.

    Returns:
        The new records.
    """
    records = []
    left = TimeLeft(runs, known)
    for planned, repeat in runs:
        progress.begin(planned.case, repeat, left.seconds)
        if planned.skip_reason:
            record = runner.skipped(study, planned.case, repeat, planned.skip_reason)
        else:
            record = runner.run_case(study, planned.case, repeat, progress.tick)
        store.add(record)
        records.append(record)
        left.end(planned, record)
        progress.end(record, left.seconds)
    return records


class TimeLeft:
    """How long some runs take: as long as their like did, or else by the rule of thumb of their kind.

    Each record corrects the sum, which to add up anew would take ever longer with the number of runs.
    """

    def __init__(self, runs: Iterable[Run], known: Iterable[Record] = ()) -> None:
        self._left: Counter[str] = Counter()
        self._expected: dict[str, float] = {}
        self._seen: Counter[str] = Counter()
        for planned, _ in runs:
            if planned.skip_reason is None:
                self._left[planned.case_id] += 1
                if planned.case_id not in self._expected:
                    self._expected[planned.case_id] = kind(planned.case.kind).estimate_seconds(planned.case)
        self._seconds = sum(count * self._expected[case_id] for case_id, count in self._left.items())
        self._runs = self._left.total()
        for record in known:
            self._learn(record)

    @property
    def seconds(self) -> float:
        return self._seconds if self._runs else 0.0

    def end(self, planned: PlannedCase, record: Record) -> None:
        """Takes one run off, and learns how long it took."""
        if planned.skip_reason is None:
            self._seconds -= self._expected[planned.case_id]
            self._left[planned.case_id] -= 1
            self._runs -= 1
            self._learn(record)

    def _learn(self, record: Record) -> None:
        """Takes in another run of a case, of which the mean is expected of those to come."""
        if record.status == "ok" and record.case_id in self._expected:
            self._seen[record.case_id] += 1
            correction = (record.seconds - self._expected[record.case_id]) / self._seen[record.case_id]
            self._expected[record.case_id] += correction
            self._seconds += self._left[record.case_id] * correction


def remark(planned: PlannedCase, machine: Machine) -> str:
    """Says what a list of cases has to tell of one: why it is skipped, or that its devices share cores."""
    case = planned.case
    if planned.skip_reason:
        return f"skipped: {planned.skip_reason}"
    cores = case.devices // case.hosts * (case.cores_per_device or 0)
    return f"oversubscribed: {cores} cores on a host of {machine.cores}" if cores > machine.cores else ""
