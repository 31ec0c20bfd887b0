"""The table of peers, as Markdown and JSON: throughput, time to an accuracy, and how many times ahead we are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from mnist_dist.benchmarks.analysis.in_turns import paired_ratio, rate_in_turns
from mnist_dist.benchmarks.kinds.peer import KIND as PEER
from mnist_dist.benchmarks.labels import label_count
from mnist_dist.benchmarks.peers.contestants import MODES, OURS, OURS_ACCURACY, Contestant, Mode
from mnist_dist.benchmarks.peers.scripts.script import TARGET_ACCURACY
from mnist_dist.benchmarks.peers.times import TimeTo, time_ratio, time_to
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.table import Cell, Column, estimate_cell, make_table, render_markdown
from mnist_dist.benchmarks.statistics.stats import Estimate, LogEstimate
from mnist_dist.errors import counted
from mnist_dist.files import write_json, write_text

TARGETS = (0.98, 0.99, 0.995)
COMPARED = TARGET_ACCURACY  # Peers end there.
# Of peers.json: the single runs behind a time.
HIDDEN = {"rows": {"__all__": {"seconds_to_accuracy": {"__all__": {"outcomes"}}}}}
SCHEDULER = ("SLURM_", "SRUN_")  # Of variables that say nothing of how a peer computes.
VERSIONS = ("python", "tensorflow", "keras", "horovod", "torch")
NOTES = """\
Images/s: trained by all devices together in turns of a fraction of a second, with 95 % intervals; ours/peer: how many
times more `{ours}` trains, within cycles in which both had a turn. Images/s of different networks are different work.
Time: from the beginning of the first step, so with tracing and compiling, to the end of the first evaluation on the
whole test set that reaches the accuracy, all evaluations until then included; without the turns of others, and without
checkpoints, which only ours writes. Where not all runs reach it: the expected time of repeating until one does. Peers
end at 99 %. Peer/ours: how many times longer than `{fast}` it takes to 99 %. Accuracy: on the test set at the end, mean
(lowest to highest). Runs: for throughput + for time, each a fresh process with a seed of its own."""


@dataclass(frozen=True, eq=False)
class Standing:
    """What is known of one contestant, by the names that peers.json has for it."""

    name: str
    label: str
    network: str
    images_per_second: Estimate | None
    ours_over_peer: Estimate | None  # Of throughput; None for ourselves.
    seconds_to_accuracy: dict[str, TimeTo | None]  # By accuracy.
    peer_over_ours_time: Estimate | None  # To COMPARED; None for ourselves.
    final_accuracies: list[float]  # On the test set, where runs do not end as soon as they reach COMPARED.
    runs: dict[Mode, int]  # That ended well.
    remarks: list[str]  # Reasons of runs that did not end well, each once.


def make_rows(contestants: Mapping[str, Contestant], records: Sequence[Record]) -> list[Standing]:
    """Returns a row for each contestant that is one of the table."""
    ours = contestants[OURS].records(records, "throughput") if OURS in contestants else []
    fast = contestants[OURS_ACCURACY].records(records, "accuracy") if OURS_ACCURACY in contestants else []
    time_of_ours = time_to(fast, COMPARED)
    rows = []
    for contestant in (each for each in contestants.values() if each.in_table):
        runs = {mode: contestant.records(records, mode) for mode in MODES}
        steady, whole = runs["throughput"], runs["accuracy"]
        is_peer = contestant.accuracy is not None and contestant.accuracy.kind == PEER.name
        times = {f"{target:g}": time_to(whole, target) for target in TARGETS if not is_peer or target <= COMPARED}
        compared = times[f"{COMPARED:g}"]
        ended = [record for record in whole if record.measured.get("evaluations")]
        rows.append(
            Standing(
                contestant.name,
                contestant.label,
                contestant.network,
                at_level(rate_in_turns(steady)),
                at_level(paired_ratio(ours, steady)) if is_peer else None,
                times,
                at_level(time_ratio(compared, time_of_ours)) if is_peer and compared and time_of_ours else None,
                [each.measured["evaluations"][-1]["accuracy"] for each in ended if not is_peer],
                {mode: sum(record.status == "ok" for record in of_mode) for mode, of_mode in runs.items()},
                reasons([*steady, *whole]),
            )
        )
    return rows


def at_level(estimate: LogEstimate | None) -> Estimate | None:
    return estimate.at_level() if estimate else None


def reasons(records: Sequence[Record]) -> list[str]:
    """Says why runs measured nothing, each reason once."""
    return sorted({f"{record.status.replace('_', ' ')}: {record.reason}" for record in records if record.reason})


def write_table(folder: Path, command: str, records: Sequence[Record], rows: Sequence[Standing]) -> str:
    """Writes peers.md and peers.json into a folder and returns the Markdown."""
    columns: list[Column[Standing]] = [
        Column("what", lambda row: Cell(row.name, row.label, style="code"), numeric=False),
        Column("network", lambda row: row.network, numeric=False),
        Column("images/s", lambda row: estimate_cell(row.images_per_second, label_count), "all devices"),
        Column("ours/peer", lambda row: estimate_cell(row.ours_over_peer, label_count)),
        *map(_time_column, TARGETS),
        Column("peer/ours", lambda row: estimate_cell(row.peer_over_ours_time, label_count)),
        Column("accuracy", lambda row: _accuracy_cell(row.final_accuracies)),
        Column("runs", lambda row: " + ".join(map(str, row.runs.values()))),
    ]
    remarks = [f"{row.name}: {reason}" for row in rows for reason in row.remarks]
    blocks = [render_markdown(make_table(columns, rows)), NOTES.format(ours=OURS, fast=OURS_ACCURACY), *remarks]
    return write_both(folder / "peers", command, records, blocks, {"rows": rows})


def write_both(
    name: Path, command: str, records: Sequence[Record], blocks: Sequence[str], numbers: Mapping[str, Any]
) -> str:
    """Writes blocks of Markdown below a head, and beside it the numbers as JSON, in which what is not known is null."""
    measured = head(command, records)
    text = "\n\n".join([measured, *blocks]) + "\n"
    content = to_jsonable_python(
        {"command": command, "measured": measured, **numbers}, exclude=HIDDEN, inf_nan_mode="null"
    )
    write_text(name.with_suffix(".md"), text)
    write_json(name.with_suffix(".json"), content)
    return text


def head(command: str, records: Sequence[Record]) -> str:
    """Says when, where and with what records were measured: processor, cores, GPUs and the versions that matter."""
    identity = records[0].identity
    hardware = identity.hardware
    parts = [f"{hardware.cpu_model}, {counted(hardware.cores, 'core')}"]
    parts += [gpu.name for gpu in hardware.gpus] or ["no GPU"]
    versions = dict(identity.software)
    for record in records:
        versions = record.measured.get("versions", {}) | versions
    shown = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    variables = [f"{name}={value}" for name, value in identity.environment.items() if not name.startswith(SCHEDULER)]
    where = "; ".join(", ".join(part) for part in (parts, shown, variables) if part)
    return f"Measured with `{command}` on {records[0].started_at[:10]}, on {where}."


def _time_column(target: float) -> Column[Standing]:
    def cell(row: Standing) -> Cell:
        time = row.seconds_to_accuracy.get(f"{target:g}")
        if time is None:
            return Cell()
        seconds = f"{time.expected_seconds:.1f} s" if math.isfinite(time.expected_seconds) else "never"
        return Cell(seconds, "" if time.reached == time.runs else f"{time.reached} of {time.runs}")

    return Column(f"time to {100 * target:g} %", cell)


def _accuracy_cell(accuracies: Sequence[float]) -> Cell:
    if not accuracies:
        return Cell()
    mean = sum(accuracies) / len(accuracies)
    return Cell(f"{100 * mean:.2f} %", f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f}")
