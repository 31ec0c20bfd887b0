"""How often two simulated studies are judged rightly, on machines that hold nothing of what the tests assume.

Run it to measure what docs/benchmarks.md says: `python -m tests.benchmarks.adversary_compare`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.analysis.compare import Comparison, compare
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, Turns
from tests.benchmarks.simulation import make_record

WINDOWS, WINDOW_SECONDS, REPEATS = 40, 0.2, 5
STUDIES = 100
OUTLIERS, OUTLIER_FACTOR, THROTTLED_FACTOR, STRETCH = 0.02, 1.5, 1.6, 5


@dataclass(frozen=True)
class Machine:
    """What disturbs the runs of a comparison, in shares of the time.

    Attributes:
        level: standard deviation of the level of a process.
        heavy: whether levels have the tails of Student's t with three degrees of freedom.
        throttled: share of the time in which everything takes 1.6 times as long, in stretches of a second.
        drift: by how much everything slows down from the first run of the base to the last new one.
        day: standard deviation of the level of the day, of each study by itself unless they take turns.
    """

    level: float = 0.01
    heavy: bool = False
    throttled: float = 0.0
    drift: float = 0.0
    day: float = 0.0

    def draw_levels(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.standard_t(3, shape) / np.sqrt(3) if self.heavy else rng.standard_normal(shape)
        return np.maximum(1 + self.level * drawn, 0.3)

    def paces(self, rng: np.random.Generator, windows: int, start: float, end: float) -> np.ndarray:
        """Returns by how much windows one after the other are slower, from `start` to `end` of the whole time."""
        free = STRETCH * (1 / self.throttled - 1) if self.throttled else 10 * windows
        lengths = rng.geometric(1 / np.tile([free, STRETCH], windows))
        lengths[0] *= rng.random() >= self.throttled
        slow = np.repeat(np.tile([False, True], windows), lengths)[:windows] if self.throttled else np.zeros(windows)
        noise = rng.gamma(1 / 0.03**2, 0.03**2, windows) * np.where(rng.random(windows) < OUTLIERS, OUTLIER_FACTOR, 1)
        return noise * np.where(slow, THROTTLED_FACTOR, 1.0) * (1 + self.drift * np.linspace(start, end, windows))


MACHINES = {
    "1 % between runs": Machine(),
    "3 %": Machine(level=0.03),
    "6 %": Machine(level=0.06),
    "3 %, heavy tails": Machine(level=0.03, heavy=True),
    "1 %, throttled for a fifth of the time": Machine(throttled=0.2),
    "1 %, slower by 10 % from first to last": Machine(drift=0.10),
    "1 %, and 3 % between days": Machine(day=0.03),
}


def cases(count: int) -> list[Case]:
    return [Case(global_batch_size=100 * (number + 1), cores_per_device=1) for number in range(count)]


@functools.cache
def blank(batch: int) -> Record:
    return make_record(Case(global_batch_size=batch, cores_per_device=1))


def record(case: Case, repeat: int, seconds: np.ndarray, accuracy: float | None, turns: Turns | None) -> Record:
    """Returns a record of windows one after the other, or of a window in each cycle."""
    measured = {"window_steps": [10] * len(seconds), "window_seconds": [seconds.tolist()], "test_accuracy": accuracy}
    measured |= {"window_cycles": list(range(len(seconds)))} if turns else {}
    kept = blank(case.global_batch_size)
    fields = {"repeat": repeat, "seed": repeat, "turns": turns, "measurements": kept.measurements | measured}
    return kept.model_copy(update=fields)


def apart(
    rng: np.random.Generator, machine: Machine, slower: Sequence[float], repeats: int = REPEATS
) -> tuple[list[Record], list[Record]]:
    """Measures a case for each of `slower`, the factor on the new one's times: first the base, then the new study."""
    sides: list[list[Record]] = []
    for side in range(2):
        levels = machine.draw_levels(rng, (repeats, len(slower))) * max(1 + machine.day * rng.standard_normal(), 0.3)
        sides.append([])
        for number, (case, factor) in enumerate(zip(cases(len(slower)), slower, strict=True)):
            for repeat in range(repeats):
                paces = machine.paces(rng, WINDOWS, *((side + (repeat + part) / repeats) / 2 for part in (0, 1)))
                seconds = WINDOW_SECONDS * levels[repeat, number] * (factor if side else 1.0) * paces
                sides[side].append(record(case, repeat, seconds, None, None))
    return sides[0], sides[1]


def in_turns(
    rng: np.random.Generator, machine: Machine, slower: Sequence[float], repeats: int = REPEATS, cycles: int = WINDOWS
) -> tuple[list[Record], list[Record]]:
    """The same, in turns in an order drawn anew for each cycle."""
    base, new = [], []
    contenders = 2 * len(slower)
    for repeat in range(repeats):
        paces = machine.paces(rng, cycles * contenders, repeat / repeats, (repeat + 1) / repeats)
        order = np.argsort(rng.random((cycles, contenders)), axis=1) + contenders * np.arange(cycles)[:, None]
        factors = machine.draw_levels(rng, (contenders,)) * np.concatenate([np.ones(len(slower)), slower])
        seconds = WINDOW_SECONDS * factors * paces[order]
        turns = Turns(round_id=rng.bytes(16).hex(), contenders=contenders, waiting_cores=0.0, ended="time")
        for number, case in enumerate(cases(len(slower))):
            base.append(record(case, repeat, seconds[:, number], None, turns))
            new.append(record(case, repeat, seconds[:, len(slower) + number], None, turns))
    return base, new


def with_accuracies(records: Sequence[Record], rng: np.random.Generator, drop: float, deviation: float) -> list[Record]:
    """Returns records of which every seed has left a model; accuracies are in shares of 10,000 test images."""
    return [
        each.model_copy(
            update={
                "measurements": (each.measurements or {})
                | {"test_accuracy": round(0.992 - drop + deviation * rng.standard_normal(), 4)}
            }
        )
        for each in records
    ]


def rates(found: Sequence[Comparison]) -> dict[str, float]:
    """Returns the shares of comparisons with an outcome in any case, and of those that end with 0."""
    names = {verdict.outcome for each in found for verdict in each.verdicts}
    shares = {name: np.mean([any(v.outcome == name for v in each.verdicts) for each in found]) for name in names}
    return {"exit 0": float(np.mean([each.exit_code == 0 for each in found]))} | {
        k: float(v) for k, v in shares.items()
    }


def measure_speed(machine: Machine, way: str, slower: Sequence[float], studies: int = STUDIES) -> dict[str, float]:
    measured = {"apart": apart, "in turns": in_turns}[way]
    return rates([compare(*measured(np.random.default_rng(seed), machine, slower)) for seed in range(studies)])


def measure_accuracy(
    seeds: int, drop: float, count: int = 1, deviation: float = 0.0007, studies: int = STUDIES
) -> dict[str, float]:
    """The new accuracy of the first case is lower by `drop`; nothing else differs."""
    found = []
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        base, new = in_turns(rng, Machine(), [1.0] * count, seeds, cycles=WINDOWS if count > 1 else 10)
        dropped = [
            with_accuracies([each], rng, drop if each.case == cases(1)[0] else 0.0, deviation)[0] for each in new
        ]
        found.append(compare(with_accuracies(base, rng, 0.0, deviation), dropped))
    return rates(found)


def main() -> None:
    print(f"Shares of {STUDIES} comparisons, five runs a side.")
    print("Equal cases: exit 0, any slower. One case: slower at 10 % and at 5 % more time, exit 0 at 5 % and at 10 %.")
    for name, machine in MACHINES.items():
        count = 10 if machine == Machine() else 2
        for way in ("apart", "in turns"):
            equal = measure_speed(machine, way, [1.0] * count)
            ten, five = (measure_speed(machine, way, [factor]) for factor in (1.10, 1.05))
            values = [equal["exit 0"], equal.get("slower", 0.0), *(each.get("slower", 0.0) for each in (ten, five))]
            values += [five["exit 0"], ten["exit 0"]]
            print(f"{name}, {count} cases {way}:", " ".join(f"{100 * value:.0f} %" for value in values), flush=True)
    print("Accuracy of seeds that differ by 0.07 points: less accurate where it is lower by 0, 0.1, 0.2, 0.3 points.")
    for seeds in (3, 5, 10):
        found = [measure_accuracy(seeds, drop, studies=200) for drop in (0.0, 0.001, 0.002, 0.003)]
        print(
            f"{seeds} seeds:", " ".join(f"{100 * each.get('less accurate', 0.0):.0f} %" for each in found), flush=True
        )
    ten = measure_accuracy(5, 0.0, 10)
    print(f"Ten equal cases in turns, 5 seeds: exit 0 {100 * ten['exit 0']:.0f} %")


if __name__ == "__main__":
    main()
