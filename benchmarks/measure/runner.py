"""Runs cases in fresh groups of processes that take turns, and makes a record of whatever comes of each.

The harness sleeps while one of them computes.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mnist_dist.benchmarks.measure.process import End, Running
from mnist_dist.benchmarks.measure.rounds import Contender, Limits, Round, Stage
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase, training_settings
from mnist_dist.benchmarks.measure.telemetry import open_meter, summarize
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.environment import CODE_FOLDER, find_hardware, identity
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record, Turns, explain_record
from mnist_dist.config import load_config
from mnist_dist.cpuinfo import cpu_has_float16, thread_siblings
from mnist_dist.distributed.cluster import expand_node_list, find_cluster, node_addresses, outside_of_step
from mnist_dist.distributed.membership import SECRET_VARIABLE, make_secret
from mnist_dist.distributed.signals import signals_held
from mnist_dist.errors import UserError, counted, one_line
from mnist_dist.files import writing
from mnist_dist.gpus import least_capability
from mnist_dist.strategies import STRATEGIES, missing_packages
from mnist_dist.training.workdir import Workdir


@dataclass(frozen=True)
class Study:
    """What all records of a results folder have in common.

    Attributes:
        code: the folder whose `mnist_dist` and `benchmarks` run; another checkout's when two are compared.
        under_test: settings that are the subject of a comparison, and so no part of any case.
    """

    name: str
    suite: str
    timeout_seconds: float
    machine: Machine
    scratch: Path
    width: float = 0.01
    code: Path = CODE_FOLDER
    program: Sequence[str] = (sys.executable, "-m", "mnist_dist")
    under_test: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One case, to be measured once in its study; `repeat` is also the seed of a training."""

    study: Study
    planned: PlannedCase
    repeat: int

    @property
    def case(self) -> Case:
        return self.planned.case

    @property
    def name(self) -> str:
        """What tells it from all others of a round."""
        return f"{self.study.name}/{self.planned.case_id}/{self.repeat}"


def run_round(
    runs: Sequence[Run],
    ratios: Sequence[tuple[Run, Run]],
    tick: Callable[[], None] = lambda: None,
    seed: int = 0,
    tell: Callable[[Stage], None] = lambda stage: None,
) -> Iterator[Record]:
    """Measures cases in turns and yields their records, once all have ended.

    Never raises for what a case does, only for what the harness cannot do; or, when all records are out, what
    interrupted the round.

    Args:
        ratios: whose rates are to be known to the width that the study asks for, each a numerator and a denominator.
        tell: learns what is going on; contenders have the names of their runs.
    """
    if ratios:
        import scipy.stats  # noqa: F401 - intervals need it; loading it later would disturb what is measured.

    study = runs[0].study
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder_for_a_while(study.scratch))
        started = {run.name: _Start(run, folder / str(number)) for number, run in enumerate(runs)}
        limits = Limits(
            seconds=sum(run.planned.measuring_seconds for run in runs),
            width=study.width,
            ratios=[tuple((run.name, run.planned.variants[0]) for run in pair) for pair in ratios],  # type: ignore[misc]
            timeout_seconds=study.timeout_seconds,
        )
        gpus = max(run.case.devices // run.case.hosts for run in runs) if study.machine.gpus else None
        meter = stack.enter_context(open_meter(gpus))
        contenders = [
            # Both sides of a comparison start at once, as their starts are not compared.
            Contender(
                run.name,
                started[run.name],
                run.planned.variants,
                together=place > 0 and runs[place - 1].case == run.case,
            )
            for place, run in enumerate(runs)
        ]
        round_ = Round(contenders, limits, tick, seed, meter, harness_address(study.machine), tell)
        cpu_began = time.process_time()
        standings = round_.run()
        round_id = uuid.uuid4().hex
        harness = (time.process_time() - cpu_began) / len(runs)
        with signals_held():  # Until all records are where they are kept.
            for run in runs:
                standing = standings.get(run.name)
                if standing is None or standing.end is None:  # The round was interrupted before anything came of it.
                    continue
                turns = Turns(
                    round_id=round_id,
                    contenders=len(runs),
                    waiting_cores=standing.waiting_cores,
                    # The ranks of a step of Slurm are no descendants of this process, and would count as others.
                    other_cores=None if study.machine.hosts else round_.other_cores,
                    ended=standing.ended or round_.ended,
                )
                yield started[run.name].record(
                    standing.end,
                    seconds=standing.own_seconds,
                    harness_cpu_seconds=harness,
                    # The meter sees this host alone.
                    telemetry=summarize(standing.energy, run.case.devices) if run.case.hosts == 1 else None,
                    # What never asked for a turn, as an older commit, was measured by itself while it started.
                    turns=turns if standing.group else None,
                )
    if round_.interruption:
        raise round_.interruption


@contextlib.contextmanager
def _folder_for_a_while(parent: Path) -> Iterator[Path]:
    """Yields a new folder that is gone afterwards, whenever a signal comes; those of killed rounds go before."""
    mine = f"round-{socket.gethostname()}-"  # Locks need not reach other hosts.
    with contextlib.ExitStack() as stack:
        with writing(parent), signals_held(), contextlib.ExitStack() as turn:
            parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # Else a folder that is new would look like one that was left.
                turn.enter_context(_locked(parent, fcntl.LOCK_EX))
                for left in parent.glob(f"{mine}????????"):  # As tempfile ends its names; another host's may go on.
                    with contextlib.suppress(OSError), _locked(left):
                        shutil.rmtree(left)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=mine, dir=parent))
            with contextlib.suppress(OSError):  # Some disks have no locks, and there nobody removes it.
                stack.enter_context(_locked(Path(folder)))
        try:
            yield Path(folder)
        finally:
            with signals_held():
                stack.close()


@contextlib.contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[None]:
    """Holds the lock of a folder until this process ends; raises OSError where it is taken, or there are none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def skipped(run: Run) -> Record:
    """Returns the record of a case that this machine cannot run."""
    nothing: dict[str, Any] = {"seconds": 0.0, "harness_cpu_seconds": 0.0, "telemetry": None, "turns": None}
    return _record(run, End("skipped", run.planned.skip_reason), config={}, started_at=_now(), **nothing)


class _Start:
    """Starts a run, and makes its record when it has ended."""

    def __init__(self, run: Run, scratch: Path) -> None:
        self._run, self._scratch = run, scratch
        self._started_at, self._config = "", {}  # type: tuple[str, Mapping[str, Any]]

    def __call__(self, variables: Mapping[str, str]) -> Running:
        run, study = self._run, self._run.study
        case = run.case.model_copy(update={"settings": {**run.case.settings, **study.under_test}})
        config = load_config("default", training_settings(case, run.repeat))
        self._started_at, self._config = _now(), config.model_dump(mode="json")
        with writing(self._scratch):
            self._scratch.mkdir()
            command = kind(case.kind).command(study.program, case, config, self._scratch)
            log = self._scratch / "output.log"
            log.touch()
        path = os.pathsep.join(filter(None, [str(study.code), os.environ.get("PYTHONPATH")]))
        environment = {**outside_of_step(os.environ), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}
        environment[SECRET_VARIABLE] = make_secret()
        return Running(launch_command(command, study, case), study.code, environment, _cores(case, study), log)

    def record(self, end: End, **measured: Any) -> Record:
        measured["config"], measured["started_at"] = self._written_config() or self._config, self._started_at
        end, found, hosts = self._collect(end)
        try:
            return _record(self._run, end, measurements=found, hosts=hosts, **measured)
        except ValidationError as error:  # Such as a loss that is not a number.
            end = End("failed", f"invalid measurements: {explain_record(error)}", end.tail)
            return _record(self._run, end, hosts=hosts, **measured)

    def _written_config(self) -> Mapping[str, Any] | None:
        """Returns the complete configuration that a training has written: another commit may have other defaults."""
        with contextlib.suppress(OSError, yaml.YAMLError):  # Not every kind trains, and not every training begins.
            found = yaml.safe_load(Workdir(self._scratch / "run").config_file.read_text())
            return found if isinstance(found, dict) else None
        return None

    def _collect(self, end: End) -> tuple[End, dict[str, Any] | None, Sequence[str]]:
        """Returns how it ended after all, what it measured if that can be trusted, and the hosts of its ranks."""
        if end.status != "ok":
            return end, None, ()
        try:
            measurements, hosts = kind(self._run.case.kind).collect(self._scratch)
        except (OSError, ValueError, TypeError, LookupError, UserError) as error:
            reason = one_line(f"it succeeded, but left no complete result: {error!r}")
            return End("failed", reason, end.tail), None, ()
        gpus, device = self._run.study.machine.gpus, str(measurements.get("device", ""))
        if gpus and device.upper().startswith("CPU"):
            reason = one_line(
                f"it computed on the {device}, but the study expects {counted(gpus, 'GPU')}; see `mnist-dist doctor`"
            )
            return End("failed", reason, end.tail), None, hosts
        return end, measurements, hosts


def _record(
    run: Run,
    end: End,
    *,
    config: Mapping[str, Any],
    started_at: str,
    hosts: Sequence[str] = (),
    measurements: dict[str, Any] | None = None,
    **measured: Any,
) -> Record:
    study = run.study
    return Record.new(
        run.case,
        study=study.name,
        suite=study.suite,
        repeat=run.repeat,
        seed=run.repeat,
        status=end.status,
        reason=end.reason,
        output_tail=() if end.status == "ok" else tuple(end.tail),
        started_at=started_at,
        identity=identity(config, hosts, "srun" if study.machine.hosts else "mnist-dist", code=study.code),
        measurements=measurements,
        **measured,
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def harness_address(machine: Machine) -> str:
    """Returns the address of this host at which the ranks of a study reach the harness.

    That is where it meets another node of the job; its own name may stand for a loopback device.

    Raises:
        UserError: there is no way to the other nodes.
    """
    nodes = expand_node_list(os.environ.get("SLURM_JOB_NODELIST", "")) if machine.hosts else []
    others = [node for node in nodes if node != os.environ.get("SLURMD_NODENAME")]
    if not others:
        return "127.0.0.1"
    address = node_addresses(others, os.environ).get(others[0], others[0])
    try:
        family, *_, there = min(socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM))  # IPv4 first.
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect(there)  # Which sends nothing.
            return way.getsockname()[0]
    except OSError as error:
        raise UserError(f"srun: cannot reach '{others[0]}' at {address} from this host: {error.strerror}.") from None


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
    gpu_flag = "--gres=gpu:" if os.environ.get("MNIST_DIST_GPU_FLAG") == "gres" else "--gpus-per-node="
    task = [*python, *command[1:]] if command[0] == sys.executable else command
    return [
        # Others of the round have steps on the same cores and GPUs, and wait.
        *("srun", "--mpi=none", "--distribution=block", "--export=ALL", "--overlap", "--unbuffered", "--label"),
        *("--kill-on-bad-exit=1", "--wait=20"),  # Ranks end together: one that does not is on a lost node.
        *(f"--nodes={case.hosts}", f"--ntasks={ranks}", f"--ntasks-per-node={ranks // case.hosts}"),
        f"--cpus-per-task={cores}",
        *([f"{gpu_flag}{case.devices // case.hosts}"] if study.machine.gpus else []),
        *container_flags,
        *task,
    ]


def _cores(case: Case, study: Study) -> set[int]:
    """Returns the cores that a case may use on this host: those of its devices, or all where it has no limit.

    The second hardware threads of physical cores come last.
    """
    usable = sorted(os.sched_getaffinity(0), key=lambda core: (thread_siblings(core).index(core), core))
    if study.machine.hosts is not None or case.cores_per_device is None:
        return set(usable)
    return set(usable[: case.cores_per_device * case.devices])


def find_machine(devices_per_host: int | None = None) -> Machine:
    """Finds what the cases of a study may use: this host's devices, or those of the Slurm job around this process.

    Raises:
        UserError: this is one of several processes, which would measure at once.
    """
    around = find_cluster(os.environ)
    if around.size > 1:
        raise UserError(
            f"bench: {around.launcher} started {around.size} processes, expected one, which starts the ranks."
        )
    hardware = find_hardware()
    in_container = "MNIST_DIST_CONTAINER" in os.environ  # Of which this process knows nothing.
    missing = frozenset() if in_container else missing_packages()
    gpus = len(hardware.gpus)
    in_job = "SLURM_JOB_ID" in os.environ and shutil.which("srun") is not None
    hosts = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) if in_job else None
    cores = int(os.environ.get("SLURM_CPUS_ON_NODE", hardware.cores)) if in_job else hardware.cores
    has_float16 = gpus > 0 or cpu_has_float16()
    capability = least_capability() if gpus else None
    return Machine(cores, gpus, devices_per_host or gpus or cores, hosts, missing, has_float16, capability)
