"""Who is compared: our training in its variants, and what users would otherwise run.

Imports neither TensorFlow nor PyTorch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

import yaml

from mnist_dist.benchmarks.kinds.peer import KIND as PEER
from mnist_dist.benchmarks.kinds.peer import SETTING
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase, changed_settings, skip_reason
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import WorkerKind, kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.config import load_config
from mnist_dist.distributed.turns import FULL
from mnist_dist.errors import UserError, nearest

OURS, OURS_ACCURACY = "ours", "speedrun"

Mode = Literal["throughput", "accuracy"]
MODES: tuple[Mode, ...] = ("throughput", "accuracy")


@dataclass(frozen=True)
class Contestant:
    """What is measured under one name."""

    name: str
    label: str  # What it is, in words.
    network: str = "default CNN"
    throughput: Case | None = None  # What to run to measure it; None: it is not.
    accuracy: Case | None = None  # What to run to measure the time to an accuracy; None: it is not.
    variant: str = FULL  # Of the step, of which the throughput counts.
    in_table: bool = True  # Whether it is a row of the table of peers; the others serve the goals alone.

    def case(self, mode: Mode) -> Case | None:
        return self.throughput if mode == "throughput" else self.accuracy

    def records(self, records: Sequence[Record], mode: Mode) -> list[Record]:
        """Returns those of its case by repeat, without the failures of a repeat that has ended well since."""
        case = self.case(mode)
        case_id = case.case_id if case else None
        own = [each for each in records if each.case_id == case_id]
        ended_well = {each.repeat for each in own if each.status == "ok"}
        counted = [each for each in own if each.status == "ok" or each.repeat not in ended_well]
        return sorted(counted, key=lambda each: each.repeat)


def make_contestants(seconds: float, machine: Machine) -> dict[str, Contestant]:
    """Returns all contestants of contestants.yaml, by name; a round measures each throughput for `seconds` at most."""
    rows = yaml.safe_load((resources.files("mnist_dist.benchmarks.peers") / "contestants.yaml").read_text("utf-8"))
    return {row["name"]: _make_contestant(seconds, machine, **row) for row in rows}


def _make_contestant(
    seconds: float,
    machine: Machine,
    case: dict[str, Any] | None = None,
    peer: str | None = None,
    config: str | None = None,
    **fields: Any,
) -> Contestant:
    contestant = Contestant(accuracy=case_of(config) if config else None, **fields)
    if case is None:
        return contestant
    if machine.gpus:
        case.pop("cores_per_device", None)
    whole = Case(**case | ({"kind": PEER.name, "settings": {SETTING: peer}} if peer else {}))
    if peer and contestant.in_table:
        contestant = replace(contestant, accuracy=whole)
    is_worker = isinstance(kind(whole.kind), WorkerKind)  # Which knows for how long it is measured.
    return replace(contestant, throughput=whole if is_worker else whole.model_copy(update={"measure_seconds": seconds}))


def case_of(config: str) -> Case:
    """Returns the case that trains a shipped configuration to its end."""
    wanted = load_config(config)
    settings = changed_settings(wanted)
    settings.pop("training.batch_size", None)  # That is a field of the case.
    return Case(global_batch_size=wanted.training.batch_size, settings=settings)


def choose(
    contestants: Mapping[str, Contestant], only: Sequence[str] | None, modes: Sequence[Mode]
) -> dict[str, Contestant]:
    """Returns the rows of the table, or those of them that a user names and what they are compared with.

    Raises:
        UserError: a name is not known.
    """
    rows = {name: contestant for name, contestant in contestants.items() if contestant.in_table}
    if only is None:
        return rows
    for name in only:
        if name not in rows:
            raise UserError(f"--only: received '{name}', expected some of {','.join(rows)}." + nearest(name, rows))
    bases: dict[Mode, str] = {"throughput": OURS, "accuracy": OURS_ACCURACY}
    return {name: row for name, row in rows.items() if name in {*only, *(bases[mode] for mode in modes)}}


def plan(contestants: Sequence[Contestant], mode: Mode, repeats: int, machine: Machine) -> list[PlannedCase]:
    """Returns the cases of some contestants, each once with all of its variants; what cannot run, with the reason."""
    pairs = [(case, each.variant) for each in contestants if (case := each.case(mode))]
    planned = []
    for of_case in group_by(pairs, lambda pair: pair[0].case_id).values():
        case, _ = of_case[0]
        seconds = kind(case.kind).measuring_seconds(case)
        variants = tuple(dict.fromkeys(variant for _, variant in of_case)) if seconds else ()
        planned.append(PlannedCase(case, repeats, _why_not(case, machine), variants, seconds * len(variants)))
    return planned


def _why_not(case: Case, machine: Machine) -> str | None:
    """Unlike a suite, this compares nothing on fewer devices than it needs."""
    available = machine.gpus or machine.cores
    if case.devices > available:
        return f"it needs {case.devices} devices, but there {'is' if available == 1 else 'are'} {available}"
    return skip_reason(case, machine)
