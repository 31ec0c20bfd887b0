"""A comparison as a table, for the terminal and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from mnist_dist.benchmarks.analysis.compare import OUTCOMES, Comparison, Verdict
from mnist_dist.benchmarks.report.table import TERMINAL_WIDTH, TextTable, render_terminal_texts
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.errors import one_line

MOST_RUNS_TOLD = 100
HEADS = ("case", "new / base", "95 % interval", "corrected", "verdict", "runs, base and new")
NUMERIC = (False, True, True, True, False, True)


def render_terminal(comparison: Comparison, colour: bool = False) -> str:
    """Returns the comparison for a terminal, with the remarks below the table.

    Args:
        colour: whether to add the terminal's codes for bold and dim.
    """
    lines = [f"base: {one_line(comparison.base_name)}", f"new:  {one_line(comparison.new_name)}", ""]
    if comparison.verdicts:
        rows = [[one_line(cell) for cell in _cells(verdict)] for verdict in comparison.verdicts]
        lines += [render_terminal_texts(TextTable("", HEADS, rows, NUMERIC), colour=colour), ""]
    lines += [_headline(comparison), ""]
    remarks = [f"{verdict.label}: {remark}" for verdict in comparison.verdicts if (remark := _remark(verdict))]
    for title, texts in [("Remarks", remarks), *_lists(comparison)]:
        lines += [f"{title}:", *(_fill(f"- {one_line(text)}", "  ") for text in texts), ""] if texts else []
    lines += [_fill(_explanation(comparison))] if comparison.verdicts else []
    return "\n".join(lines).rstrip() + "\n"


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, width=TERMINAL_WIDTH, subsequent_indent=indent)


def render_markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    lines = [f"Base: {comparison.base_name}", "", f"New: {comparison.new_name}", "", f"**{_headline(comparison)}**", ""]
    if comparison.verdicts:
        lines += [
            f"| {' | '.join(HEADS)} | remark |",
            f"|{'|'.join('---:' if right else '---' for right in NUMERIC)}|---|",
            *(_markdown_row(verdict) for verdict in comparison.verdicts),
            "",
            _explanation(comparison),
            "",
        ]
    for title, texts in _lists(comparison):
        if texts:
            lines += [f"{title}:", "", *(f"- {_markdown_cell(text)}" for text in texts), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lists(comparison: Comparison) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields what stands below the table, with its titles."""
    yield "Not comparable", [f"{each.label}: {each.reason}" for each in comparison.incomparable]
    yield "Only in the base", comparison.only_in_base
    yield "Only in the new study", comparison.only_in_new


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


def _cells(verdict: Verdict, strong: str = "") -> list[str]:
    """Returns a cell for each of `HEADS`.

    Args:
        strong: what to put before and after what must not be missed.
    """
    ratio = verdict.ratio
    outcome = verdict.outcome if verdict.outcome in ("same", "inconclusive") else f"{strong}{verdict.outcome}{strong}"
    return [
        verdict.label,
        f"{ratio.value:.3f}" if ratio else "unknown",
        _interval(ratio),
        _interval(verdict.corrected),
        outcome + (f", {strong}less accurate{strong}" if verdict.less_accurate else ""),
        f"{verdict.base_runs}, {verdict.new_runs}" + (" paired" if verdict.paired else ""),
    ]


def _markdown_row(verdict: Verdict) -> str:
    return f"| {' | '.join(map(_markdown_cell, [*_cells(verdict, strong='**'), _remark(verdict)]))} |"


def _interval(ratio: Estimate | None) -> str:
    return "unknown" if ratio is None or math.isnan(ratio.low) else f"{ratio.low:.3f} to {ratio.high:.3f}"


def _remark(verdict: Verdict) -> str:
    return "; ".join(filter(None, _remarks(verdict)))


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


def _markdown_cell(text: str) -> str:
    """Labels and reasons hold what files say, which must not end a cell or a line."""
    return one_line(text).replace("|", "\\|")
