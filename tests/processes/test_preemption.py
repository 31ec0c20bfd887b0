"""A signal stops all ranks after the same step with one checkpoint, from which any number of devices goes on."""

import signal

import pytest

from tests.processes.conftest import StartRun, assert_close, rank_processes, wait_until

pytestmark = pytest.mark.slow

STEPS = 60
SETTINGS = [
    *["--optimizer", "sgd", "--learning-rate", "0.02", "--steps", str(STEPS), "--set", "runtime.steps_per_call=2"],
    *["--set", "schedule.name=constant", "--set", "schedule.warmup_percent=0"],
    # Steps alone would be over before a busy machine has sent a signal.
    *["--set", "checkpoint.every_steps=1"],
]


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
    start: StartRun, start_once: StartRun, number: signal.Signals, before: tuple[str, int], after: tuple[str, int]
) -> None:
    run = start("run", *SETTINGS, "--strategy", before[0], "--devices", str(before[1]))
    run.read_until("step    12")
    run.process.send_signal(number)
    assert run.finish() == 0, run.output
    result = run.result
    assert (result["status"], result["signal"]) == ("preempted", number.name)
    assert 12 <= result["steps"] < STEPS
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
    assert run.output.count("mnist-dist: stopping after the next step") == 1, "the launcher says it for all"
    last = run.output.splitlines()[-1]
    assert last.startswith(("mnist-dist: interrupted", "preempted by SIGINT after step ")), run.output


@pytest.mark.thorough
def test_resumed_on_more_devices_than_one(start: StartRun) -> None:
    """Of a run that was started without saying how, on one device."""
    run = start("run", *SETTINGS)
    run.read_until("step    12")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 0, run.output
    run = start("run", *SETTINGS, "--resume", "--devices", "2")
    assert run.finish() == 0, run.output
    assert run.result["status"] == "completed" and run.result["replicas"] == 2


@pytest.mark.thorough
def test_ctrl_c_stops_with_a_checkpoint(start: StartRun) -> None:
    run = start("run", *SETTINGS, "--strategy", "multiworker", "--devices", "2")
    run.read_until("step    12")
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.output
    assert run.result["signal"] == "SIGINT"
