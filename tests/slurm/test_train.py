"""Trainings on several nodes through the batch file, and what ends them early."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes.conftest import Run, StartRun
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT, SGD, TRAIN, Submit, assert_close

pytestmark = pytest.mark.slow

ONE_EACH, TWO_EACH = (["--nodes=2", f"--ntasks-per-node={tasks}"] for tasks in (1, 2))
# Long enough to be hit in the middle, with a checkpoint every 10 steps.
LONG = ["--steps", "100000", "--set", "checkpoint.every_steps=10", "--set", "runtime.steps_per_call=5"]
SECONDS_TO_END = 120  # On a busy machine; the steps that are left would take longer.


@pytest.mark.parametrize(
    ("strategy", "partition", "nodes"),
    [
        ("horovod", "cpu", "n9 n10"),
        pytest.param("multiworker", "ib", "n1-ib n2-ib", marks=pytest.mark.thorough),
    ],
)
def test_two_nodes_with_two_tasks(
    submit: Submit, training: list[str], start_once: StartRun, strategy: str, partition: str, nodes: str
) -> None:
    job = submit(*TWO_EACH, f"--partition={partition}", TRAIN, "--strategy", strategy, *training).succeed()
    assert f"4 ranks on 2 nodes ({nodes})" in job.output
    assert "without MNIST_DIST_SECRET" not in job.output
    result = json.loads((job.workdir / "result.json").read_text())
    assert (result["strategy"], result["replicas"], result["status"]) == (strategy, 4, "completed")
    expected = start_once("single on plain data", *SGD)
    assert_close(Run.weights_in(job.workdir), expected.weights, tolerance=1e-4)


def test_arguments_stay_arguments(submit: Submit) -> None:
    """Spaces, quotes and what a shell would expand reach the command as they are."""
    job = submit(TRAIN, "--config", "a run's $HOME *", "--workdir=else where")
    assert job.finish()["ExitCode"] == "2:0"
    assert "mnist-dist: error: --config: there is no file 'a run's $HOME *'" in job.output


@pytest.mark.parametrize(("script", "tasks"), [("train", 4), ("bench", 4), ("scaling", 4), ("nightly", 4)])
def test_the_number_of_tasks_in_total(slurm: Cluster, script: str, tasks: int) -> None:
    """Instead of `--nodes` and `--ntasks-per-node`, as people say it for MPI."""
    done = slurm.run("sbatch", "--test-only", f"--ntasks={tasks}", str(ROOT / "slurm" / f"{script}.sbatch"))
    assert f"using {tasks} processors" in done.stderr


@pytest.mark.parametrize(
    ("flags", "received"), [(["--nodes=2", "--ntasks=3"], "3 tasks, 2,1 on 2 nodes"), ([], "1 tasks, 1 on 1 nodes")]
)
def test_tasks_that_make_no_scaling(submit: Submit, flags: list[str], received: str) -> None:
    job = submit("--time=5", *flags, str(ROOT / "slurm" / "scaling.sbatch"), "quick")
    assert job.finish()["ExitCode"] == "2:0"
    expected = "expected several, as many on each: --nodes=N --ntasks-per-node=M."
    assert job.output == f"scaling.sbatch: received {received}, {expected}\n"


def test_a_site_that_hands_on_no_variables(submit: Submit, tmp_path: Path) -> None:
    """The batch shell has the variables of a login, and what is active there reaches the tasks."""
    for name, target in (("slurm", ROOT / "slurm"), ("mnist_dist", ROOT / "mnist_dist"), (".venv", Path(sys.prefix))):
        (tmp_path / name).symlink_to(target)
    job = submit("--export=NONE", "--ntasks-per-node=2", TRAIN, "--strategy", "horrovod")
    assert job.finish()["JobState"] == "FAILED"
    assert "pre-flight: 2 ranks on 1 node" in job.output, job.output
    assert "mnist-dist: error: runtime.strategy: received 'horrovod'" in job.output


def test_bad_arguments_end_the_job_with_their_line(submit: Submit, training: list[str], tmp_path: Path) -> None:
    """And do not send it back into the queue, though a run before this one was preempted."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"status": "preempted"}')
    job = submit(TRAIN, *training, "--strategy", "horrovod", "--workdir", str(tmp_path / "run"))
    assert job.finish()["ExitCode"] == "2:0"
    assert "mnist-dist: error: runtime.strategy: received 'horrovod'" in job.output


def test_submitted_from_elsewhere(submit: Submit) -> None:
    job = submit(TRAIN, env={"MNIST_DIST_HOME": ""})
    assert job.finish()["JobState"] == "FAILED"
    assert "slurm/lib.sh: No such file" in job.output


def test_a_killed_task_ends_the_job(submit: Submit, training: list[str], slurm: Cluster) -> None:
    job = submit(*ONE_EACH, TRAIN, "--strategy", "multiworker", *training, *LONG)
    job.wait_for("step     8/")
    os.kill(slurm.rank_processes(job.id)[1], signal.SIGKILL)
    killed = time.monotonic()
    ended = job.finish(SECONDS_TO_END)
    assert time.monotonic() - killed < SECONDS_TO_END
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), job.output
    assert "n10: task 1: Killed" in job.output, job.output


@pytest.mark.thorough
def test_a_lost_node_ends_the_job_and_requeues_it(submit: Submit, training: list[str], slurm: Cluster) -> None:
    """Long before Slurm itself takes the node for lost; the job goes on where there are others."""
    steps = ["--steps", "120", "--set", "checkpoint.every_steps=10", "--set", "runtime.steps_per_call=2"]
    steps += ["--set", "evaluation.every_epochs=0"]
    job = submit(*ONE_EACH, "--partition=gpu", TRAIN, "--strategy", "horovod", *training, *steps)
    job.wait_for("step    16/")
    _, lost = slurm.run("scontrol", "show", "hostnames", slurm.job(job.id)["NodeList"]).stdout.split()
    slurm.cut_power(lost)
    try:
        job.wait_for("a node was lost; requeuing", seconds=300)
        # What the site's health check does, or Slurm after SlurmdTimeout: until then it waits for the node's word.
        slurm.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=lost")
        job.succeed()
    finally:
        slurm.restore_power(lost)
    ended = slurm.job(job.id)
    assert ended["Restarts"] == "1"
    assert lost not in slurm.run("scontrol", "show", "hostnames", ended["NodeList"]).stdout.split()
    assert "Resuming after step" in job.output
