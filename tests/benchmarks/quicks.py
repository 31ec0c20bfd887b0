"""The suite `quick` again and again: how wide its intervals of efficiency are, and how often they hold the mean of all.

    python -m tests.benchmarks.quicks [--studies 10] [--results DIR]

A study that is there already, whole, is not measured again. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.benchmarks.statistics.stats import Estimate
from tests.benchmarks.harness import COMMAND, REPOSITORY


def measure(folder: Path) -> tuple[dict[str, Estimate], float]:
    """Returns the efficiencies of a study's strategies on two devices, and how long it took, 0 if it was there."""
    began = time.monotonic()
    if not (folder / "report.html").exists():
        command = [*COMMAND, "run", "quick", "--results", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(command, env=environment, capture_output=True, check=True)
    seconds = time.monotonic() - began
    cases = Analysis(Store(folder).records()).main_cases
    return {each.case.strategy: each.weak for each in cases if each.case.devices == 2 and each.weak}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, list[Estimate]] = {}
        for number in range(1, options.studies + 1):
            efficiencies, seconds = measure((options.results or Path(temporary)) / f"quick-{number}")
            for strategy, share in efficiencies.items():
                found.setdefault(strategy, []).append(share)
            shown = ", ".join(f"{name} {100 * each.value:.1f} {describe(each)}" for name, each in efficiencies.items())
            print(f"{number}: {seconds:.0f} s: {shown}", flush=True)
    for strategy, shares in found.items():
        mean = np.mean([each.value for each in shares])
        held = sum(each.low <= mean <= each.high for each in shares)
        deviation = np.std([each.value for each in shares], ddof=1)
        print(f"{strategy}: mean {100 * mean:.1f}, deviation {100 * deviation:.1f}, held by {held} of {len(shares)}")


def describe(share: Estimate) -> str:
    return f"({100 * share.low:.1f} to {100 * share.high:.1f})"


if __name__ == "__main__":
    main()
