"""How often `bench trend` tells of changes that are none, and how soon of those that are; and studies to look at.

    python -m tests.benchmarks.adversary_trend              20 years of nights of pure noise, and slowdowns by 5 %
    python -m tests.benchmarks.adversary_trend scale        processor time and memory for 3,000 studies
    python -m tests.benchmarks.adversary_trend make DIR     a year of nightly studies, of which one case has slowed down

The noise is the adversary's (adversary.py), which shares nothing with the estimators: every night has a level of its
own, every process too, with heavy tails or in two clusters, and clocks are throttled for a while.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from mnist_dist.benchmarks.records.store import Store
from mnist_dist.benchmarks.statistics.change_points import find_changes
from tests.benchmarks.adversary import Machine, runs_apart

YEAR, YEARS, RUNS = 365, 20, 3
DAY = 0.03  # Standard deviation of the level of a night.
NEAR = 10  # Nights: nearer ones are the same change.
MACHINES = {
    "3 % between nights": Machine(),
    "3 % between nights, heavy tails": Machine(level=0.03, levels="t3"),
    "3 % between nights, a fifth of the runs 1.3 times as slow": Machine(levels="clusters"),
    "3 % between nights, throttled for a fifth of the time": Machine(throttled=0.2, stretch_seconds=3.0),
}


def nights(rng: np.random.Generator, machine: Machine, count: int, heavy: bool = False) -> np.ndarray:
    """Returns the log rates of studies of RUNS runs, float64 [count]; heavy nights are Student's t with 3 freedoms."""
    days = rng.standard_t(3, count) / np.sqrt(3) if heavy else rng.standard_normal(count)
    paces = [np.mean([_run_seconds(rng, machine) for _ in range(RUNS)]) for _ in range(count)]
    return -np.log(np.maximum(1 + DAY * days, 0.5) * paces)


def _run_seconds(rng: np.random.Generator, machine: Machine) -> float:
    return machine.draw_level(rng) * float(machine.pass_time(np.full(40, 0.2), rng).sum())


def told(values: np.ndarray, first: int = 1) -> list[tuple[int, int]]:
    """Returns of each change that is told on any night, from the `first` on, its place and the night."""
    found: list[tuple[int, int]] = []
    for night in range(first, len(values) + 1):
        for place in find_changes(values[:night]):
            if all(abs(place - known) > NEAR for known, _ in found):
                found.append((place, night))
    return found


def false_changes(machine: Machine, seeds: Iterable[int], heavy: bool = False, count: int = YEAR) -> int:
    """Returns how many changes are told of in series of pure noise, of so many nights each."""
    return sum(len(told(nights(np.random.default_rng([seed, 1]), machine, count, heavy))) for seed in seeds)


def nights_until_told(machine: Machine, seeds: Iterable[int], before: int = YEAR, slower: float = 1.05) -> list[int]:
    """Returns after how many nights a lasting slowdown is told of, at most 60."""
    delays = []
    for seed in seeds:
        values = nights(np.random.default_rng([seed, 2]), machine, before + 60)
        values[before:] -= np.log(slower)
        hits = [night for place, night in told(values, before + 1) if abs(place - before) <= NEAR]
        delays.append(min(hits, default=before + 60) - before)
    return delays


def write_studies(
    folder: Path, count: int, cases: Sequence[int] = (1, 2, 4), repeats: int = 1, change: int = 0
) -> None:
    """Writes a study for each night; from the night `change` on the last case is 6 % slower, with another kernel."""
    rng = np.random.default_rng(0)
    start = datetime(2026, 11, 28, 2, tzinfo=timezone.utc) - timedelta(days=count - 1)
    for night in range(count):
        day, moment = 1 + DAY * rng.standard_normal(), start + timedelta(days=night)
        store = Store(folder / f"{moment:%Y/%m-%d}")
        is_after = bool(change) and night >= change
        for devices in cases:
            slower = 1.06 if is_after and devices == cases[-1] else 1.0
            for record in runs_apart(rng, Machine(), repeats, devices=devices, day=day * slower):
                software = {"kernel": "6.1.0-31" if is_after else "6.1.0-27", "tensorflow": "2.21.0"}
                commit = f"{(night // 40 + 1) * 0x9E3779B97F4A7C15:040x}"[-40:]
                told = {"software": software, "git": {"commit": commit, "dirty": False}}
                told |= {"hosts": (f"n{rng.integers(1, 5)}",) * devices}
                identity = type(record.identity).model_validate(record.identity.model_dump() | told)
                named = {"record_id": rng.bytes(16).hex(), "study": f"{moment:%m-%d}", "started_at": moment.isoformat()}
                store.add(record.model_copy(update=named | {"identity": identity}))


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["make"]:
        write_studies(Path(arguments[1]), YEAR, change=YEAR - 40)
        return
    if arguments[:1] == ["scale"]:
        measure_scale(int(arguments[1]) if arguments[1:] else 3000)
        return
    print(f"Changes told of in {YEARS} years of nights of pure noise; nights until 5 % is told, median, within ten.")
    for name, machine in MACHINES.items():
        delays = nights_until_told(machine, range(100))
        false = [false_changes(machine, range(YEARS), heavy) for heavy in (False, True)]
        print(
            f"{name}: {false[0]}, {false[1]} with heavy tails between nights; {np.median(delays):.0f}, "
            f"{100 * np.mean(np.array(delays) <= 10):.0f} %",
            flush=True,
        )
    early = np.array(nights_until_told(Machine(), range(100), before=40))
    print(f"After 40 nights only: {np.median(early):.0f}, {100 * np.mean(early <= 10):.0f} % within ten.", flush=True)
    values = nights(np.random.default_rng(3), MACHINES["3 % between nights, heavy tails"], YEARS * YEAR)
    seen = {place // NEAR for year in range(1, YEARS + 1) for place in find_changes(values[: year * YEAR])}
    print(f"One series of {YEARS} years, looked at once a year: {len(seen)} changes.")


def measure_scale(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_studies(Path(folder), count, change=count - 40)
        for name in ("all is new", "nothing is new"):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            command = [sys.executable, "-m", "mnist_dist", "bench", "trend", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(done.stdout, done.stderr, sep="", end="")
            print(
                f"{count:,} studies, {name}: code {done.returncode}, {spent:.1f} s of processor time, "
                f"{time.monotonic() - began:.0f} s in all, at most {after.ru_maxrss / 2**20:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
