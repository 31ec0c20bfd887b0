"""What slows two ranks down is planted in real runs, again and again: how often it is named, and how exactly told.

    python -m tests.benchmarks.causes [--tries 10] [--only input rank all-reduce nothing]

Nothing is simulated: the harness starts the processes, which train with Horovod, measure themselves and are attributed
as any study is. Only what is planted is known beforehand; see hindered.py. It spares runs of a single device, against
which the others are judged, and with which they take turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from mnist_dist.benchmarks.analysis.attribution import Attribution
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.measure.suite import Block, Narrowing, PlannedCase, Suite, plan_cases
from mnist_dist.benchmarks.report.explanation import explain
from mnist_dist.config import DataConfig
from mnist_dist.data.dataset import load_arrays
from tests.benchmarks import hindered
from tests.benchmarks.harness import BATCH_SIZE, MACHINE, make_study, run_cases, small_settings

MEASURE_SECONDS = 6.0  # Of each variant: about twenty cycles of turns, each of a hindered step or two.
CAUSES = {"input": "input", "rank": "stragglers", "all-reduce": "communication", "nothing": None}


def plan(data: Path) -> list[PlannedCase]:
    """Returns one device alone, and two ranks with all that explains them."""
    block = Block(
        images_per_device=[BATCH_SIZE],
        measure_seconds=MEASURE_SECONDS,
        ablations=True,
        settings=small_settings(data) | {"runtime.steps_per_call": 1},
    )
    suite = Suite(
        description="d", minutes=1.0, repeats=1, strategies=["single", "horovod"], devices=[1, 2], blocks=[block]
    )
    planned = plan_cases(suite, MACHINE, Narrowing())
    return [item for item in planned if item.case.strategy == "single" or item.case.devices == 2]


def measure(what: str, cases: list[PlannedCase], folder: Path) -> Attribution | None:
    """Returns the explanation of two hindered ranks; None where a busy machine has left no whole one three times."""
    program = (sys.executable, hindered.__file__, what)
    for attempt in range(3):
        records = run_cases(make_study(folder / f"scratch-{attempt}", program=program), *cases)
        for record in records:
            assert record.status == "ok", record.output_tail
        for attribution in Analysis(records).attributions:
            if not any("there is no steady run" in each for each in attribution.missing):
                return replace(attribution, disturbed=False)  # Sleeps are planted, which a busy machine does not hide.
    return None


def describe(what: str, found: Attribution) -> tuple[bool, str]:
    """Returns whether what was planted, and nothing else, is named, and how its share differs from what is true."""
    cause, named = CAUSES[what], found.biggest.name if found.is_significant and found.biggest else None
    if cause is None:
        return named is None, f"named {named}, lost {100 * found.loss.value:.1f} %"
    share = next(100 * part.share.value for part in found.parts if part.name == cause)
    true = 100 * hindered.DELAY_SECONDS / found.step_seconds.value
    return named == cause, f"named {named}, {share:.1f} points of {true:.1f} planted: {share - true:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=CAUSES, default=[*CAUSES])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        arrays, data = load_arrays(DataConfig()), Path(name, "data.npz")
        parts = {"x_train": arrays.train_images[:2000], "y_train": arrays.train_labels[:2000]}
        np.savez(data, **parts, x_test=arrays.test_images[:500], y_test=arrays.test_labels[:500])
        for what in options.only:
            right = 0
            for number in range(1, options.tries + 1):
                found = measure(what, plan(data), Path(name, f"{what}-{number}"))
                is_right, told = describe(what, found) if found else (False, "no explanation")
                right += is_right
                print(f"{what} {number}: {told}", flush=True)
                if found and not is_right:
                    print(explain(found), flush=True)
            print(f"{what}: right in {right} of {options.tries}", flush=True)


if __name__ == "__main__":
    main()
