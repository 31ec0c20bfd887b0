"""Equal trainings in turns, each a process of its own: how much the levels of processes differ.

    python -m tests.benchmarks.levels [--processes 8] [--seconds 90] [--set KEY=VALUE ...]

Prints each level in percent of their mean, their standard deviation, and what of it is noise: the same from half of the
cycles each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy.stats import trim_mean

from mnist_dist.benchmarks.measure.process import Running
from mnist_dist.benchmarks.measure.rounds import Contender, Limits, Round
from tests.benchmarks.harness import REPOSITORY

MIDDLE_HALF = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    settings = [word for text in ["training.measure_seconds=3600", *options.set] for word in ("--set", text)]
    with tempfile.TemporaryDirectory() as folder:
        contenders = [
            Contender(str(number), starter(Path(folder, str(number)), settings)) for number in range(options.processes)
        ]
        # A width that is never reached, so that the time decides.
        standings = Round(contenders, Limits(options.seconds, 1e-9, [], timeout_seconds=300)).run().values()
    rates = [standing.rates["full"] for standing in standings]
    cycles = sorted(cycle for cycle in set.intersection(*(set(each) for each in rates)) if cycle >= 0)
    log_rates = np.log([[each[cycle] for cycle in cycles] for each in rates])  # [processes, cycles]
    differences = log_rates - np.median(log_rates, axis=0)
    levels = trim_mean(differences, MIDDLE_HALF, axis=1)
    even, odd = (trim_mean(differences[:, first::2], MIDDLE_HALF, axis=1) for first in (0, 1))
    print(f"{len(cycles)} cycles; levels in %:", *(f"{100 * level:+.2f}" for level in levels - levels.mean()))
    print(f"standard deviation {100 * levels.std(ddof=1):.2f} %, noise {50 * (even - odd).std(ddof=1):.2f} %")


def starter(folder: Path, settings: list[str]) -> Callable[[Mapping[str, str]], Running]:
    def start(variables: Mapping[str, str]) -> Running:
        folder.mkdir()
        log = folder / "output.log"
        log.touch()
        command = [sys.executable, "-m", "mnist_dist", "train", "--workdir", str(folder / "run"), *settings]
        return Running(command, REPOSITORY, {**os.environ, **variables}, os.sched_getaffinity(0), log)

    return start


if __name__ == "__main__":
    main()
