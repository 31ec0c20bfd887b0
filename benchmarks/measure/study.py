"""Runs a whole suite into a results folder: round by round, resumable, and to its end whatever a case does."""

import contextlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

from mnist_dist.benchmarks.measure import runner
from mnist_dist.benchmarks.measure.progress import RoundProgress, show_rounds
from mnist_dist.benchmarks.measure.runner import Run, Study
from mnist_dist.benchmarks.measure.suite import Limits, Machine, PlannedCase
from mnist_dist.benchmarks.records.environment import find_hardware
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store, finished
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.errors import UserError
from mnist_dist.files import named_or_dated, remove_abandoned
from mnist_dist.strategies import STRATEGIES

VARIANT_SECONDS = 2.0  # To compile a variant, and to learn how long its steps take.
PROCESS_BYTES, GPU_PROCESS_BYTES = 1.2e9, 2e9  # What a process of this network may take, of the host's and a GPU's.
IMAGE_BYTES = 4e5  # Of a GPU's, for each image of a step: two sets of the activations, 0.14 MB in float32, and copies.
Side = tuple[Study, Store]
Ratios = Callable[[Sequence[Run]], Sequence[tuple[Run, Run]]]


@contextlib.contextmanager
def results_folder(named: Path | None, what: str, resume: bool) -> Iterator[Path]:
    """Yields the folder of a study; says the name of a new one, by which an interrupted study is gone on with.

    Raises:
        UserError: no folder is named to go on with, it is not there, or none can be made.
    """
    if resume and named is None:
        raise UserError("--resume: received no --results DIR, which names the study to resume.")
    if resume and named and not named.exists():
        raise UserError(
            f"--resume: '{named}' does not exist, so there is nothing to resume; leave --resume out to begin."
        )
    with named_or_dated(named, "results", what) as folder:
        if named is None:
            print(f"results: {folder}", file=sys.stderr, flush=True)
        yield folder


@contextlib.contextmanager
def naming_the_rest(folder: Path) -> Iterator[None]:
    """Says after Ctrl-C how the study in a folder goes on: by the command of this process, which has --resume."""
    try:
        yield
    except KeyboardInterrupt:
        command = command_again(folder, "--resume")
        raise KeyboardInterrupt(f"what has been measured is kept\ncontinue with: {command}") from None


def program() -> str:
    """Returns by what a shell finds this program, which make has installed where no shell looks for it."""
    called = Path(sys.argv[0])  # Of `python -m` it is no program.
    return shlex.quote(str(called)) if called.name == "mnist-dist" and not shutil.which("mnist-dist") else "mnist-dist"


def command_again(folder: Path, *more: str) -> str:
    """Returns the command of this process for a shell, with another folder of results and further words."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--results":
            next(words, None)
        elif word != "--resume" and not word.startswith("--results="):
            kept.append(word)
    return f"{program()} {shlex.join([*kept, '--results', str(folder), *more])}"


def open_study(
    folder: Path, suite_name: str, suite: Limits, machine: Machine, cases: Sequence[PlannedCase], resume: bool
) -> Side:
    """Lays down the plan of a new study, or, if asked to, goes on with the folder's own if that has the same plan.

    Raises:
        UserError: the folder holds a study that was not asked to continue, or another one.
    """
    store = Store(folder)
    there = f"--results: '{folder}' already holds a study; add --resume to continue it, or name another folder."
    if store.study_file.exists() and not resume:
        raise UserError(there)
    # The folder may have got another name since.
    name = str(store.study()["name"]) if store.study_file.exists() else folder.resolve().name
    repeats = max(case.repeats for case in cases)
    contents = sorted((case.case.model_dump(mode="json") for case in cases), key=str)
    plan = {"name": name, "suite": suite_name, "seed": 0, "repeats": repeats, "cases": contents}
    if not store.write_study(plan) and not resume:  # Another process has begun it since.
        raise UserError(there)
    remove_abandoned(store.records_folder)  # Not of a study that is refused.
    # Not relative: the case's processes run in another folder.
    scratch = folder.resolve() / "scratch"
    return Study(name, suite_name, suite.timeout_seconds, machine, scratch, suite.width), store


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


def plan_rounds(
    sides: Sequence[Side], cases: Sequence[PlannedCase], known: Sequence[Record] = (), processes: int | None = None
) -> list[list[Run]]:
    """Returns the rounds that are still to be run: of each repeat, as many cases at once as memory holds.

    Where it does not hold all of them, the first case that others are compared with is in each of the rounds.

    Args:
        sides: a study, or two of which each case is compared; both of its runs are in one round.
        processes: that may be alive at once; None: as many as this host has the memory for.
    """
    done, most = finished(known), processes or most_processes()
    still_skipped = {case.case_id for case in cases if case.skip_reason is not None}
    skipped = [each for each in known if each.status == "skipped" and each.case_id in still_skipped]
    done |= {(each.study, each.case_id, each.repeat) for each in skipped}
    rounds: list[list[Run]] = []
    for repeat in range(max((case.repeats for case in cases), default=0)):
        of_repeat = [case for case in cases if repeat < case.repeats]
        units = [[Run(study, planned, repeat) for study, _ in sides] for planned in of_repeat]
        left = [unit for unit in units if any((run.study.name, run.case.case_id, repeat) not in done for run in unit)]
        baseline = next((unit for unit in units if is_baseline(unit[0])), None)
        rounds += _parts(left, baseline if left else None, most)
    return rounds


def _parts(units: Sequence[list[Run]], baseline: list[Run] | None, most: int) -> Iterator[list[Run]]:
    """Yields the runs of some units in parts of so many processes at most, the baseline in all of them."""
    always = baseline or []
    part, alive = list(always), sum(map(_processes, always))
    for unit in (unit for unit in units if unit is not baseline):
        of_unit = sum(map(_processes, unit))
        if len(part) > len(always) and alive + of_unit > most:
            yield part
            part, alive = list(always), sum(map(_processes, always))
        part += unit
        alive += of_unit
    if len(part) > len(always) or any(unit is baseline for unit in units):
        yield part


def is_baseline(run: Run) -> bool:
    return run.case.is_baseline and bool(run.planned.variants)


def most_processes() -> int:
    """Returns how many processes this host has the memory for, and its GPUs, where it has some."""
    hardware = find_hardware()
    counts = [hardware.memory_bytes / PROCESS_BYTES, *(gpu.memory_bytes / GPU_PROCESS_BYTES for gpu in hardware.gpus)]
    return max(int(min(counts)), 1)


def _processes(run: Run) -> int:
    """Returns how many processes a run has on each host; on GPUs one of a large batch counts as several."""
    if run.planned.skip_reason is not None:
        return 0
    processes = 1 if STRATEGIES[run.case.strategy].one_process else -(-run.case.devices // run.case.hosts)
    large = run.case.images_per_device * IMAGE_BYTES / GPU_PROCESS_BYTES if run.study.machine.gpus else 0.0
    return int(processes * (1 + large))


def run_rounds(
    rounds: Sequence[Sequence[Run]], sides: Sequence[Side], ratios: Ratios | None = None, known: Sequence[Record] = ()
) -> list[Record]:
    """Measures round by round, and returns the records, which are in their store before the next round begins.

    Args:
        ratios: returns those of a round that are to be known well, each a numerator and a denominator; see `compared`.
        known: records of before, of which it is said how many runs they make.
    """
    stores = {study.name: store for study, store in sides}
    records = []
    estimates, began, planned = [estimate_seconds([runs]) for runs in rounds], time.monotonic(), 0.0

    def at_this_pace(seconds: Sequence[float]) -> float:
        """Returns how long what is estimated will take, if it is as slow as the rounds so far."""
        return sum(seconds) * ((time.monotonic() - began) / planned if planned else 1.0)

    with show_rounds(rounds, known) as progress:
        for number, runs in enumerate(rounds):
            progress.begin(runs, at_this_pace(estimates[number:]))
            planned += estimates[number]
            with contextlib.closing(_run(runs, progress, number, ratios or compared)) as found:
                for record in found:
                    stores[record.study].add(record)
                    records.append(record)
                    progress.end(record, at_this_pace(estimates[number + 1 :]))
    return records


def _run(runs: Sequence[Run], progress: RoundProgress, seed: int, ratios: Ratios) -> Generator[Record, None, None]:
    able = [run for run in runs if run.planned.skip_reason is None]
    yield from (runner.skipped(run) for run in runs if run not in able)
    if able:
        yield from runner.run_round(able, ratios(able), progress.tick, seed, progress.tell)


def compared(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Returns the runs whose ratios matter: of each case on both sides, or of each training and the baseline."""
    trained = [run for run in runs if run.planned.variants]
    by_case = group_by(trained, lambda run: run.planned.case_id)
    pairs = [(new, base) for base, *others in by_case.values() for new in others]
    baseline = next(filter(is_baseline, trained), None)
    if pairs or baseline is None:
        return pairs
    return [(run, baseline) for run in trained if run is not baseline and run.case.kind == baseline.case.kind]


def estimate_seconds(rounds: Iterable[Sequence[Run]]) -> float:
    """Returns about how long some rounds take, by a rule of thumb of each kind, if they take all of their time."""
    return sum(
        kind(run.case.kind).estimate_seconds(run.case)
        + run.planned.measuring_seconds
        + VARIANT_SECONDS * len(run.planned.variants)
        for runs in rounds
        for run in runs
        if run.planned.skip_reason is None
    )
