"""What a record says of the machine, the software and the job: enough to compare, and no secret.

Imports no TensorFlow: versions are read from the installed packages' metadata.
"""

import contextlib
import functools
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import mnist_dist
from mnist_dist.benchmarks.records.record import Git, Gpu, Hardware, Identity
from mnist_dist.cpuinfo import cpu_name, thread_siblings
from mnist_dist.gpus import Nvml, open_nvml
from mnist_dist.packages import TENSORFLOW, find_package

CODE_FOLDER = Path(mnist_dist.__file__).resolve().parents[1]  # A checkout, or site-packages.

# By the name in the record; of several, the first that is installed.
PACKAGES = {
    "tensorflow": TENSORFLOW,
    "keras": ("keras",),
    "numpy": ("numpy",),
    "horovod": ("horovod",),
    "cuda": ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13"),
    "cudnn": ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    "nccl": ("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
}

_LINES = Path(__file__).with_name("environment_variables.txt").read_text(encoding="utf-8").splitlines()
ENVIRONMENT_VARIABLES = frozenset(name for line in _LINES if not line.startswith("#") for name in line.split())


def identity(
    config: Mapping[str, Any],
    hosts: Sequence[str] = (),
    launcher: Literal["mnist-dist", "srun"] = "mnist-dist",
    environment: Mapping[str, str] = os.environ,
    code: Path = CODE_FOLDER,
) -> Identity:
    """Describes where, with what and how a case runs.

    Args:
        config: the complete configuration of the training run, as JSON.
        hosts: of every rank; empty: this one.
        code: the folder that holds the packages that are measured.
    """
    return Identity(
        hardware=find_hardware(),
        software=find_software(),
        git=find_git(code),
        hosts=tuple(hosts) or (platform.node(),),
        job_id=find_job_id(environment),
        launcher=launcher,
        environment=known_variables(environment),
        config=dict(config),
    )


@functools.cache
def find_hardware() -> Hardware:
    """Returns what this process may use on its host; asked once, as none of it changes while a process lives."""
    with open_nvml() as nvml:
        gpus = tuple(_describe_gpu(nvml, handle) for handle in nvml.handles) if nvml else ()
        driver = nvml.ask("SystemGetDriverVersion") if nvml else None
    return Hardware(
        architecture=platform.machine(),
        cpu_model=cpu_name(),
        cores=usable_cores(),
        threads_per_core=max(len(thread_siblings(core)) for core in os.sched_getaffinity(0)),
        memory_bytes=usable_memory_bytes(),
        gpus=gpus,
        gpu_driver=driver,
    )


@functools.cache
def find_software() -> dict[str, str]:
    """Returns name and version of what results depend on, as far as it is installed."""
    versions = {
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mnist_dist": mnist_dist.__version__,
    }
    for name, packages in PACKAGES.items():
        if found := find_package(*packages):
            versions[name] = found[1]
    return versions


def find_git(folder: Path = CODE_FOLDER) -> Git | None:
    """Returns the commit of the checkout that tracks `folder`, or that of its image, or None where neither is known.

    Dirty means that a tracked file differs; results written into the checkout do not count.
    """
    try:
        # An installed package can lie in somebody else's checkout, which does not track it.
        if _git(folder, "ls-files", "--", "."):
            commit = _git(folder, "rev-parse", "HEAD")
            return Git(commit=commit, dirty=bool(_git(folder, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        pass
    return _git_of_image(folder / "REVISION")


def _git_of_image(file: Path) -> Git | None:
    """Reads what docker/Dockerfile leaves beside the code: a commit, with `-dirty` where the files differed from it."""
    try:
        commit, _, dirty = file.read_text().strip().partition("-")
    except (OSError, UnicodeDecodeError):
        return None
    is_commit = len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    return Git(commit=commit, dirty=bool(dirty)) if is_commit else None


def find_job_id(environment: Mapping[str, str]) -> str | None:
    """Returns Slurm's number of the job, as ARRAYJOB_TASK for a member of an array."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def known_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables whose names are known to change results and never to hold a secret."""
    return {
        name: environment[name].encode(errors="backslashreplace").decode()
        for name in sorted(ENVIRONMENT_VARIABLES & environment.keys())
    }


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the cores that this process may run on, which a container's quota can narrow further."""
    quotas = [len(os.sched_getaffinity(0))]
    for folder in _cgroup_folders(cgroup, membership, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not period:  # Version 1 of cgroups.
            quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
        with contextlib.suppress(ValueError, ZeroDivisionError):
            if int(quota) > 0:
                quotas.append(math.ceil(int(quota) / int(period)))
    return min(quotas)


def usable_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int:
    """Returns the memory of the host, or what the job or container may use of it where that is less."""
    limits = [int(line.split()[1]) * 1024 for line in _read(meminfo).splitlines() if line.startswith("MemTotal:")]
    for folder in _cgroup_folders(cgroup, membership, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(ValueError):  # Missing, or "max".
                limits.append(int(_read(folder / name)))
    return min(limits, default=0)


def _describe_gpu(nvml: Nvml, handle: Any) -> Gpu:
    whole = nvml.ask("DeviceGetDeviceHandleFromMigDeviceHandle", handle)  # None if it is no part of a GPU.
    milliwatts = nvml.ask("DeviceGetEnforcedPowerLimit", handle)
    pci, ecc = nvml.ask("DeviceGetPciInfo", whole or handle), nvml.ask("DeviceGetEccMode", whole or handle)
    bus = pci and pci.busId
    return Gpu(
        name=nvml.ask("DeviceGetName", handle) or "GPU",
        memory_bytes=int(getattr(nvml.ask("DeviceGetMemoryInfo", handle), "total", 0)),
        uuid=nvml.ask("DeviceGetUUID", handle),
        pci_id=bus.decode() if isinstance(bus, bytes) else bus,
        power_limit_watts=None if milliwatts is None else milliwatts / 1e3,
        max_sm_clock_mhz=nvml.ask("DeviceGetMaxClockInfo", handle, "NVML_CLOCK_SM"),
        max_memory_clock_mhz=nvml.ask("DeviceGetMaxClockInfo", handle, "NVML_CLOCK_MEM"),
        ecc=None if ecc is None else bool(ecc[0]),
        mig=whole is not None,
    )


def _cgroup_folders(cgroup: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yields the folders whose limits bind this process: its own group's and all above, of either version."""
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = cgroup / controller if controllers else cgroup
        group = PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            yield mount / part


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # A user's own git must not find the index locked.
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    return done.stdout.strip()
