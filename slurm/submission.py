"""Submits a study whole or not at all, and keeps the record by which others find its jobs."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mnist_dist.config import explain
from mnist_dist.distributed.signals import signals_held
from mnist_dist.errors import TrainingError, UserError
from mnist_dist.files import reason_of, write_json
from mnist_dist.slurm import scheduler
from mnist_dist.slurm.study import Job, Request, report_command

ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED"),
)
ENDED_OR_ENDING = (*ENDED, "COMPLETING")  # Its processes have been told to end; Slurm waits for the last of them.


@dataclass(frozen=True)
class SubmittedJob:
    """A job of a study, or a member of an array, and the points (strategy, devices) that it measures."""

    job: str  # Slurm's number, as "17" or "17_2".
    name: str
    points: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Submitted:
    """What `slurm.json` in a results folder says: who measures what there."""

    jobs: tuple[SubmittedJob, ...]
    report_job: str
    submitted_at: str = ""

    @property
    def ids(self) -> list[str]:
        """The numbers that scancel and squeue take, arrays once, the report last."""
        return [*dict.fromkeys(job.job.split("_")[0] for job in self.jobs), self.report_job]


RECORD = TypeAdapter(Submitted)


def record_file(results: Path) -> Path:
    return results / "slurm.json"


def check_submission(request: Request, jobs: Sequence[Job], environment: Mapping[str, str]) -> None:
    """Raises UserError for what would make a study fail, before anything of it is submitted."""
    scheduler.require_sbatch()
    most = max(request.devices)
    per_node = min(most, request.devices_per_node) if request.gpus else 0
    scheduler.check_partition(request.site.partition or environment.get("SBATCH_PARTITION"), per_node)
    check_results(request.results)
    for job in jobs:
        scheduler.test_submission(job.command, environment)


def check_results(results: Path) -> None:
    """Checks that jobs can write into the folder, and that no study is under way in it."""
    token = results / "logs" / f".writable-{os.getpid()}"
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text("")
        token.unlink()
    except OSError as error:
        raise UserError(
            f"--results: cannot write into '{results}': {reason_of(error)}; expected a folder on a disk that all nodes "
            "share."
        ) from None
    if record_file(results).exists():
        submitted = read_submitted(results)
        active = [state.job for state in scheduler.job_states(submitted.ids) if state.state not in ENDED]
        if active:
            raise UserError(
                f"--results: the jobs {', '.join(active)} of '{results}' have not ended; wait for them, cancel them "
                f"with `mnist-dist slurm cancel {results}`, or name another folder."
            )


def submit_study(request: Request, jobs: Sequence[Job], environment: Mapping[str, str]) -> Submitted:
    """Submits all jobs and the report behind them; on a failure in between, cancels those that were submitted.

    Raises:
        TrainingError: Slurm refused a job, or nobody can tell whether it took it.
        UserError: the record cannot be written.
    """
    ids: list[str] = []
    try:
        for job in jobs:
            with signals_held():  # Until its number is known, by which it can be cancelled.
                ids.append(scheduler.submit(job.command, environment))
        members = [member for job, number in zip(jobs, ids, strict=True) for member in _members(job, number)]
        with signals_held():
            ids.append(scheduler.submit(report_command(request, ids), environment))
        submitted = Submitted(tuple(members), ids[-1], datetime.now(timezone.utc).isoformat(timespec="seconds"))
        write_json(record_file(request.results), RECORD.dump_python(submitted, mode="json"))
    except BaseException as error:  # Ctrl-C as well.
        left = _take_back(ids)
        if isinstance(error, scheduler.UnclearError):
            left = f"The job may be in the queue; look with `squeue --me`. {left}".rstrip()
        if isinstance(error, TrainingError):
            raise TrainingError(f"{error} {left or 'Nothing was submitted.'}") from None
        if left:
            print(left, file=sys.stderr)
        raise
    return submitted


def _take_back(ids: Sequence[str]) -> str:
    """Cancels what was submitted of a study that failed; returns what the user has to do where that fails, too."""
    try:
        if ids:
            scheduler.cancel(ids)
    except UserError as error:
        return f"The jobs before it were not cancelled ({error}); end them with `scancel {' '.join(ids)}`."
    return ""


def read_submitted(results: Path) -> Submitted:
    """Reads who measures what in a results folder; raises UserError where no study was submitted, or it is damaged."""
    file = record_file(results)
    try:
        return RECORD.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"STUDY: '{results}' holds no '{file.name}', expected the results folder of a study that "
            "`mnist-dist slurm scaling` has submitted."
        ) from None
    except OSError as error:
        raise UserError(f"STUDY: cannot read '{file}': {error.strerror}.") from None
    except ValidationError as error:
        raise UserError(f"STUDY: cannot read '{file}', it may be damaged: {explain(error)}") from None


def _members(job: Job, number: str) -> list[SubmittedJob]:
    numbers = [f"{number}_{index}" for index in range(len(job.points))] if job.is_array else [number]
    return [SubmittedJob(name, job.name, points) for name, points in zip(numbers, job.points, strict=True)]
