"""Containers by one option. Neither runtime runs here: a stand-in for Apptainer runs the command on the host, and what
pyxis would get is read off the command line of `srun`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT, TRAIN, Submit

APPTAINER = """#!/bin/bash
echo "apptainer $*" >>"$APPTAINER_LOG"
while [[ $1 != *.sif ]]; do shift; done
exec "${@:2}"
"""


def test_apptainer_starts_every_task(submit: Submit, slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apptainer").write_text(APPTAINER)
    (tmp_path / "bin" / "apptainer").chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}/bin:{slurm.environment['PATH']}",
        "APPTAINER_LOG": str(tmp_path / "log"),
        "MNIST_DIST_CONTAINER": "my image.sif",
        "MNIST_DIST_MOUNTS": "/scratch:/scratch",
    }
    job = submit("--nodes=2", "--ntasks-per-node=2", TRAIN, "--strategy", "horrovod", env=variables)
    assert job.finish()["JobState"] == "FAILED", job.output
    lines = (tmp_path / "log").read_text().splitlines()
    begin = f"apptainer exec --bind {ROOT}:{ROOT},{tmp_path}:{tmp_path},/scratch:/scratch --pwd {tmp_path} my image.sif"
    checks = [line for line in lines if line == f"{begin} python3 -m mnist_dist.slurm.preflight runs"]
    trainings = [line for line in lines if line.startswith(f"{begin} python3 -m mnist_dist train --strategy horrovod")]
    assert len(checks) == 4 and trainings, lines
    assert "pre-flight: 4 ranks on 2 nodes" in job.output


@pytest.mark.parametrize("gpus", [{}, {"SLURM_GPUS_ON_NODE": "2"}, {"SLURM_JOB_GPUS": "0,1"}], ids=str)
@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_commands_of_the_tasks(tmp_path: Path, runtime: str, gpus: dict[str, str]) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "17",
        "MNIST_DIST_CONTAINER": "docker://a/b:1",
        "MNIST_DIST_CONTAINER_RUNTIME": runtime,
        **gpus,
    }
    script = f'source {ROOT}/slurm/lib.sh; printf "%s\\0" "${{srun[@]}}" -- "${{python[@]}}"'
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    srun, python = " ".join(done.stdout.split("\0")[:-1]).split(" -- ")
    plain = "srun --mpi=none --distribution=block --kill-on-bad-exit=1 --wait=20"
    mounts = f"{ROOT}:{ROOT},{tmp_path}:{tmp_path}"
    if runtime == "pyxis":
        flags = f"--container-image=docker://a/b:1 --container-mounts={mounts} --container-workdir={tmp_path}"
        assert (srun, python) == (f"{plain} {flags}", "python3")
    else:
        nv = "--nv " if gpus else ""
        assert srun == plain
        assert python == f"apptainer exec {nv}--bind {mounts} --pwd {tmp_path} docker://a/b:1 python3"


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_what_the_benchmarks_are_told(tmp_path: Path, runtime: str) -> None:
    """As words of a shell, which keep the spaces of a folder's name."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}
    environment |= {"MNIST_DIST_CONTAINER": "an image", "MNIST_DIST_CONTAINER_RUNTIME": runtime}
    script = (
        f"source {ROOT}/slurm/lib.sh; python3 -c 'import json, os; print(json.dumps([os.environ[name] for name in "
        '("MNIST_DIST_SRUN_FLAGS", "MNIST_DIST_TASK_PYTHON")]))\''
    )
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True)
    flags, python = (shlex.split(words) for words in json.loads(done.stdout))
    mounts = f"{ROOT}:{ROOT},{folder}:{folder}"
    if runtime == "pyxis":
        assert python == ["python3"]
        assert flags == [
            "--container-image=an image",
            f"--container-mounts={mounts}",
            f"--container-workdir={folder}",
        ]
    else:
        assert flags == []
        assert python == ["apptainer", "exec", "--bind", mounts, "--pwd", str(folder), "an image", "python3"]


def test_an_unknown_runtime(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}
    environment |= {"MNIST_DIST_CONTAINER": "a.sif", "MNIST_DIST_CONTAINER_RUNTIME": "docker"}
    command = ["bash", "-c", f"source {ROOT}/slurm/lib.sh"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "MNIST_DIST_CONTAINER_RUNTIME: received 'docker', expected apptainer or pyxis.\n"
