"""Whole studies on the cluster: jobs, an array, and one nested job that is sent back into the queue."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.slurm.submission import Submitted, read_submitted
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import ROOT

pytestmark = pytest.mark.slow

SUITE = """
description: Short measurements.
minutes: 1
repeats: 1
devices: [1, 2]
blocks:
  - images_per_device: 32
    measure_seconds: 3.0
    settings: {evaluation.every_epochs: 0, runtime.steps_per_call: 5, logging.every_steps: 5}
"""


class Study:
    def __init__(self, cluster: Cluster, results: Path, suite: Path) -> None:
        self.cluster, self.results, self.suite = cluster, results, suite

    def command(self, *arguments: str) -> str:
        return self.cluster.run(sys.executable, "-m", "mnist_dist", "slurm", *arguments, cwd=ROOT).stdout

    def submit(self, *arguments: str) -> str:
        flags = ("--suite", str(self.suite), "--results", str(self.results), "--strategies", "horovod")
        return self.command("scaling", *flags, *arguments)

    @property
    def submitted(self) -> Submitted:
        return read_submitted(self.results)

    @property
    def logs(self) -> str:
        """What the jobs have said, and what the measurements that failed have."""
        texts = [file.read_text() for file in sorted((self.results / "logs").iterdir())]
        return "\n".join([*texts, *(line for record in self.records() for line in record["output_tail"])])

    def finish(self) -> None:
        ended = self.cluster.wait(self.submitted.report_job, 400)
        assert ended["JobState"] == "COMPLETED", self.logs

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in (self.results / "records").glob("[!.]*.json")]

    def points(self) -> Counter[tuple[str, int, str]]:
        """How many measurements there are of each (strategy, devices, status)."""
        return Counter((item["case"]["strategy"], item["case"]["devices"], item["status"]) for item in self.records())


@pytest.fixture
def study(slurm: Cluster, tmp_path: Path) -> Iterator[Study]:
    (tmp_path / "short.yaml").write_text(SUITE)
    study = Study(slurm, tmp_path / "study", tmp_path / "short.yaml")
    yield study
    slurm.run("scancel", *study.submitted.ids, check=False)


ONE_AND_TWO = {("single", 1, "ok"): 1, ("horovod", 1, "ok"): 1, ("horovod", 2, "ok"): 1}


def test_a_job_for_each_point_and_a_report(study: Study) -> None:
    said = study.submit("--gpus", "1,2", "--gpus-per-node", "1", "--cpus-per-task", "1", "--partition", "gpu")
    assert said.count("bench.sbatch") == 2 and f"report:  {study.results}/report.html" in said
    for number in study.submitted.ids:
        assert number in said
    study.finish()
    assert study.points() == ONE_AND_TWO, study.logs
    (two,) = [record for record in study.records() if record["case"]["devices"] == 2]
    assert (two["case"]["hosts"], two["identity"]["launcher"]) == (2, "srun")
    assert len(set(two["identity"]["hosts"])) == len(two["identity"]["hosts"]) == 2
    assert "2 ranks on 2 nodes" in study.logs and "2 GPUs" in study.logs
    with (study.results / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["strategy"], row["devices"]) for row in rows) == [
        ("horovod", "1"),
        ("horovod", "2"),
        ("single", "1"),
    ]
    status = study.command("status", str(study.results))
    assert status.count("COMPLETED") == 3 and f"report: {study.results}/report.html" in status, status


@pytest.mark.thorough
def test_an_array(study: Study) -> None:
    study.submit("--devices", "1,2", "--devices-per-node", "2", "--array")
    study.finish()
    assert study.points() == ONE_AND_TWO, study.logs
    array = study.submitted.ids[0]
    jobs = {(record["case"]["devices"], record["identity"]["job_id"]) for record in study.records()}
    assert jobs == {(1, f"{array}_0"), (2, f"{array}_1")}
    status = study.command("status", str(study.results))
    assert f"{array}_1  COMPLETED" in status, status


@pytest.mark.thorough
def test_a_nested_study_that_is_requeued_skips_what_it_has(study: Study) -> None:
    """The second of two rounds is interrupted: what it measured is kept, and measured again to its end."""
    study.submit("--devices", "1,2", "--devices-per-node", "1", "--nested", "--repeats", "2")
    (job,) = study.submitted.jobs
    assert wait_until(lambda: len(study.records()) == 3, 300), study.logs
    before = study.records()
    study.cluster.run("scancel", "--batch", "--signal=USR2", job.job)
    study.finish()
    assert study.cluster.job(job.job)["Restarts"] == "1"
    ended = [record for record in study.records() if record["turns"]["ended"] != "interrupted"]
    assert Counter((each["case"]["strategy"], each["case"]["devices"], each["repeat"]) for each in ended) == {
        (strategy, devices, repeat): 1 for strategy, devices, _ in ONE_AND_TWO for repeat in range(2)
    }, study.logs
    assert [record for record in study.records() if record in before] == before
    assert "; requeuing" in study.logs
