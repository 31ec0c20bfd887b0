"""A real Slurm cluster for the session, and trainings small enough for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.conftest import BATCH_SIZE, assert_close, odd_mnist, start_once
from tests.slurm.cluster import ENDED, Cluster, missing_programs, start_cluster, wait_until

__all__ = ["assert_close", "odd_mnist", "start_once"]

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "slurm" / "train.sbatch")
SGD = ["--optimizer", "sgd", "--learning-rate", "0.02"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs on the cluster is no unit test."""
    for item in items:
        if {"slurm", "binding_slurm"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing := missing_programs():
        if os.environ.get("CI"):
            pytest.fail(f"{', '.join(missing)} are missing; slurm/install_for_tests.sh installs them")
        pytest.skip(f"{', '.join(missing)} are missing; as root on Debian, slurm/install_for_tests.sh installs them")
    with start_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def binding_slurm(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another cluster, which binds tasks to cores."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    with start_cluster(tmp_path_factory.mktemp("binding"), task_plugin="affinity") as cluster:
        yield cluster


class Job:
    """A job that a test has submitted, with the folder it was submitted from."""

    def __init__(self, cluster: Cluster, folder: Path, job_id: str) -> None:
        self.cluster, self.folder, self.id = cluster, folder, job_id

    @property
    def output(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob(f"*-{self.id}.out")))

    @property
    def workdir(self) -> Path:
        return self.folder / "runs" / f"train-{self.id}"

    def wait_for(self, text: str, seconds: float = 500) -> None:
        """Waits until the job's output has a text, but no longer than the job lives."""
        wait_until(lambda: text in self.output or self.cluster.state(self.id) in ENDED, seconds)
        assert text in self.output, f"never said {text!r}: {self.output}"

    def finish(self, seconds: float = 500) -> dict[str, str]:
        return self.cluster.wait(self.id, seconds)

    def succeed(self) -> Job:
        ended = self.finish()
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), f"{ended}\n{self.output}"
        return self


Submit = Callable[..., Job]


@pytest.fixture
def submit(slurm: Cluster, tmp_path: Path) -> Iterator[Submit]:
    """Submits in a folder of the test: options of sbatch, the batch file, and its arguments."""
    jobs = []

    def submit_job(*arguments: str, env: dict[str, str] | None = None) -> Job:
        environment = {"MNIST_DIST_HOME": str(ROOT), "MNIST_DIST_VENV": sys.prefix} | (env or {})
        done = slurm.run("sbatch", "--parsable", *arguments, env=environment, cwd=tmp_path)
        jobs.append(Job(slurm, tmp_path, done.stdout.strip()))
        return jobs[-1]

    yield submit_job
    slurm.run("scancel", *(job.id for job in jobs), check=False)


@pytest.fixture
def training(odd_mnist: Path) -> list[str]:
    """Arguments of a short training, on data which 4 replicas do not divide."""
    settings = [f"data.path={odd_mnist}", "runtime.deterministic=true", "logging.tensorboard=false"]
    settings += ["logging.every_steps=4", "runtime.guard=true"]
    flags = [*SGD, "--batch-size", str(BATCH_SIZE), "--precision", "float32", "--steps", "12"]
    return [*flags, *(flag for setting in settings for flag in ("--set", setting))]
