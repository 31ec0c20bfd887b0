"""The report's pictures. Each function returns one, or None where the study has no data for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.attribution import Attribution, steady_step_seconds
from benchmarks.collectives import AllReduce
from benchmarks.drawing import (
    COLOURS,
    GAIN,
    INK,
    LARGEST_LOSS,
    LOSS,
    MARKERS,
    MUTED,
    PAPER,
    Label,
    Picture,
    make_picture,
    new_figure,
    place_labels,
    set_title,
)
from benchmarks.labels import (
    TIMES,
    label_bytes,
    label_cores,
    label_duration,
    label_number,
    label_other_settings,
    label_point,
    label_three_digits,
)
from benchmarks.prediction import Prediction
from benchmarks.record import one_line
from benchmarks.rows import Row, measured_setting, seed_accuracies
from benchmarks.scaling import Curve, Point, is_oversubscribed
from benchmarks.stats import Estimate
from benchmarks.summary import CaseSummary, TimeToAccuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from benchmarks.findings import Findings

LINE_STYLES = ("-", "--", ":", "-.")
LONGEST_LABEL = 36  # More letters would leave no room for the data.
MOST_RANKS_APART = 32  # More are drawn as bands.


def draw_all(findings: Findings) -> list[Picture]:
    """Returns the pictures for which the study has data."""
    import matplotlib

    rows = findings.main_rows
    with matplotlib.rc_context({"text.parse_math": False}):  # A setting may hold a dollar sign.
        drawn = [
            draw_accuracy(rows),
            draw_time_to_accuracy(rows),
            draw_throughput(findings.curves),
            draw_efficiency(findings.curves),
            draw_losses(findings.attributions),
            draw_step_times(findings.summaries),
            draw_predictions(findings.predictions),
            draw_all_reduces(findings.all_reduces),
        ]
    return [picture for picture in drawn if picture]


def draw_throughput(curves: Sequence[Curve]) -> Picture | None:
    """Total throughput against devices, with intervals and the ideal line."""
    if not curves:
        return None
    points = [point for curve in curves for point in curve.points]
    best = max(points, key=lambda point: point.throughput.value)
    values = [value for point in points for value in (point.throughput.value, _ideal_throughput(point))]
    figure, panels = new_figure(len(_kinds(curves)))
    for axes, chosen in zip(panels, _by_kind(curves), strict=True):
        axes.set_yscale("log")
        for baseline in {id(curve.baseline): curve.baseline for curve in chosen}.values():
            if start := baseline.images_per_second:
                ends = np.array([1, max(_devices(chosen))])
                axes.plot(ends, start.value * ends, color=MUTED, linewidth=1.2, dashes=(4, 3))
        _draw_curves(axes, chosen, lambda point: point.throughput, "images/s, all devices together")
        axes.set_ylim(min(values) / 1.25, max(values) * 1.25)  # The interval of two runs can be wider than all else.
        _plain_log_ticks(axes.yaxis)
        _label_curves(axes, chosen, lambda point: point.throughput)
    return make_picture(
        figure,
        "throughput",
        "Throughput against devices",
        "Dashed: ideal, N times one device. Bars: 95 % intervals. Hollow: oversubscribed.",
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
    figure, panels = new_figure(len(_kinds(curves)))
    for axes, chosen in zip(panels, _by_kind(curves), strict=True):
        axes.axhline(100, color=MUTED, linewidth=1.2, dashes=(4, 3))
        _draw_curves(axes, chosen, _percent_efficiency, "efficiency, % of N times one device")
        axes.set_ylim(min(min(percents) - 5, 80), max(max(percents) + 5, 107))
        _label_curves(axes, chosen, _percent_efficiency)
    return make_picture(
        figure,
        "efficiency",
        "Scaling efficiency",
        "Dashed: ideal. Bars: 95 % intervals. Hollow: oversubscribed.",
        f"Lines of scaling efficiency against devices for {_strategies(curves)}. The lowest is "
        f"{100 * worst.efficiency.value:.0f} %, with {worst.summary.case.strategy} on {worst.devices} devices.",
    )


def draw_accuracy(rows: Sequence[Row]) -> Picture | None:
    """Throughput against test accuracy: up and to the right is better."""
    shown = [
        (row, row.summary.images_per_second, 100 * np.array(accuracies))
        for row in rows
        if row.summary.images_per_second and (accuracies := seed_accuracies(row.summary))
    ]
    if not shown:
        return None
    figure, (axes,) = new_figure()
    axes.set_xscale("log")
    labels = []
    for group in _group(shown, lambda each: (each[0].case.strategy, _variant(each[0].summary, shown_batch=False))):
        colour = COLOURS[group[0][0].case.strategy]
        line = [(throughput.value, float(accuracies.mean())) for _, throughput, accuracies in group]
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, alpha=0.6)
        for row, throughput, accuracies in group:
            mean = float(accuracies.mean())
            upright = [[mean - accuracies.min()], [accuracies.max() - mean]]
            _draw_point(axes, row.summary, throughput.value, mean, upright, _bars(throughput))
            is_last = row is group[-1][0]
            name = _short_name(row, [each[0] for each in shown]) if is_last else f"{TIMES} {row.case.devices}"
            labels.append(Label(throughput.value, mean, name, colour, bold=is_last))
    axes.set_xlabel("images/s, all devices together")
    axes.set_ylabel("test accuracy, %")
    rates = [throughput.value for _, throughput, _ in shown]
    axes.set_xlim(min(rates) / 1.3, max(rates) * 1.3)  # Wider intervals run off the picture.
    axes.margins(y=0.12)
    _plain_log_ticks(axes.xaxis)
    place_labels(axes, labels)
    fastest, best, of_seeds = max(shown, key=lambda each: each[1].value)
    return make_picture(
        figure,
        "throughput_accuracy",
        "Throughput against accuracy",
        "Each point is one case: strategy and devices. Upright bars: lowest to highest seed; level bars: 95 % "
        "interval of the throughput.",
        f"Test accuracy against throughput for {len(shown)} cases. The fastest is {fastest.case.strategy} on "
        f"{fastest.case.devices} devices, with {best.value:,.0f} images/s and {of_seeds.mean():.2f} %.",
    )


def draw_time_to_accuracy(rows: Sequence[Row]) -> Picture | None:
    """Seconds until each target, one line of points for each case."""
    shown = [row for row in rows if any(found.reached for found in row.summary.time_to_accuracy.values())]
    if not shown:
        return None
    targets = sorted({target for row in shown for target in row.summary.time_to_accuracy})
    figure, (axes,) = new_figure(height=1.1 + 0.5 * len(shown))
    longest = max(_typical_seconds(found) for row in shown for _, found in _reached(row))
    for place, row in enumerate(shown):
        _draw_targets(axes, place, row, close_seconds=longest / 12)
    axes.set_yticks(range(len(shown)), [_short_name(row, shown) for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.7)
    axes.set_xlim(0, 1.12 * longest)
    axes.set_xlabel("training and evaluating, s")
    axes.grid(axis="y", visible=False)
    return make_picture(
        figure,
        "time_to_accuracy",
        "Time to accuracy",
        "Number above a point: the accuracy, in %. Point: the median over the seeds, hollow if not all of them reached "
        "it (in brackets how many did), and the expected running time if fewer than half did.",
        f"Seconds until {', '.join(f'{100 * target:g} %' for target in targets)} test accuracy for {len(shown)} cases.",
    )


def _reached(row: Row) -> list[tuple[float, TimeToAccuracy]]:
    return [(target, found) for target, found in sorted(row.summary.time_to_accuracy.items()) if found.reached]


def _typical_seconds(found: TimeToAccuracy) -> float:
    return found.median_seconds if math.isfinite(found.median_seconds) else found.expected_seconds


def _draw_targets(axes: Axes, place: int, row: Row, close_seconds: float) -> None:
    colour = COLOURS[row.case.strategy]
    reached = _reached(row)
    axes.plot([_typical_seconds(found) for _, found in reached], [place] * len(reached), color=colour, alpha=0.35)
    texts: list[tuple[float, list[str]]] = []
    for target, found in reached:
        seconds, all_did = _typical_seconds(found), found.reached == found.runs
        axes.plot(seconds, place, marker="o", markersize=7, color=colour, markerfacecolor=colour if all_did else PAPER)
        text = f"{100 * target:g}" + ("" if all_did else f" ({found.reached}/{found.runs})")
        if texts and seconds - texts[-1][0] < close_seconds:  # One evaluation often passes several targets.
            texts[-1][1].append(text)
        else:
            texts.append((seconds, [text]))
    for seconds, parts in texts:
        style: dict[str, Any] = {"ha": "center", "color": INK, "fontsize": 10}
        axes.annotate(", ".join(parts), (seconds, place), (0, 6), textcoords="offset points", **style)


def draw_step_times(summaries: Sequence[CaseSummary]) -> Picture | None:
    """Distribution of the steady windows' step times, for each rank, of each strategy's largest case."""
    from matplotlib.ticker import MaxNLocator

    panels_of = _largest_with_ranks(summaries)
    if not panels_of:
        return None
    figure, panels = new_figure(len(panels_of), height=3.7)
    for axes, (full, free) in zip(panels, panels_of, strict=True):
        ranks = np.arange(len(full.records[0].identity.hosts))
        colour = COLOURS[full.case.strategy]
        series = [(full, colour, "as trained")] + ([(free, MUTED, "without all-reduce")] if free else [])
        for index, (summary, shade, name) in enumerate(series):
            shift = 0.16 * (2 * index - 1) if len(series) > 1 else 0.0
            _draw_ranks(axes, ranks + shift, _step_milliseconds(summary), shade, name)
        set_title(axes, label_point(full.case))
        axes.set_xlabel("rank")
        axes.set_ylabel("step time, ms")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.99), "ncols": 2, "columnspacing": 1}
            axes.legend(fontsize=10.5, frameon=False, labelcolor=INK, handletextpad=0.2, **place)
    return make_picture(
        figure,
        "step_times",
        "Step times of each rank",
        "Point: median of the steady windows; thick: middle half; thin: 5th to 95th percentile. With the all-reduce "
        "all ranks wait for the slowest; without it, a slow rank shows.",
        "Distributions of step times by rank for "
        + ", ".join(f"{full.case.strategy} on {full.case.devices} devices" for full, _ in panels_of)
        + ".",
    )


def _step_milliseconds(summary: CaseSummary) -> np.ndarray:
    """Returns the steady step times of all repeats, float64 [ranks, windows]."""
    return 1000 * np.concatenate([steady_step_seconds(record) for record in summary.records], axis=1)


def _draw_ranks(axes: Axes, places: np.ndarray, milliseconds: np.ndarray, colour: str, name: str) -> None:
    lowest, low, middle, high, highest = np.percentile(milliseconds, [5, 25, 50, 75, 95], axis=1)
    if len(places) > MOST_RANKS_APART:
        axes.fill_between(places, lowest, highest, color=colour, alpha=0.25, linewidth=0)
        axes.plot(places, middle, color=colour, linewidth=1.2, label=name)
        return
    axes.vlines(places, lowest, highest, color=colour, linewidth=1.2)
    axes.vlines(places, low, high, color=colour, linewidth=5)
    axes.plot(places, middle, "o", color=colour, markeredgecolor=PAPER, markersize=7, label=name)


def _largest_with_ranks(summaries: Sequence[CaseSummary]) -> list[tuple[CaseSummary, CaseSummary | None]]:
    """For each strategy its steady case of the most ranks, preferably with its twin without all-reduce."""
    free = {_twin_key(each): each for each in summaries if not each.case.all_reduce and each.images_per_second}
    best: dict[str, CaseSummary] = {}
    for each in summaries:
        measured = each.case.kind == "train" and not each.case.is_ablation and each.images_per_second is not None
        if measured and len(each.records[0].identity.hosts) > 1:
            before = best.get(each.case.strategy)
            if before is None or _rank_preference(each, free) > _rank_preference(before, free):
                best[each.case.strategy] = each
    return [(full, free.get(_twin_key(full))) for _, full in sorted(best.items())]


def _twin_key(summary: CaseSummary) -> tuple[Any, ...]:
    case = summary.case
    return case.strategy, case.devices, case.hosts, case.cores_per_device, case.global_batch_size, str(case.settings)


def _rank_preference(summary: CaseSummary, free: dict[tuple[Any, ...], CaseSummary]) -> tuple[Any, ...]:
    return not is_oversubscribed(summary), _twin_key(summary) in free, summary.case.devices


def draw_all_reduces(measured: Sequence[AllReduce]) -> Picture | None:
    """Latency of small messages and bus bandwidth of large ones."""
    if not measured:
        return None
    parts: list[tuple[str, Callable[[AllReduce], tuple[float, float, float]], list[AllReduce]]] = [
        ("latency of small messages, µs", _microseconds, [each for each in measured if each.is_latency]),
        ("bus bandwidth of large messages, GB/s", _gigabytes, [each for each in measured if not each.is_latency]),
    ]
    parts = [part for part in parts if part[2]]
    figure, panels = new_figure(len(parts))
    for axes, (title, value_of, chosen) in zip(panels, parts, strict=True):
        set_title(axes, title)
        _draw_messages(axes, chosen, value_of)
    best = max(measured, key=lambda each: each.bus_bandwidth)
    return make_picture(
        figure,
        "all_reduce",
        "All-reduce",
        "Slowest rank; median, 5th and 95th percentile of all timings.",
        f"Latency and bus bandwidth against message size. The highest bus bandwidth is {best.bus_bandwidth / 1e9:.2g} "
        f"GB/s, with {best.case.strategy} on {best.case.devices} devices and {label_bytes(best.size_bytes)}.",
    )


def _draw_messages(
    axes: Axes, measured: Sequence[AllReduce], value_of: Callable[[AllReduce], tuple[float, float, float]]
) -> None:
    axes.set_xscale("log", base=2)
    labels = []
    for group in _group(measured, lambda each: each.case.case_id):
        case = group[0].case
        x = [each.size_bytes for each in group]
        y, low, high = np.transpose([value_of(each) for each in group])
        style: dict[str, Any] = {
            "color": COLOURS[case.strategy],
            "linestyle": _style_of_devices(case.devices, measured),
        }
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(x, y, marker=MARKERS[case.strategy], markersize=5, **style)
        labels.append(Label(x[-1], float(y[-1]), label_point(case), style["color"]))
    sizes = sorted({each.size_bytes for each in measured})
    axes.set_xticks(sizes[:: -(-len(sizes) // 6)], [label_bytes(size) for size in sizes[:: -(-len(sizes) // 6)]])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bytes of each rank's message")
    place_labels(axes, labels)


def _style_of_devices(devices: int, measured: Iterable[AllReduce]) -> str:
    counts = sorted({each.case.devices for each in measured})
    return LINE_STYLES[counts.index(devices) % len(LINE_STYLES)]


def _microseconds(each: AllReduce) -> tuple[float, float, float]:
    return 1e6 * each.seconds, 1e6 * each.low, 1e6 * each.high


def _gigabytes(each: AllReduce) -> tuple[float, float, float]:
    value = each.bus_bandwidth / 1e9
    return value, value * each.seconds / each.high, value * each.seconds / each.low


def draw_losses(attributions: Sequence[Attribution]) -> Picture | None:
    """For each curve's largest number of devices, what makes a step longer, cause by cause."""
    shown = _largest_explained(attributions)
    if not shown:
        return None
    figure, panels = new_figure(len(shown), height=0.9 + 0.34 * max(len(each.parts) + 1 for each in shown))
    for axes, each in zip(panels, shown, strict=True):
        _draw_waterfall(axes, each)
    described = "; ".join(
        f"{each.case.strategy} on {each.case.devices} devices: "
        + ", ".join(f"{part.name} {1000 * part.step_seconds.value:+.2f} ms" for part in each.parts)
        for each in shown
    )
    return make_picture(
        figure,
        "losses",
        "What each step loses",
        "Each bar starts where the one above ends. Thin: 95 % intervals. Dark: the largest cause.",
        f"Time that each step takes longer than is ideal, by cause. {described}.",
    )


def _largest_explained(attributions: Sequence[Attribution]) -> list[Attribution]:
    """The largest case of every strategy and kind of scaling, oversubscribed ones only for want of others."""
    explained = [each for each in attributions if len(each.parts) > 1]
    groups = _group(explained, lambda each: (each.scaling, each.case.strategy))
    return [max(group, key=lambda each: (not each.oversubscribed, each.case.devices)) for group in groups]


def _draw_waterfall(axes: Axes, each: Attribution) -> None:
    steps = np.array([1000 * part.step_seconds.value for part in each.parts])
    starts = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
    biggest = each.biggest.name if each.biggest else None
    total = 1000 * (each.step_seconds.value - each.ideal_step_seconds.value)
    left, right = min(0.0, *starts, *(starts + steps)), max(0.0, *starts, *(starts + steps))
    span = right - left or 1.0
    for place, (part, step, start) in enumerate(zip(each.parts, steps, starts, strict=True)):
        colour = LARGEST_LOSS if part.name == biggest else LOSS if step > 0 else GAIN
        axes.barh(place, step, left=start, height=0.62, color=colour)
        low, high = (start + 1000 * bound for bound in (part.step_seconds.low, part.step_seconds.high))
        axes.hlines(place, low, high, color=INK, linewidth=1.2)
        end = np.nanmin([np.nanmax([start, start + step, high]), right + 0.3 * span])
        _label_bar(axes, place, float(end), step, part.share.value)
    axes.barh(len(steps), total, height=0.62, color=MUTED)
    _label_bar(axes, len(steps), max(0.0, total), total, each.loss.value)
    axes.set_yticks(range(len(steps) + 1), [*(part.name for part in each.parts), "all"])
    axes.set_ylim(len(steps) + 0.5, -0.5)
    axes.set_xlim(left - 0.15 * span, right + 0.9 * span)  # Room for the texts; wide intervals run off the picture.
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms per step more than ideal")
    ideal, real = (
        label_three_digits(1000 * estimate.value) for estimate in (each.ideal_step_seconds, each.step_seconds)
    )
    set_title(axes, f"{label_point(each.case)}, {each.scaling}: {ideal} to {real} ms")


def _label_bar(axes: Axes, place: int, end: float, milliseconds: float, share: float) -> None:
    text = f"{milliseconds:+.2f} ms, {round(100 * share) + 0:d} %"
    behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
    style: dict[str, Any] = {"va": "center", "color": INK, "fontsize": 10.5, "bbox": behind}
    axes.annotate(text, (end, place), (6, 0), textcoords="offset points", **style)


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
    _plain_log_ticks(axes.yaxis)
    axes.set_xlabel("devices")
    axes.set_ylabel("images/s, all devices together")
    set_title(axes, f"{each.strategy}, {each.scaling} scaling, by {trusted.name}")


def _draw_curves(axes: Axes, curves: Sequence[Curve], value_of: Callable[[Point], Estimate], label: str) -> None:
    for curve, style in zip(curves, _line_styles(curves), strict=True):
        estimates = [value_of(point) for point in curve.points]
        colour = COLOURS[curve.strategy]
        axes.plot(_devices([curve]), [each.value for each in estimates], style, color=colour, linewidth=1.8)
        for point, each in zip(curve.points, estimates, strict=True):
            _draw_point(axes, point.summary, point.devices, each.value, _bars(each))
    axes.set_xscale("log", base=2)
    ticks = sorted(set(_devices(curves)))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("devices")
    axes.set_ylabel(label)
    set_title(axes, f"{curves[0].scaling} scaling: {_scaling_note(curves)}")


def _draw_point(axes: Axes, summary: CaseSummary, x: float, y: float, bars: Any, across: Any = None) -> None:
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
    )


def _label_curves(axes: Axes, curves: Sequence[Curve], value_of: Callable[[Point], Estimate]) -> None:
    names = _curve_names(curves)
    labels = [
        Label(curve.points[-1].devices, value_of(curve.points[-1]).value, name, COLOURS[curve.strategy], bold=True)
        for curve, name in zip(curves, names, strict=True)
    ]
    place_labels(axes, labels)


def _curve_names(curves: Sequence[Curve]) -> list[str]:
    """The strategy, with what tells two curves of one strategy apart."""
    variants = [_variant(curve.baseline, shown_batch=True) for curve in curves]
    differing = [index for index, values in enumerate(zip(*variants, strict=True)) if len(set(values)) > 1]
    return [
        _join([curve.strategy, *(variant[index] for index in differing)])
        for curve, variant in zip(curves, variants, strict=True)
    ]


def _line_styles(curves: Sequence[Curve]) -> list[str]:
    variants = [_variant(curve.baseline, shown_batch=True) for curve in curves]
    order = list(dict.fromkeys(variants))
    return [LINE_STYLES[order.index(variant) % len(LINE_STYLES)] for variant in variants]


def _variant(summary: CaseSummary, *, shown_batch: bool) -> tuple[str, ...]:
    case = summary.case
    batch = f"{label_number(case.global_batch_size)} images" if shown_batch else ""
    cores = "all cores" if case.cores_per_device is None else label_cores(case.cores_per_device)
    precision, xla = (measured_setting(summary, name) for name in ("precision", "xla"))
    return (
        batch,
        cores,
        precision.removeprefix("mixed_"),
        f"XLA {xla}",
        label_other_settings(case),
        label_duration(case),
    )


def _short_name(row: Row, rows: Sequence[Row]) -> str:
    """Strategy and devices, with what tells the row from others that have the same."""
    twins = [
        other for other in rows if (other.case.strategy, other.case.devices) == (row.case.strategy, row.case.devices)
    ]
    variants = [
        (label_number(twin.case.global_batch_size), *_variant(twin.summary, shown_batch=False)) for twin in twins
    ]
    own = variants[[twin is row for twin in twins].index(True)]
    differing = [i for i, values in enumerate(zip(*variants, strict=True)) if len(set(values)) > 1]
    return _join([label_point(row.case), *(own[index] for index in differing)])


def _join(parts: Iterable[str]) -> str:
    return one_line(", ".join(filter(None, parts)), LONGEST_LABEL)


def _kinds(curves: Iterable[Curve]) -> list[str]:
    found = {curve.scaling for curve in curves}
    return [kind for kind in ("weak", "strong") if kind in found]


def _by_kind(curves: Sequence[Curve]) -> list[list[Curve]]:
    return [[curve for curve in curves if curve.scaling == kind] for kind in _kinds(curves)]


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


def _bars(estimate: Estimate) -> list[list[float]]:
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def _plain_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, in between only where that leaves too few, as plain numbers."""
    low, high = axis.get_view_interval()
    decades = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [factor * decade for decade in decades for factor in factors if low <= factor * decade <= high]
        if len(ticks) >= 3:
            break
    axis.set_ticks(ticks, [f"{tick / 1e6:g} million" if tick >= 1e6 else f"{tick:,.0f}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _group(items: Iterable[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
