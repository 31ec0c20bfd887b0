"""The table of peers, as Markdown and JSON: throughput, time to an accuracy, and how many times ahead we are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.peers.contestants import OURS, OURS_ACCURACY, Contestant
from mnist_dist.benchmarks.peers.estimates import Throughput, TimeTo, throughput, throughput_ratio, time_ratio, time_to
from mnist_dist.benchmarks.peers.runs import PeerStudy, Run
from mnist_dist.benchmarks.peers.scripts.script import TARGET_ACCURACY
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.report.labels import label_count
from mnist_dist.benchmarks.report.table import Cell, Column, estimate_cell, make_table, render_markdown
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.files import write_json, write_text

TARGETS = (0.98, 0.99, 0.995)
COMPARED = TARGET_ACCURACY  # Peers end there.
VERSIONS = ("python", "tensorflow", "keras", "horovod", "torch")
NOTES = """\
Images/s: trained by all devices together in the steady state, with 95 % intervals; ours/peer: how many times more
`{ours}` trains. Images/s of different networks are different work.
Time: from the beginning of the first step, so with tracing and compiling, to the end of the first evaluation on the
whole test set that reaches the accuracy, all evaluations until then included; without checkpoints, which only ours
writes. Where not all runs reach it: the expected time of repeating until one does. Peers end at 99 %. Peer/ours: how
many times longer than `{fast}` it takes to 99 %. Accuracy: on the test set at the end, mean (lowest to highest).
Runs: for throughput + for time, each a fresh process with a seed of its own, interleaved in a random order; the ratios
compare runs of the same repeat."""


@dataclass(frozen=True, eq=False)
class Standing:
    """What is known of one contestant.

    Attributes:
        ratio: our throughput over its own; None for ourselves.
        times: by accuracy.
        time_ratio: its time to COMPARED over ours; None for ourselves.
        accuracies: on the test set at the end of each run, where runs do not end as soon as they reach COMPARED.
        failures: reasons of runs that did not end well, each once.
    """

    contestant: Contestant
    throughput: Throughput
    ratio: Estimate | None
    times: dict[float, TimeTo | None]
    time_ratio: Estimate | None
    accuracies: list[float]
    runs: tuple[int, int]
    failures: list[str]


def make_rows(contestants: Mapping[str, Contestant], runs: Sequence[Run]) -> list[Standing]:
    """Returns a row for each contestant that is one of the table."""
    by_name = {name: [run for run in runs if run.contestant == name] for name in contestants}
    rate_of_ours = throughput(by_name.get(OURS, []))
    time_of_ours = time_to(by_name.get(OURS_ACCURACY, []), COMPARED)
    rows = []
    for name, contestant in contestants.items():
        if not contestant.in_table:
            continue
        own, peer = by_name[name], not isinstance(contestant.accuracy, Case)
        targets = [target for target in TARGETS if not peer or target <= COMPARED]
        rate, times = throughput(own), {target: time_to(own, target) for target in targets}
        compared = times[COMPARED]
        rows.append(
            Standing(
                contestant,
                rate,
                throughput_ratio(rate, rate_of_ours) if peer else None,
                times,
                time_ratio(compared, time_of_ours) if peer and compared and time_of_ours else None,
                [] if peer else _final_accuracies(own),
                (_count_ok(own, "throughput"), _count_ok(own, "accuracy")),
                sorted({f"{run.status.replace('_', ' ')}: {run.reason}" for run in own if run.reason}),
            )
        )
    return rows


def write_table(folder: Path, command: str, study: PeerStudy, rows: Sequence[Standing]) -> str:
    """Writes peers.md and peers.json into a folder and returns the Markdown."""
    text = render(command, study, rows)
    write_text(folder / "peers.md", text)
    write_json(folder / "peers.json", to_json(command, study, rows))
    return text


def render(command: str, study: PeerStudy, rows: Sequence[Standing]) -> str:
    """Renders the table as Markdown."""
    columns: list[Column[Standing]] = [
        Column("what", lambda row: Cell(row.contestant.name, row.contestant.label, style="code"), numeric=False),
        Column("network", lambda row: row.contestant.network, numeric=False),
        Column("images/s", lambda row: estimate_cell(row.throughput.rate, label_count), "all devices"),
        Column("ours/peer", lambda row: estimate_cell(row.ratio, label_count)),
        *map(_time_column, TARGETS),
        Column("peer/ours", lambda row: estimate_cell(row.time_ratio, label_count)),
        Column("accuracy", lambda row: _accuracy_cell(row.accuracies)),
        Column("runs", lambda row: f"{row.runs[0]} + {row.runs[1]}"),
    ]
    blocks = [
        head(command, study),
        render_markdown(make_table(columns, rows)),
        NOTES.format(ours=OURS, fast=OURS_ACCURACY),
    ]
    blocks += [f"{row.contestant.name}: {reason}" for row in rows for reason in _remarks(row)]
    return "\n\n".join(blocks) + "\n"


def head(command: str, study: PeerStudy) -> str:
    """Returns what was measured when, where and with what, as a sentence."""
    return f"Measured with `{command}` on {study.date}, on {describe_machine(study)}."


def describe_machine(study: PeerStudy) -> str:
    """Returns processor, cores, GPUs and the versions that matter, in one line."""
    hardware = study.hardware
    parts = [f"{hardware.cpu_model}, {hardware.cores} core{'s' if hardware.cores != 1 else ''}"]
    parts += [gpu.name for gpu in hardware.gpus] or ["no GPU"]
    versions = dict(study.software) | ({"torch": study.pytorch} if study.pytorch else {})
    shown = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    variables = [f"{name}={value}" for name, value in study.environment.items()]
    return "; ".join(", ".join(part) for part in (parts, shown, variables) if part)


def to_json(command: str, study: PeerStudy, rows: Sequence[Standing]) -> dict[str, Any]:
    """Returns the table with its raw numbers; what is not known is null."""
    return {
        "command": command,
        "study": study.model_dump(mode="json"),
        "rows": [
            {
                "name": row.contestant.name,
                "label": row.contestant.label,
                "network": row.contestant.network,
                "images_per_second": estimate_to_json(row.throughput.rate),
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
                "remarks": _remarks(row),
            }
            for row in rows
        ],
    }


def estimate_to_json(estimate: Estimate | None) -> dict[str, Any] | None:
    return {name: _finite(value) for name, value in asdict(estimate).items()} if estimate else None


def _time_column(target: float) -> Column[Standing]:
    def cell(row: Standing) -> Cell:
        time = row.times.get(target)
        if time is None:
            return Cell()
        seconds = f"{time.expected_seconds:.1f} s" if math.isfinite(time.expected_seconds) else "never"
        return Cell(seconds, "" if time.reached == time.runs else f"{time.reached} of {time.runs}")

    return Column(f"time to {100 * target:g} %", cell)


def _final_accuracies(runs: Sequence[Run]) -> list[float]:
    ended = [run.measured.evaluations for run in runs if run.mode == "accuracy" and run.measured]
    return [evaluations[-1].accuracy for evaluations in ended if evaluations]


def _accuracy_cell(accuracies: Sequence[float]) -> Cell:
    if not accuracies:
        return Cell()
    mean = sum(accuracies) / len(accuracies)
    return Cell(f"{100 * mean:.2f} %", f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f}")


def _remarks(row: Standing) -> list[str]:
    unstable = row.throughput.why_unknown
    return row.failures + ([unstable] if unstable and unstable.startswith("unstable") else [])


def _count_ok(runs: Sequence[Run], mode: str) -> int:
    return sum(run.mode == mode and run.status == "ok" for run in runs)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
