"""A survey for a terminal, as a page and for a site's tools: what the words and charts of templates/survey.* need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.survey import FEWEST_UNITS, WHOLE, Finding, Judged, Unit
from mnist_dist.benchmarks.report.html import render_template
from mnist_dist.benchmarks.statistics.grouping import group_by

WIDTH, HEIGHT = 560, 150  # Of a chart's plane, in units of its view box.
MOST_MARKS, MOST_NAMES = 500, 5  # Of a chart; a mark then spans several units.


def render_survey(
    partition: str,
    nodes: Sequence[str],
    seen: Sequence[tuple[str, ...]],
    pairs: int,
    missing: Mapping[str, str],
    judged: Sequence[Judged],
    findings: Sequence[Finding],
) -> tuple[str, str, dict[str, Any]]:
    """Returns the text, whose first line is the finding, the page, and what the JSON file holds.

    Args:
        nodes: of the partition.
        seen: nodes and pairs that were measured.
        pairs: that are to be measured.
        missing: why, in words, by node.
    """
    exclude = sorted({finding.nodes[0] for finding in findings if len(finding.nodes) == 1})
    fleets = group_by(judged, lambda each: (each.unit.aspect, each.unit.is_link, each.unit.machine)).values()
    charts = [_chart(fleet, len({each.unit.machine for each in judged}) > 1) for fleet in fleets]
    content = {
        "partition": partition,
        "nodes": nodes,
        "seen": sum(len(each) == 1 for each in seen),
        "links": sum(len(each) > 1 for each in seen),
        "pairs": pairs,
        "missing": sorted(missing.items()),
        "findings": [(name_of(each.nodes, each.part), "; ".join(each.ways)) for each in findings],
        "exclude": exclude,
        "judged": len(judged),
        "fewest": FEWEST_UNITS,
    }
    told = {
        "partition": partition,
        "nodes": len(nodes),
        "surveyed": [each[0] for each in seen if len(each) == 1],
        "missing": dict(missing),
        "exclude": exclude,
        "findings": [{"nodes": each.nodes, "part": each.part, "ways": each.ways} for each in findings],
    }
    text = render_template("survey.txt.j2", **content).strip()
    return text, render_template("survey.html.j2", **content, charts=charts), told


def name_of(nodes: Sequence[str], part: str) -> str:
    return " and ".join(nodes) + (f" device {part}" if part != WHOLE else "")


def _name(unit: Unit) -> str:
    return name_of(unit.nodes, unit.part)


def _chart(fleet: Sequence[Judged], with_machine: bool) -> dict[str, Any]:
    """Returns where things are in a plane of WIDTH x HEIGHT: the fleet in percent of its median, the slowest left."""
    unit = fleet[0].unit
    percent = 100 * np.exp(np.sort([each.effect for each in fleet]))
    ranked = sorted(fleet, key=lambda each: each.effect)
    low, high = min(percent[0], 95.0) - 1, max(percent[-1], 105.0) + 1
    x = WIDTH * np.arange(len(fleet)) / max(len(fleet) - 1, 1)
    y = HEIGHT * (high - percent) / (high - low)
    share = -(-len(fleet) // MOST_MARKS)
    marks = [slice(start, start + share) for start in range(0, len(fleet), share)]
    what = "link" if unit.is_link else "node" if unit.part == WHOLE else "device"
    step = next(each for each in (2, 5, 10, 20, 50, 100, 1000) if (high - low) / each <= 5 or each == 1000)
    return {
        "title": f"{unit.aspect} of {len(fleet):,} {what}s" + f" ({unit.machine})" * with_machine,
        "lines": [
            (each, HEIGHT * (high - each) / (high - low))
            for each in range(int(low // step + 1) * step, int(high) + 1, step)
        ],
        "marks": [(x[each].mean(), y[each].min(), y[each].max()) for each in marks],
        "slow": [(x[place], y[place], _name(each.unit)) for place, each in enumerate(ranked) if each.is_slow],
        "slowest": [(_name(each.unit), percent[place] - 100, each.z) for place, each in enumerate(ranked[:MOST_NAMES])],
    }
