"""What a worker measures in turns with others."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import numpy as np
import psutil
import pytest

from mnist_dist.benchmarks.analysis.limits import measured_all_reduces
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.kinds import collectives, matmul
from mnist_dist.benchmarks.measure.rounds import Stage
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.membership import make_secret
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.distributed.strategies.horovod import Horovod
from mnist_dist.distributed.turns import ADDRESS_VARIABLE
from mnist_dist.distributed.watchdog import EXIT_LOST_RANKS, LOST_SECONDS
from mnist_dist.files import write_json
from tests.benchmarks.harness import environment, make_study, run_case, run_cases, small_case
from tests.ports import free_port

FASTEST_MEMORY = 1e12  # Bytes per second, more than any processor of today copies.
FASTEST_CORE = 2e13  # FLOPs per second of one core, in bfloat16.
PRECISION = {"runtime.precision": "mixed_bfloat16"}
SECONDS_TO_END = 60.0  # On a busy machine, beside `LOST_SECONDS`.
# It gives a turn as soon as it is told to, and is alive until it is killed.
HARNESS = """
import json
from mnist_dist.benchmarks.measure.turns import Harness
from mnist_dist.distributed.turns import Turn

with Harness() as harness:
    print(json.dumps(harness.variables("a")), flush=True)
    group = harness.wait_until_ready("a", 500, lambda: True)
    print("ready", flush=True)
    input()
    harness.give(group, Turn(1, variant="4"), 2.0)
    print("given", flush=True)
    input()
"""


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


@dataclass
class Rank:
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()


StartRank = Callable[..., Rank]


@pytest.fixture
def start_rank(tmp_path: Path, tiny_mnist: Path) -> Iterator[StartRank]:
    """Starts a rank that measures all-reduces, which no launcher ends."""
    started = []

    def start(
        strategy: str, here: Cluster, rank: int, variables: Mapping[str, str], join_seconds: float = 120.0
    ) -> Rank:
        case = small_case(tiny_mnist, kind="collectives", strategy=strategy, devices=2, measure_seconds=None)
        settings = case.settings | {"runtime.join_timeout_seconds": join_seconds}
        file, log = tmp_path / f"case-{rank}.json", tmp_path / f"log-{rank}"
        write_json(file, case.model_copy(update={"settings": settings}).model_dump(mode="json"))
        place = dataclasses.replace(here, rank=rank, local_rank=rank).to_environment()
        command = [sys.executable, "-m", "mnist_dist.benchmarks.measure.worker", str(file), str(tmp_path / "result")]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment() | place | variables, stdout=output, stderr=output)
        started.append(process)
        return Rank(process, log)

    yield start
    for process in started:
        process.kill()
        process.wait()


def one_host() -> Cluster:
    return Cluster(0, 2, 0, 2, ("127.0.0.1",) * 2, free_port(4), "mnist-dist", secret=make_secret())


@pytest.mark.thorough
@pytest.mark.slow
def test_a_rank_that_is_stuck_does_not_outlive_its_harness(start_rank: StartRank) -> None:
    """It waits in a collective for another that stands still, and there is no launcher either that would end it."""
    here = one_host()
    command = [sys.executable, "-c", HARNESS]
    with (
        Horovod.rendezvous(here),
        subprocess.Popen(command, env=environment(), stdin=PIPE, stdout=PIPE, text=True) as harness,
    ):
        try:
            assert harness.stdin and harness.stdout
            variables = json.loads(harness.stdout.readline())
            stuck, still = (start_rank("horovod", here, rank, variables) for rank in range(2))
            assert harness.stdout.readline() == "ready\n"
            still.process.send_signal(signal.SIGSTOP)
            print(file=harness.stdin, flush=True)
            assert harness.stdout.readline() == "given\n"
        finally:
            harness.kill()
        assert stuck.process.wait(LOST_SECONDS + SECONDS_TO_END) == EXIT_LOST_RANKS, stuck.said
        assert f"error: rank 0 lost the harness at '{variables[ADDRESS_VARIABLE]}', which hung up" in stuck.said
        still.process.send_signal(signal.SIGCONT)
        still.process.wait(LOST_SECONDS + SECONDS_TO_END)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_rank_whose_partner_never_joins(start_rank: StartRank) -> None:
    """It has come to the roll call; TensorFlow would wait for it for an hour."""
    here, join_seconds = one_host(), 10
    rank = start_rank("multiworker", here, 0, {ADDRESS_VARIABLE: "127.0.0.1:1"}, join_seconds)
    roll_call(dataclasses.replace(here, rank=1, local_rank=1), 300)
    assert rank.process.wait(2 * join_seconds + SECONDS_TO_END) != 0


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
