"""A comparison in words and as a table, for the terminal and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from mnist_dist.benchmarks.analysis.compare import OUTCOMES, Comparison, Verdict
from mnist_dist.benchmarks.report.labels import label_records, label_with_kind
from mnist_dist.benchmarks.report.table import (
    TERMINAL_WIDTH,
    Cell,
    Column,
    Table,
    escape_markdown,
    make_table,
    render_terminal,
)
from mnist_dist.benchmarks.report.table import render_markdown as render_markdown_table
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.errors import one_line

MOST_RUNS_TOLD = 100


def render_comparison(comparison: Comparison, colour: bool = False) -> str:
    """Returns the comparison for a terminal, with the remarks below the table.

    Args:
        colour: whether to add the terminal's codes for bold and dim.
    """
    lines = [f"base: {one_line(comparison.base_name)}", f"new:  {one_line(comparison.new_name)}", ""]
    if comparison.verdicts:
        lines += [render_terminal(_table(comparison), colour=colour), ""]
    lines += [_headline(comparison), ""]
    remarks = [f"{_label(verdict)}: {remark}" for verdict in comparison.verdicts if (remark := _remark(verdict))]
    for title, texts in [("Remarks", remarks), *_lists(comparison)]:
        lines += [f"{title}:", *(_fill(f"- {one_line(text)}", "  ") for text in texts), ""] if texts else []
    lines += [_fill(_explanation(comparison))] if comparison.verdicts else []
    return "\n".join(lines).rstrip() + "\n"


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, width=TERMINAL_WIDTH, subsequent_indent=indent)


def render_comparison_markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    lines = [f"Base: {escape_markdown(comparison.base_name)}", f"New: {escape_markdown(comparison.new_name)}"]
    lines += [f"**{_headline(comparison)}**"]
    if comparison.verdicts:
        lines += [
            render_markdown_table(_table(comparison, with_remarks=True)),
            escape_markdown(_explanation(comparison)),
        ]
    for title, texts in _lists(comparison):
        if texts:
            lines += [f"{title}:", "\n".join(f"- {escape_markdown(one_line(text))}" for text in texts)]
    return "\n\n".join(lines) + "\n"


def _table(comparison: Comparison, with_remarks: bool = False) -> Table:
    columns: list[Column[Verdict]] = [
        Column("case", _label, numeric=False),
        Column("new / base", lambda each: f"{each.ratio.value:.3f}" if each.ratio else "unknown"),
        Column("95 % interval", lambda each: _interval(each.ratio)),
        Column("corrected", lambda each: _interval(each.corrected)),
        Column("verdict", _outcome_cell, numeric=False),
        Column("accuracy", _accuracy_cell, numeric=False),
        Column("runs", _runs, "base and new"),
    ]
    columns += [Column("remark", _remark, numeric=False)] if with_remarks else []
    return make_table(columns, comparison.verdicts)


def _label(verdict: Verdict) -> str:
    return label_with_kind(verdict.case, verdict.on_gpus)


def _outcome_cell(verdict: Verdict) -> Cell:
    return Cell(verdict.outcome, style="strong" if verdict.outcome in ("slower", "faster") else "plain")


def _accuracy_cell(verdict: Verdict) -> Cell:
    return Cell("less accurate", style="strong") if verdict.less_accurate else Cell()


def _runs(verdict: Verdict) -> str:
    return f"{verdict.base_runs}, {verdict.new_runs}" + (" in turns" if verdict.in_turns else "")


def _interval(ratio: Estimate | None) -> str:
    return "unknown" if ratio is None or math.isnan(ratio.low) else f"{ratio.low:.3f} to {ratio.high:.3f}"


def _lists(comparison: Comparison) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields what stands below the table, with its titles."""
    yield "Not comparable", [f"{label_records(each.records)}: {each.reason}" for each in comparison.incomparable]
    yield "Only in the base", list(map(label_records, comparison.only_in_base))
    yield "Only in the new study", list(map(label_records, comparison.only_in_new))


def _headline(comparison: Comparison) -> str:
    if not comparison.verdicts:
        return "Nothing could be compared."
    counts = {name: sum(each.outcome == name for each in comparison.verdicts) for name in OUTCOMES}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    lost = sum(each.less_accurate is not None for each in comparison.verdicts)
    parts += [f"{lost} less accurate"] if lost else []
    parts += [f"{len(comparison.incomparable)} not comparable"] if comparison.incomparable else []
    cases = len(comparison.verdicts) + len(comparison.incomparable)
    return f"Of {cases} case{'s' * (cases != 1)}: {', '.join(parts)}."


def _remark(verdict: Verdict) -> str:
    return one_line("; ".join(filter(None, _remarks(verdict))), 1000)


def _remarks(verdict: Verdict) -> Iterator[str]:
    yield verdict.remark
    if verdict.less_accurate:
        base, new = verdict.less_accurate
        yield f"test accuracy {100 * base.mean:.2f} % became {100 * new.mean:.2f} % ({base.seeds}, {new.seeds} seeds)"
    if verdict.outcome != "inconclusive" or verdict.corrected is None:
        return
    if verdict.more_runs is None or verdict.more_runs > MOST_RUNS_TOLD:
        yield f"more than {MOST_RUNS_TOLD} further runs of each needed"
    else:
        yield f"about {verdict.more_runs} further run{'s' * (verdict.more_runs > 1)} of each needed"


def _explanation(comparison: Comparison) -> str:
    """Says how to read the table."""
    tested = sum(verdict.corrected is not None for verdict in comparison.verdicts)
    effect = f"{100 * comparison.smallest_effect:g} %"
    return (
        "new / base: ratio of the rates, above 1 where new is faster. Corrected: the interval after Holm's correction "
        f"for {tested} test{'s' * (tested != 1)}. Slower or faster: the ratio is off by more than {effect} and the "
        f"corrected interval leaves out 1. Same: the whole 95 % interval is within {effect}."
    )
