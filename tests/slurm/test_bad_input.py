"""What a study would fail on is one line, found before anything is submitted; and a study is submitted whole or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.errors import UserError
from mnist_dist.slurm.scheduler import job_states, partitions
from mnist_dist.slurm.study import log_pattern
from mnist_dist.slurm.submission import read_submitted
from tests.slurm.cluster import PAID, Cluster, wait_until
from tests.slurm.conftest import ROOT


def scaling(cluster: Cluster, results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnist_dist", "slurm", "scaling", "--suite", "quick"]
    command += ["--results", str(results), *arguments]
    no_site = {"XDG_CONFIG_HOME": str(results.with_name("no_site"))}  # Jobs have it, too, and may write there.
    return cluster.run(*command, check=False, env=no_site, cwd=ROOT)


def known_jobs(cluster: Cluster, states: str = "all") -> set[str]:
    """Returns the numbers of all jobs that were ever submitted, of an array its own."""
    return set(cluster.run("squeue", "--noheader", f"--states={states}", "--format=%F").stdout.split())


GPUS = ("--gpus", "1,2,4", "--gpus-per-node", "2", "--partition", "gpu")
CORES = ("--devices", "1,2,4", "--devices-per-node", "2")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            (*GPUS[:4], "--partition", "gpus"),
            "--partition: received 'gpus', expected one of cpu, gpu, ib, all, paid, urgent. Did you mean 'gpu'?",
        ),
        (
            ("--gpus", "1,3", "--gpus-per-node", "3", "--partition", "gpu"),
            "--gpus-per-node: received 3, but the nodes of the partition 'gpu' have 2 GPUs.",
        ),
        (
            GPUS[:4],
            "--gpus-per-node: received 2, but the nodes of the partition 'cpu' have no GPUs; to share out the cores of "
            "its nodes instead, use --devices and --devices-per-node.",
        ),
        (
            (*CORES, "--partition", PAID),
            "sbatch: allocation failure: Invalid account or account/partition combination specified. Name yours with "
            "--account or in the site's file. Slurm would reject: sbatch --parsable",
        ),
        (
            ("--devices", "8", "--devices-per-node", "1"),
            "sbatch: allocation failure: Requested node configuration is not available. Slurm would reject: sbatch",
        ),
        (
            (*CORES, "--time", "soon"),
            "--time: received 'soon', expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.",
        ),
    ],
)
def test_nothing_is_submitted(slurm: Cluster, tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    before = known_jobs(slurm)
    done = scaling(slurm, tmp_path / "study", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mnist-dist: error: {line}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert known_jobs(slurm) == before
    assert not (tmp_path / "study" / "slurm.json").exists()


@pytest.mark.parametrize(
    ("name", "reason"), [("file/study", "Not a directory"), ("link", "a file or a broken link is in the way")]
)
def test_a_results_folder_that_cannot_be_written(slurm: Cluster, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("purged")
    before = known_jobs(slurm)
    done = scaling(slurm, tmp_path / name, *CORES)
    assert done.returncode == 2
    assert done.stderr == (
        f"mnist-dist: error: --results: cannot write into '{tmp_path}/{name}': {reason}; expected a folder on a disk "
        "that all nodes share.\n"
    )
    assert known_jobs(slurm) == before


def test_an_account_where_one_is_asked_for(slurm: Cluster, tmp_path: Path) -> None:
    done = scaling(slurm, tmp_path / "study", *CORES, "--partition", PAID, "--account", "physics")
    assert done.returncode == 0, done.stderr
    end = slurm.run(sys.executable, "-m", "mnist_dist", "slurm", "cancel", str(tmp_path / "study"), cwd=ROOT)
    assert end.stdout.startswith("cancelled: ")


def scaling_by_the_commands_in(folder: Path, slurm: Cluster) -> subprocess.CompletedProcess[str]:
    """Submits a study into `folder`/study, with scripts there in the place of Slurm's commands."""
    for script in folder.iterdir():
        script.chmod(0o755)
    command = [sys.executable, "-m", "mnist_dist", "slurm", "scaling", "--suite", "quick", *CORES]
    path = f"{folder}:{slurm.environment['PATH']}"
    return slurm.run(*command, "--results", str(folder / "study"), check=False, env={"PATH": path}, cwd=ROOT)


@pytest.mark.parametrize("refused", [2, 3, 4])
def test_refused_in_the_middle(slurm: Cluster, tmp_path: Path, refused: int) -> None:
    """Slurm takes some jobs and then no more, as when a limit is reached: what was submitted is cancelled."""
    count = tmp_path / "count"
    (tmp_path / "sbatch").write_text(
        "#!/bin/bash\n"
        f"export PATH={slurm.environment['PATH']}\n"
        f"[[ $1 == --test-only ]] || echo >>{count}\n"
        f'[[ $1 != --test-only && $(wc -l <{count}) == {refused} ]] && set -- --time=no "$@"\n'
        'exec sbatch "$@"\n'
    )
    before = known_jobs(slurm)
    done = scaling_by_the_commands_in(tmp_path, slurm)
    assert done.returncode == 1
    assert done.stderr == "mnist-dist: error: sbatch: Invalid --time specification. Nothing was submitted.\n"
    submitted = sorted(known_jobs(slurm) - before)
    assert len(submitted) == refused - 1
    assert {slurm.wait(job, 30)["JobState"] for job in submitted} == {"CANCELLED"}
    assert not (tmp_path / "study" / "slurm.json").exists()


def test_a_client_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'sinfo: error: fetch_config: DNS SRV lookup failed' >&2; exit 1\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError) as caught:
        partitions()
    assert str(caught.value) == (
        "sinfo: Slurm does not answer here, it says 'fetch_config: DNS SRV lookup failed.'; run this where jobs are "
        "submitted; without a cluster, --dry-run says what `mnist-dist slurm` would do."
    )


def test_a_controller_that_does_not_answer_is_not_one_that_knows_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no accounting either; else `cancel` would say that there is nothing to cancel."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("sacct", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(UserError, match="squeue: slurm_load_jobs error: Socket timed out"):
        job_states(["17"])
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert job_states(["17"]) == []


def test_a_site_whose_commands_greet(slurm: Cluster, tmp_path: Path) -> None:
    """Also around the answers of the commands that are asked for partitions and states."""
    for name in ("sbatch", "sinfo", "squeue"):
        (tmp_path / name).write_text(
            f"#!/bin/bash\necho '| Welcome | to | Example3 |'; echo '--> Checking quota ... OK'\n"
            f'export PATH={slurm.environment["PATH"]}\nexec {name} "$@"\n'
        )
        (tmp_path / name).chmod(0o755)
    command = [sys.executable, "-m", "mnist_dist", "slurm"]
    path = {"PATH": f"{tmp_path}:{slurm.environment['PATH']}"}
    flags = ["--suite", "quick", *CORES, "--results", str(tmp_path / "study")]
    before = known_jobs(slurm)
    done = slurm.run(*command, "scaling", *flags, env=path, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert set(read_submitted(tmp_path / "study").ids) == known_jobs(slurm) - before
    cancelled = slurm.run(*command, "cancel", str(tmp_path / "study"), env=path, cwd=ROOT).stdout
    assert cancelled.startswith("cancelled: ") and len(cancelled.split(",")) == 4


@pytest.mark.parametrize("can_cancel", [True, False])
def test_nobody_can_tell_whether_a_job_was_submitted(slurm: Cluster, tmp_path: Path, can_cancel: bool) -> None:
    """The second job's number is missing: the user is told to look, and which jobs are left where scancel fails."""
    (tmp_path / "sbatch").write_text(
        f"#!/bin/bash\n[[ $1 == --test-only ]] && exit\necho >>{tmp_path}/calls\n"
        f"if [[ $(wc -l <{tmp_path}/calls) == 1 ]]; then echo 17; else echo 'All right!'; fi\n"
    )
    (tmp_path / "scancel").write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/cancelled; exit {int(not can_cancel)}\n')
    done = scaling_by_the_commands_in(tmp_path, slurm)
    assert done.returncode == 1 and (tmp_path / "cancelled").read_text() == "17\n"
    left = "The jobs before it were not cancelled (scancel: it failed without any output.); end them with `scancel 17`."
    assert done.stderr == (
        "mnist-dist: error: sbatch: it ended with 0 and printed 'All right!', expected a job ID. The job may be "
        f"in the queue; look with `squeue --me`.{'' if can_cancel else f' {left}'}\n"
    )


@pytest.mark.parametrize(("number", "code"), [("INT", 130), ("TERM", 143)])
def test_a_signal_while_slurm_takes_a_job(slurm: Cluster, tmp_path: Path, number: str, code: int) -> None:
    """It waits until the job's number is known, by which the job is cancelled."""
    (tmp_path / "sbatch").write_text(
        f"#!/bin/bash\n[[ $1 == --test-only ]] && exit\nkill -{number} $PPID; sleep 0.5; echo 17\n"
    )
    (tmp_path / "scancel").write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/cancelled\n')
    done = scaling_by_the_commands_in(tmp_path, slurm)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "cancelled").read_text() == "17\n" and not (tmp_path / "study" / "slurm.json").exists()


def test_a_study_that_is_under_way_is_left_alone(slurm: Cluster, tmp_path: Path) -> None:
    assert scaling(slurm, tmp_path / "study", *CORES).returncode == 0
    before = known_jobs(slurm)
    again = scaling(slurm, tmp_path / "study", *CORES)
    assert again.returncode == 2
    assert "have not ended; wait for them, cancel them with `mnist-dist slurm cancel" in again.stderr
    assert known_jobs(slurm) == before
    slurm.run(sys.executable, "-m", "mnist_dist", "slurm", "cancel", str(tmp_path / "study"), cwd=ROOT)


def test_a_cancelled_study_leaves_no_job(slurm: Cluster, tmp_path: Path) -> None:
    assert scaling(slurm, tmp_path / "study", *CORES, "--array").returncode == 0
    command = (sys.executable, "-m", "mnist_dist", "slurm")
    status = slurm.run(*command, "status", str(tmp_path / "study"), cwd=ROOT).stdout
    assert "horovod" in status and "report: will be in " in status, status
    cancelled = slurm.run(*command, "cancel", str(tmp_path / "study"), cwd=ROOT).stdout
    assert cancelled.startswith("cancelled: ") and "_2" in cancelled
    assert not known_jobs(slurm, "PENDING,RUNNING") & set(read_submitted(tmp_path / "study").ids)
    again = slurm.run(*command, "cancel", str(tmp_path / "study"), cwd=ROOT).stdout
    assert again == "nothing to cancel: all jobs have ended or are ending\n"

    def all_cancelled() -> bool:
        return slurm.run(*command, "status", str(tmp_path / "study"), cwd=ROOT).stdout.count("CANCELLED") >= 3

    assert wait_until(all_cancelled, 60)


def test_a_folder_whose_name_slurm_might_take_for_a_pattern(slurm: Cluster, tmp_path: Path) -> None:
    results = tmp_path / "it's 50 %, or %j"
    (results / "logs").mkdir(parents=True)
    pattern = log_pattern(results)
    job = slurm.run(
        "sbatch", "--parsable", "--job-name=point", f"--output={pattern}", "--wrap=echo measured"
    ).stdout.strip()
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert (results / "logs" / f"point-{job}.out").read_text() == "measured\n"
