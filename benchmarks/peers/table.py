"""The table of peers, as Markdown and JSON: throughput, time to an accuracy, and how many times ahead we are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.analysis.in_turns import paired_ratio, rate_in_turns
from mnist_dist.benchmarks.kinds.peer import KIND as PEER
from mnist_dist.benchmarks.peers.contestants import MODES, OURS, OURS_ACCURACY, Contestant
from mnist_dist.benchmarks.peers.scripts.script import TARGET_ACCURACY
from mnist_dist.benchmarks.peers.times import TimeTo, time_ratio, time_to
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.labels import MISSING, label_range
from mnist_dist.benchmarks.statistics.stats import Estimate, LogEstimate
from mnist_dist.files import write_json, write_text

TARGETS = (0.98, 0.99, 0.995)
COMPARED = TARGET_ACCURACY  # Peers end there.
SCHEDULER = ("SLURM_", "SRUN_")
VERSIONS = ("python", "tensorflow", "keras", "horovod", "torch")
HEADS = (
    "",
    "network",
    "images/s, all devices",
    "ours/peer",
    *(f"time to {100 * target:g} %" for target in TARGETS),
    "peer/ours",
    "accuracy",
    "runs",
)
NOTES = """\
Images/s: trained by all devices together in turns of a fraction of a second, with 95 % intervals; ours/peer: how many
times more `{ours}` trains, within cycles in which both had a turn. Images/s of different networks are different work.
Time: from the beginning of the first step, so with tracing and compiling, to the end of the first evaluation on the
whole test set that reaches the accuracy, all evaluations until then included; without the turns of others, and without
checkpoints, which only ours writes. Where not all runs reach it: the expected time of repeating until one does. Peers
end at 99 %. Peer/ours: how many times longer than `{fast}` it takes to 99 %. Accuracy: on the test set at the end, mean
(lowest to highest). Runs: for throughput + for time, each a fresh process with a seed of its own."""


@dataclass(frozen=True, eq=False)
class Row:
    """What is known of one contestant.

    Attributes:
        ratio: our throughput over its own; None for ourselves.
        times: by accuracy.
        time_ratio: its time to COMPARED over ours; None for ourselves.
        accuracies: on the test set at the end of each run, where runs do not end as soon as they reach COMPARED.
        failures: reasons of runs that did not end well, each once.
    """

    contestant: Contestant
    rate: Estimate | None
    ratio: Estimate | None
    times: dict[float, TimeTo | None]
    time_ratio: Estimate | None
    accuracies: list[float]
    runs: tuple[int, int]
    failures: list[str]


def make_rows(contestants: Mapping[str, Contestant], records: Sequence[Record]) -> list[Row]:
    """Returns a row for each contestant that is one of the table."""
    ours = contestants[OURS].records(records, "throughput") if OURS in contestants else []
    fast = contestants[OURS_ACCURACY].records(records, "accuracy") if OURS_ACCURACY in contestants else []
    time_of_ours = time_to(fast, COMPARED)
    rows = []
    for contestant in (each for each in contestants.values() if each.in_table):
        steady, whole = (contestant.records(records, mode) for mode in MODES)
        is_peer = contestant.accuracy is not None and contestant.accuracy.kind == PEER.name
        times = {target: time_to(whole, target) for target in TARGETS if not is_peer or target <= COMPARED}
        compared = times[COMPARED]
        rows.append(
            Row(
                contestant,
                at_level(rate_in_turns(steady)),
                at_level(paired_ratio(ours, steady)) if is_peer else None,
                times,
                at_level(time_ratio(compared, time_of_ours)) if is_peer and compared and time_of_ours else None,
                [] if is_peer else _final_accuracies(whole),
                (_count_ok(steady), _count_ok(whole)),
                reasons([*steady, *whole]),
            )
        )
    return rows


def at_level(estimate: LogEstimate | None) -> Estimate | None:
    return estimate.at_level() if estimate else None


def reasons(records: Sequence[Record]) -> list[str]:
    """Says why runs measured nothing, each reason once."""
    return sorted({f"{record.status.replace('_', ' ')}: {record.reason}" for record in records if record.reason})


def write_table(folder: Path, command: str, records: Sequence[Record], rows: Sequence[Row]) -> str:
    """Writes peers.md and peers.json into a folder and returns the Markdown."""
    text = render(command, records, rows)
    write_text(folder / "peers.md", text)
    write_json(folder / "peers.json", to_json(command, records, rows))
    return text


def render(command: str, records: Sequence[Record], rows: Sequence[Row]) -> str:
    """Renders the table as Markdown."""
    lines = [
        introduce(command, records),
        "",
        f"| {' | '.join(HEADS)} |",
        "|---|---|" + "---:|" * (len(HEADS) - 2),
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
        NOTES.format(ours=OURS, fast=OURS_ACCURACY),
    ]
    lines += [f"\n{row.contestant.name}: {reason}" for row in rows for reason in row.failures]
    return "\n".join(lines) + "\n"


def introduce(command: str, records: Sequence[Record]) -> str:
    """Says when, where and with what records were measured: processor, cores, GPUs and the versions that matter."""
    identity = records[0].identity
    hardware = identity.hardware
    parts = [f"{hardware.cpu_model}, {hardware.cores} core{'s' if hardware.cores != 1 else ''}"]
    parts += [gpu.name for gpu in hardware.gpus] or ["no GPU"]
    versions = dict(identity.software)
    for record in records:
        versions = (record.measurements or {}).get("versions", {}) | versions
    shown = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    variables = [f"{name}={value}" for name, value in identity.environment.items() if not name.startswith(SCHEDULER)]
    where = "; ".join(", ".join(part) for part in (parts, shown, variables) if part)
    return f"Measured with `{command}` on {records[0].started_at[:10]}, on {where}."


def to_json(command: str, records: Sequence[Record], rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the table with its numbers; what is not known is null."""
    return {
        "command": command,
        "measured": introduce(command, records),
        "rows": [
            {
                "name": row.contestant.name,
                "label": row.contestant.label,
                "network": row.contestant.network,
                "images_per_second": estimate_to_json(row.rate),
                "ours_over_peer": estimate_to_json(row.ratio),
                "seconds_to_accuracy": {
                    f"{target:g}": time
                    and {
                        "reached": time.reached,
                        "runs": time.runs,
                        "expected_seconds": _finite(time.expected_seconds),
                    }
                    for target, time in row.times.items()
                },
                "peer_over_ours_time": estimate_to_json(row.time_ratio),
                "final_accuracies": row.accuracies,
                "runs": {"throughput": row.runs[0], "accuracy": row.runs[1]},
                "remarks": row.failures,
            }
            for row in rows
        ],
    }


def estimate_to_json(estimate: Estimate | None) -> dict[str, Any] | None:
    return {name: _finite(value) for name, value in asdict(estimate).items()} if estimate else None


def estimate_text(estimate: Estimate | None) -> str:
    """Returns, for example, `4.1 (3.9-4.3)`."""
    if estimate is None:
        return MISSING
    interval = label_range(estimate.low, estimate.high, number)
    return number(estimate.value) + (f" ({interval})" if interval else "")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(row: Row) -> list[str]:
    contestant = row.contestant
    return [
        f"`{contestant.name}`: {contestant.label}",
        contestant.network,
        estimate_text(row.rate),
        estimate_text(row.ratio),
        *(_time_text(row.times.get(target)) for target in TARGETS),
        estimate_text(row.time_ratio),
        _accuracy_text(row.accuracies),
        f"{row.runs[0]} + {row.runs[1]}",
    ]


def _time_text(time: TimeTo | None) -> str:
    if time is None:
        return MISSING
    seconds = f"{time.expected_seconds:.1f} s" if math.isfinite(time.expected_seconds) else "never"
    return seconds if time.reached == time.runs else f"{seconds} ({time.reached} of {time.runs})"


def _final_accuracies(records: Sequence[Record]) -> list[float]:
    ended = [(record.measurements or {}).get("evaluations") for record in records]
    return [evaluations[-1]["accuracy"] for evaluations in ended if evaluations]


def _accuracy_text(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return MISSING
    mean = sum(accuracies) / len(accuracies)
    return f"{100 * mean:.2f} % ({100 * min(accuracies):.2f} to {100 * max(accuracies):.2f})"


def _count_ok(records: Sequence[Record]) -> int:
    return sum(record.status == "ok" for record in records)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
