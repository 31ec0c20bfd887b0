"""A signal stops all ranks after the same step with one checkpoint, from which any number of devices goes on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_dist.strategies import STRATEGIES
from tests.processes.conftest import Run, StartRun, assert_close, rank_processes, wait_until
from tests.processes.held import Held

pytestmark = pytest.mark.slow

STEPS, EVERY_STEPS = 60, 12
SETTINGS = [
    *["--optimizer", "sgd", "--learning-rate", "0.02", "--steps", str(STEPS), "--set", "runtime.steps_per_call=2"],
    *["--set", "schedule.name=constant", "--set", "schedule.warmup_percent=0"],
    *["--set", f"checkpoint.every_steps={EVERY_STEPS}"],
]


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """Ranks ignore SIGHUP where the tests were started with nohup, and are right to do so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start_and_signal(start: StartRun, folder: Path, number: signal.Signals, strategy: str = "", *flags: str) -> Run:
    """Sends a signal to a run that is held in its first checkpoint, and returns when the run has ended."""
    rank = None if not strategy or STRATEGIES[strategy].one_process else 0
    held = Held(folder / "held", f"os.rename step-{EVERY_STEPS:08d}.npz", rank)
    named = ["--strategy", strategy] if strategy else []
    run = start("run", *SETTINGS, *named, *flags, environment=held.variables)
    process = held.wait(run)
    run.process.send_signal(number)
    os.kill(process, signal.SIGCONT)
    assert run.finish() == (130 if number == signal.SIGINT else 0), run.output
    return run


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "before", "after"),
    [
        (signal.SIGTERM, ("multiworker", 2), ("horovod", 3)),
        (signal.SIGUSR2, ("horovod", 2), ("single", 1)),
        (signal.SIGUSR1, ("mirrored", 3), ("multiworker", 2)),
        (signal.SIGHUP, ("single", 1), ("mirrored", 2)),
    ],
)
def test_preempted_and_resumed_elsewhere(
    start: StartRun,
    start_once: StartRun,
    tmp_path: Path,
    number: signal.Signals,
    before: tuple[str, int],
    after: tuple[str, int],
) -> None:
    run = start_and_signal(start, tmp_path, number, before[0], "--devices", str(before[1]))
    result = run.result
    assert (result["status"], result["signal"]) == ("preempted", number.name)
    assert EVERY_STEPS <= result["steps"] < STEPS
    assert [file.name for file in sorted((run.workdir / "checkpoints").glob("*.npz"))][-1] == (
        f"step-{result['steps']:08d}.npz"
    )

    resumed = start("run", *SETTINGS, "--strategy", after[0], "--devices", str(after[1]), "--resume").succeed()
    assert f"Resuming after step {result['steps']}." in resumed.output
    assert (resumed.result["status"], resumed.result["steps"]) == ("completed", STEPS)
    expected = start_once("60 steps", *SETTINGS)
    # Four batches have their own mean loss: by one batch left out or taken twice it moves by about 0.1. Weights tell
    # less, because another order of summation may flip single ReLUs and then grows.
    assert resumed.losses == pytest.approx(expected.losses, abs=0.02)
    assert_close(resumed.weights, expected.weights, tolerance=0.05)


@pytest.mark.parametrize(
    ("strategy", "ranks"), [("horovod", 1), pytest.param("multiworker", 2, marks=pytest.mark.thorough)]
)
def test_ctrl_c_while_ranks_start(start: StartRun, strategy: str, ranks: int) -> None:
    run = start("run", *SETTINGS, "--strategy", strategy, "--devices", "2")
    assert wait_until(lambda: len(rank_processes(run.process.pid)) >= ranks, 300)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.output
    assert run.output.count("mnist-dist: stopping after the current steps") == 1, "the launcher says it for all"
    last = run.output.splitlines()[-1]
    assert last.startswith(("mnist-dist: interrupted", "preempted by SIGINT after step ")), run.output


@pytest.mark.thorough
def test_resumed_on_more_devices_than_one(start: StartRun, tmp_path: Path) -> None:
    """Of a run that was started without saying how, on one device."""
    start_and_signal(start, tmp_path, signal.SIGTERM)
    run = start("run", *SETTINGS, "--resume", "--devices", "2")
    assert run.finish() == 0, run.output
    assert run.result["status"] == "completed" and run.result["replicas"] == 2


@pytest.mark.thorough
def test_ctrl_c_stops_with_a_checkpoint(start: StartRun, tmp_path: Path) -> None:
    run = start_and_signal(start, tmp_path, signal.SIGINT, "multiworker", "--devices", "2")
    assert run.result["signal"] == "SIGINT"
