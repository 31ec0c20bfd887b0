"""What has become of a study: the state of its jobs, and the results of its points so far."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_dist.slurm.scheduler import JobState
from mnist_dist.slurm.submission import ENDED, Submitted, record_file

HEADER = ("strategy", "devices", "job", "state", "time", "measured", "failed")


def render_status(submitted: Submitted, states: Sequence[JobState], results: Path) -> str:
    """Returns a table with a line for each point, and what comes of the report."""
    by_job = {state.job: state for state in states}
    counts = count_results(results)
    rows = [HEADER]
    for job in submitted.jobs:
        state = by_job.get(job.job, JobState(job.job, "unknown", "-", "Slurm no longer knows it"))
        for point in job.points:
            measured, failed = counts.get(point, (0, 0))
            rows.append((point[0], str(point[1]), job.job, describe(state), state.elapsed, str(measured), str(failed)))
    report = by_job.get(submitted.report_job)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", describe_report(submitted, report, results)])


def describe(state: JobState) -> str:
    """Returns the state, with the reason where there is more to say."""
    return f"{state.state} ({state.reason})" if state.reason and state.reason != "Prolog" else state.state


def describe_report(submitted: Submitted, state: JobState | None, results: Path) -> str:
    report = results / "report.html"
    if report.exists() and report.stat().st_mtime >= record_file(results).stat().st_mtime:  # No earlier submission's.
        return f"report: {report}"
    if state is None or state.state in ENDED:
        return f"report: none; job {submitted.report_job} has ended. Make it with `mnist-dist bench report {results}`."
    return f"report: will be in {results} (job {submitted.report_job}: {describe(state)})"


def count_results(results: Path) -> dict[tuple[str, int], tuple[int, int]]:
    """Counts, by strategy and devices, the records of measurements that succeeded and that failed.

    Of each it reads only what it needs, as a study may have thousands.
    """
    counts: dict[tuple[str, int], tuple[int, int]] = {}
    for file in sorted((results / "records").glob("[!.]*.json")):
        try:
            content = json.loads(file.read_text())
            status, point = content["status"], (content["case"]["strategy"], content["case"]["devices"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"left out: cannot read '{file}' ({error!r}); it may be damaged.", file=sys.stderr)
            continue
        measured, failed = counts.get(point, (0, 0))
        counts[point] = (measured + (status == "ok"), failed + (status not in ("ok", "skipped")))
    return counts
