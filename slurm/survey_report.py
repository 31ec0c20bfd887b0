"""A survey for a terminal, as a page and for a site's tools: what the words and charts of templates/survey.* need."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.survey import FEWEST_UNITS, WHOLE, Findings, Nodes, Unit
from mnist_dist.benchmarks.report.pages import render_template
from mnist_dist.benchmarks.report.trend import HEIGHT, MOST_MARKS, PERCENTS, WIDTH
from mnist_dist.benchmarks.statistics.grouping import group_by


def render_survey(
    partition: str,
    nodes: Sequence[str],
    seen: Sequence[Nodes],
    pairs: int,
    missing: Mapping[str, str],
    judged: Sequence[Unit],
    findings: Findings,
) -> tuple[str, str, dict[str, Any]]:
    """Returns the text, whose first line is the finding, the page, and what the JSON file holds.

    Args:
        nodes: of the partition.
        seen: nodes and pairs that were measured.
        pairs: that are to be measured.
        missing: why, in words, by node.
    """
    fleets = group_by(judged, lambda each: (each.aspect, each.is_link, each.machine)).values()
    charts = [_chart(fleet, len({each.machine for each in judged}) > 1) for fleet in fleets]
    told = {
        "partition": partition,
        "nodes": len(nodes),
        "surveyed": [each[0] for each in seen if len(each) == 1],
        "missing": dict(missing),
        "exclude": sorted({of[0] for of, _ in findings if len(of) == 1}),
        "findings": [{"nodes": of, "part": part, "ways": ways} for (of, part), ways in findings.items()],
        "ranking": {chart["title"]: chart["ranking"] for chart in charts},
    }
    named = [(name_of(*whom), "; ".join(ways)) for whom, ways in findings.items()]
    content = {**told, "findings": named, "links": sum(len(each) > 1 for each in seen), "pairs": pairs}
    content |= {"judged": len(judged), "fewest": FEWEST_UNITS, "missing": sorted(missing.items())}
    return (
        render_template("survey.txt.j2", **content).strip(),
        render_template("survey.html.j2", **content, charts=charts),
        told,
    )


def name_of(nodes: Nodes, part: str) -> str:
    whose = f"link of {' and '.join(nodes)}" if len(nodes) > 1 else nodes[0]
    return whose if part == WHOLE else f"{whose} device {part}"


def _chart(fleet: Sequence[Unit], with_machine: bool) -> dict[str, Any]:
    """Returns where things are in a plane of WIDTH x HEIGHT: the fleet in percent of its median, the slowest left."""
    unit, ranked = fleet[0], sorted(fleet, key=lambda each: each.effect)
    names = [name_of(each.nodes, each.part) for each in ranked]
    percent = 100 * np.exp([each.effect for each in ranked])
    low, high = min(percent[0], 95.0) - 1, max(percent[-1], 105.0) + 1
    step = next(each for each in PERCENTS if (high - low) / each <= 5 or each == PERCENTS[-1])
    x, y = WIDTH * np.linspace(0, 1, len(fleet)), HEIGHT * (high - percent) / (high - low)
    others = np.flatnonzero([not each.is_slow for each in ranked])  # Those who stand out have marks of their own.
    marks = np.array_split(others, min(len(others), MOST_MARKS) or 1) if len(others) else []
    what = "link" if unit.is_link else "node" if unit.part == WHOLE else "device"
    lines = range(int(low // step + 1) * step, int(high) + 1, step)
    return {
        "title": f"{unit.aspect.capitalize()} of {len(fleet):,} {what}s" + f" ({unit.machine})" * with_machine,
        "lines": [(each, HEIGHT * (high - each) / (high - low)) for each in lines],
        "marks": [(x[each].mean(), y[each].min(), y[each].max()) for each in marks],
        "slow": [each for unit, *each in zip(ranked, x, y, names, strict=True) if unit.is_slow],
        "ranking": [(name, value - 100, each.z) for each, name, value in zip(ranked, names, percent, strict=True)],
    }
