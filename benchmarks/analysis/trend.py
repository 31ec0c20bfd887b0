"""Since when the cases of many studies are slower or faster, and what else changed then.

A case is followed on one type of machine. A study gives it one value, the logarithm of the rate of all its runs, so
days differ by noise between values. What a study says is kept in a file, and read again only if the study changed.
"""

import hashlib
import os
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from mnist_dist.benchmarks.analysis.matching import describe_surroundings, machine_type, show_value
from mnist_dist.benchmarks.analysis.summary import split_by_success
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import NoRateError, kind
from mnist_dist.benchmarks.records.record import Record, on_gpus
from mnist_dist.benchmarks.records.store import Store, read_json
from mnist_dist.benchmarks.statistics.change_points import FEWEST_VALUES, find_changes, locate_change
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import Estimate, log_total_rate
from mnist_dist.config import Section
from mnist_dist.errors import UserError
from mnist_dist.files import write_text
from mnist_dist.lazy import scipy

CACHE = "trend.json"
SMALLEST_EFFECT = float(np.log1p(0.02))  # Of the log rate; smaller changes do not matter.
STILL_MEASURED = 30  # A case that none of so many newest studies holds is history.

Facts = Mapping[str, str]
Point = tuple[str, float | None, str]  # The key of a setting, the log rate, if there is one, and the nodes.


class Setting(Section):
    """A case on a type of machine, and by name, in words, what else is told of it, but for the nodes."""

    case: Case
    gpus: bool
    machine: str
    facts: dict[str, str]


class Study(Section):
    stamp: str
    started_at: str
    points: list[Point]


class Summaries(Section):
    """What is kept of all studies, by their folders, relative to the first that was asked for."""

    version: Literal[1] = 1
    settings: dict[str, Setting] = Field(default_factory=dict)
    studies: dict[str, Study] = Field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A change of level.

    Attributes:
        since, between: the day of the first study after it, and those between which it lies with 95 % confidence.
        ratio: of the rates after and before, with its 95 % interval from the spread of the studies.
        differences: in words, what else changed then, each with whether that lasts as long as the levels.
    """

    since: str
    between: tuple[str, str]
    ratio: Estimate
    differences: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, eq=False)
class Trend:
    """One case on one type of machine.

    Attributes:
        days, log_rates: of the studies that have a rate; `without_rate` have none, as the case failed or was unstable.
        edges: of the pieces between changes, as places in `days`.
    """

    setting: Setting
    days: tuple[str, ...]
    log_rates: np.ndarray
    without_rate: int
    edges: tuple[int, ...]
    changes: tuple[Change, ...]

    @property
    def outcome(self) -> Literal["slower", "faster", "unchanged", "too few"]:
        """Slower than it has ever lastingly been, faster than before its last change, or neither."""
        if len(self.days) < FEWEST_VALUES:
            return "too few"
        levels = _levels(self.log_rates, self.edges)
        return "slower" if max(levels) - levels[-1] >= SMALLEST_EFFECT else "faster" if self.changes else "unchanged"


def read_studies(roots: Sequence[Path]) -> Summaries:
    """Returns what all studies in and below some folders say, of which only what is new is read.

    Raises:
        UserError: a folder holds no study.
    """
    file, known, studies = roots[0] / CACHE, Summaries(), {}
    if file.exists():
        try:
            known = Summaries.model_validate(read_json(file), strict=False)
        except (UserError, ValidationError):
            print(f"{file}: damaged, or of another version, so that all studies are read again", file=sys.stderr)
    settings = dict(known.settings)
    for folder in find_studies(roots):
        with os.scandir(folder / "records") as entries:
            files = sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in entries)
        name, stamp = os.path.relpath(folder, roots[0].resolve()), _digest(repr(files))
        study = known.studies.get(name)
        if study is None or study.stamp != stamp or not all(key in settings for key, _, _ in study.points):
            study = _summarize(Store(folder).records(), stamp, settings)
        studies[name] = study
    found = Summaries(settings=settings, studies=studies)
    if found != known:
        keep(file, found.model_dump_json())
    return found


def find_studies(roots: Sequence[Path]) -> list[Path]:
    """Returns each folder that holds records, once, in the order of their names."""
    found: set[Path] = set()
    for root in roots:
        below = {Path(folder).resolve() for folder, names, _ in os.walk(root) if "records" in names}
        if not below:
            raise UserError(
                f"DIR: '{root}' holds no studies; expected folders of `mnist-dist bench run`, at any depth."
            )
        found |= below
    return sorted(found)


def keep(file: Path, text: str) -> bool:
    """Writes a file that the verdict does not need, and returns whether; else it says in a line why not."""
    try:
        write_text(file, text)
    except UserError as error:
        print(f"{file}: not written: {error.__cause__}", file=sys.stderr)
        return False
    return True


def _summarize(records: Sequence[Record], stamp: str, settings: dict[str, Setting]) -> Study:
    """Returns what one study says, and adds what is new to the table of settings."""
    tried, points = [record for record in records if record.status != "skipped"], []
    for (_, machine), runs in group_by(tried, lambda record: (record.case_id, machine_type(record))).items():
        ok, _ = split_by_success(runs)
        try:
            rate = log_total_rate(kind(runs[0].case.kind).series(ok, ok)) if ok else None
        except NoRateError:
            rate = None
        told = [describe_surroundings(run) for run in ok or runs]
        facts = {name: " and ".join(sorted({each.get(name, "none") for each in told})) for name in ChainMap(*told)}
        setting = Setting(case=runs[0].case, gpus=on_gpus(runs), machine=machine, facts=facts)
        key = _digest(setting.model_dump_json())
        settings[key] = setting
        points.append((key, rate, show_value(" ".join(sorted({host for run in runs for host in run.identity.hosts})))))
    return Study(stamp=stamp, started_at=tried[0].started_at if tried else "", points=points)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_trends(summaries: Summaries) -> list[Trend]:
    """Returns the cases that are still measured, what changed last first."""
    keys = {key: (each.case.case_id, each.machine, each.gpus) for key, each in summaries.settings.items()}
    studies = sorted(
        (study for study in summaries.studies.values() if study.points), key=lambda study: study.started_at
    )
    current = {keys[key] for study in studies[-STILL_MEASURED:] for key, _, _ in study.points}
    points = ((study.started_at[:10], point) for study in studies for point in study.points)
    series = group_by(points, lambda each: keys[each[1][0]])
    trends = [_follow(series[key], summaries.settings) for key in current]
    trends.sort(key=lambda trend: trend.setting.case.order)
    return sorted(trends, key=lambda trend: trend.changes[-1].since if trend.changes else "", reverse=True)


def _follow(points: Sequence[tuple[str, Point]], settings: Mapping[str, Setting]) -> Trend:
    rated = [(day, point) for day, point in points if point[1] is not None]
    days, rates = tuple(day for day, _ in rated), np.array([rate for _, (_, rate, _) in rated], np.float64)
    facts = [ChainMap({"node": nodes}, settings[key].facts) for _, (key, _, nodes) in rated]
    edges = [0, *find_changes(rates), len(rates)]
    while len(edges) > 2 and (steps := np.abs(np.diff(_levels(rates, edges)))).min() < SMALLEST_EFFECT:
        del edges[int(steps.argmin()) + 1]  # One at a time: several small ones in a row may add up.
    spans = []
    for number, high in enumerate(edges[2:], start=1):
        low = edges[number - 1]
        edges[number], first, last = (low + each for each in locate_change(rates[low:high]))
        spans.append((first, last))

    def describe(low: int, place: int, high: int, span: tuple[int, int]) -> Change:
        """Describes the change at `place`, or elsewhere in `span`, between those at `low` and `high`."""
        interval = scipy.stats.ttest_ind(rates[place:high], rates[low:place], equal_var=False).confidence_interval()
        effect = rates[place:high].mean() - rates[low:place].mean()
        value, *ends = np.exp([effect, interval.low, interval.high]).tolist()
        differences = tuple(_differences(facts[low : span[0]], facts[span[1] : high]))
        ratio = Estimate(value, ends[0], ends[1], high - low)
        return Change(days[place], (days[span[0]], days[span[1]]), ratio, differences)

    changes = tuple(describe(*each) for each in zip(edges, edges[1:], edges[2:], spans, strict=False))
    return Trend(settings[points[-1][1][0]], days, rates, len(points) - len(rated), tuple(edges), changes)


def _levels(rates: np.ndarray, edges: Sequence[int]) -> list[float]:
    return [float(rates[low:high].mean()) for low, high in pairwise(edges)]


def _differences(before: Sequence[Facts], after: Sequence[Facts]) -> Iterator[tuple[str, bool]]:
    """Yields what differs between the last study before and the first after, and whether no other has both values."""
    for name in sorted({*before[-1], *after[0]}):
        old, new = (each.get(name, "none") for each in (before[-1], after[0]))
        if old != new:
            earlier, later = ({each.get(name, "none") for each in side} for side in (before, after))
            yield f"{name} {old} → {new}", new not in earlier and old not in later
