"""A survey of a partition: which nodes are measured, each by itself and then in pairs, and a job for each."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mnist_dist.benchmarks.analysis.survey import PAIR, read_surveyed
from mnist_dist.config import explain
from mnist_dist.errors import TrainingError, UserError
from mnist_dist.files import write_json
from mnist_dist.slurm import scheduler
from mnist_dist.slurm.scheduler import JobState, Node
from mnist_dist.slurm.site import Site, gpu_flag, sbatch_flags
from mnist_dist.slurm.status import describe
from mnist_dist.slurm.study import SBATCH, SCRIPTS, log_pattern, seconds_of
from mnist_dist.slurm.submission import ENDED, RECORD, Submitted, SubmittedJob, read_submitted, record_file

PACE_SECONDS = 0.05  # Between two submissions: a controller takes tens in a second.
NOT_USABLE = re.compile(r"drain|down|fail|maint|unk|reboot|inval|not_resp|.*\*$")
PENDING = ("PENDING", "CONFIGURING")


@dataclass(frozen=True)
class Plan:
    """What `survey.json` says: the partition as it was when it was surveyed last."""

    partition: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        devices_per_node: shares of a node's cores; None where devices are the GPUs that Slurm knows of.
        rounds: pairs that each node is part of, at most.
        wait_minutes: for a node to be free.
    """

    partition: str
    results: Path
    suite: str
    devices_per_node: int | None
    rounds: int
    wait_minutes: int
    site: Site


PLAN = TypeAdapter(Plan)


def plan_file(results: Path) -> Path:
    return results / "survey.json"


def read_plan(results: Path) -> Plan:
    """Reads which nodes a survey is of.

    Raises:
        UserError: there is none in the folder, or it is damaged.
    """
    file = plan_file(results)
    try:
        return PLAN.validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"--results: cannot read '{file}': {error.strerror}; expected the folder of `mnist-dist slurm survey`."
        ) from None
    except ValidationError as error:
        raise UserError(f"{file}: it may be damaged: {explain(error)}") from None


def tournament(nodes: Sequence[str], rounds: int) -> Iterator[list[tuple[str, str]]]:
    """Yields the first rounds of a tournament in which each meets each once (the circle method): disjoint pairs."""
    players: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(min(rounds, len(players) - 1)):
        pairs = zip(players[: len(players) // 2], reversed(players), strict=False)
        yield [(one, other) for one, other in pairs if one and other]
        players.insert(1, players.pop())


def plan_jobs(request: Request, nodes: Sequence[Node]) -> list[tuple[tuple[str, ...], list[str], tuple[str, ...]]]:
    """Returns what is still to be measured: the nodes of each job, its command, and the jobs that it comes behind.

    No two jobs of a survey share a node at a time: each comes behind those before it on its nodes.
    """
    done = set(read_surveyed(request.results))
    usable = [node for node in nodes if not NOT_USABLE.match(node.state)]
    groups: dict[int, list[str]] = {}
    for node in usable:
        groups.setdefault(request.devices_per_node or node.gpus or 1, []).append(node.name)
    last: dict[str, str] = {}
    jobs = []
    for devices, names in groups.items():
        rounds = tournament(sorted(names), request.rounds)
        for pair in [*((name,) for name in names), *(pair for of_round in rounds for pair in of_round)]:
            key = tuple(sorted(pair))
            if key not in done:
                before = tuple(dict.fromkeys(last[name] for name in pair if name in last))
                jobs.append((key, _command(request, key, devices), before))
                last |= dict.fromkeys(key, PAIR.join(key))
    return jobs


def _command(request: Request, nodes: tuple[str, ...], devices: int) -> list[str]:
    cores, gpus = request.site.cpus_per_task, request.devices_per_node is None
    seconds = 60 * request.wait_minutes + seconds_of(request.site.time)
    return [
        *(*SBATCH, f"--job-name={job_name(request.results)}", *sbatch_flags(request.site)),
        *(f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", f"--ntasks-per-node={devices}"),
        *([gpu_flag(request.site, devices)] if gpus else []),
        *([f"--cpus-per-task={cores or 1}"] if cores or not gpus else []),
        *([f"--deadline=now+{seconds:.0f}"] if seconds < float("inf") else []),
        *("--no-requeue", f"--output={log_pattern(request.results)}", str(SCRIPTS / "survey.sbatch")),
        *(str(request.results), request.suite, str(devices)),
    ]


def job_name(results: Path) -> str:
    return f"survey-{results.name}"


def report_command(request: Request) -> list[str]:
    """Returns what submits the report behind all jobs of the name, of which there may be too many to count them up."""
    return [
        *(*SBATCH, f"--job-name={job_name(request.results)}", "--dependency=singleton", *sbatch_flags(request.site)),
        *("--ntasks=1", f"--output={log_pattern(request.results)}", str(SCRIPTS / "survey.sbatch")),
        *("--report", str(request.results)),
    ]


def submit_survey(request: Request, nodes: Sequence[Node], environment: Mapping[str, str]) -> Submitted:
    """Submits job after job, the report last; keeps who they are, also of those before one that Slurm refuses."""
    write_json(plan_file(request.results), PLAN.dump_python(Plan(request.partition, tuple(nodes)), mode="json"))
    numbers: dict[str, str] = {}
    try:
        for key, command, before in plan_jobs(request, nodes):
            behind = [f"--dependency=afterany:{':'.join(numbers[each] for each in before)}"] if before else []
            numbers[PAIR.join(key)] = scheduler.submit([*command[:3], *behind, *command[3:]], environment)
            time.sleep(PACE_SECONDS)
    except TrainingError as error:
        print(f"{error} The same command goes on with the rest when these jobs have ended.", file=sys.stderr)
        if not numbers:
            raise
    finally:
        jobs = tuple(SubmittedJob(number, name, ()) for name, number in numbers.items())
        try:
            report = scheduler.submit(report_command(request), environment) if jobs else ""
        except TrainingError as error:
            print(f"{error} Make the report with --report {request.results}.", file=sys.stderr)
            report = jobs[-1].job
        submitted = Submitted(jobs, report, datetime.now(timezone.utc).isoformat(timespec="seconds"))
        if jobs:
            write_json(record_file(request.results), RECORD.dump_python(submitted, mode="json"))
    return submitted


@dataclass(frozen=True)
class Progress:
    """How far a survey is: of what has no result, by nodes with a plus between, why, in words.

    Attributes:
        lost: nodes and pairs whose measurement began and ended without a result.
        missing: nodes that are not measured yet, or cannot be.
    """

    plan: Plan
    lost: Mapping[str, str]
    missing: Mapping[str, str]
    pairs: int


def follow(results: Path, states: Mapping[str, JobState]) -> Progress:
    """Tells what has become of each node of a plan, from what its job has left and the states of jobs, if known."""
    plan, done = read_plan(results), read_surveyed(results)
    jobs = {job.name: job.job for job in read_submitted(results).jobs} if record_file(results).exists() else {}
    lost, missing = {}, {}
    names = {
        **{node.name: None for node in plan.nodes},
        **{PAIR.join(nodes): None for nodes in done},
        **dict.fromkeys(jobs),
    }
    by_name = {node.name: node.state for node in plan.nodes}
    for name in names:
        if tuple(name.split(PAIR)) in done:
            continue
        state = states.get(jobs.get(name, ""))
        told = f"job {jobs[name]}: {describe(state)}" if state else by_name.get(name, "no longer known to Slurm")
        began = (results / ("pairs" if PAIR in name else "nodes") / name).exists()
        is_over = state is None or state.state in ENDED
        if is_over and (began or (state and state.state in ("NODE_FAIL", "FAILED", "TIMEOUT", "OUT_OF_MEMORY"))):
            lost[name] = told
        elif PAIR not in name:
            missing[name] = told
    return Progress(plan, lost, missing, sum(PAIR in name for name in names))
