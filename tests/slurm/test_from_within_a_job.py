"""What is started or submitted from within a job has its own cores, tasks and place, not those of that job."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import ROOT

pytestmark = pytest.mark.slow

# What the harness starts for a case, but for the program, which says which cores it has.
CASE = """
import os, sys
from pathlib import Path
from mnist_dist.benchmarks.measure import runner
from mnist_dist.benchmarks.records.case import Case
from tests.benchmarks.harness import make_study, plan_case
case = Case(kind="matmul", strategy="single", devices=1, cores_per_device=2)
study = make_study(Path(sys.argv[1]), machine=runner.find_machine())
runner.Running = lambda command, folder, environment, cores, log: (command, environment)
command, environment = runner._Start(runner.Run(study, plan_case(case), 0), Path(sys.argv[1]) / "0")({})
task = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
os.execvpe("srun", [*command[: command.index(sys.executable)], *task], environment)
"""


def test_a_case_measured_from_within_a_step_has_the_cores_of_its_devices(
    binding_slurm: Cluster, tmp_path: Path
) -> None:
    """The step around the harness is bound to one core, and holds it."""
    (tmp_path / "case.py").write_text(CASE)
    step = (
        f"srun --mpi=none --ntasks=1 --cpus-per-task=1 --cpu-bind=cores {sys.executable} {tmp_path}/case.py {tmp_path}"
    )
    job = ["salloc", "--quiet", "--ntasks=1", "--cpus-per-task=2", "bash", "-c", step]
    done = binding_slurm.run(*job, env={"PYTHONPATH": str(ROOT)})
    (cores,) = re.findall(r"\[(.*)\]", done.stdout)
    assert len(cores.split(",")) == 2, done.stdout + done.stderr


def test_a_job_submitted_from_within_another_is_told_its_own_place(binding_slurm: Cluster, tmp_path: Path) -> None:
    """From a bound step of a member of an array, whose job has other tasks and GPUs, and on a second start."""
    inner, outer = tmp_path / "inner.sbatch", tmp_path / "outer.sbatch"
    inner.write_text(
        f"#!/bin/bash\n#SBATCH --output={tmp_path}/inner-%j.out\nsource {ROOT}/slurm/lib.sh\n"
        'echo "$job ${SLURM_RESTART_COUNT-0} ${SLURM_GPUS_ON_NODE-no} GPUs, ${SLURM_STEP_NUM_TASKS-no} step"\n'
        "\"${srun[@]}\" bash -c 'echo $SLURM_STEP_NUM_TASKS ${SLURM_ARRAY_TASK_ID-no} array, $(nproc) cores'\n"
    )
    step = "srun --mpi=none --ntasks=1 --cpus-per-task=1 --cpu-bind=cores --distribution=cyclic sbatch --parsable"
    outer.write_text(
        f"#!/bin/bash\n#SBATCH --output={tmp_path}/outer.out\nexport MNIST_DIST_HOME={ROOT} SLURM_RESTART_COUNT=1\n"
        f"sbatch --parsable {inner}\n{step} {inner}\n{step} --cpus-per-task=2 {inner}\n"
    )
    flags = ["--partition=gpu", "--gpus-per-node=2", "--array=3", "--ntasks-per-node=2", str(outer)]
    binding_slurm.run("sbatch", *flags)
    said = tmp_path / "outer.out"
    assert wait_until(lambda: said.exists() and said.read_text().count("\n") == 3, 60), said.read_text()
    for job, cores in zip(said.read_text().split(), (1, 1, 2), strict=True):
        assert binding_slurm.wait(job)["JobState"] == "COMPLETED", (tmp_path / f"inner-{job}.out").read_text()
        output = (tmp_path / f"inner-{job}.out").read_text()
        assert output == f"{job} 0 no GPUs, no step\n1 no array, {cores} cores\n"
