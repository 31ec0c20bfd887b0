"""Throughput against accuracy, the time to an accuracy, and throughput alone where nothing trains to an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.summary import TimeToAccuracy
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.labels import TIMES, label_number, label_point, says_little
from mnist_dist.benchmarks.report.figures import drawing
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.errors import counted

LEAST_ACCURACY_SPAN = 0.3  # Of the axis, in percent: some images of 10,000 are no difference to be seen at first sight.
TWIN_RATE, TWIN_ACCURACY = 0.1, 0.02  # As a share, and in percent: points nearer than that lie on one another.


def draw_accuracy(cases: Sequence[TrainedCase]) -> drawing.Picture | None:
    """Throughput against test accuracy: up and to the right is better."""
    known = [
        (trained, trained.summary.images_per_second, 100 * np.array(accuracies))
        for trained in cases
        if trained.summary.images_per_second and (accuracies := trained.summary.seed_accuracies)
    ]
    if not known:
        return None
    shown, folded = drawing.fold(known, drawing.MOST_POINTS, lambda each: each[1].value, "fastest cases")
    figure, (axes,) = drawing.new_figure()
    axes.set_xscale("log")
    labels: list[drawing.Label] = []
    bars: list[tuple[tuple[float, float], ...]] = []
    for group in group_by(
        shown, lambda each: (each[0].case.strategy, drawing.variant_of(each[0].summary, shown_batch=False))
    ).values():
        colour = drawing.COLOURS[group[0][0].case.strategy]
        line = [(throughput.value, float(accuracies.mean())) for _, throughput, accuracies in group]
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, alpha=0.6)
        for trained, throughput, accuracies in group:
            mean = float(accuracies.mean())
            upright = [[mean - accuracies.min()], [accuracies.max() - mean]]
            level = None if says_little(throughput) else drawing.error_bars(throughput)
            bars += [((throughput.low, mean), (throughput.high, mean))] if level else []
            bars += [((throughput.value, accuracies.min()), (throughput.value, accuracies.max()))]
            drawing.draw_point(axes, trained.summary, throughput.value, mean, upright, level)
            is_last = trained is group[-1][0]
            name = _short_name(trained, [each[0] for each in shown]) if is_last else f"{TIMES} {trained.case.devices}"
            if is_last or not any(_is_twin(label, throughput.value, mean) for label in labels):
                labels.append(drawing.Label(throughput.value, mean, name, colour, bold=is_last))
    axes.set_xlabel("images/s, all devices together (log scale)")
    axes.set_ylabel("test accuracy, %")
    rates = np.array([throughput.value for _, throughput, _ in shown])
    ends = [x for bar in bars for x, _ in bar]
    # Intervals that reach further than to half or twice a rate run off the picture.
    left, right = max(np.nanmin([*ends, *rates]), rates.min() / 2), min(np.nanmax([*ends, *rates]), rates.max() * 2)
    axes.set_xlim(min(left / 1.1, rates.min() / 1.3), max(right * 1.1, rates.max() * 1.3))
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(high - low, LEAST_ACCURACY_SPAN) / 2  # Equal accuracies have no span.
    axes.set_ylim(middle - half, min(middle + half, 100.0))
    axes.locator_params(axis="y", nbins=8, steps=[1, 2, 5, 10])
    drawing.plain_log_ticks(axes.xaxis)
    drawing.place_labels(axes, labels, bars)
    fastest, best, of_seeds = max(shown, key=lambda each: each[1].value)
    return drawing.make_picture(
        figure,
        "throughput_accuracy",
        f"Test accuracy against throughput for {counted(len(shown), 'case')}. The fastest is {fastest.case.strategy} "
        f"on {counted(fastest.case.devices, 'device')}, with {best.value:,.0f} images/s and {of_seeds.mean():.2f} %.",
        folded,
        seeds=any(accuracies.min() < accuracies.max() for _, _, accuracies in shown),
        bars=any(low < high for (low, _), (high, _) in bars),
        apart=drawing.measured_apart(trained.summary for trained, *_ in shown),
    )


def draw_rates(cases: Sequence[TrainedCase]) -> drawing.Picture | None:
    """Throughput of each case, the fastest on top, where devices and accuracy tell none apart."""
    rates = [(each, each.summary.images_per_second) for each in cases]
    known = [(trained, rate) for trained, rate in rates if rate]
    if (
        len(known) < 2
        or len({each.case.devices for each in cases}) > 1
        or any(each.summary.seed_accuracies for each in cases)
    ):
        return None
    shown, folded = drawing.fold(known, drawing.MOST_POINTS, lambda each: each[1].value, "fastest cases")
    shown.sort(key=lambda each: -each[1].value)
    figure, (axes,) = drawing.new_figure(height=1.1 + 0.35 * len(shown))
    axes.set_xscale("log")
    for place, (trained, rate) in enumerate(shown):
        few = says_little(rate)
        drawing.draw_point(axes, trained.summary, rate.value, place, None, None if few else drawing.error_bars(rate))
    names = _names_without_devices([trained for trained, _ in shown])
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("images/s (log scale)")
    axes.tick_params(axis="x", labelsize=9)  # The names leave little room.
    axes.grid(axis="y", visible=False)
    drawing.plain_log_ticks(axes.xaxis)
    return drawing.make_picture(
        figure,
        "rates",
        f"Throughput of {counted(len(shown), 'case')}. "
        f"The fastest is {names[0]} with {shown[0][1].value:,.0f} images/s.",
        folded,
        bars=not all(says_little(rate) for _, rate in shown),
    )


def _is_twin(label: drawing.Label, rate: float, accuracy: float) -> bool:
    """Whether a point lies on one that has a label, as those of all strategies on one device do."""
    return abs(math.log(label.x / rate)) < TWIN_RATE and abs(label.y - accuracy) < TWIN_ACCURACY


def draw_time_to_accuracy(cases: Sequence[TrainedCase]) -> drawing.Picture | None:
    """Seconds until each target, one line of points for each case."""
    known = [trained for trained in cases if any(found.reached for found in trained.summary.time_to_accuracy.values())]
    if not known:
        return None
    # By the highest accuracy that any of them reaches, and then by how soon they do.
    highest = max(target for trained in known for target, _ in _reached(trained))
    shown, folded = drawing.fold(known, drawing.MOST_POINTS, lambda each: -_seconds_to(highest, each), "soonest cases")
    targets = sorted({target for trained in shown for target in trained.summary.time_to_accuracy})
    figure, (axes,) = drawing.new_figure(height=1.1 + 0.5 * len(shown))
    drawn = [found for trained in shown for _, found in _reached(trained)]
    longest = max(map(_typical_seconds, drawn))
    for place, trained in enumerate(shown):
        _draw_targets(axes, place, trained, close_seconds=longest / 12)
    axes.set_yticks(range(len(shown)), [_short_name(trained, shown) for trained in shown])
    axes.set_ylim(len(shown) - 0.5, -0.7)
    axes.set_xlim(0, (1.25 if any(map(_missed, shown)) else 1.12) * longest)
    axes.set_xlabel("training and evaluating, s")
    axes.grid(axis="y", visible=False)
    return drawing.make_picture(
        figure,
        "time_to_accuracy",
        f"Seconds until {', '.join(f'{100 * target:g} %' for target in targets)} test accuracy "
        f"for {counted(len(shown), 'case')}.",
        folded,
        seeds=any(found.runs > 1 for found in drawn),
        hollow=any(found.reached < found.runs for found in drawn),
        expected=not all(math.isfinite(found.median_seconds) for found in drawn),
        never=any(map(_missed, shown)),
    )


def _reached(trained: TrainedCase) -> list[tuple[float, TimeToAccuracy]]:
    return [(target, found) for target, found in sorted(trained.summary.time_to_accuracy.items()) if found.reached]


def _missed(trained: TrainedCase) -> str:
    return ", ".join(
        f"{100 * target:g}" for target, found in sorted(trained.summary.time_to_accuracy.items()) if not found.reached
    )


def _seconds_to(target: float, trained: TrainedCase) -> float:
    return _typical_seconds(dict(_reached(trained))[target]) if target in dict(_reached(trained)) else math.inf


def _typical_seconds(found: TimeToAccuracy) -> float:
    return found.median_seconds if math.isfinite(found.median_seconds) else found.expected_seconds


def _draw_targets(axes: drawing.Axes, place: int, trained: TrainedCase, close_seconds: float) -> None:
    colour = drawing.COLOURS[trained.case.strategy]
    reached = _reached(trained)
    axes.plot([_typical_seconds(found) for _, found in reached], [place] * len(reached), color=colour, alpha=0.35)
    texts: list[tuple[float, list[str]]] = []
    for target, found in reached:
        seconds, all_did = _typical_seconds(found), found.reached == found.runs
        axes.plot(
            seconds, place, marker="o", markersize=7, color=colour, markerfacecolor=colour if all_did else drawing.PAPER
        )
        text = f"{100 * target:g}" + ("" if all_did else f" ({found.reached}/{found.runs})")
        if texts and seconds - texts[-1][0] < close_seconds:  # One evaluation often passes several targets.
            texts[-1][1].append(text)
        else:
            texts.append((seconds, [text]))
    if missed := _missed(trained):
        end = (max(_typical_seconds(found) for _, found in reached), place)
        quiet: dict[str, Any] = {"va": "center", "color": drawing.MUTED, "fontsize": 10}
        axes.annotate(f"{missed} never", end, (8, 0), textcoords="offset points", **quiet)
    for seconds, parts in texts:
        style: dict[str, Any] = {"ha": "center", "color": drawing.INK, "fontsize": 10}
        axes.annotate(", ".join(parts), (seconds, place), (0, 6), textcoords="offset points", **style)


def _short_name(trained: TrainedCase, cases: Sequence[TrainedCase]) -> str:
    """Strategy and devices, with what tells the case from others that have the same."""
    point = label_point(trained.case)
    twins = [other for other in cases if label_point(other.case) == point]
    variants = [
        (label_number(twin.case.global_batch_size), *drawing.variant_of(twin.summary, shown_batch=False))
        for twin in twins
    ]
    own = drawing.telling(variants)[[twin is trained for twin in twins].index(True)]
    return drawing.join_name([point, *own])


def _names_without_devices(cases: Sequence[TrainedCase]) -> list[str]:
    """What tells each case from the others, which all have as many devices."""
    variants = [(each.case.strategy, *drawing.variant_of(each.summary, shown_batch=True)) for each in cases]
    plain = {"XLA on": "XLA", "XLA off": ""}
    return [drawing.join_name(plain.get(part, part) for part in parts) for parts in drawing.telling(variants)]
