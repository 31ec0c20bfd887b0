"""What measuring costs, itself measured:  python -m tests.benchmarks.measure.overhead

Two costs fall on a training that is measured. The harness takes processor time beside it, of which each record tells.
And the training loop marks the edges of windows and lets the ranks agree on whether to stop: that is timed within a
real training, window by window, so that the noise of the windows themselves, which is far larger, does not matter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from mnist_dist.benchmarks.measure.runner import Study, find_machine
from mnist_dist.benchmarks.measure.study import run_study
from mnist_dist.benchmarks.measure.suite import PlannedCase, training_settings
from mnist_dist.benchmarks.progress import show_cases
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.config import Config, load_config
from mnist_dist.errors import EXIT_FAILED

CASE = Case(measure_seconds=5.0)


@dataclass(frozen=True)
class WindowCost:
    """What marking the windows of a training takes.

    Attributes:
        windows: number of them.
        cost_seconds: for one window, the median.
        window_seconds: of one window, the median.
        share: of all windows' seconds together.
    """

    windows: int
    cost_seconds: float
    window_seconds: float
    share: float


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m tests.benchmarks.measure.overhead",
        description="Measure what measuring costs: the harness beside a training, and the clock within it.",
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="mnist-dist-overhead-") as folder:
        record = measure_case(CASE, Path(folder))
        if record.status != "ok":
            print(f"mnist-dist: error: {record.status}: {record.reason}", file=sys.stderr)
            return EXIT_FAILED
        cost = measure_window_cost(load_config("default", training_settings(CASE, seed=0)), Path(folder) / "run")
    print(
        f"harness: {100 * record.harness_cpu_seconds / record.seconds:.3f} % of one core while the case ran "
        f"({record.harness_cpu_seconds:.3f} s of {record.seconds:.1f} s)"
    )
    print(
        f"training loop: {100 * cost.share:.3f} % of the windows (medians of {cost.windows}: "
        f"{1e6 * cost.cost_seconds:.0f} µs of {1e3 * cost.window_seconds:.0f} ms)"
    )
    return 0


def measure_case(case: Case, folder: Path) -> Record:
    """Measures a case as a study does, with its progress shown and its record written."""
    study = Study("overhead", "overhead", 120.0, find_machine(), folder / "scratch")
    with show_cases(1) as progress:
        (record,) = run_study(study, Store(folder), [(PlannedCase(case, 1), 0)], progress)
    return record


def measure_window_cost(config: Config, workdir: Path) -> WindowCost:
    """Trains in this process, and times whatever the loop does after each window in order to measure it."""
    from mnist_dist.training import trainer
    from mnist_dist.training.step_times import StepClock

    marks: list[float] = []
    agreements: list[float] = []
    clocks: list[StepClock] = []

    def start(clock: StepClock) -> None:
        clocks.append(clock)
        original_start(clock)

    original_start = StepClock.start
    with (
        mock.patch.object(StepClock, "start", start),
        mock.patch.object(StepClock, "stop_window", timed(StepClock.stop_window, marks)),
        mock.patch.object(trainer, "agree", timed(trainer.agree, agreements)),
    ):
        trainer.train(config, workdir)
    windows = clocks[0].window_seconds
    costs = [mark + agreement for mark, agreement in zip(marks, agreements, strict=True)][1:]  # Without the first step.
    return WindowCost(
        windows=len(windows),
        cost_seconds=statistics.median(costs),
        window_seconds=statistics.median(windows),
        share=sum(costs) / sum(windows),
    )


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Returns a function that does the same, and adds to a list how long each call took."""

    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.perf_counter() - began)

    return call


if __name__ == "__main__":
    sys.exit(main())
