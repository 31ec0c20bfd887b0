"""A survey of a partition: which nodes are measured, each by itself and then in pairs, and a job for each."""

import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mnist_dist.benchmarks.analysis.survey import PAIR, Nodes, read_model, read_surveyed
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.config import Section
from mnist_dist.distributed.signals import signals_held
from mnist_dist.errors import TrainingError, UserError
from mnist_dist.files import write_json
from mnist_dist.slurm import scheduler
from mnist_dist.slurm.scheduler import JobState, Node
from mnist_dist.slurm.site import Site, gpu_flag, sbatch_flags
from mnist_dist.slurm.status import describe
from mnist_dist.slurm.study import SBATCH, SCRIPTS, log_pattern, seconds_of
from mnist_dist.slurm.submission import RECORD, Submitted, SubmittedJob, read_submitted, record_file

PACE_SECONDS = 0.05  # Between two submissions: a controller takes tens in a second.
NOT_USABLE = re.compile(r"drain|down|fail|maint|unk|reboot|inval|.*\*$")
BROKEN = ("NODE_FAIL", "FAILED", "TIMEOUT", "OUT_OF_MEMORY")


class Plan(Section):
    """What `survey.json` says: the partition, and each node's state, when it was surveyed last."""

    partition: str
    nodes: dict[str, str]


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


@dataclass(frozen=True)
class SurveyJob:
    """A job for a node or a pair; `behind` are those before it that share a node with it, by their names."""

    nodes: Nodes
    command: list[str]
    behind: list[str]

    @property
    def name(self) -> str:
        return PAIR.join(self.nodes)


def plan_file(results: Path) -> Path:
    return results / "survey.json"


def tournament(nodes: Sequence[str], rounds: int) -> Iterator[list[tuple[str, str]]]:
    """Yields the first rounds of a tournament in which each meets each once (the circle method): disjoint pairs."""
    players: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(min(rounds, len(players) - 1) if nodes[1:] else 0):
        pairs = zip(players[: len(players) // 2], reversed(players), strict=False)
        yield [(min(one, other), max(one, other)) for one, other in pairs if one and other]
        players.insert(1, players.pop())


def plan_jobs(request: Request, nodes: Sequence[Node]) -> list[SurveyJob]:
    """Returns a job for each node and pair that is still to be measured. No two of them share a node at a time.

    Nodes that are down have their places in the tournament, so that the next survey does not begin another one.
    """
    done, down = read_surveyed(request.results), {node.name for node in nodes if NOT_USABLE.match(node.state)}
    groups = group_by(nodes, lambda node: request.devices_per_node or node.gpus or 1)
    last: dict[str, str] = {}
    jobs = []
    for devices, of_group in groups.items():
        names = sorted(node.name for node in of_group)
        pairs = [pair for of_round in tournament(names, request.rounds) for pair in of_round]
        for key in [*((name,) for name in names), *pairs]:
            if key not in done and not down & {*key}:
                behind = list(dict.fromkeys(last[name] for name in key if name in last))
                jobs.append(SurveyJob(key, _job_command(request, key, devices), behind))
                last |= dict.fromkeys(key, jobs[-1].name)
    return jobs


def _job_command(request: Request, nodes: Nodes, devices: int) -> list[str]:
    has_gpus = request.devices_per_node is None
    cores = request.site.cpus_per_task or (None if has_gpus else 1)
    limit = seconds_of(request.site.time) + 60 * request.wait_minutes
    flags = [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", f"--ntasks-per-node={devices}", "--no-requeue"]
    flags += [gpu_flag(request.site, devices)] if has_gpus else []
    flags += [f"--cpus-per-task={cores}"] if cores else []
    flags += [f"--deadline=now+{limit:.0f}"] if limit < math.inf else []
    return [*_command(request, flags), request.suite, str(devices)]


def _command(request: Request, flags: Sequence[str], *mode: str) -> list[str]:
    head = [*SBATCH, f"--job-name=survey-{request.results.name}", *sbatch_flags(request.site), *flags]
    script = [str(SCRIPTS / "survey.sbatch"), *mode, str(request.results)]
    return [*head, f"--output={log_pattern(request.results)}", *script]


def submit_survey(request: Request, nodes: Sequence[Node], environment: Mapping[str, str]) -> Submitted:
    """Submits job after job, and a report behind them; where Slurm refuses one, those before it stay.

    Raises:
        TrainingError: Slurm refused the first.
    """
    plan = Plan(partition=request.partition, nodes={node.name: node.state for node in nodes})
    write_json(plan_file(request.results), plan.model_dump())
    numbers: dict[str, str] = {}
    last = ""
    try:
        for job in plan_jobs(request, nodes):
            behind = [f"--dependency=afterany:{':'.join(numbers[name] for name in job.behind)}"] if job.behind else []
            command = [*job.command[:3], *behind, *job.command[3:]]
            with signals_held():  # Until its number is known.
                numbers[job.name] = last = scheduler.submit(command, environment)
            time.sleep(PACE_SECONDS)
        # By a dependency on the name, as there may be too many jobs to count them up.
        last = scheduler.submit(_command(request, ["--dependency=singleton", "--ntasks=1"], "--report"), environment)
    except TrainingError as error:
        if not numbers:
            raise
        print(f"{error} Repeat the command for the rest when these jobs have ended.", file=sys.stderr)
    finally:  # When interrupted as well, so that `cancel` finds them.
        jobs = tuple(SubmittedJob(number, name, ()) for name, number in numbers.items())
        submitted = Submitted(jobs, last, datetime.now(timezone.utc).isoformat(timespec="seconds"))
        if jobs:
            write_json(record_file(request.results), RECORD.dump_python(submitted, mode="json"))
    return submitted


def read_plan(results: Path) -> Plan:
    if not plan_file(results).exists():
        raise UserError(f"DIR: '{results}' holds no 'survey.json'; expected the folder of `mnist-dist slurm survey`.")
    return read_model(Plan, plan_file(results))


def submitted_jobs(results: Path) -> dict[str, str]:
    """Returns the numbers of the jobs that were submitted last, by the names of their nodes."""
    if not record_file(results).exists():
        return {}
    return {job.name: job.job for job in read_submitted(results).jobs}


def follow(results: Path, plan: Plan, states: Mapping[str, JobState] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Says of each that is not measured why: of what was lost on the way, pairs too, and of nodes that are missing.

    Args:
        states: of jobs that Slurm knows; None where it cannot be asked.
    """
    done, jobs = read_surveyed(results), submitted_jobs(results)
    lost, missing = {}, {}
    for name in (each for each in dict.fromkeys([*plan.nodes, *jobs]) if tuple(each.split(PAIR)) not in done):
        state = (states or {}).get(jobs.get(name, ""))
        told = f"job {state.job}: {describe(state)}" if state else f"it is {plan.nodes.get(name, 'no longer known')}"
        began = (results / ("pairs" if PAIR in name else "nodes") / name).exists()
        has_ended = state.state in BROKEN if state else states is not None
        if (began and has_ended) or (state and state.state == "NODE_FAIL"):
            lost[name] = told
        elif PAIR not in name:
            missing[name] = told
    return lost, missing
