"""Which devices, nodes and links of a fleet are slower than the others, and in which way.

A value is the median of the log rates of a unit's repeats. Its z is the distance from the median of the fleet, in units
of its spread (1.4826 MAD; Iglewicz and Hoaglin, "How to detect and handle outliers", 1993), which is at least what the
repeats' own spread makes of a median.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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

SMALLEST_EFFECT = -math.log1p(-0.05)  # Of the log rate; smaller differences do not matter.
SMALLEST_SPREAD = 0.003  # Of log rates, however much the units resemble one another.
FEWEST_UNITS, FEWEST_FOR_TAILS = 5, 40
FEW_FREEDOMS, MOST_FREEDOMS = 5.0, 50.0
RARE_SHARE = 0.1  # Of the fleet; what more devices have is how the fleet is.
PAIR = "+"  # Between the names of two nodes.
WHOLE = "all"  # Instead of a device: all of a node or of a pair.
NETWORK = "network"


class Part(Section):
    """What was measured of a device, by its number, or of all that a node or a pair has.

    Attributes:
        log_rates: by aspect, of each repeat that has one.
        failures: in words, of the repeats that have none.
    """

    log_rates: dict[str, list[float]] = Field(default_factory=dict)
    failures: list[str] = Field(default_factory=list)
    uuid: str | None = None
    throttled_by: list[str] | None = None
    ecc_errors: NonNegativeInt = 0


class Surveyed(Section):
    """What a job leaves of a node or of a pair: `nodes/NODE.json` or `pairs/NODE+NODE.json`."""

    machine: str
    parts: dict[str, Part]


@dataclass(frozen=True)
class Unit:
    """What is compared with its like: a device, a node (`part` is WHOLE) or a link.

    Attributes:
        aspect: compute, memory, copies, training, all-reduce, or network, which is that between nodes.
        log_rates: of a node's network, of its links.
    """

    nodes: tuple[str, ...]
    part: str
    aspect: str
    machine: str
    log_rates: tuple[float, ...]

    @property
    def is_link(self) -> bool:
        return len(self.nodes) > 1


@dataclass(frozen=True)
class Judged:
    """A unit beside its fleet.

    Attributes:
        effect: log ratio of its rate to the fleet's median; negative where it is slower.
        p_value: of being so much slower by chance.
    """

    unit: Unit
    effect: float
    z: float
    p_value: float
    is_slow: bool = False


@dataclass(frozen=True)
class Finding:
    """Who stands out: a node, a device of it, or the link of two nodes; and in which ways, in words."""

    nodes: tuple[str, ...]
    part: str
    ways: tuple[str, ...]


def summarize(folder: Path) -> Surveyed:
    """Keeps, in a file beside the folder, what the studies in it say: of each device, or of all."""
    parts, machine = {}, ""
    for study in sorted(file.parent for file in folder.glob("*/records")):
        records = Store(study).records()
        parts[study.name] = _summarize(records)
        machine = machine or next((machine_type(each) for each in records), "")
    surveyed = Surveyed(machine=machine, parts=parts)
    write_json(folder.with_name(f"{folder.name}.json"), surveyed.model_dump(mode="json"))
    return surveyed


def _summarize(records: Sequence[Record]) -> Part:
    log_rates: dict[str, list[float]] = {}
    for record in (each for each in records if each.status == "ok"):
        for aspect, rate in kind(record.case.kind).aspects(record).items():
            log_rates.setdefault(aspect, []).append(rate)
    failures = [f"{each.case.kind}: {each.reason}" for each in records if each.status not in ("ok", "skipped")]
    gpus = [gpu for each in records if each.telemetry for gpu in each.telemetry.gpus]
    return Part(
        log_rates=log_rates,
        failures=sorted(set(failures)),
        uuid=next((gpu.uuid for gpu in gpus), None),
        throttled_by=sorted({reason for gpu in gpus for reason in gpu.throttled_by}) if gpus else None,
        ecc_errors=max((gpu.ecc_errors or 0 for gpu in gpus), default=0),
    )


def read_surveyed(results: Path) -> dict[tuple[str, ...], Surveyed]:
    """Returns what was measured, by node (a tuple of one) or pair.

    Raises:
        UserError: a file is damaged.
    """
    found = {}
    for file in sorted([*results.glob("nodes/*.json"), *results.glob("pairs/*.json")]):
        try:
            found[tuple(file.stem.split(PAIR))] = Surveyed.model_validate(read_json(file))
        except ValidationError as error:
            raise UserError(f"{file}: {explain(error)} Remove it, and survey again.") from None
    return found


def units_of(surveyed: Mapping[tuple[str, ...], Surveyed]) -> Iterator[Unit]:
    """Yields all that can be compared."""
    links: dict[tuple[str, str], list[float]] = {}
    for nodes, of_nodes in surveyed.items():
        for name, part in of_nodes.parts.items():
            for aspect, rates in part.log_rates.items():
                is_link = len(nodes) > 1
                yield Unit(nodes, name, NETWORK if is_link else aspect, of_nodes.machine, tuple(rates))
                for node in nodes if is_link else ():
                    links.setdefault((node, of_nodes.machine), []).append(float(np.median(rates)))
    for (node, machine), rates in links.items():
        if len(rates) > 1:  # With one, the other end might be to blame.
            yield Unit((node,), WHOLE, NETWORK, machine, tuple(rates))


def judge(units: Iterable[Unit], significance: float = 0.05) -> list[Judged]:
    """Compares each unit with its like, the slowest first; where there are too few of a sort, they are left out.

    A unit is slow if that is no chance (Holm's correction over all of them), the smallest effect that matters or more,
    and true of each of its repeats at least half as much: one that was disturbed is not.
    """
    from scipy import special

    judged, slow = [], []
    for fleet in group_by(units, lambda each: (each.aspect, each.machine, each.is_link, each.part == WHOLE)).values():
        if len(fleet) < FEWEST_UNITS:
            continue
        values = np.array([np.median(each.log_rates) for each in fleet])
        best = np.array([max(each.log_rates) for each in fleet])
        spread = _spread_of_repeats(fleet)
        effects = values - np.median(values)
        distances = np.abs(effects)
        scale = max(1.4826 * float(np.median(distances)), spread, SMALLEST_SPREAD)
        z = effects / scale
        # Student's t for its tails, which are heavy in a small fleet, whose spread is hardly known.
        p_values = special.stdtr(_freedoms(distances), np.minimum(z, 0.0))
        agree = (best - np.median(values)) < effects / 2
        slow += ((effects <= -SMALLEST_EFFECT) & agree).tolist()
        judged += [Judged(*each) for each in zip(fleet, effects.tolist(), z.tolist(), p_values.tolist(), strict=True)]
    p_values = np.array([each.p_value for each in judged])
    slow = (p_values <= holm_levels(p_values, significance)) & np.array(slow, bool)
    found = [
        Judged(each.unit, each.effect, each.z, each.p_value, bool(is_slow))
        for each, is_slow in zip(judged, slow, strict=True)
    ]
    return sorted(found, key=lambda each: each.z)


def _spread_of_repeats(fleet: Sequence[Unit]) -> float:
    """Returns the standard deviation that the fleet's repeats give the median of one unit's, 0 where none repeats."""
    repeated = [each.log_rates for each in fleet if len(each.log_rates) > 1]
    if not repeated or (fleet[0].aspect == NETWORK and not fleet[0].is_link):  # A node's links are no repeats.
        return 0.0
    spreads = [np.std(each, ddof=1) / math.sqrt(2 * len(each) / math.pi) for each in repeated]
    return float(np.median(spreads))


def _freedoms(distances: np.ndarray) -> float:
    """Returns the degrees of freedom of Student's t with such tails: the 95th percentile over the median of |t|."""
    from scipy import special

    if len(distances) < FEWEST_FOR_TAILS or not (middle := float(np.median(distances))):
        return FEW_FREEDOMS
    freedoms = np.geomspace(2.0, MOST_FREEDOMS, 100)
    ratios = special.stdtrit(freedoms, 0.975) / special.stdtrit(freedoms, 0.75)
    return float(np.interp(-float(np.quantile(distances, 0.95)) / middle, -ratios, freedoms))


def find(
    surveyed: Mapping[tuple[str, ...], Surveyed], judged: Sequence[Judged], lost: Mapping[str, str]
) -> list[Finding]:
    """Returns who stands out, nodes first. A slow link is one of two nodes that do not stand out themselves.

    Args:
        lost: by nodes, why a measurement that began has left nothing.
    """
    ways: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for each in judged:
        if each.is_slow:
            words = f"{each.unit.aspect} {100 * math.expm1(each.effect):.0f} % (z {each.z:.1f})"
            ways.setdefault((each.unit.nodes, each.unit.part), []).append(words)
    devices = [(nodes, name, part) for nodes, of_nodes in surveyed.items() for name, part in of_nodes.parts.items()]
    throttled = [part.throttled_by for _, _, part in devices if part.throttled_by is not None]
    shares = {
        reason: sum(reason in each for each in throttled) / len(throttled) for each in throttled for reason in each
    }
    for nodes, name, part in devices:
        told = ways.get((nodes, name), [])
        told += [f"no {failure}" for failure in part.failures]
        held = [each for each in part.throttled_by or () if told or shares[each] <= RARE_SHARE]
        told += [f"throttled: {' and '.join(held)}"] * bool(held)
        told += [f"ECC: {part.ecc_errors} uncorrected errors"] * bool(part.ecc_errors)
        if told:
            ways[nodes, name] = told
    ways |= {(tuple(name.split(PAIR)), WHOLE): [f"lost while it was measured: {why}"] for name, why in lost.items()}
    named = {nodes[0] for nodes, _ in ways if len(nodes) == 1}
    findings = [Finding(*key, tuple(told)) for key, told in ways.items() if len(key[0]) == 1 or not named & {*key[0]}]
    return sorted(findings, key=lambda each: (len(each.nodes), each.nodes, each.part))
