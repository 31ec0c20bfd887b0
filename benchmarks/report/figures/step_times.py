"""How long the steps of each rank took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.scaling import is_oversubscribed
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.labels import label_point
from mnist_dist.benchmarks.report.figures import drawing
from mnist_dist.benchmarks.statistics.grouping import group_by

MOST_RANKS_APART = 32  # More are drawn as bands.


def draw_step_times(summaries: Sequence[CaseSummary]) -> drawing.Picture | None:
    """Distribution of the steady windows' step times, for each rank, of each strategy's largest case."""
    from matplotlib.ticker import MaxNLocator

    panels_of = _largest_with_ranks(summaries)
    if not panels_of:
        return None
    figure, panels = drawing.new_figure(len(panels_of), height=3.7)
    for axes, (full, free) in zip(panels, panels_of, strict=True):
        ranks = np.arange(len(full.records[0].identity.hosts))
        colour = drawing.COLOURS[full.case.strategy]
        series = [(full, colour, "as trained")] + ([(free, drawing.MUTED, "without all-reduce")] if free else [])
        for index, (summary, shade, name) in enumerate(series):
            shift = 0.16 * (2 * index - 1) if len(series) > 1 else 0.0
            milliseconds = 1000 * np.concatenate([run.step_seconds for run in summary.runs], axis=1)
            _draw_ranks(axes, ranks + shift, milliseconds, shade, name)
        drawing.set_title(axes, label_point(full.case))
        axes.set_xlabel("rank")
        axes.set_ylabel("step time, ms")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.99), "ncols": 2, "columnspacing": 1}
            axes.legend(fontsize=10.5, frameon=False, labelcolor=drawing.INK, handletextpad=0.2, **place)
    return drawing.make_picture(
        figure,
        "step_times",
        "Distributions of step times by rank for "
        + ", ".join(f"{full.case.strategy} on {full.case.devices} devices" for full, _ in panels_of)
        + ".",
        twins=any(free for _, free in panels_of),
    )


def _draw_ranks(axes: drawing.Axes, places: np.ndarray, milliseconds: np.ndarray, colour: str, name: str) -> None:
    lowest, low, middle, high, highest = np.percentile(milliseconds, [5, 25, 50, 75, 95], axis=1)
    if len(places) > MOST_RANKS_APART:
        axes.fill_between(places, lowest, highest, color=colour, alpha=0.25, linewidth=0)
        axes.plot(places, middle, color=colour, linewidth=1.2, label=name)
        return
    axes.vlines(places, lowest, highest, color=colour, linewidth=1.2)
    axes.vlines(places, low, high, color=colour, linewidth=5)
    axes.plot(places, middle, "o", color=colour, markeredgecolor=drawing.PAPER, markersize=7, label=name)


def _largest_with_ranks(summaries: Sequence[CaseSummary]) -> list[tuple[CaseSummary, CaseSummary | None]]:
    """For each strategy its steady case of the most ranks, preferably with its twin without all-reduce."""
    steady = [each for each in summaries if each.case.kind == "train" and each.images_per_second]
    free = {_twin_key(each): each for each in steady if not each.case.all_reduce}
    several = [each for each in steady if not each.case.is_ablation and len(each.records[0].identity.hosts) > 1]

    def preference(each: CaseSummary) -> tuple[Any, ...]:
        return not is_oversubscribed(each), _twin_key(each) in free, each.case.devices

    best = [max(group, key=preference) for group in group_by(several, lambda each: each.case.strategy).values()]
    return [(full, free.get(_twin_key(full))) for full in sorted(best, key=lambda each: each.case.strategy)]


def _twin_key(summary: CaseSummary) -> str:
    return summary.case.model_copy(
        update={"synthetic_input": True, "all_reduce": False, "measure_seconds": None}
    ).case_id
