"""How far a study is and how long it will still take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.labels import label_with_kind

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


class CaseProgress:
    """Tells of the cases of a study, by their labels and what was measured."""

    def __init__(self, progress: Progress, gpus: bool = False) -> None:
        self.tick = progress.tick
        self._progress = progress
        self._gpus = gpus
        self._number = -1
        self._label = ""

    def begin(self, case: Case, repeat: int, left_seconds: float, of: str = "") -> None:
        self._number += 1
        self._label = f"{of}{label_run(case, self._gpus)}, repeat {repeat + 1}"
        self._progress.begin(self._number, self._label, left_seconds)

    def end(self, record: Record, left_seconds: float) -> None:
        self._progress.end(f"{self._label}: {describe(record)}", left_seconds)


@contextlib.contextmanager
def show_cases(total: int, gpus: bool = False) -> Iterator[CaseProgress]:
    with make_progress(total) as progress:
        yield CaseProgress(progress, gpus)


def label_run(case: Case, gpus: bool) -> str:
    """Names a case in a few words, without the settings that say only how long it lasts."""
    return label_with_kind(case, gpus, HOW_LONG)


def describe(record: Record) -> str:
    """Says in a few words what came of a case."""
    if record.status != "ok":
        return f"{record.status.replace('_', ' ')}: {record.reason}"
    return ", ".join([*kind(record.case.kind).describe(record), f"{record.seconds:.0f} s"])


def render_cases(cases: Iterable[tuple[Case, int, str]], gpus: bool, seconds: float) -> str:
    """Renders the cases of a suite, a line each, with their repeats and a remark, and the time that all will take."""
    cases = list(cases)
    lines = [
        f"{case.case_id}  {repeats} x  {label_run(case, gpus)}" + (f"  ({remark})" if remark else "")
        for case, repeats, remark in cases
    ]
    runs = sum(repeats for _, repeats, _ in cases)
    return "\n".join([*lines, f"{len(cases)} cases, {runs} runs, about {clock(seconds)}"])


def clock(seconds: float) -> str:
    """Returns, for example, `4:05` or `1:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
