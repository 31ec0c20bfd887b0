"""Ranks started by other launchers than our own, and what they find out about their place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.conftest import BATCH_SIZE, Run, StartRun, assert_close
from tests.speeds import thorough_but_for

pytestmark = pytest.mark.slow

SGD = ["--optimizer", "sgd", "--learning-rate", "0.02"]


def run_under(launcher: list[str], workdir: Path, data: Path, strategy: str) -> str:
    command = [*launcher, sys.executable, "-m", "mnist_dist", "train", "--workdir", str(workdir), *SGD]
    command += ["--strategy", strategy, "--batch-size", str(BATCH_SIZE), "--precision", "float32", "--steps", "12"]
    settings = [f"data.path={data}", "runtime.guard=true", "runtime.deterministic=true", "logging.tensorboard=false"]
    command += [flag for setting in settings for flag in ("--set", setting)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("strategy", thorough_but_for("auto", ["auto", "multiworker"]))
def test_horovodrun(strategy: str, tmp_path: Path, odd_mnist: Path, start_once: StartRun) -> None:
    horovodrun = Path(sys.executable).parent / "horovodrun"
    output = run_under([sys.executable, str(horovodrun), "-np", "2", "--gloo"], tmp_path / "run", odd_mnist, strategy)
    check(tmp_path / "run", output, strategy, start_once)


@pytest.mark.thorough
@pytest.mark.parametrize(("strategy", "package"), [("multiworker", "openmpi"), ("auto", "mpich"), ("auto", "openmpi")])
def test_mpirun(strategy: str, package: str, tmp_path: Path, odd_mnist: Path, start_once: StartRun) -> None:
    """MPICH's ranks are started through a script, as sites do that set something before."""
    program = f"mpirun.{package}"
    if shutil.which(program) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is missing; .ci/run installs it")
        pytest.skip(f"{program} is missing; install it with `apt-get install openmpi-bin mpich`")
    launcher = [program, "-np", "2"]
    if package == "openmpi":
        launcher += ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    else:
        launcher += ["bash", "-c", '"$0" "$@"; exit $?']
    output = run_under(launcher, tmp_path / "run", odd_mnist, strategy)
    check(tmp_path / "run", output, strategy, start_once)


def check(workdir: Path, output: str, strategy: str, start_once: StartRun) -> None:
    resolved = "horovod" if strategy == "auto" else strategy
    assert f"strategy   {resolved}, 2 replicas, each with a share of the CPU's cores" in output, output
    expected = start_once("single on plain data", *SGD)
    assert_close(Run.weights_in(workdir), expected.weights, tolerance=1e-4)


def test_several_hosts_need_a_launcher_that_names_them(tmp_path: Path) -> None:
    place = {"RANK": "0", "SIZE": "4", "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}
    environment = os.environ | {f"OMPI_COMM_WORLD_{name}": value for name, value in place.items()}
    command = [sys.executable, "-m", "mnist_dist", "train", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "mnist-dist: error: runtime.strategy: received 'horovod' on several hosts under mpirun"
    )
    assert len(done.stderr.splitlines()) == 1


def test_a_benchmark_measures_once(tmp_path: Path) -> None:
    """Several harnesses at once would disturb one another."""
    environment = os.environ | {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    command = [sys.executable, "-m", "mnist_dist", "bench", "run", "quick", "--results", str(tmp_path / "study")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not (tmp_path / "study").exists()
    assert (
        done.stderr == "mnist-dist: error: bench: mpirun started 2 processes, expected one, which starts the ranks.\n"
    )
