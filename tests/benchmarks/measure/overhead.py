"""What measuring costs, itself measured:  python -m tests.benchmarks.measure.overhead

Two trainings take turns, and their records tell it. The harness takes processor time beside them, and so does each of
them while it waits. A turn takes longer than what is counted of it: it is asked for, and begins with steps that find
cold caches.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.benchmarks.measure.runner import Study, find_machine
from mnist_dist.benchmarks.measure.study import plan_rounds, run_rounds
from mnist_dist.benchmarks.measure.suite import PlannedCase
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.distributed.turns import FULL
from mnist_dist.errors import EXIT_FAILED

SECONDS = 4.0  # Of measuring, for each.
CASES = [Case(strategy=strategy, cores_per_device=1, measure_seconds=SECONDS) for strategy in ("single", "mirrored")]


@dataclass(frozen=True)
class TurnCost:
    """What the turns of a training took.

    Attributes:
        turns: how many it had.
        counted_seconds: of its windows together.
        other_seconds: of all else in its turns.
    """

    turns: int
    counted_seconds: float
    other_seconds: float

    @property
    def share(self) -> float:
        return self.other_seconds / (self.counted_seconds + self.other_seconds)


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m tests.benchmarks.measure.overhead",
        description="Measure what measuring costs: the harness beside trainings that take turns, and the turns.",
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="mnist-dist-overhead-") as folder:
        records = measure(Path(folder))
    for record in records:
        if record.status != "ok":
            print(f"mnist-dist: error: {record.status}: {record.reason}", file=sys.stderr)
            return EXIT_FAILED
    cpu, seconds = (sum(getattr(record, name) for record in records) for name in ("harness_cpu_seconds", "seconds"))
    print(f"harness: {100 * cpu / seconds:.3f} % of one core while the cases ran ({cpu:.3f} s of {seconds:.1f} s)")
    for record in records:
        cost = turn_cost(record)
        print(
            f"{record.case.strategy}: {100 * cost.share:.1f} % of its turns not counted ({cost.turns} turns, "
            f"{1e3 * cost.other_seconds / cost.turns:.1f} ms beside {1e3 * cost.counted_seconds / cost.turns:.0f} ms); "
            f"{record.turns.waiting_cores if record.turns else 0.0:.4f} cores while it waited"
        )
    return 0


def measure(folder: Path) -> Sequence[Record]:
    """Measures two cases as a study does, with its progress shown and its records written."""
    sides = [(Study("overhead", "overhead", 120.0, find_machine(), folder / "scratch", width=1e-6), Store(folder))]
    rounds = plan_rounds(sides, [PlannedCase(case, 1, None, (FULL,), SECONDS) for case in CASES])
    return run_rounds(rounds, sides)


def turn_cost(record: Record) -> TurnCost:
    """Tells the turns from what came before: the record's seconds are those until it was ready, and of its turns."""
    measured = record.measurements or {}
    counted = sum(max(row) for row in zip(*measured["window_seconds"], strict=True))
    before = max(measured["startup_seconds"]) + max(measured["first_step_seconds"])
    return TurnCost(len(measured["window_cycles"]), counted, record.seconds - before - counted)


if __name__ == "__main__":
    sys.exit(main())
