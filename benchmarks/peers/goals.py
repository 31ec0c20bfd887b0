"""Goals for our speed relative to others, and whether runs reach them: ratios only, as absolute times say little.

A goal is reached where the whole interval of the ratio lies at or above it, missed where it lies below, and open
otherwise. With several denominators it must hold against each of them, so the worst decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from mnist_dist.benchmarks.kinds import matmul
from mnist_dist.benchmarks.peers.contestants import Contestant
from mnist_dist.benchmarks.peers.estimates import (
    Throughput,
    TimeTo,
    throughput,
    throughput_ratio,
    time_ratio,
    time_to,
    why_none,
)
from mnist_dist.benchmarks.peers.runs import Mode, PeerStudy, Run
from mnist_dist.benchmarks.peers.table import estimate_to_json, head
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.report.labels import MISSING, label_count
from mnist_dist.benchmarks.report.table import Cell, Column, estimate_cell, make_table, render_markdown
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.config import PositiveFloat, Section, explain
from mnist_dist.errors import EXIT_FAILED, UserError, nearest
from mnist_dist.files import write_json, write_text

EXIT_OPEN = 3
TARGET = 0.99

Status = Literal["reached", "missed", "open", "not for GPUs"]
STATUS_WORDS: dict[Status, str] = {
    "reached": "reached",
    "missed": "not reached",
    "open": "cannot tell",
    "not for GPUs": "not for GPUs",
}


class Goal(Section):
    """One entry of goals.yaml, which explains the fields."""

    name: str
    description: str
    numerator: str
    denominators: list[str]
    of: Literal["throughput", "flops", "time_to_99"] = "throughput"
    at_least: PositiveFloat
    cpu_only: bool = False

    @property
    def mode(self) -> Mode:
        return "accuracy" if self.of == "time_to_99" else "throughput"


@dataclass(frozen=True)
class JudgedGoal:
    """What came of a goal.

    Attributes:
        against: the denominator that decides.
        ratio: None where it is not known.
        detail: what was divided by what, or why nothing was.
        failed: whether a run that it needed went wrong.
    """

    goal: Goal
    status: Status
    against: str
    ratio: Estimate | None
    detail: str
    failed: bool = False


def load_goals(only: Sequence[str] | None = None) -> list[Goal]:
    """Returns the goals, or those that a user names.

    Raises:
        UserError: a name is not known, or the file is not accepted.
    """
    text = (resources.files("mnist_dist.benchmarks.peers") / "goals.yaml").read_text(encoding="utf-8")
    try:
        goals = {content["name"]: Goal.model_validate(content) for content in yaml.safe_load(text)}
    except ValidationError as error:
        raise UserError(f"goals.yaml: {explain(error)}") from None
    for name in only or ():
        if name not in goals:
            raise UserError(f"--only: received '{name}', expected some of {','.join(goals)}." + nearest(name, goals))
    return [goal for name, goal in goals.items() if only is None or name in only]


def needed_runs(
    goals: Sequence[Goal], contestants: Mapping[str, Contestant], *, on_gpus: bool
) -> list[tuple[Contestant, Mode]]:
    """Returns what must be measured to judge the goals, each once."""
    needed: dict[tuple[str, Mode], Contestant] = {}
    for goal in goals:
        for name in () if goal.cpu_only and on_gpus else (goal.numerator, *goal.denominators):
            found = contestants[name]
            needed[found.name, goal.mode] = found
    return [(contestant, mode) for (_, mode), contestant in needed.items()]


def judge(
    goal: Goal, contestants: Mapping[str, Contestant], runs: Sequence[Run], *, on_gpus: bool = False
) -> JudgedGoal:
    """Judges one goal by what was measured."""
    if goal.cpu_only and on_gpus:
        return JudgedGoal(goal, "not for GPUs", goal.denominators[0], None, "")
    judged = [_judge_one(goal, name, contestants, runs) for name in goal.denominators]
    order: list[Status] = ["missed", "open", "reached"]
    worst = min(judged, key=lambda each: (order.index(each.status), each.ratio.value if each.ratio else 0.0))
    return replace(worst, failed=any(each.failed for each in judged))


def _judge_one(goal: Goal, denominator: str, contestants: Mapping[str, Contestant], runs: Sequence[Run]) -> JudgedGoal:
    sides = [contestants[name] for name in (denominator, goal.numerator)]
    base, new = ([run for run in runs if run.contestant == side.name and run.mode == goal.mode] for side in sides)
    failed = any(run.status not in ("ok", "skipped") for run in (*base, *new))
    if goal.mode == "accuracy":
        ratio, detail = _time_ratio(sides, base, new)
    else:
        ratio, detail = _rate_ratio(goal, sides, base, new)
    status: Status = "open"
    if ratio is not None and ratio.low >= goal.at_least:
        status = "reached"
    elif ratio is not None and ratio.high < goal.at_least:
        status = "missed"
    return JudgedGoal(goal, status, denominator, ratio, detail, failed)


def _rate_ratio(
    goal: Goal, sides: Sequence[Contestant], base: Sequence[Run], new: Sequence[Run]
) -> tuple[Estimate | None, str]:
    # Matrix products are calibrated and timed from the second call on: ten timings, without a warm-up to find.
    calibrated = isinstance(sides[0].throughput, Case) and sides[0].throughput.kind == matmul.KIND.name
    of_base = throughput(base, steady=not calibrated)
    of_new = throughput(new, per_image=goal.of == "flops")
    for side, of in zip(sides, (of_base, of_new), strict=True):
        if of.rate is None:
            return None, f"{side.name}: {of.why_unknown}"
    ratio = throughput_ratio(of_base, of_new)
    if ratio is None:
        return None, f"{sides[1].name} and {sides[0].name} have no repeat in common"
    if goal.of == "flops":
        return ratio, _flops_detail(new, of_new, of_base)
    return ratio, f"{_rate(of_new)} / {_rate(of_base)} images/s"


def _flops_detail(runs: Sequence[Run], of_new: Throughput, of_base: Throughput) -> str:
    """States which count of operations was used."""
    counts = sorted({run.measured.flops_per_image for run in runs if run.measured and run.measured.flops_per_image})
    shown = " or ".join(f"{count / 1e6:.2f}" for count in counts)
    rates = [each.rate.value / 1e9 if each.rate else 0.0 for each in (of_new, of_base)]
    return f"{label_count(rates[0])} / {label_count(rates[1])} GFLOP/s, at {shown} MFLOP for each image"


def _time_ratio(sides: Sequence[Contestant], base: Sequence[Run], new: Sequence[Run]) -> tuple[Estimate | None, str]:
    times: list[TimeTo] = []
    for side, runs in zip(sides, (base, new), strict=True):
        time = time_to(runs, TARGET)
        if time is None:
            return None, f"{side.name}: {why_none(runs)}"
        if time.reached == 0:
            return None, f"{side.name}: none of {time.runs} runs reached {100 * TARGET:g} %"
        times.append(time)
    return time_ratio(*times), " / ".join(f"{time.expected_seconds:.1f} s" for time in times)


def _rate(of: Throughput) -> str:
    return label_count(of.rate.value) if of.rate else "?"


def exit_code(judged: Sequence[JudgedGoal]) -> int:
    """Returns 0 if all are reached, 1 if one is missed or failed, 3 if one cannot be told."""
    if any(each.status == "missed" or each.failed for each in judged):
        return EXIT_FAILED
    return EXIT_OPEN if any(each.status == "open" for each in judged) else 0


def write_goals(folder: Path, command: str, study: PeerStudy, judged: Sequence[JudgedGoal]) -> str:
    """Writes perf.md and perf.json into a folder and returns the Markdown."""
    text = render(command, study, judged)
    write_text(folder / "perf.md", text)
    content: dict[str, Any] = {
        "command": command,
        "study": study.model_dump(mode="json"),
        "goals": [
            {
                **each.goal.model_dump(mode="json"),
                "outcome": each.status,
                "against": each.against,
                "ratio": estimate_to_json(each.ratio),
                "detail": each.detail,
            }
            for each in judged
        ],
    }
    write_json(folder / "perf.json", content)
    return text


def render(command: str, study: PeerStudy, judged: Sequence[JudgedGoal]) -> str:
    """Renders what came of the goals as Markdown."""
    columns = [
        Column[JudgedGoal](
            "goal", lambda each: Cell(each.goal.name, each.goal.description, style="code"), numeric=False
        ),
        Column("at least", lambda each: f"{each.goal.at_least:g}"),
        Column("ratio", lambda each: estimate_cell(each.ratio, label_count), "95 % interval"),
        Column("repeats", lambda each: str(each.ratio.repeats if each.ratio else 0)),
        Column("result", lambda each: STATUS_WORDS[each.status], numeric=False),
        Column("from", lambda each: each.detail or MISSING, numeric=False),
    ]
    return f"{head(command, study)}\n\n{render_markdown(make_table(columns, judged))}\n"
