"""Which devices, nodes and links of a fleet are slower than the others, and in which way.

A value is the median of the log rates of a unit's repeats. Its z is the distance from the median of the fleet, in units
of its spread (1.4826 MAD; Iglewicz and Hoaglin, "How to detect and handle outliers", 1993), which is at least what the
repeats' own spread makes of a median.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import Field, ValidationError

from mnist_dist.benchmarks.analysis.matching import machine_type
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store, read_json
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import holm_levels
from mnist_dist.config import NonNegativeInt, Section, explain
from mnist_dist.errors import UserError
from mnist_dist.files import write_json
from mnist_dist.lazy import scipy

SMALLEST_EFFECT = -math.log1p(-0.05)  # Of the log rate; smaller differences do not matter.
SMALLEST_SPREAD = 0.003  # Of log rates, however much the units resemble one another.
FEWEST_UNITS, FEWEST_REPEATS, FEWEST_FOR_TAILS = 5, 2, 40
FEW_FREEDOMS, MOST_FREEDOMS = 5.0, 50.0
RARE_SHARE = 0.1  # Of the fleet; what more devices have is how the fleet is.
PAIR = "+"  # Between the names of two nodes.
WHOLE = "all"  # Instead of a device: all of a node or of a pair.
NETWORK = "network"
NO_FAILURE = ("ok", "skipped")

Nodes = tuple[str, ...]  # One, or the two of a link.
Findings = dict[tuple[Nodes, str], list[str]]  # In which ways, in words, whom: a node or link (WHOLE), or a device.
Model = TypeVar("Model", bound=Section)


class Part(Section):
    """What was measured of a device or of all: log rates by aspect and repeat, failures, and what the driver told."""

    log_rates: dict[str, list[float]]
    failures: list[str] = Field(default_factory=list)
    throttled_by: list[str] | None = None
    ecc_errors: NonNegativeInt = 0


class Surveyed(Section):
    """What a job leaves of a node, in `nodes/NODE.json`, or a pair, in `pairs/NODE+NODE.json`; by device, or WHOLE."""

    machine: str
    parts: dict[str, Part]


@dataclass(frozen=True)
class Unit:
    """What is compared with its like: a device, a node (`part` is WHOLE) or a link.

    Attributes:
        aspect: compute, memory, copies, training, all-reduce, or network, which is that between nodes.
        log_rates: of the repeats; of a node's network, of its links.
        effect: log ratio of its rate to the fleet's median; negative where it is slower.
    """

    nodes: Nodes
    part: str
    aspect: str
    machine: str
    log_rates: tuple[float, ...]
    effect: float = 0.0
    z: float = 0.0
    is_slow: bool = False

    @property
    def is_link(self) -> bool:
        return len(self.nodes) > 1


def summarize(folder: Path) -> Surveyed:
    """Keeps, in a file beside the folder, what the studies in it say, each of a device or of all."""
    studies = {file.parent.name: Store(file.parent).records() for file in sorted(folder.glob("*/records"))}
    machine = next((machine_type(each) for records in studies.values() for each in records), "")
    found = Surveyed(machine=machine, parts={name: _summarize(records) for name, records in studies.items()})
    write_json(folder.with_name(f"{folder.name}.json"), found.model_dump(mode="json"))
    return found


def _summarize(records: Sequence[Record]) -> Part:
    told = [item for each in records if each.status == "ok" for item in kind(each.case.kind).aspects(each).items()]
    gpus = [gpu for each in records if each.telemetry for gpu in each.telemetry.gpus]
    return Part(
        log_rates={name: [rate for _, rate in rates] for name, rates in group_by(told, lambda item: item[0]).items()},
        failures=sorted({f"{each.case.kind}: {each.reason}" for each in records if each.status not in NO_FAILURE}),
        throttled_by=sorted({reason for gpu in gpus for reason in gpu.throttled_by}) if gpus else None,
        ecc_errors=max((gpu.ecc_errors or 0 for gpu in gpus), default=0),
    )


def read_model(model: type[Model], file: Path) -> Model:
    """Reads a file of a survey, or says in a UserError what is wrong with it."""
    try:
        return model.model_validate(read_json(file))
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error)} Remove it, and survey again.") from None


def read_surveyed(results: Path) -> dict[Nodes, Surveyed]:
    files = sorted([*results.glob("nodes/*.json"), *results.glob("pairs/*.json")])
    return {tuple(file.stem.split(PAIR)): read_model(Surveyed, file) for file in files}


def units_of(surveyed: Mapping[Nodes, Surveyed]) -> Iterator[Unit]:
    """Yields all that can be compared."""
    links: dict[tuple[str, str], list[float]] = {}
    for nodes, found in surveyed.items():
        for name, part in found.parts.items():
            for aspect, rates in part.log_rates.items():
                yield Unit(nodes, name, NETWORK if len(nodes) > 1 else aspect, found.machine, tuple(rates))
                for node in nodes if len(nodes) > 1 else ():
                    links.setdefault((node, found.machine), []).append(float(np.median(rates)))
    for (node, machine), rates in links.items():
        yield Unit((node,), WHOLE, NETWORK, machine, tuple(rates))


def judge(units: Iterable[Unit], significance: float = 0.05) -> list[Unit]:
    """Compares each unit with its like, and returns them, the slowest first; of too few of a sort, none.

    A unit is slow if that is no chance (Holm's correction over all of them), the smallest effect that matters or more,
    and true of each of its repeats at least half as much: one that was disturbed is not.
    """
    sorts = group_by(units, lambda each: (each.aspect, each.machine, each.is_link, each.part == WHOLE)).values()
    repeated = ([unit for unit in fleet if len(unit.log_rates) >= FEWEST_REPEATS] for fleet in sorts)
    fleets = [fleet for fleet in repeated if len(fleet) >= FEWEST_UNITS]
    if not fleets:
        return []
    effects, best, z, p_values = np.concatenate([_compare(fleet) for fleet in fleets], axis=1)
    slow = (p_values <= holm_levels(p_values, significance)) & (effects <= -SMALLEST_EFFECT) & (best < effects / 2)
    each = zip(chain(*fleets), effects.tolist(), z.tolist(), slow.tolist(), strict=True)
    found = [replace(unit, effect=effect, z=z, is_slow=is_slow) for unit, effect, z, is_slow in each]
    return sorted(found, key=lambda unit: unit.z)


def _compare(fleet: Sequence[Unit]) -> np.ndarray:
    """Returns of each unit its effect, that of its fastest repeat, z and the p-value, float64 [4, units]."""
    values = np.array([np.median(each.log_rates) for each in fleet])
    middle = np.median(values)
    effects, best = values - middle, np.array([max(each.log_rates) for each in fleet]) - middle
    distances = np.abs(effects)
    z = effects / max(1.4826 * float(np.median(distances)), _spread_of_repeats(fleet), SMALLEST_SPREAD)
    return np.stack([effects, best, z, scipy.special.stdtr(_freedoms(distances), np.minimum(z, 0.0))])


def _spread_of_repeats(fleet: Sequence[Unit]) -> float:
    """Returns the standard deviation that the repeats of a typical unit give their median; 0 of a node's network."""
    if fleet[0].aspect == NETWORK and not fleet[0].is_link:  # A node's links are no repeats.
        return 0.0
    rates = [each.log_rates for each in fleet]
    return float(np.median([np.std(each, ddof=1) / math.sqrt(2 * len(each) / math.pi) for each in rates]))


def _freedoms(distances: np.ndarray) -> float:
    """Returns the degrees of freedom of Student's t with such tails: the 95th percentile over the median of |t|.

    Of a small fleet, whose spread is hardly known, they are few; how few, adversary_survey.py of the tests has shown.
    """
    if len(distances) < FEWEST_FOR_TAILS or not np.median(distances):
        return max(FEW_FREEDOMS, len(distances) / 3)
    freedoms = np.geomspace(2.0, MOST_FREEDOMS, 100)
    ratios = scipy.special.stdtrit(freedoms, 0.975) / scipy.special.stdtrit(freedoms, 0.75)
    return float(np.interp(-np.quantile(distances, 0.95) / np.median(distances), -ratios, freedoms))


def find(surveyed: Mapping[Nodes, Surveyed], judged: Sequence[Unit], lost: Mapping[str, str]) -> Findings:
    """Returns who stands out, nodes first. A slow link is one of two nodes that do not stand out themselves.

    Of a measurement that began and has left nothing, `lost` says why, by nodes.
    """
    ways: Findings = {
        (tuple(name.split(PAIR)), WHOLE): [f"lost while it was measured: {why}"] for name, why in lost.items()
    }
    for each in (each for each in judged if each.is_slow):
        words = f"{each.aspect} {100 * math.expm1(each.effect):.0f} % (z {each.z:.1f})"
        ways.setdefault((each.nodes, each.part), []).append(words)
    parts = {(nodes, name): part for nodes, found in surveyed.items() for name, part in found.parts.items()}
    throttled = [part.throttled_by for part in parts.values() if part.throttled_by is not None]
    counts = Counter(chain(*throttled))
    for key, part in parts.items():
        slow = ways.get(key, [])
        told = slow + [f"failed: {failure}" for failure in part.failures]
        held = [each for each in part.throttled_by or () if slow or counts[each] <= max(RARE_SHARE * len(throttled), 1)]
        told += [f"throttled: {' and '.join(held)}"] * bool(held)
        told += [f"ECC: {part.ecc_errors} uncorrected errors"] * bool(part.ecc_errors)
        ways |= {key: told} if told else {}
    named = {nodes[0] for nodes, _ in ways if len(nodes) == 1}
    keys = sorted(
        (key for key in ways if len(key[0]) == 1 or not named & {*key[0]}), key=lambda key: (len(key[0]), key)
    )
    return {key: ways[key] for key in keys}
