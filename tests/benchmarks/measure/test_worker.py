from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from mnist_dist.benchmarks.analysis.collectives import measured_all_reduces
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.kinds import collectives, input, matmul
from mnist_dist.benchmarks.measure.runner import run_case
from mnist_dist.benchmarks.measure.timing import WINDOW_SECONDS, calibrate
from mnist_dist.benchmarks.records.case import StrategyName
from mnist_dist.benchmarks.statistics.steady_state import FEWEST_WINDOWS, merge_windows
from mnist_dist.distributed.strategies.single import Single
from tests.benchmarks.harness import make_study, small_case

FASTEST_MEMORY = 1e12  # Bytes per second, more than any processor of today copies.
FASTEST_CORE = 2e13  # FLOPs per second of one core, in bfloat16.


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multiworker", "horovod"])
def test_all_reduces(tmp_path: Path, tiny_mnist: Path, strategy: StrategyName) -> None:
    case = small_case(tiny_mnist, kind="collectives", strategy=strategy, devices=2, measure_seconds=None)
    record = run_case(make_study(tmp_path), case, 0)
    assert record.status == "ok", record.output_tail
    record.check()
    messages = (record.measurements or {})["messages"]
    assert [message["bytes"] for message in messages] == list(collectives.MESSAGE_BYTES)
    assert {len(message["seconds"]) for message in messages} == {1 if strategy == "mirrored" else 2}
    all_reduces = measured_all_reduces([summarize([record])])
    latency = float(np.median([each.seconds for each in all_reduces if each.is_latency]))
    assert 1e-6 < latency < 0.1
    one, eight, largest = all_reduces[-3:]  # MiB: what is smaller takes little but latency.
    # The sizes grow eightfold; a machine that does other work too may blur that, not undo it.
    assert largest.seconds > 2 * eight.seconds
    assert largest.seconds > 4 * one.seconds
    assert largest.seconds > 10 * latency
    assert 1e7 < largest.bus_bandwidth < FASTEST_MEMORY
    assert largest.bus_bandwidth == largest.algorithm_bandwidth, "2 (N - 1) / N is 1 for two ranks"


@pytest.mark.slow
def test_matrix_products_with_a_setting_that_is_compared(tmp_path: Path, tiny_mnist: Path) -> None:
    case = small_case(tiny_mnist, kind="matmul", measure_seconds=None)
    record = run_case(make_study(tmp_path), case, 0, under_test={"runtime.precision": "mixed_bfloat16"})
    assert record.status == "ok", record.output_tail
    measured = record.measurements or {}
    assert (measured["size"], measured["dtype"]) == (matmul.SIZE, "bfloat16")
    assert len(measured["flops_per_second"]) == matmul.TIMINGS
    assert all(1e8 < rate < FASTEST_CORE for rate in measured["flops_per_second"])
    assert record.identity.config["runtime"]["precision"] == "mixed_bfloat16"
    assert record.case == case, "what is compared is no part of the case"


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_matrix_products_use_all_cores_of_a_device(tmp_path: Path, tiny_mnist: Path) -> None:
    """Both are busy at once. How much more they compute then is another matter: two may be one core's hyperthreads."""
    busiest = []
    for cores in (1, 2):
        looks: list[tuple[float, float]] = []

        def look(looks: list[tuple[float, float]] = looks) -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                spent = sum(process.cpu_times().user for process in psutil.Process().children(recursive=True))
                looks.append((time.monotonic(), spent))

        case = small_case(tiny_mnist, kind="matmul", measure_seconds=None, cores_per_device=cores)
        record = run_case(make_study(tmp_path), case, 0, tick=look)
        assert record.status == "ok", record.output_tail
        seconds, core_seconds = np.diff(np.array(looks), axis=0).T
        busiest.append(float((core_seconds / seconds).max()))
    assert busiest[0] < 1.3 < busiest[1]


@pytest.mark.slow
def test_input(tmp_path: Path, tiny_mnist: Path) -> None:
    record = run_case(make_study(tmp_path), small_case(tiny_mnist, kind="input", measure_seconds=None), 0)
    assert record.status == "ok", record.output_tail
    measured = record.measurements or {}
    (windows,) = measured["window_seconds"]
    assert sum(windows) >= input.SECONDS
    assert 1e4 < 32 * sum(measured["window_steps"]) / sum(windows) < 1e8
    joined_steps, _, _ = merge_windows(measured["window_steps"], measured["window_seconds"])
    assert len(joined_steps) >= FEWEST_WINDOWS  # Enough for a machine that is quiet; what a busy one does is not asked.


@pytest.mark.parametrize("seconds_per_call", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.usefixtures("tf")
def test_as_many_calls_as_fill_a_window(seconds_per_call: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work(count: int) -> None:
        nonlocal now
        now += 5e-6 + count * seconds_per_call

    monkeypatch.setattr("time.perf_counter", lambda: now)
    for wanted in (0.05, WINDOW_SECONDS):
        seconds = calibrate(work, Single(), wanted) * seconds_per_call
        assert 0.99 * wanted <= seconds <= max(2.5 * wanted, seconds_per_call)
