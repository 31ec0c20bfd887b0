"""The commands of a study, as text; and what the command line accepts."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from mnist_dist.__main__ import main
from mnist_dist.errors import TrainingError
from mnist_dist.slurm import scheduler
from mnist_dist.slurm.scheduler import JobState, Partition, check_partition, count_gpus
from mnist_dist.slurm.site import job_environment, load_site
from mnist_dist.slurm.status import count_results, describe_report
from mnist_dist.slurm.study import (
    Request,
    check_strategies,
    plan_jobs,
    render_commands,
    report_command,
    seconds_of,
    strategies_on,
)
from mnist_dist.slurm.submission import Submitted
from tests.slurm.conftest import ROOT


def make_request(**changes: object) -> Request:
    settings: dict[str, object] = {
        "devices": [1, 2, 4, 8],
        "devices_per_node": 4,
        "gpus": True,
        "points": {("single", 1), *itertools.product(["mirrored", "multiworker", "horovod"], [1, 2, 3, 4, 6, 8])},
        "strategies": ["mirrored", "horovod"],
        "suite": "scaling",
        "results": Path("/shared/my study"),
        "mode": "jobs",
        "site": load_site(None, {"partition": "a100", "account": "physics"}, {"XDG_CONFIG_HOME": "/nowhere"}),
    }
    return Request(**settings | changes)  # type: ignore[arg-type]


def test_a_job_for_each_number_of_devices() -> None:
    jobs = plan_jobs(make_request())
    assert [job.name for job in jobs] == ["my study-1", "my study-2", "my study-4", "my study-8"]
    assert [job.points for job in jobs] == [
        ((("single", 1), ("mirrored", 1), ("horovod", 1)),),
        ((("mirrored", 2), ("horovod", 2)),),
        ((("mirrored", 4), ("horovod", 4)),),
        ((("horovod", 8),),),  # mirrored is one process on one node.
    ]
    assert jobs[3].command == (
        *("sbatch", "--parsable", "--export=ALL", "--job-name=my study-8", "--partition=a100"),
        "--account=physics",
        *("--time=01:00:00", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"),
        *("--output=/shared/my study/logs/%x-%j.out", str(ROOT / "slurm" / "bench.sbatch")),
        *("scaling", "--results", "/shared/my study", "--devices", "1,2,4,8", "--only", "8"),
        *("--devices-per-host", "4", "--strategies", "single,mirrored,horovod", "--no-report"),
    )
    assert jobs[1].command[7:10] == ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2")


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({}, "--gpus-per-node=4"),
        ({"gpu_type": "a100"}, "--gpus-per-node=a100:4"),
        ({"gpu_flag": "gres"}, "--gres=gpu:4"),
        ({"gpu_flag": "gres", "gpu_type": "a100"}, "--gres=gpu:a100:4"),
        ({"gpu_flag": "gpus-per-task", "gpu_type": "a100"}, "--gpus-per-task=a100:1"),
    ],
)
def test_sites_ask_for_gpus_in_their_own_way(settings: dict[str, str], flag: str) -> None:
    site = load_site(None, settings, {"XDG_CONFIG_HOME": "/nowhere"})
    command = plan_jobs(make_request(site=site))[3].command
    assert [part for part in command if "gpu" in part and part.startswith("--g")] == [flag]
    said = job_environment(site, None, []).get("MNIST_DIST_GPU_FLAG")
    assert said == ("gres" if settings.get("gpu_flag") == "gres" else None)


def test_an_array_gives_all_members_the_nodes_of_the_largest() -> None:
    (job,) = plan_jobs(make_request(mode="array"))
    assert job.is_array and len(job.points) == 4
    assert {"--array=0-3", "--nodes=2", "--ntasks-per-node=4"} <= set(job.command)
    assert job.command[job.command.index("--only") + 1] == "1,2,4,8"


def test_nested_points_share_one_job() -> None:
    (job,) = plan_jobs(make_request(mode="nested"))
    assert len(job.points) == 1 and len(job.points[0]) == 8
    assert job.command[-len(("--no-report",)) :] == ("--no-report",)
    assert str(ROOT / "slurm" / "scaling.sbatch") in job.command and "--only" not in job.command


def test_cpu_devices_ask_for_cores_instead_of_gpus() -> None:
    site = load_site(None, {"cpus_per_task": 3}, {"XDG_CONFIG_HOME": "/nowhere"})
    for job in plan_jobs(make_request(gpus=False, site=site)):
        assert not any("gpu" in part for part in job.command if part.startswith("--"))
        assert "--cpus-per-task=3" in job.command
        assert job.command[job.command.index("--cores-per-device") + 1] == "3"


def test_the_report_waits_for_all_jobs_however_they_end() -> None:
    command = report_command(make_request(), ["17", "18"])
    assert {"--dependency=afterany:17:18", "--export=ALL"} <= set(command)
    assert command[-2:] == [str(ROOT / "slurm" / "report.sbatch"), "/shared/my study"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"devices": [6]}, "--gpus: received 6, expected at most 4, or a multiple of it (--gpus-per-node), so that"),
        ({"devices": [6], "gpus": False}, "--devices: received 6, expected at most 4, or a multiple of it (--dev"),
        ({"points": {("mirrored", 2)}, "devices": [1, 2]}, "--gpus: received 1, but 'scaling' has no case for"),
        ({"strategies": ["mirrored"]}, "--strategies: 'mirrored' is one process on one node, which has 4 devices, no"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, object], line: str, user_error: Callable[..., str]) -> None:
    assert user_error(plan_jobs, make_request(**changes)).startswith(line)


def test_an_unknown_strategy(user_error: Callable[..., str]) -> None:
    line = "--strategies: received 'horovd', expected some of mirrored,multiworker,horovod"
    assert user_error(check_strategies, ["mirrored", "horovd"]).startswith(line)


def test_a_percent_sign_in_a_folder_is_none_to_slurm() -> None:
    (command,) = (job.command for job in plan_jobs(make_request(mode="array", results=Path("/shared/50 %j"))))
    assert "--output=/shared/50 %%j/logs/%x-%j.out" in command


def test_the_baseline_is_measured_on_one_device_only() -> None:
    assert strategies_on(make_request(), 1) == ["single", "mirrored", "horovod"]
    assert strategies_on(make_request(), 8) == ["horovod"]


def test_the_printed_script_runs_as_it_stands(tmp_path: Path) -> None:
    """A shell with another `sbatch` calls it with the very arguments, the numbers of the jobs handed on."""
    request = make_request(results=tmp_path / "a study's results $HOME")
    jobs = plan_jobs(request)
    script = render_commands(request, jobs, {"MNIST_DIST_HOME": "/some where"})
    (tmp_path / "sbatch").write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a+') as file:\n"
        "    print(json.dumps(['sbatch', *sys.argv[1:]]), file=file, flush=True)\n"
        "    file.seek(0)\n    print('Welcome!\\n', 100 + len(file.readlines()), sep='')\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    subprocess.run(["bash", "-eu"], input=script, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [*(list(job.command) for job in jobs), report_command(request, ["101", "102", "103", "104"])]
    assert (request.results / "logs").is_dir()


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu", 1),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:3(S:0,1),gpu:t4:1,nvme:8", 4),
        ("shard:8,craynetwork:4", 0),
    ],
)
def test_count_gpus(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


BANNER = "-----\n  Welcome to Example3, 3 jobs wait\n-----\n--> Verifying valid submit host (login4)...OK\n"


@pytest.mark.parametrize(
    ("printed", "code", "expected"),
    [
        ("17\n", 0, "17"),
        ("17;cluster2\n", 0, "17"),
        (BANNER + "17\n", 0, "17"),
        (BANNER + "17;cluster2\nHave a nice day.\n", 0, "17"),
        ("Submitted batch job 17 on cluster c2\n", 0, "17"),
        ("Jobs that wait:\n3\n17\n", 0, "17"),  # The answer comes last.
        (BANNER, 1, "sbatch: -----; Welcome to Example3, 3 jobs wait; --> Verifying valid"),
        ("", 1, "sbatch: it failed without any output."),
        (BANNER, 0, "Unclear: sbatch: it ended with 0 and printed '----- Welcome to Example3, 3 jobs wait -----"),
        (BANNER + "17\n", 1, "Unclear: sbatch: it ended with 1 and printed '----- Welcome"),
        ("Grüß Gott\n17\n", 0, "17"),  # In the encoding of the site, which is not this one's.
    ],
)
def test_the_number_among_all_that_sbatch_prints(printed: str, code: int, expected: str, tmp_path: Path) -> None:
    (tmp_path / "printed").write_text(printed, encoding="latin-1")
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat {tmp_path}/printed\nexit {code}\n")
    (tmp_path / "sbatch").chmod(0o755)
    try:
        answer = scheduler.submit(["sbatch"], {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    except TrainingError as error:
        answer = "Unclear: " * isinstance(error, scheduler.UnclearError) + str(error)
    assert answer == expected if expected == "17" else answer.startswith(expected)


# --- The command line, without Slurm ---


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command within this process, where neither Slurm nor a site's file is to be found."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.dict(os.environ, {"PATH": "/nowhere", "XDG_CONFIG_HOME": "/nowhere"}, clear=True)
        )
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            code = main(["slurm", *arguments])
        except SystemExit as ended:  # Of the parser.
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), errors.getvalue())


POINTS = ("scaling", "--gpus", "1,2,4", "--gpus-per-node", "2")


def test_dry_run_needs_no_slurm_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(
        *POINTS, "--dry-run", "--results", str(tmp_path / "study"), "--repeats", "5", "--set", "model.filters=[16, 32]"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "study").exists()
    lines = done.stdout.splitlines()
    assert len([line for line in lines if "bench.sbatch" in line]) == 3
    assert shlex.split(lines[-1])[:2] == ["sbatch", "--parsable"]
    assert "--repeats 5 --set 'model.filters=[16, 32]' --no-report" in done.stdout


def test_what_a_study_asks_for_is_said_before_its_commands() -> None:
    done = run("scaling", "--nodes", "2,4", "--gpus-per-node", "4", "--dry-run", "--time", "1-00:00:00")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "# 3 jobs and one for the report: at most 600.0 GPU hours within the time limit of 1-00:00:00; cores per task: "
        "the default of Slurm, often 1 (--cpus-per-task).",
        "# GPUs: 1 on 1 node(s), 8 on 2 node(s), 16 on 4 node(s); one is the baseline.",
        "# Not measured: mirrored on 8, 16, as it is one process on one node.",
    ]
    results = lines[3].split()[-1]
    assert lines[3] == f"# The report: {results}/report.html, at the end; until then: mnist-dist slurm status {results}"
    asked = [shlex.split(line)[-1] for line in lines if "bench.sbatch" in line]
    assert len(asked) == 3
    assert [each.split("--only ")[1].split()[0] for each in lines if "--only" in each] == ["1", "8", "16"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("30", 1800), ("30:15", 1815), ("2:00:00", 7200), ("1-12", 129_600), ("1-0:30", 88_200), ("UNLIMITED", math.inf)],
)
def test_time_limits_in_every_form_of_slurm(limit: str, seconds: float) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (POINTS, "sbatch: it is not on PATH; run this where jobs are submitted; without a cluster, --dry-run"),
        (
            ("scaling", "--gpus", "1,x", "--gpus-per-node", "2"),
            "argument --gpus: received 'x'",
        ),
        (("scaling", "--gpus", "0", "--gpus-per-node", "2"), "argument --gpus: received '0'"),
        (
            ("scaling", "--gpus", "1"),
            "one of the arguments --gpus-per-node --devices-per-node",
        ),
        (
            ("scaling", "--gpus", "1", "--devices-per-node", "2"),
            "--gpus goes with --gpus-per-node, and",
        ),
        ((*POINTS, "--array", "--nested"), "argument --nested: not allowed with argument --array"),
        ((*POINTS, "--suite", "scalng"), "SUITE: there is no file 'scalng'; expected a YAML file or one of: "),
        ((*POINTS, "--set", "model.filter=[1, 2]"), "model.filter: no such setting. Did you mean"),
        (
            (*POINTS, "--set", "runtime.devices=3"),
            "runtime.devices: received as a setting of a case, but --devices",
        ),
        (
            (*POINTS, "--suite", "collectives"),
            "--gpus: received 1, but 'collectives' has no case for",
        ),
        ((*POINTS, "--set", "model.filters"), "--set: received 'model.filters', expected key=value"),
        ((*POINTS, "--site", "nowhere.yaml"), "--site: cannot read 'nowhere.yaml': No such file"),
        (
            ("status", "nowhere"),
            "STUDY: 'nowhere' holds no 'slurm.json', expected the results folder of",
        ),
        (
            ("cancel", "nowhere"),
            "STUDY: 'nowhere' holds no 'slurm.json', expected the results folder of",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], line: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mnist-dist: error: {line}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_damaged_results_do_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text('{"status": "ok", "case": {"strategy": "single", "devices": 1}}')
    (tmp_path / "records" / "b.json").write_text('{"status": ')
    assert count_results(tmp_path) == {("single", 1): (1, 0)}
    assert capsys.readouterr().err.startswith(f"left out: cannot read '{tmp_path}/records/b.json'")


def test_a_report_of_an_earlier_submission_is_not_this_ones(tmp_path: Path) -> None:
    submitted = Submitted((), "17")
    for name, age in (("report.html", 20), ("slurm.json", 10)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert describe_report(submitted, JobState("17", "PENDING", "0:00"), tmp_path).startswith("report: will be in ")
    os.utime(tmp_path / "report.html")
    assert describe_report(submitted, None, tmp_path) == f"report: {tmp_path / 'report.html'}"


@pytest.mark.parametrize(
    ("name", "gpus", "line"),
    [
        (None, 0, None),
        ("gpu,ib", 4, None),  # sbatch takes the one that suits.
        ("cpu,gpux", 0, "--partition: received 'gpux', expected one of cpu, gpu, ib. Did you mean 'gpu'?"),
        ("cpu,ib", 1, "--gpus-per-node: received 1, but the nodes of the partition 'cpu' have no GPUs"),
    ],
)
def test_partitions(
    name: str | None, gpus: int, line: str | None, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    known = [Partition("cpu", True, 0), Partition("gpu", False, 4), Partition("ib", False, 0)]
    monkeypatch.setattr(scheduler, "partitions", lambda: known)
    if line is None:
        check_partition(name, gpus)
    else:
        assert user_error(check_partition, name, gpus).startswith(line)


def test_a_damaged_record_of_jobs_is_named(tmp_path: Path) -> None:
    (tmp_path / "slurm.json").write_text('{"jobs": [{}]}')
    done = run("status", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"mnist-dist: error: STUDY: cannot read '{tmp_path}/slurm.json', it may be damaged: ")
    assert "jobs.0.job: received {}, expected " in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [(), ("scaling",), ("status",), ("cancel",)])
def test_help_is_quick(command: tuple[str, ...], is_quick: Callable[[Callable[[], object]], bool]) -> None:
    def show_help() -> None:
        called = [sys.executable, "-m", "mnist_dist", "slurm", *command, "--help"]
        done = subprocess.run(called, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout.startswith("usage: ")

    assert is_quick(show_help)


@pytest.mark.slow
def test_tensorflow_is_not_imported() -> None:
    script = "import sys; from mnist_dist.slurm import command, preflight, site, status, submission; "
    script += "print([name for name in ('tensorflow', 'keras', 'numpy', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch")))
def test_batch_files_are_valid_bash(script: str) -> None:
    file = ROOT / "slurm" / script
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text()
    assert text.startswith("#!/bin/bash\n# ") and "sbatch " in text.split("#SBATCH")[0], "it shows its own use"
    assert '"$@"' in text, "arguments stay arguments"
