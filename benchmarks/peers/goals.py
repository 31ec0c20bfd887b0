"""Goals for our speed relative to others, and whether runs reach them: ratios only, as absolute times say little.

A goal is reached where the whole interval of the ratio lies at or above it, missed where it lies below, and open
otherwise. Rates are compared within cycles of turns, times within repeats. With several denominators a goal must hold
against each of them, so the worst decides.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from mnist_dist.benchmarks.analysis.in_turns import paired_ratio, rate_in_turns
from mnist_dist.benchmarks.labels import MISSING, label_count
from mnist_dist.benchmarks.peers.contestants import Contestant, Mode
from mnist_dist.benchmarks.peers.scripts.script import TARGET_ACCURACY
from mnist_dist.benchmarks.peers.table import at_level, reasons, write_both
from mnist_dist.benchmarks.peers.times import TimeTo, time_ratio, time_to
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.table import Cell, Column, estimate_cell, make_table, render_markdown
from mnist_dist.benchmarks.statistics.stats import Estimate, LogEstimate
from mnist_dist.config import PositiveFloat, Section
from mnist_dist.errors import EXIT_FAILED, UserError, counted, nearest

EXIT_OPEN = 3

Outcome = Literal["reached", "missed", "open", "not for GPUs"]
OUTCOME_WORDS: dict[Outcome, str] = {
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

    @property
    def names(self) -> list[str]:
        """Of its contestants."""
        return [self.numerator, *self.denominators]


class JudgedGoal(Goal):
    """A goal and what came of it."""

    outcome: Outcome
    against: str  # The denominator that decides.
    ratio: Estimate | None = None  # Where it is known.
    detail: str = ""  # What was divided by what, or why nothing was.
    failed: bool = Field(False, exclude=True)  # Whether a run that it needed went wrong.


def load_goals(only: Sequence[str] | None = None) -> list[Goal]:
    """Returns the goals, or those that a user names.

    Raises:
        UserError: a name is not known.
    """
    text = (resources.files("mnist_dist.benchmarks.peers") / "goals.yaml").read_text(encoding="utf-8")
    goals = {content["name"]: Goal.model_validate(content) for content in yaml.safe_load(text)}
    for name in only or ():
        if name not in goals:
            raise UserError(f"--only: received '{name}', expected some of {','.join(goals)}." + nearest(name, goals))
    return [goal for name, goal in goals.items() if only is None or name in only]


def groups(goals: Sequence[Goal]) -> list[list[Goal]]:
    """Returns goals that share a contestant together, as theirs have to take turns with one another."""
    found: list[list[Goal]] = []
    for goal in goals:
        near = [
            group for group in found if any(goal.mode == each.mode and {*goal.names} & {*each.names} for each in group)
        ]
        found = [group for group in found if group not in near] + [[*itertools.chain(*near), goal]]
    return found


def judge(
    goal: Goal, contestants: Mapping[str, Contestant], records: Sequence[Record], *, on_gpus: bool = False
) -> JudgedGoal:
    """Judges one goal by what was measured."""
    if goal.cpu_only and on_gpus:
        return JudgedGoal(**dict(goal), outcome="not for GPUs", against=goal.denominators[0])
    judged = [_judge_one(goal, name, contestants, records) for name in goal.denominators]
    order: list[Outcome] = ["missed", "open", "reached"]
    worst = min(judged, key=lambda each: (order.index(each.outcome), each.ratio.value if each.ratio else 0.0))
    return worst.model_copy(update={"failed": any(each.failed for each in judged)})


def _judge_one(
    goal: Goal, denominator: str, contestants: Mapping[str, Contestant], records: Sequence[Record]
) -> JudgedGoal:
    above, below = (_Side(contestants[name], goal.mode, records) for name in (goal.numerator, denominator))
    failed = any(record.status not in ("ok", "skipped") for record in (*above.records, *below.records))
    if goal.mode == "accuracy":
        found, detail = _time_ratio(above, below)
    else:
        found, detail = _rate_ratio(above, below, of_flops=goal.of == "flops")
    ratio = at_level(found)
    outcome: Outcome = "open"
    if ratio is not None and ratio.low >= goal.at_least:
        outcome = "reached"
    elif ratio is not None and ratio.high < goal.at_least:
        outcome = "missed"
    return JudgedGoal(**dict(goal), outcome=outcome, against=denominator, ratio=ratio, detail=detail, failed=failed)


class _Side:
    """A contestant with its records, in the order of their repeats."""

    def __init__(self, contestant: Contestant, mode: Mode, records: Sequence[Record]) -> None:
        self.name, self.variant = contestant.name, contestant.variant
        self.records = contestant.records(records, mode)

    @property
    def why_none(self) -> str:
        return f"{self.name}: {(reasons(self.records) or ['not measured'])[0]}"


def _rate_ratio(above: _Side, below: _Side, of_flops: bool) -> tuple[LogEstimate | None, str]:
    """Returns the ratio within cycles with both rates, or why there is none.

    Args:
        of_flops: take the rate of images times the operations of one, and state which count of them was used.
    """
    rates = []
    for side in (above, below):
        if (rate := rate_in_turns(side.records, side.variant)) is None:
            return None, side.why_none
        rates.append(math.exp(rate.value))
    ratio = paired_ratio(above.records, below.records, above.variant, below.variant)
    flops = next((each.measurements.get("flops_per_image", 0) for each in above.records if each.measurements), 0)
    if ratio is None or (of_flops and not flops):
        return None, f"{above.name} and {below.name} took no turns together"
    if not of_flops:
        return ratio, f"{label_count(rates[0])} / {label_count(rates[1])} images/s"
    gigaflops = f"{label_count(rates[0] * flops / 1e9)} / {label_count(rates[1] / 1e9)} GFLOP/s"
    detail = f"{gigaflops}, at {flops / 1e6:.2f} MFLOP for each image"
    return replace(ratio, value=ratio.value + math.log(flops)), detail


def _time_ratio(above: _Side, below: _Side) -> tuple[LogEstimate | None, str]:
    """A goal asks for speed: the time of the denominator over that of the numerator."""
    times: list[TimeTo] = []
    for side in (below, above):
        time = time_to(side.records, TARGET_ACCURACY)
        if time is None:
            return None, side.why_none
        if time.reached == 0:
            return None, f"{side.name}: none of {counted(time.runs, 'run')} reached {100 * TARGET_ACCURACY:g} %"
        times.append(time)
    return time_ratio(*times), " / ".join(f"{time.expected_seconds:.1f} s" for time in times)


def exit_code(judged: Sequence[JudgedGoal]) -> int:
    """Returns 0 if all are reached, 1 if one is missed or failed, 3 if one cannot be told."""
    if any(each.outcome == "missed" or each.failed for each in judged):
        return EXIT_FAILED
    return EXIT_OPEN if any(each.outcome == "open" for each in judged) else 0


def write_goals(folder: Path, command: str, records: Sequence[Record], judged: Sequence[JudgedGoal]) -> str:
    """Writes perf.md and perf.json into a folder and returns the Markdown."""
    columns = [
        Column[JudgedGoal]("goal", lambda each: Cell(each.name, each.description, style="code"), numeric=False),
        Column("at least", lambda each: f"{each.at_least:g}"),
        Column("ratio", lambda each: estimate_cell(each.ratio, label_count), "95 % interval"),
        Column("rounds", lambda each: str(each.ratio.repeats if each.ratio else 0)),
        Column("result", lambda each: OUTCOME_WORDS[each.outcome], numeric=False),
        Column("from", lambda each: each.detail or MISSING, numeric=False),
    ]
    return write_both(
        folder / "perf", command, records, [render_markdown(make_table(columns, judged))], {"goals": judged}
    )
