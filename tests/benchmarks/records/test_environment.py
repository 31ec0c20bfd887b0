import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import mnist_dist
from mnist_dist.benchmarks.records.environment import (
    CODE_FOLDER,
    find_git,
    find_hardware,
    find_job_id,
    find_software,
    identity,
    known_variables,
    usable_cores,
    usable_memory_bytes,
)
from mnist_dist.config import Config
from tests.benchmarks.factory import make_study, train

GIB = 2**30


def test_identity_belongs_into_a_record() -> None:
    config = Config().model_dump(mode="json")
    found = identity(
        config, hosts=("n1", "n2"), launcher="srun", environment={"SLURM_JOB_ID": "7", "NCCL_ALGO": "Ring"}
    )
    record = make_study([train("horovod", 2)], 1)[0].model_copy(update={"identity": found})
    record.check()
    assert (found.hosts, found.launcher, found.job_id) == (("n1", "n2"), "srun", "7")
    assert (found.config, found.environment) == (config, {"NCCL_ALGO": "Ring"})
    assert identity({}).hosts == (platform.node(),)


def test_the_hardware_is_this_one() -> None:
    hardware = find_hardware()
    assert hardware.architecture == platform.machine()
    assert hardware.cpu_model in Path("/proc/cpuinfo").read_text() or platform.machine() != "x86_64"
    assert 1 <= hardware.cores <= len(os.sched_getaffinity(0))
    assert GIB / 4 < hardware.memory_bytes <= psutil.virtual_memory().total
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    assert len(hardware.gpus) <= gpus
    assert (hardware.gpu_driver is None) == (gpus == 0)


def test_cores_follow_the_affinity_of_the_process() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({}, "", 64 * GIB),
        ({"memory.max": f"{8 * GIB}\n"}, "0::/\n", 8 * GIB),
        ({"memory.max": "max\n"}, "0::/\n", 64 * GIB),
        ({"memory.max": f"{128 * GIB}\n"}, "0::/\n", 64 * GIB),
        ({"job_1/memory.max": f"{4 * GIB}\n", "job_1/step_0/memory.max": "max\n"}, "0::/job_1/step_0\n", 4 * GIB),
        ({"slurm/job_2/memory.max": f"{1 * GIB}\n"}, "0::/slurm/job_1\n", 64 * GIB),
        ({"memory/docker/memory.limit_in_bytes": f"{2 * GIB}\n"}, "5:cpu:/docker\n4:memory:/docker\n", 2 * GIB),
        ({"memory/memory.limit_in_bytes": f"{2 * GIB}\n"}, "4:memory:/outside/the/container\n", 2 * GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, "4:memory:/\n", 64 * GIB),
    ],
)  # fmt: skip
def test_memory_is_what_the_job_may_use(tmp_path: Path, files: dict[str, str], membership: str, expected: int) -> None:
    cgroup = lay_out(tmp_path / "cgroup", files)
    lay_out(tmp_path, {"meminfo": f"MemTotal:       {64 * 2**20} kB\nMemFree: 1 kB\n", "membership": membership})
    assert usable_memory_bytes(tmp_path / "meminfo", cgroup, tmp_path / "membership") == expected


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "6400000 100000\n"}, "0::/\n", None),
        ({"cpu/a/cpu.cfs_quota_us": "90000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/a\n", 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", None),
        ({"cpu.max": "broken\n"}, "0::/\n", None),
    ],
)  # fmt: skip
def test_a_quota_narrows_the_cores(
    tmp_path: Path, files: dict[str, str], membership: str, expected: int | None
) -> None:
    cgroup = lay_out(tmp_path / "cgroup", files)
    lay_out(tmp_path, {"membership": membership})
    assert usable_cores(cgroup, tmp_path / "membership") == (expected or len(os.sched_getaffinity(0)))


def test_the_software_is_what_is_installed() -> None:
    software = find_software()
    assert software["mnist_dist"] == mnist_dist.__version__
    assert software["python"] == platform.python_version()
    assert software["kernel"] == platform.release()
    for name in ("tensorflow", "keras", "numpy"):
        assert software[name] == importlib.metadata.version(name)
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    assert ("horovod" in software) == ("horovod" in installed)
    assert ("nccl" in software) == any(name.startswith("nvidia-nccl-cu") for name in installed)


@pytest.mark.slow
def test_nothing_here_starts_tensorflow() -> None:
    modules = ("records.record", "records.store", "records.environment", "measure.telemetry", "report.exports")
    code = f"import sys, {', '.join(f'mnist_dist.benchmarks.{name}' for name in modules)}\n"
    code += (
        "mnist_dist.benchmarks.records.environment.identity({})\nassert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_the_checkout_and_whether_it_was_changed(tmp_path: Path) -> None:
    code = tmp_path / "code"
    lay_out(tmp_path, {"code/module.py": "a = 1\n", "README": "text\n", ".gitignore": "venv\n"})
    git(tmp_path, "init", "--quiet")
    assert find_git(code) is None, "nothing is committed"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    found = find_git(code)
    assert found is not None and (found.commit, found.dirty) == (commit, False)

    lay_out(tmp_path, {"results/study.json": "{}", "venv/lib/site-packages/benchmarks/module.py": "a = 1\n"})
    assert find_git(code) == found, "results in the checkout are no change"
    assert find_git(tmp_path / "venv/lib/site-packages/benchmarks") is None, "the checkout does not track it"

    lay_out(tmp_path, {"README": "other text\n"})
    changed = find_git(code)
    assert changed is not None and (changed.commit, changed.dirty) == (commit, True)


def test_variables_of_git_do_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of git, for example, runs with them."""
    expected = find_git()
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert find_git() == expected


def test_a_folder_outside_any_checkout(tmp_path: Path) -> None:
    assert find_git(tmp_path) is None
    assert find_git(tmp_path / "missing") is None


def test_in_an_image(tmp_path: Path) -> None:
    """Which has no checkout, but a file beside the code."""
    lay_out(tmp_path, {"benchmarks/module.py": "a = 1\n", "REVISION": f"{'0123456789' * 4}-dirty\n"})
    found = find_git(tmp_path)
    assert found is not None and (found.commit, found.dirty) == ("0123456789" * 4, True)
    for other in ("HEAD\n", "", "x" * 40):
        lay_out(tmp_path, {"REVISION": other})
        assert find_git(tmp_path) is None


def test_a_host_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_git(CODE_FOLDER) is None


def test_the_job() -> None:
    assert find_job_id({}) is None
    assert find_job_id({"SLURM_JOB_ID": "12"}) == "12"
    member = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert find_job_id(member) == "12_3"


SECRETS = {
    "TF_TOKEN_app_terraform_io": "secret",
    "TF_VAR_password": "secret",
    "MNIST_DIST_SECRET": "secret",
    "MNIST_DIST_TURNS_TOKEN": "secret",
    "HOROVOD_SECRET_KEY": "secret",
    "_HOROVOD_SECRET_KEY": "secret",
    "HOROVOD_GLOO_RENDEZVOUS_ADDR": "secret",
    "NCCL_TOKEN": "secret",
    "CUDA_PASSWORD": "secret",
    "SLURM_JWT": "secret",
    "SLURM_JOB_COMMENT": "secret",
    "OMP_NUM_THREADS_TOKEN": "secret",
    "omp_num_threads": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HF_TOKEN": "secret",
    "WANDB_API_KEY": "secret",
    "HTTPS_PROXY": "https://user:secret@proxy",
    "HOME": "/home/secret",
}
SETTINGS = {
    "OMP_NUM_THREADS": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "HOROVOD_FUSION_THRESHOLD": "33554432",
    "NCCL_SOCKET_IFNAME": "ib0",
    "CUDA_VISIBLE_DEVICES": "",
    "SLURM_NTASKS_PER_NODE": "4",
}


def test_no_secret_is_written() -> None:
    assert known_variables({**SECRETS, **SETTINGS}) == SETTINGS


def test_no_secret_reaches_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        if name != "HOME":
            monkeypatch.setenv(name, value)
    code = "from mnist_dist.benchmarks.records.environment import identity; print(identity({}).model_dump_json())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert '"hardware"' in done.stdout and "secret" not in done.stdout


def test_a_variable_that_is_no_utf_8() -> None:
    assert known_variables({"OMP_PLACES": os.fsdecode(b"\xff\xfe")}) == {"OMP_PLACES": "\\udcff\\udcfe"}
