"""A comparison in words and as a table, for the terminal and as Markdown."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.analysis.accuracy import LARGEST_DROP, TOLD_DROP
from mnist_dist.benchmarks.analysis.compare import DAY_DEVIATION, OUTCOMES, WORSE, Comparison, Outcome, Verdict
from mnist_dist.benchmarks.analysis.in_turns import met_others
from mnist_dist.benchmarks.labels import (
    DASH,
    MISSING,
    TIMES,
    label_briefly,
    label_others,
    label_records,
    label_with_kind,
    warn_of_short_runs,
)
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.report.table import (
    TERMINAL_WIDTH,
    Cell,
    Column,
    Table,
    escape_markdown,
    make_table,
    render_markdown,
    render_terminal,
)
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.errors import counted, one_line

MOST_RUNS_TOLD = 20
FEWEST_ALIKE = 4  # Cases that all became slower, or all faster, before it is put down to the machine.
SHORTEST_LABEL = 20
STYLES: dict[str, Literal["strong"]] = dict.fromkeys([*WORSE, "faster"], "strong")
CHANGED: tuple[Outcome, ...] = ("slower", "faster")
CONCLUSIONS = {0: "Nothing is worse", 1: "New is worse", 3: "Undecided"}


def render_comparison(comparison: Comparison, width: int = TERMINAL_WIDTH, colour: bool = False) -> str:
    """Returns the comparison for a terminal: its verdict, a table with a line for each case, and remarks.

    Args:
        width: of the terminal, for which labels are cut, but no numbers.
        colour: whether to add the terminal's codes for bold and dim.
    """

    def fill(text: str) -> str:
        indent = "  " * text.startswith("- ")
        return textwrap.fill(one_line(text, 2000), width, subsequent_indent=indent, break_on_hyphens=False)

    names = f"Base: {comparison.base_name}", f"New: {comparison.new_name}"
    lines = [*map(fill, (_headline(comparison), *_doubts(comparison), *names))]
    for title, verdicts, labels in _tables(comparison):
        heads = [[column.head, column.unit] for column in _table(verdicts, labels).columns]
        cells = zip(*_table(verdicts, labels).rows, strict=True)
        widths = [max(map(len, [*head, *(cell.line for cell in row)])) for head, row in zip(heads, cells, strict=True)]
        room = max(width - sum(each + 2 for each in widths[1:]), SHORTEST_LABEL)
        table = _table(verdicts, [one_line(label, room) for label in labels])
        lines += ["", fill(title), render_terminal(table, width, colour)]
    for title, texts in _lists(comparison):
        lines += ["", title, *(fill(f"- {text}") for text in texts)]
    return "\n".join([*lines, "", *map(fill, _explanations(comparison))]) + "\n"


def render_reproduction(comparison: Comparison) -> str:
    """Returns whether recorded numbers came out again: the verdict, a line for each case, and how to read them."""
    worst: dict[str, Outcome] = {}
    for each in comparison.verdicts:
        worst[each.case.case_id] = min(each.outcome, worst.get(each.case.case_id, each.outcome), key=OUTCOMES.index)
    lines = []
    for each in (*comparison.verdicts, *comparison.unjudged):
        ratio = each.corrected or each.ratio
        texts = [f"ratio {ratio.value:.3f}, interval {_interval(ratio)}" if ratio else "no ratio"]
        if each.accuracy and each.accuracy.outcome == "kept":
            texts.append(
                f"test accuracy {100 * each.accuracy.base.value:.2f} %, here {100 * each.accuracy.new.value:.2f} %"
            )
        texts += filter(None, _remarks(each))
        texts += ["explains others, so it does not count"] if each in comparison.unjudged else []
        lines.append(f"{_again(each.outcome)}: {label_with_kind(each.case, each.on_gpus)}: {'; '.join(texts)}")
    lines += [f"not comparable: {label_records(each.records)}: {each.reason}" for each in comparison.incomparable]
    lines += [f"undecided: {label_records(records)}: not measured" for records in comparison.only_in_base]
    seconds = [length for each in comparison.verdicts for length in each.seconds_apart]
    lines += [warn_of_short_runs(seconds)] if seconds else []
    others = ["not comparable"] * len(comparison.incomparable) + ["undecided"] * len(comparison.only_in_base)
    counts = Counter([*map(_again, worst.values()), *others])
    conclusion = {0: "Reproduced", 1: "Not reproduced", 3: "Undecided"}[comparison.exit_code]
    return "\n".join(
        [
            f"{conclusion}: of {counted(counts.total(), 'case')} "
            f"{', '.join(f'{n} {word}' for word, n in counts.items())}.",
            *(one_line(line, 2000) for line in lines),
            "Ratio: here over recorded, above 1 where faster here, and its 95 % interval, corrected for all tests.",
            "The record took no turns with this machine, so the interval includes the day-to-day variation of both, "
            f"assumed to be {100 * DAY_DEVIATION:g} % each; the ratio includes all other differences between them.",
        ]
    )


def _again(outcome: Outcome) -> str:
    return {"same": "reproduced", "alike": "reproduced"}.get(outcome, outcome)


def render_comparison_markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    names = f"Base: {comparison.base_name}", f"New: {comparison.new_name}"
    lines = [f"**{_headline(comparison)}**", *map(escape_markdown, (*_doubts(comparison), *names))]
    for title, verdicts, labels in _tables(comparison):
        lines += [escape_markdown(title), render_markdown(_table(verdicts, labels))]
    for title, texts in _lists(comparison):
        lines += [title, "\n".join(f"- {escape_markdown(one_line(text, 2000))}" for text in texts)]
    return "\n\n".join([*lines, *map(escape_markdown, _explanations(comparison))]) + "\n"


def _tables(comparison: Comparison) -> Iterator[tuple[str, Sequence[Verdict], list[str]]]:
    """Yields what is judged and what is not: what all cases share, their verdicts, and what tells them apart."""
    unjudged = "Not in the verdict without --judge all"
    for title, verdicts in (("Compared", comparison.verdicts), (unjudged, comparison.unjudged)):
        if verdicts:
            shared, labels = label_briefly([(each.case, each.on_gpus) for each in verdicts])
            runs, ways = {_runs(each) for each in verdicts}, {_way(each) for each in verdicts}
            alike = [*runs] * (len(runs) == 1) + [f"measured {way}" for way in ways - {MISSING}] * (len(ways) == 1)
            yield f"{title}: {'; '.join(filter(None, [shared, *alike]))}", verdicts, labels


def _table(verdicts: Sequence[Verdict], labels: Sequence[str]) -> Table:
    columns: list[Column[tuple[Verdict, str]]] = [
        Column("case", lambda each: each[1], numeric=False),
        Column("speed", lambda each: f"{each[0].ratio.value:.3f}" if each[0].ratio else "unknown", f"{TIMES} base"),
        Column("interval", lambda each: _interval(each[0].ratio)),
        Column(
            "verdict", lambda each: Cell(each[0].outcome, style=STYLES.get(each[0].outcome, "plain")), numeric=False
        ),
        Column("runs", lambda each: f"{len(each[0].base)}, {len(each[0].new)}", telling=True),
        Column("measured", lambda each: _way(each[0]), numeric=False, telling=True),
    ]
    return make_table(columns, zip(verdicts, labels, strict=True))


def _runs(verdict: Verdict) -> str:
    base, new = len(verdict.base), len(verdict.new)
    return f"{counted(new, 'run')} of each" if base == new else f"{counted(base, 'run')} of base, {new} of new"


def _way(verdict: Verdict) -> str:
    return "in turns" if verdict.in_turns else "apart" if verdict.ratio else MISSING


def _interval(ratio: Estimate | None) -> str:
    return "unknown" if ratio is None or math.isnan(ratio.low) else f"{ratio.low:.3f}{DASH}{ratio.high:.3f}"


def _lists(comparison: Comparison) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields what stands below the tables, with its titles; cases of which the same is to be said stand together."""
    cases: dict[str, list[str]] = {}
    for _, verdicts, labels in _tables(comparison):
        for label, verdict in zip(labels, verdicts, strict=True):
            for remark in filter(None, _remarks(verdict)):
                cases.setdefault(remark, []).append(label)
    lists = {
        "Remarks:": [f"{remark}: {'; '.join(labels)}" for remark, labels in cases.items()],
        "Not comparable:": [f"{label_records(each.records)}: {each.reason}" for each in comparison.incomparable],
        "Missing, only in the base:": list(map(label_records, comparison.only_in_base)),
        "Only in the new study:": list(map(label_records, comparison.only_in_new)),
    }
    return ((title, texts) for title, texts in lists.items() if texts)


def _headline(comparison: Comparison) -> str:
    apart = comparison.only_in_base, comparison.only_in_new
    if all(apart) and not (comparison.verdicts or comparison.unjudged or comparison.incomparable):
        base, new = (f"{counted(len(cases), 'case')}, such as {label_records(cases[0])}" for cases in apart)
        return f"Undecided: no case is in both studies. Base has {base}; new has {new}."
    counts: dict[str, int] = {name: sum(each.outcome == name for each in comparison.verdicts) for name in OUTCOMES}
    counts |= {"not comparable": len(comparison.incomparable), "missing": len(comparison.only_in_base)}
    cases, kinds_of_end = sum(counts.values()), [(count, name) for name, count in counts.items() if count]
    if cases > 1 and len(kinds_of_end) == 1:
        found = f"all {cases} cases {kinds_of_end[0][1]}".removesuffix(" undecided")
    else:
        parts = ", ".join(f"{count} {name}" for count, name in kinds_of_end)
        found = f"of {counted(cases, 'case')} {parts}" if cases else "there was nothing to compare"
    hidden = ", unless day-to-day variation hides it" if comparison.exit_code == 0 and counts["alike"] else ""
    return f"{CONCLUSIONS[comparison.exit_code]}{hidden}: {found}."


def _doubts(comparison: Comparison) -> Iterator[str]:
    """Says whether the machine itself was another for one of the sides, where they did not take turns."""
    apart = [verdict for verdict in (*comparison.verdicts, *comparison.unjudged) if not verdict.in_turns]
    for name, runs in (("Base", [each.base for each in apart]), ("New", [each.new for each in apart])):
        busy = [record for side in runs for record in side if met_others(record)]
        if busy:
            yield f"{name} was measured on a busy machine: other programs used {label_others(busy)}."
    ratios = [each.ratio.value for each in apart if each.ratio]
    if len(ratios) >= FEWEST_ALIKE and (max(ratios) < 1 or min(ratios) > 1):
        change = "slower" if max(ratios) < 1 else "faster"
        yield (
            f"New looks {change} in all {len(ratios)} cases (median {float(np.median(ratios)):.2f} times base), "
            f"as on a day when the machine itself is {change}. To tell, measure in turns (--interleave)."
        )
    alone = {kind(each.case.kind): each.outcome for each in apart if each.outcome in CHANGED}
    for what, outcome in alone.items():
        if what.explains and not what.has_batches:  # Nothing of a training.
            name = what.prefix.removesuffix(": ").capitalize()
            yield f"{name} became {outcome}: the machine itself may have changed."


def _remarks(verdict: Verdict) -> Iterator[str]:
    yield verdict.remark
    change = verdict.accuracy
    if change and change.outcome != "kept":
        seeds = f"{change.base.repeats}, {change.new.repeats} seeds, the lowest {100 * change.lowest:.2f} %"
        may = "" if change.outcome == "lower" else f", and may be lower by more than {100 * LARGEST_DROP:g} points"
        yield f"test accuracy {100 * change.base.value:.2f} % became {100 * change.new.value:.2f} %{may} ({seeds})"
    if verdict.more_runs is not None:
        busy = any(map(met_others, (*verdict.base, *verdict.new)))
        beside = ", if the machine stays that busy" if busy else ""
        many = f"more than {MOST_RUNS_TOLD} further runs"
        number = many if verdict.more_runs > MOST_RUNS_TOLD else f"about {counted(verdict.more_runs, 'further run')}"
        yield f"{number} of each needed{beside}"


def _explanations(comparison: Comparison) -> Iterator[str]:
    """Says how to read the table."""
    tested = [verdict for verdict in comparison.verdicts if verdict.corrected]
    effect = f"{100 * comparison.smallest_effect:g} %"
    if any(verdict.ratio for verdict in comparison.verdicts):
        yield "Speed: images/s (or what else is measured) of new over that of base, above 1 where new is faster."
    if tested:
        corrected = f", corrected for {len(tested)} tests (Holm)" if len(tested) > 1 else ""
        yield (
            f"Interval: 95 %{corrected}; 90 % where it shows that new is as fast. Slower or faster: off by "
            f"more than {effect}, with 1 outside the interval. Same: the whole interval is within {effect}."
        )
    if any(verdict.ratio and not verdict.corrected for verdict in comparison.verdicts):
        yield (
            "To decide cases with one run of each, measure both with --repeats 3 or more, or commits or settings in "
            "turns: mnist-dist bench compare --interleave."
        )
    if not all(verdict.in_turns for verdict in tested):
        yield (
            "Apart: not measured in turns (--interleave), so the speed includes day-to-day variation. Slower and "
            "faster exceed it. Alike: the runs agree, but it may hide a slowdown; only turns can show `same`."
        )
    if seconds := [length for verdict in tested for length in verdict.seconds_apart]:
        yield warn_of_short_runs(seconds)
    powers = [each.accuracy.power for each in comparison.verdicts if each.accuracy]
    if known := [power for power in powers if not math.isnan(power)]:
        yield (
            f"Accuracy: no mean is lower by more than {100 * LARGEST_DROP:g} points unless the table says so; with "
            f"such seeds, about {100 * float(np.median(known)):.0f} % of drops by {100 * TOLD_DROP:g} points are found."
        )
