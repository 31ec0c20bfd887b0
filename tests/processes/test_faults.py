"""Ranks die, hang, or never come: nobody waits for ever, somebody is named, and nothing is lost."""

import contextlib
import dataclasses
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.distributed.strategies.horovod import Horovod
from tests.ports import free_port
from tests.processes.conftest import (
    MULTI_PROCESS,
    STRATEGIES,
    StartRun,
    assert_close,
    rank_processes,
    wait_until,
)
from tests.speeds import thorough_but_for

pytestmark = pytest.mark.slow

SGD = ["--optimizer", "sgd", "--learning-rate", "0.02"]
# Long enough to be hit in the middle, with a checkpoint every 10 steps.
LONG = [*SGD, "--steps", "4000", "--set", "checkpoint.every_steps=10", "--set", "runtime.steps_per_call=5"]
SHORT = [*SGD, "--steps", "60", "--set", "checkpoint.every_steps=10", "--set", "runtime.steps_per_call=5"]
SECONDS_TO_END = 60  # On a busy machine; nobody who did not miss a rank would end sooner than after 120 s.


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        ("multiworker", "float32"),
        pytest.param("multiworker", "mixed_bfloat16", marks=pytest.mark.thorough),  # It gathers.
        pytest.param("horovod", "float32", marks=pytest.mark.thorough),
    ],
)
def test_a_killed_rank_ends_all_and_is_named(start: StartRun, strategy: str, precision: str) -> None:
    run = start("run", *LONG, "--strategy", strategy, "--devices", "2", "--precision", precision)
    run.read_until("step    20")
    ranks = rank_processes(run.process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    assert run.finish() == 1
    assert time.monotonic() - killed < SECONDS_TO_END
    assert "rank 1 was killed by SIGKILL" in run.output
    assert not rank_processes(run.process.pid)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", MULTI_PROCESS)
def test_resumed_after_one_rank_was_killed(start: StartRun, start_once: StartRun, strategy: str) -> None:
    run = start("run", *SHORT, "--strategy", strategy, "--devices", "2")
    run.read_until("step    24")
    os.kill(rank_processes(run.process.pid)[1], signal.SIGKILL)
    assert run.finish() == 1
    resumed = start("run", *SHORT, "--strategy", strategy, "--devices", "2", "--resume").succeed()
    assert "Resuming after step" in resumed.output
    expected = start_once(f"60 steps {strategy}", *SHORT, "--strategy", strategy, "--devices", "2")
    assert_close(resumed.weights, expected.weights, tolerance=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_after_all_were_killed(
    start: StartRun, start_once: StartRun, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    run = start("run", *SHORT, "--strategy", strategy, "--devices", "2")
    run.read_until("step    24")
    run.process.kill()  # The launcher alone: the kernel ends its ranks.
    run.process.wait()
    assert wait_until(lambda: not rank_processes(run.process.pid), seconds=60), "ranks outlived their launcher"
    assert list(temporary.iterdir()) == []
    resumed = start("run", *SHORT, "--strategy", strategy, "--devices", "2", "--resume").succeed()
    assert "Resuming after step" in resumed.output
    expected = start_once(f"60 steps {strategy}", *SHORT, "--strategy", strategy, "--devices", "2")
    assert_close(resumed.weights, expected.weights, tolerance=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", MULTI_PROCESS)
def test_a_stuck_rank_ends_the_job_in_time_and_is_named(start: StartRun, strategy: str) -> None:
    stall_seconds = 40  # It also has to build, on a core that it shares with other tests.
    run = start(
        "run",
        *LONG,
        "--strategy",
        strategy,
        "--devices",
        "2",
        "--set",
        f"runtime.stall_timeout_seconds={stall_seconds}",
    )
    run.read_until("step    20")
    ranks = rank_processes(run.process.pid)
    os.kill(ranks[1], signal.SIGSTOP)
    stopped = time.monotonic()
    assert run.finish() == 1
    assert time.monotonic() - stopped < stall_seconds + SECONDS_TO_END
    assert "rank 1 gave no sign of life" in run.output, run.output
    assert not rank_processes(run.process.pid)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", MULTI_PROCESS)
def test_a_rank_may_stand_still(start: StartRun, strategy: str) -> None:
    """As in a job that Slurm suspends; by itself TensorFlow gives up a rank after ten seconds."""
    run = start("run", *SGD, "--steps", "200", "--strategy", strategy, "--devices", "2")
    run.read_until("step    20")
    chief = rank_processes(run.process.pid)[0]
    os.kill(chief, signal.SIGSTOP)
    time.sleep(20)
    os.kill(chief, signal.SIGCONT)
    assert run.finish() == 0, run.output
    assert run.result["status"] == "completed"


@pytest.mark.parametrize("strategy", thorough_but_for("multiworker", MULTI_PROCESS))
@pytest.mark.parametrize("rank", thorough_but_for(0, [0, 1]))
def test_a_missing_rank_ends_the_job_in_time(start: StartRun, strategy: str, rank: int) -> None:
    join_seconds = 8
    here = Cluster(rank, 2, rank, 2, ("127.0.0.1",) * 2, free_port(4), "mnist-dist")
    begun = time.monotonic()
    run = start(
        "run",
        *["--strategy", strategy, "--set", f"runtime.join_timeout_seconds={join_seconds}"],
        environment=here.to_environment(),
    )
    assert run.finish() == 1
    assert time.monotonic() - begun < join_seconds + SECONDS_TO_END
    assert f"launch: rank {1 - rank} (127.0.0.1" in run.output and "within 8 s" in run.output, run.output
    assert not (run.workdir / "config.yaml").exists()


def test_a_port_that_another_program_has_taken(start: StartRun) -> None:
    here = Cluster(0, 1, 0, 1, ("127.0.0.1",), free_port(3), "mnist-dist")
    port = here.port + 1  # Of TensorFlow's server.
    with socket.create_server(("127.0.0.1", port)):
        run = start("run", "--strategy", "multiworker", environment=here.to_environment())
        assert run.finish() == 1
    last = run.output.splitlines()[-1]
    assert last.startswith(f"mnist-dist: error: launch: rank 0 cannot listen on port {port} ("), run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize("strategy", thorough_but_for("horovod", MULTI_PROCESS))
def test_a_rank_that_is_lost_after_the_roll_call(start: StartRun, strategy: str) -> None:
    """It has reported, but never joins: TensorFlow and Horovod would wait in their own ways."""
    join_seconds = 10
    here = Cluster(0, 2, 0, 2, ("127.0.0.1",) * 2, free_port(4), "mnist-dist")
    lost = dataclasses.replace(here, rank=1, local_rank=1)
    begun = time.monotonic()
    with Horovod.rendezvous(here):
        run = start(
            "run",
            *["--strategy", strategy, "--set", f"runtime.join_timeout_seconds={join_seconds}"],
            environment=here.to_environment(),
        )
        roll_call(lost, 300)
        assert run.finish() != 0
    assert time.monotonic() - begun < 2 * join_seconds + SECONDS_TO_END


@pytest.mark.thorough
def test_a_stranger_who_greets_first_takes_nobodys_place(start: StartRun) -> None:
    run = start("run", *SGD, "--strategy", "multiworker", "--devices", "2")
    assert wait_until(lambda: 1 in rank_processes(run.process.pid), 60)
    environment = Path(f"/proc/{rank_processes(run.process.pid)[1]}/environ").read_bytes().decode().split("\0")
    variables = dict(item.split("=", 1) for item in environment if item)
    port, secret = int(variables["MNIST_DIST_PORT"]), variables["MNIST_DIST_SECRET"]
    rank_1 = rank_processes(run.process.pid)[1]
    os.kill(rank_1, signal.SIGSTOP)  # Else the ranks may have met before the stranger comes.
    strangers = []

    def greets() -> bool:
        with contextlib.suppress(OSError):
            strangers.append(socket.create_connection(("127.0.0.1", port + 3), timeout=20))
            strangers[-1].sendall(b"1 2\n")
        return bool(strangers)

    try:
        assert wait_until(greets, 60), "rank 0 listens"
    finally:
        os.kill(rank_1, signal.SIGCONT)
    run.succeed()
    strangers[0].close()
    assert run.result["replicas"] == 2
    assert secret and secret not in run.output
    assert not [file for file in run.workdir.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


def test_bad_input_is_found_before_ranks_start(start: StartRun) -> None:
    run = start("run", "--strategy", "multiworker", "--devices", "5")
    assert run.finish() == 2
    assert run.output.startswith("mnist-dist: error: training.batch_size: received 48 for 5 replicas"), run.output
    assert not run.workdir.exists()
