"""Two nights on the cluster: each submits the next, measures, and looks at all nights so far."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT, Job, Submit
from tests.slurm.test_studies import SUITE

FLAGS = "--partition=cpu --nodes=1 --ntasks=1 --time=00:10:00"


@pytest.mark.thorough
def test_nights_follow_one_another(submit: Submit, slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(SUITE)
    arguments = ["short.yaml", "--devices", "1", "--strategies", "single", "--results", "my nights"]
    at = f"{datetime.now() - timedelta(minutes=10):%H:%M}"
    variables = {"MNIST_DIST_NIGHTLY": FLAGS, "MNIST_DIST_NIGHTLY_AT": at}
    try:
        first = submit(*FLAGS.split(), str(ROOT / "slurm" / "nightly.sbatch"), *arguments, env=variables)
        first.succeed()
        second = next_night(slurm, first)
        told = slurm.job(second.id)
        assert (told["JobState"], told["Partition"], told["JobName"]) == ("PENDING", "cpu", "nightly")
        wait = datetime.fromisoformat(told["StartTime"]) - datetime.now()
        assert timedelta(hours=22) < wait < timedelta(hours=25), told
        slurm.run("scontrol", "update", f"JobId={second.id}", "StartTime=now")
        second.succeed()
        assert next_night(slurm, second).id not in (first.id, second.id)
    finally:
        slurm.run("scancel", "--name=nightly", check=False)
    nights = sorted(folder.parent.name for folder in tmp_path.glob("my nights/*/*/records"))
    assert [night.rpartition("-")[2] for night in nights] == sorted([first.id, second.id])
    for job in (first, second):
        assert "Nothing can be judged: none of 1 case has a rate in 20 studies" in job.output
    assert (tmp_path / "my nights" / "trend.html").exists()
    assert len(json.loads((tmp_path / "my nights" / "trend.json").read_text())["studies"]) == 2


def next_night(cluster: Cluster, job: Job) -> Job:
    found = re.search(r"Submitted batch job (\d+)", job.output)
    assert found, job.output
    return Job(cluster, job.folder, found[1])
