"""How far a study is and how long it will still take: a bar on a terminal, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from mnist_dist.benchmarks.labels import label_case, label_with_kind
from mnist_dist.benchmarks.measure.rounds import ENDING_SECONDS, Stage
from mnist_dist.benchmarks.measure.runner import Run
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import finished
from mnist_dist.command import clock, outlive_reader
from mnist_dist.cpuinfo import MOST_OTHERS
from mnist_dist.display import Display, make_display
from mnist_dist.errors import EXIT_FAILED, counted

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


class RoundProgress:
    """Tells of the rounds of a study: which cases take turns, how far they are, and what was measured of each."""

    def __init__(self, display: Display, rounds: Sequence[Sequence[Run]]) -> None:
        self._display, self._rounds = display, len(rounds)
        self._number = self._done = 0
        self._runs: dict[str, Run] = {}
        self._width = 0.0
        self._label = self._stage = ""
        self._left_seconds = self._began = self._looked = self._told = 0.0
        runs = [run for runs in rounds for run in runs]
        self._total, self._sides = _count(rounds), len({run.study.name for run in runs})
        self._gpus = any(run.study.machine.gpus for run in runs)
        settings = [{(key, repr(value)) for key, value in run.case.settings.items()} for run in runs]
        self._without = HOW_LONG | {key for key, _ in set.intersection(*settings)} if settings else HOW_LONG

    def begin(self, runs: Sequence[Run], left_seconds: float) -> None:
        self._number += 1
        able = [run for run in runs if run.planned.skip_reason is None]
        self._runs, self._width = {run.name: run for run in able}, runs[0].study.width
        labels = list(dict.fromkeys(self._name(run.case) for run in able))
        what = labels[0] if len(labels) == 1 else f"{len(able)} cases in turns"
        self._display.say(f"{self._round}: {what}, about {clock(left_seconds)} left")
        self._note(left_seconds)

    def tick(self) -> None:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._draw()

    def tell(self, stage: Stage) -> None:
        if stage.name == "started":
            self._warn_of_others(stage.other_cores)
            return
        has_doubled = stage.cycle > 0 and stage.cycle & (stage.cycle - 1) == 0
        is_due = stage.training > 0 and time.monotonic() - self._told > NEWS_SECONDS
        is_news = stage.name != self._stage or stage.contender is not None or has_doubled or is_due
        self._told = time.monotonic() if is_news else self._told
        self._stage, text = stage.name, self._describe(stage)
        self._label = text if self._rounds == 1 else f"{self._round}: {text}"
        self._draw(at_once=is_news)
        if is_news and not self._display.has_bar:
            self._display.say(f"  {text}")

    def _warn_of_others(self, cores: float | None) -> None:
        machine = next(iter(self._runs.values())).study.machine
        if machine.hosts is None and cores is not None and cores > MOST_OTHERS * machine.cores:
            self._display.say(
                f"  the machine is busy: other programs use {cores:.1f} of {counted(machine.cores, 'core')}; measure "
                "when it is idle (Ctrl-C stops this)"
            )

    def end(self, record: Record, left_seconds: float) -> None:
        what = f"{self._side(record.study)}{self._name(record.case)}, repeat {record.repeat + 1}: {describe(record)}"
        if record.status == "skipped":  # It does not count, and the others of its round are still to come.
            self._display.say(what)
            return
        self._done += 1
        left = f"; {clock(left_seconds)} left" if left_seconds and not self._display.has_bar else ""
        self._display.say(f"[run {self._done} of {self._total}] {what}{left}")
        self._note(left_seconds)

    @property
    def _round(self) -> str:
        return f"round {self._number} of {self._rounds}"

    def _note(self, left_seconds: float) -> None:
        self._label, self._left_seconds, self._began = self._round, left_seconds, time.monotonic()
        self._draw()

    def _draw(self, at_once: bool = True) -> None:
        left = self._left_seconds - (time.monotonic() - self._began)
        when = f"{clock(max(left, 0.0))} left" if left > -1 else f"{clock(-left)} longer than planned"
        self._display.show(f"{when}  {self._label}", self._done, at_once=at_once)

    def _describe(self, stage: Stage) -> str:
        if stage.contender is not None:
            run = self._runs[stage.contender]
            return f"starting {self._side(run.study.name)}{self._name(run.case)}"
        if stage.training:
            return f"{stage.training} still training"
        if stage.name == "stopping":
            return f"stopping; saving what was measured, up to {ENDING_SECONDS:.0f} s"
        if not stage.cycle:
            return stage.name
        width = "" if stage.half_width is None else f", the widest interval ±{100 * stage.half_width:.1f} %"
        wanted = f", target ±{100 * self._width:.1f} %" if width else ""
        return f"{stage.name}, {counted(stage.cycle, 'cycle')}{width}{wanted}"

    def _name(self, case: Case) -> str:
        return label_with_kind(case, self._gpus, self._without)

    def _side(self, study: str) -> str:
        return f"{study}: " if self._sides > 1 else ""


@contextlib.contextmanager
def show_rounds(rounds: Sequence[Sequence[Run]], known: Sequence[Record] = ()) -> Iterator[RoundProgress]:
    outlive_reader()
    with make_display(_count(rounds), auto_refresh=False) as display:
        if known:
            display.say(going_on(rounds, known))
        yield RoundProgress(display, rounds)


def _count(rounds: Iterable[Sequence[Run]]) -> int:
    """Returns how many runs are to be measured, each a case in a round; what is skipped is none."""
    return sum(run.planned.skip_reason is None for runs in rounds for run in runs)


def going_on(rounds: Iterable[Sequence[Run]], known: Iterable[Record]) -> str:
    """Says how much of a study is done, which the counts of what is left do not tell."""
    done, left = finished(known), [run for runs in rounds for run in runs if run.planned.skip_reason is None]
    again = sum((run.study.name, run.case.case_id, run.repeat) in done for run in left)
    beside = ", with the baseline once more" if again else ""
    to_go = f"{len(left)} to go{beside}" if left else "none to go"
    return f"resuming: {counted(len(done), 'run')} done, {to_go}"


def describe(record: Record) -> str:
    """Says in a few words what came of a case."""
    if record.status != "ok":
        return f"{record.status.replace('_', ' ')}: {record.reason}"
    return ", ".join([*kind(record.case.kind).describe(record), f"{record.seconds:.0f} s"])


def exit_code(
    records: Iterable[Record], only: Collection[int] | None = None, name: Callable[[Case], str] = label_case
) -> int:
    """Returns 1 when a run that was tried, with so many devices, has never ended well, or none could be; says which."""
    tried = [record for record in records if only is None or record.case.devices in only]
    fine = {(record.case_id, record.repeat) for record in tried if record.status in ("ok", "skipped")}
    bad = {(each.case_id, each.repeat): each for each in tried if (each.case_id, each.repeat) not in fine}
    for record in bad.values():
        print(f"{record.status}: {name(record.case)}, repeat {record.repeat + 1}: {record.reason}", file=sys.stderr)
    if tried and all(record.status == "skipped" for record in tried):
        print("nothing was measured: this machine can run none of the cases", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_FAILED if bad else 0


def render_cases(cases: Sequence[PlannedCase], machine: Machine, rounds: int, seconds: float) -> str:
    """Renders the cases of a suite, a line each, with their repeats and a remark, and the time that all will take."""
    gpus, lines = bool(machine.gpus), []
    for each in cases:
        cores = each.case.devices // each.case.hosts * (each.case.cores_per_device or 0)
        remark = f"  (skipped: {each.skip_reason})" if each.skip_reason else ""
        if not remark and cores > machine.cores:
            remark = f"  (oversubscribed: {cores} cores on a host of {machine.cores})"
        lines.append(f"{each.case_id}  {each.repeats} x  {label_with_kind(each.case, gpus, HOW_LONG)}{remark}")
    measured = [each.repeats for each in cases if not each.skip_reason]
    skipped = f" ({len(cases) - len(measured)} more skipped)" if len(measured) < len(cases) else ""
    parts = f"{counted(len(measured), 'case')}{skipped}, {counted(sum(measured), 'run')} in {counted(rounds, 'round')}"
    return "\n".join([*lines, f"{parts}, about {clock(seconds)}"])
