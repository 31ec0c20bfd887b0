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
from mnist_dist.command import clock, outlive_reader

if TYPE_CHECKING:
    from mnist_dist.benchmarks.measure.rounds import Stage
    from mnist_dist.benchmarks.measure.runner import Run

# Settings that say only how long a case lasts.
HOW_LONG = {
    "training.epochs",
    "training.steps",
    "evaluation.every_epochs",
    "logging.every_steps",
    "runtime.steps_per_call",
}
NEWS_SECONDS = 30.0  # After which a line says how far trainings are, where nothing can be overwritten.
LOOK_SECONDS = 1.0  # Between two looks at the clock: who measures must not draw ten times a second.


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
        """Is called once a second at least while cases run."""

    def tell(self, text: str, is_news: bool = True) -> None:
        """Shows what is going on.

        Args:
            is_news: whether it is worth a line of its own where nothing can be overwritten.
        """
        if is_news:
            print(f"  {text}", flush=True)

    def end(self, line: str, left_seconds: float) -> None:
        """Shows what came of the case, and how long those after it will take."""
        print(f"[{self._number + 1}/{self.total}] {line}; {clock(left_seconds)} left", flush=True)


class BarProgress(Progress):
    """The lines of what has ended, and below them a bar with what is going on and the time left."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        text = TextColumn("{task.fields[left]} left  {task.fields[label]}", markup=False)
        self._bar = Bar(BarColumn(bar_width=20), MofNCompleteColumn(), text, auto_refresh=False)
        self._task = self._bar.add_task("study", total=total, label="", left="")
        self._label = ""
        self._began = self._looked = 0.0

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, number: int, label: str, left_seconds: float) -> None:
        super().begin(number, label, left_seconds)
        self._label, self._began = label, time.monotonic()
        self._bar.update(self._task, completed=number, label=label, left=clock(left_seconds), refresh=True)

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._bar.update(self._task, left=clock(max(self._left_seconds - (now - self._began), 0.0)), refresh=True)

    def tell(self, text: str, is_news: bool = True) -> None:
        self._bar.update(self._task, label=f"{self._label}: {text}", refresh=is_news)

    def end(self, line: str, left_seconds: float) -> None:
        text = f"[{self._number + 1}/{self.total}] {line}"
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


def make_progress(total: int) -> Progress:
    return (BarProgress if sys.stdout.isatty() else Progress)(total)


class RoundProgress:
    """Tells of the rounds of a study: which cases take turns, how far they are, and what was measured of each."""

    def __init__(self, progress: Progress, rounds: Sequence[Sequence[Run]]) -> None:
        self.tick = progress.tick
        self._progress = progress
        self._rounds = len(rounds)
        self._number = 0
        self._done = 0
        self._runs: dict[str, Run] = {}
        self._width = 0.0
        self._stage, self._told = "", 0.0
        runs = [run for runs in rounds for run in runs]
        self._sides = len({run.study.name for run in runs})
        self._gpus = any(run.study.machine.gpus for run in runs)
        settings = [{(key, repr(value)) for key, value in run.case.settings.items()} for run in runs]
        self._without = HOW_LONG | {key for key, _ in set.intersection(*settings)} if settings else HOW_LONG

    def begin(self, runs: Sequence[Run], left_seconds: float) -> None:
        self._number += 1
        able = [run for run in runs if run.planned.skip_reason is None]
        self._runs, self._width = {run.name: run for run in able}, runs[0].study.width
        labels = list(dict.fromkeys(self._label(run.case) for run in able))
        what = labels[0] if len(labels) == 1 else f"{len(able)} cases in turns"
        label = f"round {self._number} of {self._rounds}"
        print(f"{label}: {what}, about {clock(left_seconds)} left", flush=True)
        self._progress.begin(self._done, label, left_seconds)

    def tell(self, stage: Stage) -> None:
        has_doubled = stage.cycle > 0 and stage.cycle & (stage.cycle - 1) == 0
        is_due = stage.training > 0 and time.monotonic() - self._told > NEWS_SECONDS
        is_news = stage.name != self._stage or stage.contender is not None or has_doubled or is_due
        self._stage, self._told = stage.name, time.monotonic() if is_news else self._told
        self._progress.tell(self._describe(stage), is_news)

    def _describe(self, stage: Stage) -> str:
        if stage.contender is not None:
            run = self._runs[stage.contender]
            return f"starting {self._side(run.study.name)}{self._label(run.case)}"
        if stage.training:
            return f"training, {stage.training} not at their end"
        if not stage.cycle:
            return stage.name
        width = "" if stage.half_width is None else f", the widest interval ±{100 * stage.half_width:.1f} %"
        wanted = f" of ±{100 * self._width:.1f} %" if width else ""
        return f"{stage.name}, {stage.cycle} cycle{'s' if stage.cycle > 1 else ''}{width}{wanted}"

    def end(self, record: Record, left_seconds: float) -> None:
        label = f"{self._side(record.study)}{self._label(record.case)}, repeat {record.repeat + 1}"
        self._progress.begin(self._done, f"round {self._number} of {self._rounds}", left_seconds)
        self._progress.end(f"{label}: {describe(record)}", left_seconds)
        self._done += 1

    def _label(self, case: Case) -> str:
        return label_with_kind(case, self._gpus, self._without)

    def _side(self, study: str) -> str:
        return f"{study}: " if self._sides > 1 else ""


@contextlib.contextmanager
def show_rounds(rounds: Sequence[Sequence[Run]]) -> Iterator[RoundProgress]:
    outlive_reader()
    with make_progress(sum(map(len, rounds))) as progress:
        yield RoundProgress(progress, rounds)


def describe(record: Record) -> str:
    """Says in a few words what came of a case."""
    if record.status != "ok":
        return f"{record.status.replace('_', ' ')}: {record.reason}"
    return ", ".join([*kind(record.case.kind).describe(record), f"{record.seconds:.0f} s"])


def render_cases(cases: Iterable[tuple[Case, int, str]], gpus: bool, rounds: int, seconds: float) -> str:
    """Renders the cases of a suite, a line each, with their repeats and a remark, and the time that all will take."""
    cases = list(cases)
    lines = [
        f"{case.case_id}  {repeats} x  {label_with_kind(case, gpus, HOW_LONG)}" + (f"  ({remark})" if remark else "")
        for case, repeats, remark in cases
    ]
    runs = sum(repeats for _, repeats, _ in cases)
    parts = f"{_count(len(cases), 'case')}, {_count(runs, 'run')} in {_count(rounds, 'round')}"
    return "\n".join([*lines, f"{parts}, about {clock(seconds)}"])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
