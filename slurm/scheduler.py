"""Asks Slurm and tells it what to do, through its own commands."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mnist_dist.errors import TrainingError, UserError, not_among, one_line

TIMEOUT_SECONDS = 120.0  # A busy controller answers late.
ELSEWHERE = "run this where jobs are submitted; without a cluster, --dry-run says what `mnist-dist slurm` would do."


class UnclearError(TrainingError):
    """Slurm may have done what it was asked to do, or not."""


@dataclass(frozen=True)
class Partition:
    name: str
    is_default: bool
    gpus_per_node: int  # Of the node that has most.


@dataclass(frozen=True)
class Node:
    """A node as `sinfo` tells of it; the state is Slurm's word, such as idle, or down*, which does not answer."""

    name: str
    state: str
    gpus: int


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job or of a member of an array.

    Attributes:
        job: as "17", or "17_2" for a member.
        state: Slurm's word, such as PENDING, RUNNING or COMPLETED.
        elapsed: as Slurm writes it, such as 1-02:03:04.
        reason: why it waits or how it ended, in Slurm's word.
    """

    job: str
    state: str
    elapsed: str
    reason: str = ""


def require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise UserError(f"sbatch: it is not on PATH; {ELSEWHERE}")


def partitions() -> list[Partition]:
    """Asks which partitions there are, and how many GPUs their nodes have."""
    found: dict[str, Partition] = {}
    for name, gres in _rows(_ask("sinfo", "--noheader", "--format=%P|%G"), 2):
        plain = name.removesuffix("*")
        gpus = max(count_gpus(gres), found[plain].gpus_per_node if plain in found else 0)
        found[plain] = Partition(plain, name.endswith("*"), gpus)
    return list(found.values())


def nodes_of(partition: str) -> list[Node]:
    """Asks once for all nodes of a partition."""
    rows = _rows(_ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%T|%G"), 3)
    return list({name: Node(name, state, count_gpus(gres)) for name, state, gres in rows}.values())


def count_gpus(gres: str) -> int:
    """Reads Slurm's generic resources: "gpu:a100:4(S:0-1),gpu:t4:1,nvme:1" has 5 GPUs."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    fields = [part.split(":") for part in plain.split(",")]
    return sum(int(field[-1]) if field[-1].isdigit() else 1 for field in fields if field[0] == "gpu")


def check_partition(name: str | None, gpus_per_node: int) -> None:
    """Compares what a study wants with what the partition has, or of several, separated by commas, the best of them.

    Raises:
        UserError: there is no such partition, or its nodes have fewer GPUs.
    """
    known = partitions()
    wanted = name.split(",") if name else [partition.name for partition in known if partition.is_default]
    chosen = [partition for partition in known if partition.name in wanted]
    names = [partition.name for partition in known]
    for each in wanted:
        if each not in names:
            raise UserError(f"--partition: {not_among(each, names)}")
    if not chosen:
        raise UserError(f"--partition: this cluster has no default, expected one of {', '.join(names)}.")
    best = max(chosen, key=lambda partition: partition.gpus_per_node)
    has = best.gpus_per_node
    if gpus_per_node > has:
        remedy = (
            "; to share out the cores of its nodes instead, use --devices and --devices-per-node" if has == 0 else ""
        )
        raise UserError(
            f"--gpus-per-node: received {gpus_per_node}, but the nodes of the partition '{best.name}' have "
            f"{has or 'no'} GPU{'s' * (has != 1)}{remedy}."
        )


def test_submission(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Lets Slurm say, without submitting, whether it would take a job; raises UserError with its reason if not."""
    done = _run([command[0], "--test-only", *command[1:]], environment)
    if done.returncode:
        reason = _reason(done)
        hint = " Name yours with --account or in the site's file." if "account" in reason else ""
        raise UserError(f"sbatch: {reason}{hint} Slurm would reject: {shlex.join(command)}")


def submit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submits and returns the job's number, whatever a site's own `sbatch` prints around it.

    Raises:
        TrainingError: Slurm refused.
        UnclearError: it may have taken the job, but the number is not known.
    """
    done = _run(command, environment)
    # A federation's cluster follows a semicolon.
    numbers = re.findall(r"^\s*(?:Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?\s*$", done.stdout, re.MULTILINE)
    if done.returncode == 0 and numbers:
        return numbers[-1]
    if done.returncode and not numbers:
        raise TrainingError(f"sbatch: {_reason(done)}")
    printed = one_line(f"{done.stdout} {done.stderr}")
    raise UnclearError(f"sbatch: it ended with {done.returncode} and printed '{printed}', expected a job ID.")


def cancel(jobs: Sequence[str]) -> None:
    done = _run(["scancel", *jobs])
    if done.returncode:
        raise UserError(f"scancel: {_reason(done)}")


def job_states(jobs: Sequence[str]) -> list[JobState]:
    """Asks for the states of jobs, arrays by their members: of recent ones from the controller, else from accounting.

    Jobs that neither knows any more are left out.

    Raises:
        UserError: neither answers.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}"]
    done = _run([*command, "--format=%F|%K|%T|%M|%r"])
    found = []
    for job, member, state, elapsed, reason in _rows(done.stdout, 5):
        name = f"{job}_{member}" if member.isdigit() else job
        found.append(JobState(name, state, elapsed, "" if reason == "None" else reason))
    forgotten = sorted(set(jobs) - {state.job.split("_")[0] for state in found})
    found += _from_accounting(forgotten) if forgotten else []
    if done.returncode and not found and "Invalid job id" not in done.stderr:
        raise UserError(f"squeue: {_reason(done)}")
    return found


def _from_accounting(jobs: Sequence[str]) -> list[JobState]:
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--array", f"--jobs={','.join(jobs)}"]
    done = _run([*command, "--format=JobID,State,Elapsed"])
    rows = _rows(done.stdout, 3) if done.returncode == 0 else []
    return [JobState(job, state.split()[0], elapsed) for job, state, elapsed in rows]


def _rows(text: str, columns: int) -> list[list[str]]:
    """Returns the lines of a table whose columns are separated by "|"; others are a site's greetings."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [row for row in rows if len(row) == columns and re.fullmatch(r"\S+", row[0])]


def _ask(*command: str) -> str:
    done = _run(command)
    if done.returncode:
        raise UserError(f"{command[0]}: Slurm does not answer here, it says '{_reason(done)}'; {ELSEWHERE}")
    return done.stdout


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C would end an sbatch that Slurm has answered already.
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: it is not on PATH; run this where jobs are submitted.") from None
    except subprocess.TimeoutExpired:
        raise UnclearError(f"{command[0]}: Slurm did not answer within {TIMEOUT_SECONDS:.0f} s.") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Makes one sentence of what a command of Slurm complained of, or else of all that it printed."""
    lines = [line.strip() for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\w+: (error|fatal): ", line)]
    unique = list(dict.fromkeys(re.sub(r"^\w+: (error: )?", "", line).rstrip(".") for line in errors or lines))
    return "; ".join(unique)[:400] + "." if unique else "it failed without any output."
