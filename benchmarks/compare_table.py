"""A comparison as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.compare import OUTCOMES, Comparison, Verdict
from benchmarks.record import one_line
from benchmarks.stats import Estimate

MOST_RUNS_TOLD = 100


def render(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    lines = [f"Base: {comparison.base_name}", "", f"New: {comparison.new_name}", "", _headline(comparison), ""]
    if comparison.verdicts:
        lines += [
            "| case | new / base | 95 % interval | corrected | verdict | runs, base and new | remark |",
            "|---|---:|---:|---:|---|---:|---|",
            *(_row(verdict) for verdict in comparison.verdicts),
            "",
            _explanation(comparison),
            "",
        ]
    for title, texts in (
        ("Not comparable", [f"{each.label}: {each.reason}" for each in comparison.incomparable]),
        ("Only in the base", comparison.only_in_base),
        ("Only in the new study", comparison.only_in_new),
    ):
        if texts:
            lines += [f"{title}:", "", *(f"- {_cell(text)}" for text in texts), ""]
    return "\n".join(lines).rstrip() + "\n"


def _headline(comparison: Comparison) -> str:
    if not comparison.verdicts:
        return "**Nothing could be compared.**"
    counts = {name: sum(each.outcome == name for each in comparison.verdicts) for name in OUTCOMES}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    lost = sum(each.less_accurate is not None for each in comparison.verdicts)
    parts += [f"{lost} less accurate"] if lost else []
    parts += [f"{len(comparison.incomparable)} not comparable"] if comparison.incomparable else []
    cases = len(comparison.verdicts) + len(comparison.incomparable)
    return f"**Of {cases} case{'s' * (cases != 1)}: {', '.join(parts)}.**"


def _row(verdict: Verdict) -> str:
    ratio = verdict.ratio
    outcome = verdict.outcome if verdict.outcome in ("same", "inconclusive") else f"**{verdict.outcome}**"
    cells = (
        verdict.label,
        f"{ratio.value:.3f}" if ratio else "unknown",
        _interval(ratio),
        _interval(verdict.corrected),
        outcome + (", **less accurate**" if verdict.less_accurate else ""),
        f"{verdict.base_runs}, {verdict.new_runs}" + (" paired" if verdict.paired else ""),
        "; ".join(filter(None, _remarks(verdict))),
    )
    return f"| {' | '.join(map(_cell, cells))} |"


def _interval(ratio: Estimate | None) -> str:
    return "unknown" if ratio is None or math.isnan(ratio.low) else f"{ratio.low:.3f} to {ratio.high:.3f}"


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


def _cell(text: str) -> str:
    """Labels and reasons hold what files say, which must not end a cell or a line."""
    return one_line(text).replace("|", "\\|")
