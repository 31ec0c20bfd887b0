"""The jobs of a survey: which there are, which share no node at a time, and what became of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mnist_dist.errors import TrainingError
from mnist_dist.slurm import scheduler
from mnist_dist.slurm.command import main
from mnist_dist.slurm.scheduler import JobState, Node
from mnist_dist.slurm.site import load_site
from mnist_dist.slurm.submission import read_submitted
from mnist_dist.slurm.survey import Request, follow, plan_jobs, read_plan, submit_survey, tournament
from mnist_dist.slurm.surveyor import visible
from tests.slurm.conftest import ROOT

NODES = [Node(f"n{number}", "idle", 4) for number in range(1, 6)]


def make_request(results: Path, **changes: object) -> Request:
    site = load_site(None, {"partition": "gpu", "time": "00:30:00"}, {"XDG_CONFIG_HOME": "/nowhere"})
    settings = {"partition": "gpu", "results": results, "suite": "survey", "devices_per_node": None, "site": site}
    return Request(**settings | {"rounds": 3, "wait_minutes": 60} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", range(1, 10))
def test_each_meets_each_once(count: int) -> None:
    names = [f"n{number}" for number in range(count)]
    rounds = list(tournament(names, 100))
    assert all(len({name for pair in pairs for name in pair}) == 2 * len(pairs) for pairs in rounds)
    assert sorted(pair for pairs in rounds for pair in pairs) == sorted(itertools.combinations(names, 2))
    assert len(rounds) == (count - 1 + count % 2 if count > 1 else 0)
    assert list(tournament(names, 1)) == rounds[:1]


def test_a_job_for_each_node_and_pair(tmp_path: Path) -> None:
    jobs = plan_jobs(make_request(tmp_path, rounds=1), NODES)
    assert [job.name for job in jobs[:5]] == ["n1", "n2", "n3", "n4", "n5"]
    assert all(len(job.nodes) == 2 for job in jobs[5:]) and len(jobs) == 7
    assert jobs[0].command == [
        *("sbatch", "--parsable", "--export=ALL", f"--job-name=survey-{tmp_path.name}"),
        *("--partition=gpu", "--time=00:30:00", "--nodes=1", "--nodelist=n1", "--ntasks-per-node=4", "--no-requeue"),
        *("--gpus-per-node=4", "--deadline=now+5400", f"--output={tmp_path}/logs/%x-%j.out"),
        *(str(ROOT / "slurm" / "survey.sbatch"), str(tmp_path), "survey", "4"),
    ]
    assert {"--nodes=2", f"--nodelist={','.join(jobs[5].nodes)}"} < set(jobs[5].command)
    cores = plan_jobs(make_request(tmp_path, devices_per_node=2), NODES)[0].command
    assert {"--ntasks-per-node=2", "--cpus-per-task=1"} < set(cores) and "--gpus-per-node=2" not in cores


def test_jobs_that_share_a_node_follow_one_another(tmp_path: Path) -> None:
    before: dict[str, set[str]] = {}
    for job in plan_jobs(make_request(tmp_path), NODES):
        before[job.name] = set(job.behind).union(*(before[name] for name in job.behind))
        sharing = {name for name in before if set(name.split("+")) & set(job.nodes)} - {job.name}
        assert sharing <= before[job.name]


def test_what_is_measured_or_down_has_no_job(tmp_path: Path) -> None:
    for name in ("nodes/n1", "pairs/n2+n3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text('{"machine": "m", "parts": {}}')
    states = ["idle", "allocated", "mixed", "drained", "idle*"]
    nodes = [Node(node.name, state, 4) for node, state in zip(NODES, states, strict=True)]
    names = {job.name for job in plan_jobs(make_request(tmp_path, rounds=9), nodes)}
    assert names == {"n2", "n3", "n1+n2", "n1+n3"}
    first, later = (
        plan_jobs(make_request(tmp_path, rounds=2), nodes),
        plan_jobs(make_request(tmp_path, rounds=2), NODES),
    )
    assert {job.name for job in first} < {job.name for job in later}, "who comes back changes nobody else's pairs"
    mixed = [*NODES[:2], Node("n3", "idle", 8), Node("n4", "idle", 8)]
    pairs = {job.name for job in plan_jobs(make_request(tmp_path, rounds=9), mixed) if len(job.nodes) > 1}
    assert pairs == {"n1+n2", "n3+n4"}, "nodes with other numbers of GPUs do not meet"


def test_those_before_a_refusal_stay_and_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted: list[Sequence[str]] = []

    def submit(command: Sequence[str], environment: object) -> str:
        if len(submitted) == 3:
            raise TrainingError("sbatch: Job violates accounting/QOS policy.")
        submitted.append(command)
        return str(100 + len(submitted))

    monkeypatch.setattr(scheduler, "submit", submit)
    nodes = [*NODES, Node("n6", "down*", 4)]
    submit_survey(make_request(tmp_path), nodes, {})
    assert "QOS policy. Repeat the command for the rest" in capsys.readouterr().err
    assert [(job.job, job.name) for job in read_submitted(tmp_path).jobs] == [
        ("101", "n1"),
        ("102", "n2"),
        ("103", "n3"),
    ]
    (tmp_path / "nodes" / "n1").mkdir(parents=True)
    (tmp_path / "nodes" / "n2.json").write_text('{"machine": "m", "parts": {}}')
    states = {"101": JobState("101", "NODE_FAIL", "1:00"), "103": JobState("103", "PENDING", "0:00", "Resources")}
    plan = read_plan(tmp_path)
    assert follow(tmp_path, plan, states) == (
        {"n1": "job 101: NODE_FAIL"},
        {"n3": "job 103: PENDING (Resources)", "n4": "it is idle", "n5": "it is idle", "n6": "it is down*"},
    )
    lost, missing = follow(tmp_path, plan, {"101": JobState("101", "RUNNING", "1:00")})
    assert lost == {} and missing["n1"] == "job 101: RUNNING"
    assert follow(tmp_path, plan, {"101": JobState("101", "CANCELLED", "1:00")})[0] == {}, "nobody's fault"
    assert follow(tmp_path, plan, {"103": JobState("103", "FAILED", "0:00")})[0] == {"n1": "it is idle"}
    assert follow(tmp_path, plan, {})[0] == {"n1": "it is idle"}, "Slurm has forgotten the job"
    assert follow(tmp_path, plan, None)[0] == {}, "Slurm cannot be asked whether it runs"


def test_a_device_sees_itself() -> None:
    assert visible(1, 2, {"CUDA_VISIBLE_DEVICES": "2,5"}) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert visible(1, 4, {"CUDA_VISIBLE_DEVICES": "2,5"}) == visible(0, 1, {}) == {}


def test_a_suite_that_is_none_is_told_of_before_slurm_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survey", "--partition", "gpu", "--suite", "surwey"]) == 2
    assert "SUITE: " in capsys.readouterr().err


def test_a_report_of_too_little_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survey", "--report", str(tmp_path)]) == 2
    assert "holds no 'survey.json'; expected the folder of `mnist-dist slurm survey`" in capsys.readouterr().err
    (tmp_path / "survey.json").write_text('{"partition": "gpu", "nodes": {"n1": "drained"}}')
    assert main(["survey", "--report", str(tmp_path)]) == main(["status", str(tmp_path)]) == 3
    assert capsys.readouterr().out.startswith("Nothing can be judged: 0 of 1 node measured")
    told = json.loads((tmp_path / "verdict.json").read_text())
    assert told["exclude"] == [] and told["missing"] == {"n1": "it is drained"}
    (tmp_path / "survey.json").write_text('{"partition": "gpu"}')
    assert main(["survey", "--report", str(tmp_path)]) == 2
    assert "survey.json: nodes: " in capsys.readouterr().err
