"""Throughput and efficiency against devices, measured and predicted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mnist_dist.benchmarks.analysis.prediction.predict import Prediction
from mnist_dist.benchmarks.analysis.scaling import Curve, Point, is_oversubscribed
from mnist_dist.benchmarks.labels import label_number
from mnist_dist.benchmarks.report.figures import drawing
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.errors import counted


def draw_throughput(curves: Sequence[Curve]) -> drawing.Picture | None:
    """Total throughput against devices, with intervals and the ideal line."""
    if not curves:
        return None
    by_kind, points, folded = _by_kind(curves)
    best = max(points, key=lambda point: point.throughput.value)
    ideal = [each.throughput.value / each.efficiency.value for each in points]
    low, high = _extent([each.throughput for each in points])
    figure, panels = drawing.new_figure(len(by_kind))
    for axes, chosen in zip(panels, by_kind, strict=True):
        axes.set_yscale("log")
        axes.set_ylim(min(low, *ideal) / 1.1, max(high, *ideal) * 1.1)
        drawing.plain_log_ticks(axes.yaxis)
        for baseline in {id(curve.baseline): curve.baseline for curve in chosen}.values():
            if start := baseline.images_per_second:
                ends = np.array([1, max(_devices(chosen))])
                axes.plot(ends, start.value * ends, color=drawing.MUTED, linewidth=1.2, dashes=(4, 3))
        _draw_curves(axes, chosen, lambda point: point.throughput, "images/s, all devices together (log scale)")
    return drawing.make_picture(
        figure,
        "throughput",
        f"Lines of throughput against devices for {_strategies(curves)}. The highest is "
        f"{best.throughput.value:,.0f} images/s, by {best.summary.case.strategy} on {counted(best.devices, 'device')}.",
        folded,
        **_occurring(by_kind, [each.throughput for each in points]),
        apart=drawing.measured_apart(point.summary for point in points),
    )


def draw_efficiency(curves: Sequence[Curve]) -> drawing.Picture | None:
    """Scaling efficiency against devices."""
    from matplotlib.ticker import PercentFormatter

    if not curves:
        return None
    by_kind, points, folded = _by_kind(curves)
    worst = min(points, key=lambda point: point.efficiency.value)
    low, high = _extent([each.efficiency for each in points])
    figure, panels = drawing.new_figure(len(by_kind))
    for axes, chosen in zip(panels, by_kind, strict=True):
        axes.set_ylim(min(low - 0.03, 0.8), max(high + 0.03, 1.07))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        axes.axhline(1, color=drawing.MUTED, linewidth=1.2, dashes=(4, 3))
        _draw_curves(axes, chosen, lambda point: point.efficiency, "efficiency, % of N times one device")
    return drawing.make_picture(
        figure,
        "efficiency",
        f"Lines of scaling efficiency against devices for {_strategies(curves)}. The lowest is "
        f"{100 * worst.efficiency.value:.0f} %, with {worst.summary.case.strategy} on {worst.devices} devices.",
        folded,
        **_occurring(by_kind, [each.efficiency for each in points]),
    )


def draw_predictions(predictions: Sequence[Prediction]) -> drawing.Picture | None:
    """Throughput beyond the measured numbers of devices, with 95 % intervals."""
    known = [each for each in predictions if each.models]
    if not known:
        return None
    shown, folded = drawing.fold(known, drawing.MOST_PANELS, lambda each: max(each.measured.values()), "fastest curves")
    figure, panels = drawing.new_figure(len(shown))
    for axes, each in zip(panels, shown, strict=True):
        _draw_prediction(axes, each)
    described = "; ".join(
        f"{each.strategy}, {each.scaling} scaling: sensible devices: up to {each.models[0].worthwhile_devices[1]:,}"
        for each in shown
    )
    alternative = f"Predicted throughput against devices. {described}."
    others = any(len(each.models) > 1 for each in shown)
    return drawing.make_picture(figure, "prediction", alternative, folded, others=others)


def _draw_prediction(axes: drawing.Axes, each: Prediction) -> None:
    trusted, *others = each.models
    colour = drawing.COLOURS[each.strategy]
    devices = [forecast.devices for forecast in trusted.forecasts]
    first = trusted.forecasts[0]
    single = first.images_per_second / (first.devices * first.efficiency)
    axes.plot(devices, [single * n for n in devices], color=drawing.MUTED, linewidth=1.2, dashes=(4, 3))
    low, high = ([getattr(forecast, bound) for forecast in trusted.forecasts] for bound in ("low", "high"))
    axes.fill_between(devices, low, high, color=colour, alpha=0.18, linewidth=0)
    for model in others:
        rates = [forecast.images_per_second for forecast in model.forecasts]
        axes.plot([forecast.devices for forecast in model.forecasts], rates, color=drawing.MUTED, linewidth=1)
    axes.plot(devices, [forecast.images_per_second for forecast in trusted.forecasts], color=colour, linewidth=2)
    axes.plot(
        *zip(*sorted(each.measured.items()), strict=True), drawing.MARKERS[each.strategy], color=colour, markersize=7
    )
    axes.axvline(trusted.worthwhile_devices[1], color=colour, linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(each.measured.values()) / 2, top=single * devices[-1] * 1.3)
    ticks = [n for n in devices if math.log2(n).is_integer()][::2]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    drawing.plain_log_ticks(axes.yaxis)
    axes.set_xlabel("devices")
    axes.set_ylabel("images/s, all devices together (log scale)")
    drawing.set_title(axes, f"{each.strategy}, {each.scaling} scaling, by {trusted.name}")


def _draw_curves(
    axes: drawing.Axes, curves: Sequence[Curve], value_of: Callable[[Point], Estimate], label: str
) -> None:
    """Draws the curves and names them on the right, where a thin line leads from the end of those that end before."""
    variants = [drawing.variant_of(curve.baseline, shown_batch=True) for curve in curves]
    styles = dict(zip(dict.fromkeys(variants), itertools.cycle(drawing.LINE_STYLES), strict=False))
    ticks, labels = sorted(set(_devices(curves))), []
    for curve, variant, telling in zip(curves, variants, drawing.telling(variants), strict=True):
        estimates, colour = [value_of(point) for point in curve.points], drawing.COLOURS[curve.strategy]
        devices, values = _devices([curve]), [each.value for each in estimates]
        axes.plot(devices, values, styles[variant], color=colour, linewidth=1.8)
        axes.plot([devices[-1], ticks[-1]], [values[-1], values[-1]], ":", color=colour, linewidth=0.8)
        for point, each in zip(curve.points, estimates, strict=True):
            drawing.draw_point(axes, point.summary, point.devices, each.value, drawing.error_bars(each))
        name = drawing.join_name([curve.strategy, *telling])
        labels.append(drawing.Label(ticks[-1], values[-1], name, colour, bold=True))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("devices")
    axes.set_ylabel(label)
    drawing.set_title(axes, f"{curves[0].scaling} scaling: {_scaling_note(curves)}")
    drawing.place_labels(axes, labels)


def _by_kind(curves: Sequence[Curve]) -> tuple[list[list[Curve]], list[Point], str]:
    """Returns curves of weak and of strong scaling, if there are any, with their points; and that some are left out."""
    kinds = group_by(sorted(curves, key=lambda curve: curve.scaling != "weak"), lambda curve: curve.scaling).values()
    folded = [
        drawing.fold(
            of_kind,
            drawing.MOST_LINES,
            lambda curve: max(point.throughput.value for point in curve.points),
            f"fastest curves of {of_kind[0].scaling} scaling",
        )
        for of_kind in kinds
    ]
    shown = [of_kind for of_kind, _ in folded]
    points = [point for of_kind in shown for curve in of_kind for point in curve.points]
    return shown, points, "".join(note for _, note in folded)


def _occurring(panels: Sequence[Sequence[Curve]], estimates: Sequence[Estimate]) -> dict[str, bool]:
    """Returns, of what a caption can explain, whether it is drawn in some panels."""
    points = [point for curves in panels for curve in curves for point in curve.points]
    return {
        "bars": any(each.low < each.high for each in estimates),
        "hollow": any(is_oversubscribed(point.summary) for point in points),
        "dotted": any(len({curve.points[-1].devices for curve in curves}) > 1 for curves in panels),
    }


def _extent(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Returns the lowest and the highest end of intervals.

    Each is cut at half and twice its value, as that of two runs may be wider than all else.
    """
    known = [each for each in estimates if each.low <= each.high]  # Not of a single run apart.
    values = [each.value for each in estimates]
    lows = [max(each.low, each.value / 2) for each in known]
    highs = [min(each.high, each.value * 2) for each in known]
    return min(lows + values), max(highs + values)


def _devices(curves: Iterable[Curve]) -> list[int]:
    return [point.devices for curve in curves for point in curve.points]


def _scaling_note(curves: Sequence[Curve]) -> str:
    batches = {curve.baseline.case.global_batch_size for curve in curves}
    images = f"{label_number(batches.pop())} images" if len(batches) == 1 else "equal batches"
    return f"{images} per device" if curves[0].scaling == "weak" else f"{images} in total"


def _strategies(curves: Iterable[Curve]) -> str:
    return ", ".join(dict.fromkeys(curve.strategy for curve in curves))
