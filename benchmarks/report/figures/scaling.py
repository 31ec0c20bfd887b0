"""Throughput and efficiency against devices, measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mnist_dist.benchmarks.analysis.prediction import Prediction
from mnist_dist.benchmarks.analysis.scaling import Curve, Point
from mnist_dist.benchmarks.report.figures.drawing import (
    COLOURS,
    LINE_STYLES,
    MARKERS,
    MUTED,
    Label,
    Picture,
    draw_point,
    error_bars,
    group_by,
    join_name,
    make_picture,
    new_figure,
    place_labels,
    plain_log_ticks,
    set_title,
    variant_of,
)
from mnist_dist.benchmarks.report.labels import label_number
from mnist_dist.benchmarks.statistics.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_throughput(curves: Sequence[Curve]) -> Picture | None:
    """Total throughput against devices, with intervals and the ideal line."""
    if not curves:
        return None
    points = [point for curve in curves for point in curve.points]
    best = max(points, key=lambda point: point.throughput.value)
    values = [value for point in points for value in (point.throughput.value, _ideal_throughput(point))]
    figure, panels = new_figure(len(_by_kind(curves)))
    for axes, chosen in zip(panels, _by_kind(curves), strict=True):
        axes.set_yscale("log")
        for baseline in {id(curve.baseline): curve.baseline for curve in chosen}.values():
            if start := baseline.images_per_second:
                ends = np.array([1, max(_devices(chosen))])
                axes.plot(ends, start.value * ends, color=MUTED, linewidth=1.2, dashes=(4, 3))
        _draw_curves(axes, chosen, lambda point: point.throughput, "images/s, all devices together")
        axes.set_ylim(min(values) / 1.25, max(values) * 1.25)  # The interval of two runs can be wider than all else.
        plain_log_ticks(axes.yaxis)
        _label_curves(axes, chosen, lambda point: point.throughput)
    return make_picture(
        figure,
        "throughput",
        "Throughput against devices",
        "Dashed: ideal, N times one device. Bars: 95 % intervals. Hollow: oversubscribed. Dotted: to the name.",
        f"Lines of throughput against devices for {_strategies(curves)}. The highest is "
        f"{best.throughput.value:,.0f} images/s, with {best.summary.case.strategy} on {best.devices} devices.",
    )


def draw_efficiency(curves: Sequence[Curve]) -> Picture | None:
    """Scaling efficiency against devices."""
    if not curves:
        return None
    points = [point for curve in curves for point in curve.points]
    worst = min(points, key=lambda point: point.efficiency.value)
    percents = [100 * point.efficiency.value for point in points]
    figure, panels = new_figure(len(_by_kind(curves)))
    for axes, chosen in zip(panels, _by_kind(curves), strict=True):
        axes.axhline(100, color=MUTED, linewidth=1.2, dashes=(4, 3))
        _draw_curves(axes, chosen, _percent_efficiency, "efficiency, % of N times one device")
        axes.set_ylim(min(min(percents) - 5, 80), max(max(percents) + 5, 107))
        _label_curves(axes, chosen, _percent_efficiency)
    return make_picture(
        figure,
        "efficiency",
        "Scaling efficiency",
        "Dashed: ideal. Bars: 95 % intervals. Hollow: oversubscribed. Dotted: to the name.",
        f"Lines of scaling efficiency against devices for {_strategies(curves)}. The lowest is "
        f"{100 * worst.efficiency.value:.0f} %, with {worst.summary.case.strategy} on {worst.devices} devices.",
    )


def draw_predictions(predictions: Sequence[Prediction]) -> Picture | None:
    """Throughput beyond the measured numbers of devices, with 95 % intervals."""
    shown = [each for each in predictions if each.models]
    if not shown:
        return None
    figure, panels = new_figure(len(shown))
    for axes, each in zip(panels, shown, strict=True):
        _draw_prediction(axes, each)
    described = "; ".join(
        f"{each.strategy}, {each.scaling} scaling: up to {each.models[0].paying_devices[1]:,} devices are sensible"
        for each in shown
    )
    return make_picture(
        figure,
        "prediction",
        "Prediction",
        "Points: measured. Line and band: the trusted model and the 95 % interval of a measurement to come. Thin: the "
        "other models. Dashed: ideal. Upright line: the largest sensible number of devices.",
        f"Predicted throughput against devices. {described}.",
    )


def _draw_prediction(axes: Axes, each: Prediction) -> None:
    trusted, *others = each.models
    colour = COLOURS[each.strategy]
    devices = [forecast.devices for forecast in trusted.forecasts]
    first = trusted.forecasts[0]
    single = first.images_per_second / (first.devices * first.efficiency)
    axes.plot(devices, [single * n for n in devices], color=MUTED, linewidth=1.2, dashes=(4, 3))
    low, high = ([getattr(forecast, bound) for forecast in trusted.forecasts] for bound in ("low", "high"))
    axes.fill_between(devices, low, high, color=colour, alpha=0.18, linewidth=0)
    for model in others:
        rates = [forecast.images_per_second for forecast in model.forecasts]
        axes.plot([forecast.devices for forecast in model.forecasts], rates, color=MUTED, linewidth=1)
    axes.plot(devices, [forecast.images_per_second for forecast in trusted.forecasts], color=colour, linewidth=2)
    axes.plot(*zip(*sorted(each.measured.items()), strict=True), MARKERS[each.strategy], color=colour, markersize=7)
    axes.axvline(trusted.paying_devices[1], color=colour, linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(each.measured.values()) / 2, top=single * devices[-1] * 1.3)
    ticks = [n for n in devices if math.log2(n).is_integer()][::2]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    plain_log_ticks(axes.yaxis)
    axes.set_xlabel("devices")
    axes.set_ylabel("images/s, all devices together")
    set_title(axes, f"{each.strategy}, {each.scaling} scaling, by {trusted.name}")


def _draw_curves(axes: Axes, curves: Sequence[Curve], value_of: Callable[[Point], Estimate], label: str) -> None:
    for curve, style in zip(curves, _line_styles(curves), strict=True):
        estimates = [value_of(point) for point in curve.points]
        colour = COLOURS[curve.strategy]
        axes.plot(_devices([curve]), [each.value for each in estimates], style, color=colour, linewidth=1.8)
        for point, each in zip(curve.points, estimates, strict=True):
            draw_point(axes, point.summary, point.devices, each.value, error_bars(each))
    axes.set_xscale("log", base=2)
    ticks = sorted(set(_devices(curves)))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("devices")
    axes.set_ylabel(label)
    set_title(axes, f"{curves[0].scaling} scaling: {_scaling_note(curves)}")


def _label_curves(axes: Axes, curves: Sequence[Curve], value_of: Callable[[Point], Estimate]) -> None:
    """Names the curves on the right, where a thin line leads from the end of those that end before."""
    most, labels = max(_devices(curves)), []
    for curve, name in zip(curves, _curve_names(curves), strict=True):
        end, value, colour = curve.points[-1].devices, value_of(curve.points[-1]).value, COLOURS[curve.strategy]
        axes.plot([end, most], [value, value], color=colour, linewidth=0.8, linestyle=":")
        labels.append(Label(most, value, name, colour, bold=True))
    place_labels(axes, labels)


def _curve_names(curves: Sequence[Curve]) -> list[str]:
    """The strategy, with what tells two curves of one strategy apart."""
    variants = [variant_of(curve.baseline, shown_batch=True) for curve in curves]
    differing = [index for index, values in enumerate(zip(*variants, strict=True)) if len(set(values)) > 1]
    return [
        join_name([curve.strategy, *(variant[index] for index in differing)])
        for curve, variant in zip(curves, variants, strict=True)
    ]


def _line_styles(curves: Sequence[Curve]) -> list[str]:
    variants = [variant_of(curve.baseline, shown_batch=True) for curve in curves]
    order = list(dict.fromkeys(variants))
    return [LINE_STYLES[order.index(variant) % len(LINE_STYLES)] for variant in variants]


def _by_kind(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Returns the curves of weak scaling, and those of strong scaling, if there are any."""
    return group_by(sorted(curves, key=lambda curve: curve.scaling != "weak"), lambda curve: curve.scaling)


def _devices(curves: Iterable[Curve]) -> list[int]:
    return [point.devices for curve in curves for point in curve.points]


def _scaling_note(curves: Sequence[Curve]) -> str:
    batches = {curve.baseline.case.global_batch_size for curve in curves}
    images = f"{label_number(batches.pop())} images" if len(batches) == 1 else "equal batches"
    return f"{images} per device" if curves[0].scaling == "weak" else f"{images} in total"


def _strategies(curves: Iterable[Curve]) -> str:
    return ", ".join(dict.fromkeys(curve.strategy for curve in curves))


def _ideal_throughput(point: Point) -> float:
    return point.throughput.value / point.efficiency.value


def _percent_efficiency(point: Point) -> Estimate:
    each = point.efficiency
    return Estimate(100 * each.value, 100 * each.low, 100 * each.high, each.repeats)
