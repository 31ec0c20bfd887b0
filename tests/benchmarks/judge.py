"""Judges the statistics on the adversary's records: `python -m tests.benchmarks.judge [STUDIES] [TABLE]` prints them.

The tables stand in docs/benchmarks.md. Of a share of 95 % among 100 studies the standard error is 2 points.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mnist_dist.benchmarks.analysis.attribution import Attribution
from mnist_dist.benchmarks.analysis.scaling import find_curves
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import find_clusters
from tests.benchmarks.adversary import (
    FULL,
    NEITHER,
    RESIDENT,
    UNREDUCED,
    Costs,
    Machine,
    all_reduce_alone,
    rounds,
    runs_apart,
    true_rate,
)

MACHINES = {
    "processes differ by 2 %": Machine(level=0.02),
    "by 8 %": Machine(level=0.08),
    "by 3 %, with tails of t3": Machine(level=0.03, levels="t3"),
    "throttled 10 % of the time, 0.3 s each": Machine(throttled=0.1, stretch_seconds=0.3),
    "10 %, 1 s": Machine(throttled=0.1, stretch_seconds=1.0),
    "10 %, 3 s": Machine(throttled=0.1, stretch_seconds=3.0),
    "20 %, 0.3 s": Machine(throttled=0.2, stretch_seconds=0.3),
    "20 %, 1 s": Machine(throttled=0.2, stretch_seconds=1.0),
    "20 %, 3 s": Machine(throttled=0.2, stretch_seconds=3.0),
    "windows that stall": Machine(stalls=0.02),
    "drift of 10 % over the study": Machine(drift=0.1),
    "warm-up of up to a fifth": Machine(warm_up=0.2),
    "two clusters, a fifth 1.3 times as slow": Machine(levels="clusters"),
}
OF_EFFICIENCY = ("by 8 %", "20 %, 1 s", "20 %, 3 s", "windows that stall", "drift of 10 % over the study")
DAY = 0.05  # Standard deviation of the level of a day, which an efficiency must not depend on.
PLANTED = 1.8e-3  # Seconds of each cause: 15 % of the step.
CAUSES = {
    "input": Costs(input_at_n=PLANTED),
    "communication": Costs(all_reduce=PLANTED),
    "stragglers": Costs(slow_rank=PLANTED),
    "contention": Costs(contention=PLANTED),
    "nothing": Costs(),
}


def runs_in_turns(rng: np.random.Generator, machine: Machine, repeats: int) -> list[Record]:
    return rounds(rng, machine, repeats, [(1, Costs(), [FULL])])


def point_in_turns(
    rng: np.random.Generator, machine: Machine, costs: Costs, repeats: int = 3, devices: int = 2, day: float = 1.0
) -> Analysis:
    """Returns a point of weak scaling with all that explains it."""
    variants = (FULL, RESIDENT, UNREDUCED, NEITHER)
    contenders = [(1, costs, (FULL, RESIDENT)), (devices, costs, variants)]
    return Analysis([*rounds(rng, machine, repeats, contenders, day=day), all_reduce_alone(devices, costs)])


def attribution(rng: np.random.Generator, machine: Machine, costs: Costs, **options: int) -> Attribution:
    (found,) = point_in_turns(rng, machine, costs, **options).attributions
    return found


def named(found: Attribution) -> str:
    return found.biggest.name if found.is_significant and found.biggest else "nothing"


def rate_coverage(
    measure: Callable[[np.random.Generator, Machine, int], list[Record]], machine: Machine, repeats: int, studies: int
) -> tuple[float, float]:
    """Returns the share of intervals of a rate that hold the truth, and of studies whose clusters are told of."""
    held, told, truth = [], 0, true_rate(machine)
    for seed in range(studies):
        summary = summarize(measure(np.random.default_rng([repeats, seed]), machine, repeats))
        told += find_clusters([run.series.log_rate for run in summary.runs]) is not None
        if summary.images_per_second:
            held.append(summary.images_per_second.low <= truth <= summary.images_per_second.high)
    return float(np.mean(held)), told / studies


def efficiency_coverage(machine: Machine, repeats: int, studies: int) -> float:
    """Returns the share of intervals that hold the truth, among studies that settled; nothing else is analysed."""
    truth, held = true_rate(machine, devices=2) / true_rate(machine) / 2, []
    for seed in range(studies):
        rng = np.random.default_rng([repeats, seed])
        day = 1 + DAY * float(rng.standard_normal())
        records = point_in_turns(rng, machine, Costs(), repeats, day=day).records
        trained = group_by((each for each in records if each.case.kind == "train"), lambda each: each.case_id)
        for curve in find_curves([summarize(of_case) for of_case in trained.values()]):
            found = curve.points[-1].efficiency
            held.append(found.low <= truth <= found.high)
    return float(np.mean(held))


def naming(machine: Machine, costs: Costs, studies: int) -> dict[str, float]:
    """Returns how often each cause is named as the largest."""
    found = [named(attribution(np.random.default_rng(seed), machine, costs)) for seed in range(studies)]
    return {name: found.count(name) / studies for name in CAUSES}


def _level(deviation: float) -> Machine:
    """Of steps so even that waiting for one another costs two ranks 1 %, which is no loss to be named."""
    return Machine(level=deviation, jitter=0.02)


def _rates(studies: int) -> Iterator[Sequence[str]]:
    measures = {
        "in turns, 3": (runs_in_turns, 3),
        "in turns, 5": (runs_in_turns, 5),
        "apart, 5 of 60 s": (functools.partial(runs_apart, seconds=60.0), 5),
        "apart, 3 of 8 s": (runs_apart, 3),
        "apart, 5 of 8 s": (runs_apart, 5),
    }
    yield "95 % interval of images/s", *measures, "told of"
    for name, machine in MACHINES.items():
        found = [rate_coverage(measure, machine, repeats, studies) for measure, repeats in measures.values()]
        yield name, *(f"{100 * held:.0f}" for held, _ in found), f"{100 * found[-1][1]:.0f}"


def _efficiencies(studies: int) -> Iterator[Sequence[str]]:
    yield "95 % interval of the efficiency, in turns, another day each", "3 rounds", "5 rounds"
    for name in OF_EFFICIENCY:
        yield name, *(f"{100 * efficiency_coverage(MACHINES[name], n, studies):.0f}" for n in (3, 5))


def _causes(studies: int) -> Iterator[Sequence[str]]:
    yield "named, of a planted 15 % (3 rounds)", "processes differ by 3 %", "6 %"
    for name, costs in CAUSES.items():
        yield name, *(f"{100 * naming(_level(sd), costs, studies)[name]:.0f}" for sd in (0.03, 0.06))


TABLES = {"rates": _rates, "efficiencies": _efficiencies, "causes": _causes}


def main(studies: int = 100, *names: str) -> None:
    for name in names or TABLES:
        for line, row in enumerate(TABLES[name](studies)):
            print(f"| {' | '.join(row)} |", flush=True)
            if line == 0:
                print(f"|---|{'---:|' * (len(row) - 1)}", flush=True)
        print()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
