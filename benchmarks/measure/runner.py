"""Runs one case in a fresh group of processes, and makes a record of whatever comes of it.

The harness sleeps while a case runs: it waits for the end of the group and for nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mnist_dist.benchmarks.measure.suite import Machine, training_settings
from mnist_dist.benchmarks.measure.telemetry import sample_power
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.environment import CODE_FOLDER, identity
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record, Status, explain_record
from mnist_dist.config import load_config
from mnist_dist.errors import UserError, one_line
from mnist_dist.files import writing
from mnist_dist.strategies import STRATEGIES, missing_packages

TAIL_LINES = 30
TICK_SECONDS = 1.0  # Between two looks at the clock.
GRACE_SECONDS = 10.0  # For the ranks to end by themselves when the time is up.
LOG_BYTES = 100_000  # Of the end of a case's output, in which errors are looked for.
OUT_OF_MEMORY = re.compile(
    r"resource_?exhausted|OOM when allocating|out[ _]of[ _]memory|MemoryError|std::bad_alloc|oom.?kill|"
    r"cannot allocate memory",
    re.IGNORECASE,
)
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)  # Loaded now: between fork and exec there must be no import.


@dataclass(frozen=True)
class Study:
    """What all records of a results folder have in common.

    Attributes:
        code: the folder whose `mnist_dist` and `benchmarks` run; another checkout's when two are compared.
        program: how `mnist-dist` is started there.
    """

    name: str
    suite: str
    timeout_seconds: float
    machine: Machine
    scratch: Path
    code: Path = CODE_FOLDER
    program: Sequence[str] = (sys.executable, "-m", "mnist_dist")


@dataclass(frozen=True)
class Outcome:
    status: Status
    reason: str | None = None
    tail: Sequence[str] = ()
    measurements: dict[str, Any] | None = None
    hosts: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


def run_case(
    study: Study,
    case: Case,
    repeat: int,
    tick: Callable[[], None] = lambda: None,
    under_test: Mapping[str, Any] | None = None,
) -> Record:
    """Measures a case once; never raises for what a case does, only for what the harness cannot do.

    Args:
        repeat: also the seed of the training run.
        tick: called about once a second meanwhile, to show the time.
        under_test: settings that are the subject of a comparison, and so no part of the case.
    """
    started_at = _now()
    began, cpu_began = time.monotonic(), time.process_time()
    with writing(study.scratch):
        study.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{case.case_id}-r{repeat}-", dir=study.scratch) as scratch:
        with sample_power(case.devices // case.hosts if study.machine.gpus else None) as power:
            outcome = _measure(study, case, repeat, under_test or {}, Path(scratch), tick)
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    telemetry = power.telemetry if case.hosts == 1 else None  # It sees this host alone.
    measured = {"seconds": seconds, "harness_cpu_seconds": cpu_seconds, "telemetry": telemetry}
    try:
        return _record(study, case, repeat, outcome, started_at, **measured)
    except ValidationError as error:  # Such as a loss that is not a number.
        reason = f"it measured nonsense: {explain_record(error)}"
        outcome = replace(outcome, status="failed", reason=reason, measurements=None)
        return _record(study, case, repeat, outcome, started_at, **measured)


def skipped(study: Study, case: Case, repeat: int, reason: str) -> Record:
    """Returns the record of a case that this machine cannot run."""
    nothing = {"seconds": 0.0, "harness_cpu_seconds": 0.0, "telemetry": None}
    return _record(study, case, repeat, Outcome("skipped", reason), _now(), **nothing)


def _record(study: Study, case: Case, repeat: int, outcome: Outcome, started_at: str, **measured: Any) -> Record:
    return Record.new(
        case,
        study=study.name,
        suite=study.suite,
        repeat=repeat,
        seed=repeat,
        status=outcome.status,
        reason=outcome.reason,
        output_tail=tuple(outcome.tail),
        started_at=started_at,
        identity=identity(
            outcome.config, outcome.hosts, "srun" if study.machine.hosts else "mnist-dist", code=study.code
        ),
        measurements=outcome.measurements,
        **measured,
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _measure(
    study: Study, case: Case, seed: int, under_test: Mapping[str, Any], scratch: Path, tick: Callable[[], None]
) -> Outcome:
    measured = case.model_copy(update={"settings": {**case.settings, **under_test}})
    config = load_config("default", training_settings(measured, seed))
    content = config.model_dump(mode="json")
    of_kind = kind(case.kind)
    with writing(scratch):
        command = of_kind.command(study.program, measured, config, scratch)
    log = scratch / "output.log"
    outcome = run_command(launch_command(command, study, case), _cores(case, study), log, study, tick)
    if outcome.status != "ok":
        return replace(outcome, config=content)
    try:
        measurements, hosts = of_kind.collect(scratch)
    except (OSError, ValueError, TypeError, LookupError, UserError) as error:
        reason = one_line(f"it ended well, but left no whole result: {error!r}")
        return Outcome("failed", reason, outcome.tail, config=content)
    return Outcome("ok", None, (), measurements, hosts, content)


def run_command(command: Sequence[str], cores: set[int], log: Path, study: Study, tick: Callable[[], None]) -> Outcome:
    """Runs a command as a process group of its own, on some cores, and says how it ended, with its last lines."""
    ooms = _kernel_ooms()
    code = _run(command, _environment(study), cores, log, study, tick)
    lines = _last_lines(log)
    tail = lines[-TAIL_LINES:]
    if code is None:
        return Outcome("timeout", f"not done after {study.timeout_seconds:g} s", tail)
    if code != 0:
        says_so = any(OUT_OF_MEMORY.search(line) for line in lines)
        status: Status = "out_of_memory" if says_so or _kernel_ooms() > ooms else "failed"
        return Outcome(status, _reason(code, tail), tail)
    return Outcome("ok", None, tail)


def launch_command(command: Sequence[str], study: Study, case: Case) -> list[str]:
    """Lets Slurm start the ranks of a case in a job; elsewhere, mnist_dist does."""
    if study.machine.hosts is None:
        return list(command)
    ranks = 1 if STRATEGIES[case.strategy].one_process else case.devices
    # Without a number, each task would get a single core.
    per_rank = (case.cores_per_device or 0) * case.devices // ranks
    cores = per_rank or max(study.machine.cores * case.hosts // ranks, 1)
    # A job that runs its tasks in containers says how; slurm/lib.sh writes both as words of a shell.
    container_flags = shlex.split(os.environ.get("MNIST_DIST_SRUN_FLAGS", ""))
    python = shlex.split(os.environ.get("MNIST_DIST_TASK_PYTHON", "")) or [sys.executable]
    task = [*python, *command[1:]] if command[0] == sys.executable else command
    return [
        *("srun", "--mpi=none", "--distribution=block", "--exact", "--unbuffered", "--label"),
        *("--kill-on-bad-exit=1", "--wait=20"),  # Ranks end together: one that does not is on a lost node.
        *(f"--nodes={case.hosts}", f"--ntasks={ranks}", f"--ntasks-per-node={ranks // case.hosts}"),
        f"--cpus-per-task={cores}",
        *([f"--gpus-per-node={case.devices // case.hosts}"] if study.machine.gpus else []),
        *container_flags,
        *task,
    ]


def _environment(study: Study) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(study.code), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _cores(case: Case, study: Study) -> set[int]:
    """Returns the cores that a case may use on this host: those of its devices, or all where it has no limit."""
    usable = sorted(os.sched_getaffinity(0))
    if study.machine.hosts is not None or case.cores_per_device is None:
        return set(usable)
    return set(usable[: case.cores_per_device * case.devices])


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    cores: set[int],
    log: Path,
    study: Study,
    tick: Callable[[], None],
) -> int | None:
    """Runs a command to its end, or to the end of its time; returns its exit code, or None when time was up."""
    with log.open("wb") as output, _bound_to(cores):
        process = subprocess.Popen(
            command,
            cwd=study.code,  # `python -m` looks for modules here first.
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_harness,
        )
    deadline = time.monotonic() + study.timeout_seconds
    try:
        while not _ended(process, TICK_SECONDS):
            tick()
            if time.monotonic() > deadline:
                return None
        return process.returncode
    finally:  # Also when the harness itself is interrupted.
        _end(process)


def _die_with_harness() -> None:
    """Asks the kernel to kill this child when the harness is killed: an orphan would disturb what is measured next."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a group: with a signal that its launcher hands on, then by force."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGKILL):  # Two SIGINT end a step of srun.
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGTERM:
                process.send_signal(number)
            else:
                os.killpg(process.pid, number)
        _ended(process, GRACE_SECONDS if number == signal.SIGTERM else 1.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # What the leader left behind.
    process.wait()


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Sleeps until a process ends, without looking again and again; returns whether it has."""
    if process.poll() is not None:
        return True
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:  # Before Linux 5.3.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    else:
        try:
            select.select([handle], [], [], seconds)
        finally:
            os.close(handle)
    return process.poll() is not None


@contextlib.contextmanager
def _bound_to(cores: set[int]) -> Iterator[None]:
    """Binds this thread to some cores, for a child to inherit."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - LOG_BYTES, 0))
        return [line[:500] for line in file.read().decode(errors="replace").splitlines()]


def _reason(code: int, tail: Sequence[str]) -> str:
    """Names the error that a case printed, or how it ended."""
    errors = [line for line in tail if re.search(r"\berror: |\w(Error|Exception)(: |$)", line)]
    ended = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
    return one_line(f"{ended}: {errors[-1]}" if errors else ended)


def _kernel_ooms() -> int:
    """Returns how many processes the kernel has killed for want of memory, as far as it tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(re.findall(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.M)[0])
    return 0


def find_machine(devices_per_host: int | None = None) -> Machine:
    """Finds what the cases of a study may use: this host's devices, or those of the Slurm job around this process."""
    from mnist_dist.benchmarks.records.environment import find_hardware
    from mnist_dist.cpuinfo import cpu_has_float16

    hardware = find_hardware()
    in_container = "MNIST_DIST_CONTAINER" in os.environ  # Of which this process knows nothing.
    missing = frozenset() if in_container else missing_packages()
    gpus = len(hardware.gpus)
    in_job = "SLURM_JOB_ID" in os.environ and shutil.which("srun") is not None
    hosts = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) if in_job else None
    cores = int(os.environ.get("SLURM_CPUS_ON_NODE", hardware.cores)) if in_job else hardware.cores
    has_float16 = gpus > 0 or cpu_has_float16()
    return Machine(cores, gpus, devices_per_host or gpus or cores, hosts, missing, has_float16)
