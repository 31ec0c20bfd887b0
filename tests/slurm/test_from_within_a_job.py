"""What is started or submitted from within a job has its own cores, tasks and place, not those of that job."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
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
