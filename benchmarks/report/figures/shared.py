"""What several pictures do alike: points with intervals, names of cases, ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mnist_dist.benchmarks.analysis.scaling import is_oversubscribed
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.record import one_line
from mnist_dist.benchmarks.report.figures.drawing import COLOURS, MARKERS, PAPER, POINTS_ABOVE
from mnist_dist.benchmarks.report.labels import label_cores, label_duration, label_number, label_other_settings
from mnist_dist.benchmarks.statistics.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

LONGEST_NAME = 36


def draw_point(axes: Axes, summary: CaseSummary, x: float, y: float, bars: Any, across: Any = None) -> None:
    """Draws one case with its strategy's colour and marker, hollow where it is oversubscribed.

    Args:
        bars, across: upright and level error bars, as `errorbar` takes them.
    """
    colour = COLOURS[summary.case.strategy]
    axes.errorbar(
        x,
        y,
        yerr=bars,
        xerr=across,
        color=colour,
        marker=MARKERS[summary.case.strategy],
        markersize=7,
        markerfacecolor=PAPER if is_oversubscribed(summary) else colour,
        elinewidth=1.4,
        capsize=3,
        zorder=POINTS_ABOVE,
    )


def variant_of(summary: CaseSummary, *, shown_batch: bool) -> tuple[str, ...]:
    """Returns what may tell a case from others of its strategy, each in words that fit beside a point."""
    case = summary.case
    batch = f"{label_number(case.global_batch_size)} images" if shown_batch else ""
    cores = "all cores" if case.cores_per_device is None else label_cores(case.cores_per_device)
    precision, xla = (summary.measured_setting(name) for name in ("precision", "xla"))
    return (
        batch,
        cores,
        precision.removeprefix("mixed_"),
        f"XLA {xla}",
        label_other_settings(case),
        label_duration(case),
    )


def join_name(parts: Iterable[str]) -> str:
    """Joins what is not empty, cut where it would leave no room for the data."""
    return one_line(", ".join(filter(None, parts)), LONGEST_NAME)


def error_bars(estimate: Estimate) -> list[list[float]]:
    """Returns the interval of an estimate as `errorbar` takes it."""
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def plain_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, in between only where that leaves too few, as plain numbers."""
    low, high = axis.get_view_interval()
    decades = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [factor * decade for decade in decades for factor in factors if low <= factor * decade <= high]
        if len(ticks) >= 3:
            break
    axis.set_ticks(ticks, [f"{tick / 1e6:g} million" if tick >= 1e6 else f"{tick:,.0f}" for tick in ticks])
    axis.set_ticks([], minor=True)


def group_by(items: Iterable[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Groups items of equal keys, in the order of their first."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
