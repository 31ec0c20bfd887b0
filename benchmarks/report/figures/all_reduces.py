"""Latency and bandwidth of all-reduces over message sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.labels import label_bytes, label_point
from mnist_dist.benchmarks.report.figures import drawing
from mnist_dist.benchmarks.statistics.grouping import group_by


def draw_all_reduces(measured: Sequence[AllReduce]) -> drawing.Picture | None:
    """Latency of small messages and bus bandwidth of large ones."""
    if not measured:
        return None
    cases = group_by(measured, lambda each: each.case.case_id).values()
    shown, folded = drawing.fold(
        cases, drawing.MOST_LINES, lambda case: max(each.bus_bandwidth for each in case), "fastest cases"
    )
    measured = [each for case in shown for each in case]
    parts = group_by(sorted(measured, key=lambda each: not each.is_latency), lambda each: each.is_latency)
    figure, panels = drawing.new_figure(len(parts))
    for axes, (are_small, chosen) in zip(panels, parts.items(), strict=True):
        title = "latency of small messages, µs" if are_small else "bus bandwidth of large messages, GB/s"
        drawing.set_title(axes, title)
        _draw_messages(axes, chosen, _microseconds if are_small else _gigabytes)
    best = max(measured, key=lambda each: each.bus_bandwidth)
    return drawing.make_picture(
        figure,
        "all_reduce",
        f"Latency and bus bandwidth against message size. The highest bus bandwidth is {best.bus_bandwidth / 1e9:.2g} "
        f"GB/s, with {best.case.strategy} on {best.case.devices} devices and {label_bytes(best.size_bytes)}.",
        folded,
    )


def _draw_messages(
    axes: drawing.Axes, measured: Sequence[AllReduce], value_of: Callable[[AllReduce], tuple[float, float, float]]
) -> None:
    axes.set_xscale("log", base=2)
    labels, counts = [], sorted({each.case.devices for each in measured})
    for group in group_by(measured, lambda each: each.case.case_id).values():
        case = group[0].case
        x = [each.size_bytes for each in group]
        y, low, high = np.transpose([value_of(each) for each in group])
        style: dict[str, Any] = {
            "color": drawing.COLOURS[case.strategy],
            "linestyle": drawing.LINE_STYLES[counts.index(case.devices) % len(drawing.LINE_STYLES)],
        }
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(x, y, marker=drawing.MARKERS[case.strategy], markersize=5, **style)
        labels.append(drawing.Label(x[-1], float(y[-1]), label_point(case), style["color"]))
    sizes = sorted({each.size_bytes for each in measured})
    axes.set_xticks(sizes[:: -(-len(sizes) // 6)], [label_bytes(size) for size in sizes[:: -(-len(sizes) // 6)]])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bytes of each rank's message")
    drawing.place_labels(axes, labels)


def _microseconds(each: AllReduce) -> tuple[float, float, float]:
    return 1e6 * each.seconds, 1e6 * each.low, 1e6 * each.high


def _gigabytes(each: AllReduce) -> tuple[float, float, float]:
    value = each.bus_bandwidth / 1e9
    return value, value * each.seconds / each.high, value * each.seconds / each.low
