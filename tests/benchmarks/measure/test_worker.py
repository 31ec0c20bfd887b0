"""What a worker measures in turns with others."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from mnist_dist.benchmarks.analysis.limits import measured_all_reduces
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.kinds import collectives, matmul
from mnist_dist.benchmarks.measure.rounds import Stage
from mnist_dist.benchmarks.records.record import Record
from tests.benchmarks.harness import make_study, run_case, run_cases, small_case

FASTEST_MEMORY = 1e12  # Bytes per second, more than any processor of today copies.
FASTEST_CORE = 2e13  # FLOPs per second of one core, in bfloat16.
PRECISION = {"runtime.precision": "mixed_bfloat16"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Path) -> dict[str, Record]:
    """Of all kinds that have a worker, measured in one round, with a setting that is compared."""
    cases = [
        small_case(tiny_mnist, kind="collectives", strategy=strategy, devices=2, measure_seconds=None)
        for strategy in ("mirrored", "multiworker", "horovod")
    ]
    cases += [small_case(tiny_mnist, kind=kind, measure_seconds=None) for kind in ("matmul", "input")]
    measured = run_cases(make_study(tmp_path_factory.mktemp("workers") / "scratch", under_test=PRECISION), *cases)
    for record, case in zip(measured, cases, strict=True):
        assert record.status == "ok", record.output_tail
        assert record.case == case, "what is compared is no part of the case"
        assert record.identity.config["runtime"]["precision"] == "mixed_bfloat16"
        assert record.turns and (record.turns.contenders, record.turns.ended) == (5, "time")
        assert record.turns.waiting_cores < 0.05
    return {f"{record.case.kind} {record.case.strategy}": record for record in measured}


@pytest.mark.thorough
@pytest.mark.slow
def test_all_measure_in_the_same_cycles(records: dict[str, Record]) -> None:
    cycles = {
        name: [message["cycles"] for message in (record.measurements or {})["messages"]]
        for name, record in records.items()
        if record.case.kind == "collectives"
    }
    cycles |= {
        name: [(record.measurements or {})["cycles" if record.case.kind == "matmul" else "window_cycles"]]
        for name, record in records.items()
        if record.case.kind != "collectives"
    }
    first = cycles["matmul single"][0]
    assert first == list(range(len(first))) and len(first) >= 2
    assert all(each == first for lists in cycles.values() for each in lists)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multiworker", "horovod"])
def test_all_reduces(records: dict[str, Record], strategy: str) -> None:
    record = records[f"collectives {strategy}"]
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


@pytest.mark.thorough
@pytest.mark.slow
def test_matrix_products(records: dict[str, Record]) -> None:
    measured = records["matmul single"].measurements or {}
    assert (measured["size"], measured["dtype"]) == (matmul.SIZE, "bfloat16")
    assert all(1e8 < rate < FASTEST_CORE for rate in measured["flops_per_second"])


@pytest.mark.thorough
@pytest.mark.slow
def test_input(records: dict[str, Record]) -> None:
    measured = records["input single"].measurements or {}
    (windows,) = measured["window_seconds"]
    assert 1e4 < 32 * sum(measured["window_steps"]) / sum(windows) < 1e8


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_matrix_products_use_all_cores_of_a_device(tmp_path: Path, tiny_mnist: Path) -> None:
    """Two threads share the work, however busy the machine is. How much more they compute is another matter."""
    shares = []
    for cores in (1, 2):
        looks: list[dict[int, float]] = []

        def look(stage: Stage, looks: list[dict[int, float]] = looks) -> None:
            if stage.name in ("measuring", "ending"):
                looks.append(thread_seconds())

        case = small_case(tiny_mnist, kind="matmul", measure_seconds=None, cores_per_device=cores)
        record = run_case(make_study(tmp_path / "scratch"), case, tell=look)
        assert record.status == "ok", record.output_tail
        spent = sorted(seconds - looks[0].get(thread, 0.0) for thread, seconds in looks[-1].items())
        shares.append(spent[-2] / spent[-1])
    assert shares[0] < 0.3 < shares[1]


def thread_seconds() -> dict[int, float]:
    """Returns the processor time of each thread of the processes that this one has started."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {thread.id: thread.user_time for thread in process.threads()}
    return found
