"""How far a study is and how long it will still take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.labels import label_with_kind

if TYPE_CHECKING:
    from mnist_dist.benchmarks.measure.runner import Run

HOW_LONG = {
    "training.epochs",
    "training.steps",
    "evaluation.every_epochs",
    "logging.every_steps",
    "runtime.steps_per_call",
}


class Progress:
    """One line for each case that ends, with the number of cases and the time left."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._number = 0
        self._left_seconds = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the terminal as it was."""

    def begin(self, number: int, label: str, left_seconds: float) -> None:
        """Learns which case begins, and how long it and all after it will take."""
        self._number, self._left_seconds = number, left_seconds

    def tick(self) -> None:
        """Is called about once a second while a case runs."""

    def end(self, line: str, left_seconds: float) -> None:
        """Shows what came of the case, and how long those after it will take."""
        print(f"[{self._number + 1}/{self.total}] {line}; {clock(left_seconds)} left", flush=True)


class BarProgress(Progress):
    """The lines, and below them a bar with the case that runs and the time left."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        text = TextColumn("{task.fields[left]} left  {task.fields[label]}", markup=False)
        self._bar = Bar(BarColumn(bar_width=20), MofNCompleteColumn(), text, auto_refresh=False)
        self._task = self._bar.add_task("study", total=total, label="", left="")
        self._began = 0.0

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, number: int, label: str, left_seconds: float) -> None:
        super().begin(number, label, left_seconds)
        self._began = time.monotonic()
        self._bar.update(self._task, completed=number, label=label, left=clock(left_seconds), refresh=True)

    def tick(self) -> None:
        left = max(self._left_seconds - (time.monotonic() - self._began), 0.0)
        self._bar.update(self._task, left=clock(left), refresh=True)

    def end(self, line: str, left_seconds: float) -> None:
        text = f"[{self._number + 1}/{self.total}] {line}"
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


def make_progress(total: int) -> Progress:
    return (BarProgress if sys.stdout.isatty() else Progress)(total)


class RoundProgress:
    """Tells of the rounds of a study: which cases take turns, and what was measured of each."""

    def __init__(self, progress: Progress, rounds: Sequence[Sequence[Run]]) -> None:
        self.tick = progress.tick
        self._progress = progress
        self._rounds = len(rounds)
        self._number = 0
        self._done = 0
        self._sides = len({run.study.name for runs in rounds for run in runs})
        self._gpus = any(run.study.machine.gpus for runs in rounds for run in runs)

    def begin(self, runs: Sequence[Run], left_seconds: float) -> None:
        self._number += 1
        able = [run for run in runs if run.planned.skip_reason is None]
        names = list(dict.fromkeys(label_run(run.case, self._gpus) for run in able))
        what = names[0] if len(names) == 1 else f"{len(able)} cases in turns"
        label = f"round {self._number} of {self._rounds}: {what}"
        print(f"{label}, at most {clock(left_seconds)} left", flush=True)
        self._progress.begin(self._done, label, left_seconds)

    def end(self, record: Record, left_seconds: float) -> None:
        side = f"{record.study}: " if self._sides > 1 else ""
        label = f"{side}{label_run(record.case, self._gpus)}, repeat {record.repeat + 1}"
        self._progress.begin(self._done, label, left_seconds)
        self._progress.end(f"{label}: {describe(record)}", left_seconds)
        self._done += 1


@contextlib.contextmanager
def show_rounds(rounds: Sequence[Sequence[Run]]) -> Iterator[RoundProgress]:
    with make_progress(sum(map(len, rounds))) as progress:
        yield RoundProgress(progress, rounds)


def label_run(case: Case, gpus: bool) -> str:
    """Names a case in a few words, without the settings that say only how long it lasts."""
    return label_with_kind(case, gpus, HOW_LONG)


def describe(record: Record) -> str:
    """Says in a few words what came of a case."""
    if record.status != "ok":
        return f"{record.status.replace('_', ' ')}: {record.reason}"
    return ", ".join([*kind(record.case.kind).describe(record), f"{record.seconds:.0f} s"])


def render_cases(cases: Iterable[tuple[Case, int, str]], gpus: bool, rounds: int, seconds: float) -> str:
    """Renders the cases of a suite, a line each, with their repeats and a remark, and the time that all will take."""
    cases = list(cases)
    lines = [
        f"{case.case_id}  {repeats} x  {label_run(case, gpus)}" + (f"  ({remark})" if remark else "")
        for case, repeats, remark in cases
    ]
    runs = sum(repeats for _, repeats, _ in cases)
    return "\n".join([*lines, f"{len(cases)} cases, {runs} runs in {rounds} rounds, at most about {clock(seconds)}"])


def clock(seconds: float) -> str:
    """Returns, for example, `4:05` or `1:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
