"""The end of a job's time: a signal, one checkpoint, the queue again, and the same weights in the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.conftest import Run, StartRun
from tests.slurm.cluster import URGENT, Cluster, wait_until
from tests.slurm.conftest import SGD, TRAIN, Job, Submit, assert_close

pytestmark = pytest.mark.slow

STEPS = ["--steps", "60", "--set", "runtime.steps_per_call=2", "--set", "checkpoint.every_steps=1000"]


def test_signalled_requeued_and_resumed(
    submit: Submit, training: list[str], start_once: StartRun, slurm: Cluster
) -> None:
    job = submit("--nodes=2", "--ntasks-per-node=1", TRAIN, "--strategy", "multiworker", *training, *STEPS)
    job.wait_for("step    12/")
    with paused(slurm, job):
        slurm.run("scancel", "--batch", "--signal=USR2", job.id)  # What --signal=B:USR2 sends, now.
    job.succeed()
    assert "its time has run out; requeuing" in job.output
    check_resumed(slurm, job, job.workdir, start_once)


@pytest.mark.thorough
def test_a_preempted_member_of_an_array(
    submit: Submit, training: list[str], start_once: StartRun, slurm: Cluster
) -> None:
    """Slurm itself takes the nodes away for a job of a higher partition."""
    job = submit("--array=3", "--output=%x-%A.out", TRAIN, *training, *STEPS)
    job.wait_for("step    12/")
    with paused(slurm, job):
        urgent = submit(f"--partition={URGENT}", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
    urgent.succeed()
    job.succeed()
    assert "it was preempted; requeuing" in job.output
    check_resumed(slurm, job, job.folder / "runs" / f"train-{job.id}_3", start_once)


@contextlib.contextmanager
def paused(slurm: Cluster, job: Job) -> Iterator[None]:
    """Stops the ranks until a signal has come for each of them: they could train to the end before it comes."""
    ranks = slurm.rank_processes(job.id)
    assert ranks
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    yield
    try:
        assert wait_until(lambda: all(is_signalled(rank) for rank in ranks), 60)
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)


def is_signalled(pid: int) -> bool:
    """Whether a signal waits for a stopped process, or it goes on: where Slurm preempts, it sends SIGCONT, too."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except FileNotFoundError:
        return True
    return int(status["ShdPnd"], 16) != 0 or not status["State"].strip().startswith("T")


def check_resumed(slurm: Cluster, job: Job, workdir: Path, start_once: StartRun) -> None:
    """One restart, nothing repeated, and the weights of a run that was never interrupted."""
    assert slurm.job(job.id)["Restarts"] == "1"
    assert job.output.count("Resuming after step") == 1, job.output
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", 60)
    expected = start_once("60 steps", *SGD, *STEPS)
    # Another order of summation may flip single ReLUs, and then grows.
    assert_close(Run.weights_in(workdir), expected.weights, tolerance=0.05)


@pytest.mark.thorough
def test_the_time_limit(submit: Submit, training: list[str], slurm: Cluster) -> None:
    """Slurm itself gives the signal, before a limit; another job gets none.

    Slurm looks at its jobs each half minute and rather gives the signal too early: here 45 to 75 s after the start.
    """
    endless = ["--steps", "9999999", "--set", "logging.every_steps=100000", "--set", "runtime.guard=false"]
    endless += ["--set", "evaluation.every_epochs=0", "--set", "checkpoint.every_steps=1000000"]
    warned = submit("--time=2", "--signal=B:USR2@45", TRAIN, *training, *endless, "--workdir", "warned")
    unwarned = submit("--time=1", "--signal=CONT@1", TRAIN, *training, *endless, "--workdir", "unwarned")
    warned.wait_for("its time has run out; requeuing")
    slurm.run("scancel", warned.id)
    result = json.loads((warned.folder / "warned" / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("preempted", "SIGUSR2")

    assert unwarned.finish()["JobState"] == "TIMEOUT"
    result = json.loads((unwarned.folder / "unwarned" / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("preempted", "SIGTERM"), unwarned.output
    for folder, ended in (("warned", "SIGUSR2"), ("unwarned", "SIGTERM")):
        assert len(list((warned.folder / folder / "checkpoints").glob("*.npz"))) == 1, ended
    assert slurm.job(unwarned.id)["Restarts"] == "0"


@pytest.mark.thorough
def test_a_cancelled_training_stays_cancelled(submit: Submit, training: list[str], slurm: Cluster) -> None:
    endless = ["--steps", "9999999", "--set", "runtime.steps_per_call=2"]
    job = submit(TRAIN, *training, *endless)
    job.wait_for("step     8/")
    slurm.run("scancel", job.id)
    ended = job.finish()
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), job.output
    assert json.loads((job.workdir / "result.json").read_text())["signal"] == "SIGTERM"
