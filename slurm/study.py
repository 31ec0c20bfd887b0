"""The jobs of a scaling study: which there are, and the sbatch command of each. Text only; nothing is run here."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.errors import UserError, counted, nearest
from mnist_dist.slurm.site import Site, gpu_flag, sbatch_flags
from mnist_dist.strategies import BASELINE, STRATEGIES, beside_the_baseline, either, with_processes

SCRIPTS = Path(__file__).resolve().parent
# The batch files read variables; some sites hand on none, with SBATCH_EXPORT=NONE.
SBATCH = ("sbatch", "--parsable", "--export=ALL")


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        devices: numbers of devices to measure on.
        devices_per_node: that a node has, or as many of them as are to be used.
        gpus: whether a device is a GPU, or else a share of a node's cores.
        points: the strategies and numbers of devices that the suite measures.
        mode: "jobs" (one for each number of devices), "array" (of those) or "nested" (one job for all).
        options: further options of `mnist-dist bench run`.
    """

    devices: Sequence[int]
    devices_per_node: int
    gpus: bool
    points: Collection[tuple[str, int]]
    strategies: Sequence[str]
    suite: str
    results: Path
    mode: str
    site: Site
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """One submission: a job, or an array.

    Attributes:
        points: (strategy, devices) that it measures; of an array, those of each member.
        command: program and arguments that submit it.
    """

    name: str
    points: tuple[tuple[tuple[str, int], ...], ...]
    command: tuple[str, ...]
    is_array: bool = False


def plan_jobs(request: Request) -> list[Job]:
    """Returns the jobs that measure all points, the report's left out.

    Strategies that share a number of devices share a job, and so its nodes.

    Raises:
        UserError: strategies and numbers of devices do not go together.
    """
    check_request(request)
    if request.mode == "nested":
        return [_job(request, "all", "scaling", request.devices)]
    if request.mode == "array":
        return [_job(request, "array", "bench", request.devices)]
    return [_job(request, str(count), "bench", [count]) for count in request.devices]


def report_command(request: Request, job_ids: Sequence[str]) -> list[str]:
    """Returns the command that submits the report behind the given jobs, however they end."""
    return [
        *(*SBATCH, f"--job-name={request.results.name}-report"),
        f"--dependency=afterany:{':'.join(job_ids)}",
        *sbatch_flags(request.site),
        f"--output={log_pattern(request.results)}",
        *(str(SCRIPTS / "report.sbatch"), str(request.results)),
    ]


def render_commands(request: Request, jobs: Sequence[Job], environment: Mapping[str, str]) -> str:
    """Returns a shell script that submits what `scaling` does, and takes nothing back where a later job is refused."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f"mkdir -p {shlex.quote(str(request.results / 'logs'))}")
    names = [f"job{number}" for number in range(1, len(jobs) + 1)]
    last_number = "| grep -oE '^[0-9]+' | tail -n1"  # A site's `sbatch` may greet before it.
    lines += [f"{name}=$({shlex.join(job.command)} {last_number})" for name, job in zip(names, jobs, strict=True)]
    command = shlex.join(report_command(request, ["JOBS"]))
    lines.append(command.replace("afterany:JOBS", "afterany:" + ":".join(f"${name}" for name in names)))
    return "\n".join(lines)


def describe_study(request: Request, jobs: Sequence[Job]) -> str:
    """Returns what a study asks of the cluster and leaves out, in lines that a shell takes for comments."""
    kind, cores = ("GPU" if request.gpus else "device"), request.site.cpus_per_task
    members = sum(len(job.points) if job.is_array else 1 for job in jobs)
    devices = sum(
        max(count for group in job.points for _, count in group) * (len(job.points) if job.is_array else 1)
        for job in jobs
    )
    per_task = cores or "the default of Slurm, often 1 (--cpus-per-task)"
    hours = devices * seconds_of(request.site.time) / 3600
    lines = [
        f"# {members} job{'s' if members > 1 else ''} and one for the report: at most {hours:,.1f} {kind} hours within "
        f"the time limit of {request.site.time}; cores per task: {per_task}.",
        f"# {kind}s: {', '.join(f'{count} on {nodes_of(request, count)} node(s)' for count in request.devices)}"
        f"{'; one is the baseline' * (1 in request.devices)}.",
    ]
    for name in request.strategies:
        beyond = [count for count in request.devices if name not in strategies_on(request, count)]
        if beyond and STRATEGIES[name].one_process:
            lines.append(f"# Not measured: {name} on {', '.join(map(str, beyond))}, as it is one process on one node.")
    results = shlex.quote(str(request.results))
    lines.append(f"# The report: {results}/report.html, at the end; until then: mnist-dist slurm status {results}")
    return "\n".join(lines)


def seconds_of(limit: str) -> float:
    """Returns a time limit in seconds, in any form that sbatch takes: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = limit.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if not dash and len(parts) < 3:
            parts.insert(0, 0)  # Minutes come first where there are neither days nor hours.
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return 86_400.0 * int(days or 0) + 3600 * hours + 60 * minutes + seconds
    except ValueError:
        return math.inf  # `UNLIMITED`, or another word for it.


def log_pattern(results: Path) -> str:
    return str(results / "logs").replace("%", "%%") + "/%x-%j.out"


def strategies_on(request: Request, count: int) -> list[str]:
    """Returns the strategies that are measured on so many devices; the baseline of all curves is measured on one."""
    chosen = [name for name in (BASELINE, *request.strategies) if (name, count) in request.points]
    return [name for name in chosen if not STRATEGIES[name].one_process or count <= request.devices_per_node]


def nodes_of(request: Request, count: int) -> int:
    return -(-count // request.devices_per_node)


def check_strategies(strategies: Sequence[str]) -> None:
    known = beside_the_baseline()
    for name in strategies:
        if name not in known:
            raise UserError(
                f"--strategies: received '{name}', expected some of {','.join(known)} ('{BASELINE}' is measured as "
                f"the baseline of all).{nearest(name, known)}"
            )


def check_request(request: Request) -> None:
    kind = "gpus" if request.gpus else "devices"
    for count in request.devices:
        if count > request.devices_per_node and count % request.devices_per_node:
            raise UserError(
                f"--{kind}: received {count}, expected at most {request.devices_per_node}, or a multiple of it "
                f"(--{kind}-per-node), so that all nodes take an equal part."
            )
        if not any(devices == count for _, devices in request.points):
            raise UserError(
                f"--{kind}: received {count}, but '{request.suite}' has no case for that many; leave it out."
            )
        if not strategies_on(request, count):
            raise UserError(
                f"--strategies: '{','.join(request.strategies)}' is one process on one node, which has "
                f"{counted(request.devices_per_node, 'device')}, not {count}; add "
                f"{either(with_processes())}, or leave {count} out."
            )


def _job(request: Request, suffix: str, script: str, devices: Sequence[int]) -> Job:
    """Returns a job that measures on some of the study's numbers of devices, on as many nodes as the largest takes."""
    name, is_array = f"{request.results.name}-{suffix}", request.mode == "array"
    nodes = nodes_of(request, max(devices))
    per_node = max(devices) // nodes
    cores = request.site.cpus_per_task or (None if request.gpus else 1)
    command = [
        *(*SBATCH, f"--job-name={name}"),
        *([f"--array=0-{len(devices) - 1}"] if is_array else []),
        *sbatch_flags(request.site),
        *(f"--nodes={nodes}", f"--ntasks-per-node={per_node}"),
        *([gpu_flag(request.site, per_node)] if request.gpus else []),
        *([f"--cpus-per-task={cores}"] if cores else []),
        f"--output={log_pattern(request.results)}",
        str(SCRIPTS / f"{script}.sbatch"),
        *(request.suite, "--results", str(request.results)),
        # All jobs of a study state the whole of it, and then their part.
        *("--devices", ",".join(map(str, request.devices))),
        *(["--only", ",".join(map(str, devices))] if request.mode != "nested" else []),
        *("--devices-per-host", str(request.devices_per_node)),
        *("--strategies", ",".join([BASELINE, *request.strategies])),
        *(["--cores-per-device", str(cores)] if cores else []),
        *request.options,
        "--no-report",
    ]
    groups = [tuple((name, count) for name in strategies_on(request, count)) for count in devices]
    points = groups if is_array else [tuple(point for group in groups for point in group)]
    return Job(name, tuple(points), tuple(command), is_array)
