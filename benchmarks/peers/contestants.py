"""Who is compared: our training in its variants, and what users would otherwise run.

Imports neither TensorFlow nor PyTorch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mnist_dist.benchmarks.kinds import input, matmul
from mnist_dist.benchmarks.kinds.peer import KIND as PEER
from mnist_dist.benchmarks.kinds.peer import PEERS, SETTING
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase, changed_settings, skip_reason
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.config import load_config
from mnist_dist.distributed.turns import FULL
from mnist_dist.errors import UserError, nearest

RANK_STEPS_PER_CALL = 20  # Where ranks are compared with independent processes.
OURS, OURS_ACCURACY = "ours", "speedrun"

Mode = Literal["throughput", "accuracy"]
MODES: tuple[Mode, ...] = ("throughput", "accuracy")


@dataclass(frozen=True)
class Contestant:
    """What is measured under one name.

    Attributes:
        label: what it is, in words.
        network: "default CNN", or the name of another.
        throughput: what to run to measure it; None: it is not.
        accuracy: what to run to measure the time to an accuracy; None: it is not.
        variant: of the step, of which the throughput counts.
        in_table: whether it is a row of the table of peers; the others serve the goals alone.
    """

    name: str
    label: str
    network: str
    throughput: Case | None = None
    accuracy: Case | None = None
    variant: str = FULL
    in_table: bool = True

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
    """Returns all contestants by name.

    Args:
        seconds: for which each throughput is measured in a round, at most.
    """
    ours = Case(measure_seconds=seconds)
    contestants = [
        Contestant(OURS, "mnist-dist train", "default CNN", ours, case_of("default")),
        *(
            Contestant(config, f"mnist-dist train --config {config}", "its own", None, case_of(config))
            for config in (OURS_ACCURACY, "speedrun-995")
        ),
        _peer("keras-fit", "Keras fit, published MNIST convnet", seconds, "its own"),
        _peer("keras-fit-seed", "Keras fit", seconds),
        *(
            Contestant(
                f"horovod-{ranks}",
                f"Horovod's example on Keras 3, {ranks} rank{'s' if ranks > 1 else ''}",
                "default CNN",
                *_cases("horovod-example", seconds, devices=ranks, strategy="horovod"),
            )
            for ranks in (1, 2)
        ),
        _peer("pytorch-float32", "PyTorch eager, float32", seconds),
        _peer("pytorch-bfloat16", "PyTorch eager, channels last, bfloat16", seconds),
        _peer("fast-mnist", "fast-MNIST recipe, PyTorch, as written", seconds, "its own"),
        _peer("fast-mnist-bfloat16", "fast-MNIST recipe, PyTorch, channels last, bfloat16", seconds, "its own"),
        *_for_goals(ours, seconds, machine),
    ]
    return {contestant.name: contestant for contestant in contestants}


def _peer(name: str, label: str, seconds: float, network: str = "default CNN") -> Contestant:
    return Contestant(name, label, network, *_cases(name, seconds))


def _cases(peer: str, seconds: float, devices: int = 1, **fields: Any) -> tuple[Case, Case]:
    """Returns the cases of a peer's script that measure its throughput, and its time to an accuracy."""
    batch_size = devices * PEERS[peer].batch_size
    settings = {SETTING: peer}
    case = Case(kind=PEER.name, devices=devices, global_batch_size=batch_size, settings=settings, **fields)
    return case.model_copy(update={"measure_seconds": seconds}), case


def _for_goals(ours: Case, seconds: float, machine: Machine) -> list[Contestant]:
    """Returns what our training is compared with besides peers: parts of itself, and its limits."""
    one_core = None if machine.gpus else 1
    independent, _ = _cases("independent", seconds, devices=2, cores_per_device=one_core)
    batch_size = independent.global_batch_size
    ranks = {
        "devices": 2,
        "cores_per_device": one_core,
        "global_batch_size": batch_size,
        "settings": {"runtime.steps_per_call": RANK_STEPS_PER_CALL},
    }
    cases = {
        "input": ("our input pipeline alone", Case(kind=input.KIND.name)),
        "independent": (
            f"2 trainings of ours that know nothing of one another, {batch_size // 2} images and a core each",
            independent,
        ),
    }
    for dtype, precision in (("bfloat16", "mixed_bfloat16"), ("float32", "float32")):
        product = Case(kind=matmul.KIND.name, settings={"runtime.precision": precision})
        cases[f"matmul-{dtype}"] = f"{dtype} matrix product", product
    for strategy in ("horovod", "multiworker"):
        label = f"mnist-dist train, {strategy}, 2 ranks of {batch_size // 2} images, a core each"
        cases[f"ranks-{strategy}"] = label, ours.model_copy(update=ranks | {"strategy": strategy})
    resident = "mnist-dist train, one batch that stays in memory"
    return [
        Contestant("synthetic", resident, "default CNN", ours, variant="resident", in_table=False),
        *(Contestant(name, label, "default CNN", case, in_table=False) for name, (label, case) in cases.items()),
    ]


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
    variants: dict[str, list[str]] = {}
    cases = {case.case_id: case for each in contestants if (case := each.case(mode))}
    for each in contestants:
        if case := each.case(mode):
            variants.setdefault(case.case_id, []).append(each.variant)
    planned = []
    for case_id, case in cases.items():
        seconds = kind(case.kind).measuring_seconds(case)
        of_case = tuple(dict.fromkeys(variants[case_id])) if seconds else ()
        planned.append(PlannedCase(case, repeats, _why_not(case, machine), of_case, seconds * len(of_case)))
    return planned


def _why_not(case: Case, machine: Machine) -> str | None:
    """Unlike a suite, this compares nothing on fewer devices than it needs."""
    available = machine.gpus or machine.cores
    if case.devices > available:
        return f"it needs {case.devices} devices, and there {'is' if available == 1 else 'are'} {available}"
    return skip_reason(case, machine)
