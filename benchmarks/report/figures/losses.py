"""The waterfall from the ideal step to the measured one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.attribution import Attribution
from mnist_dist.benchmarks.labels import label_part, label_point, label_three_digits
from mnist_dist.benchmarks.report.figures import drawing
from mnist_dist.benchmarks.statistics.grouping import group_by


def draw_losses(attributions: Sequence[Attribution]) -> drawing.Picture | None:
    """For each curve's largest number of devices, what makes a step longer, cause by cause."""
    shown = _largest_explained(attributions)
    if not shown:
        return None
    figure, panels = drawing.new_figure(len(shown), height=0.9 + 0.34 * max(len(each.parts) + 1 for each in shown))
    scalings = {each.scaling for each in shown}
    largest = max(1000 * (each.step_seconds.value - each.ideal_step_seconds.value) for each in shown)
    for axes, each in zip(panels, shown, strict=True):
        _draw_waterfall(axes, each, largest)
        ends = [label_three_digits(1000 * end.value) for end in (each.ideal_step_seconds, each.step_seconds)]
        scaling = f", {each.scaling}" if len(scalings) > 1 else ""
        drawing.set_title(axes, f"{label_point(each.case)}{scaling}: {ends[0]} to {ends[1]} ms")
    lefts, rights = zip(*(axes.get_xlim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_xlim(min(lefts), max(rights))  # So that bars of one length are losses of one size.
    described = "; ".join(
        f"{each.case.strategy} on {each.case.devices} devices: "
        + ", ".join(f"{label_part(part.name)} {1000 * part.step_seconds.value:+.2f} ms" for part in each.parts)
        for each in shown
    )
    alternative = f"Time that each step takes longer than is ideal, by cause. {described}."
    gains = any(part.step_seconds.value < 0 for each in shown for part in each.parts)
    return drawing.make_picture(figure, "losses", alternative, gains=gains, largest=any(each.biggest for each in shown))


def _largest_explained(attributions: Sequence[Attribution]) -> list[Attribution]:
    """The largest case of every strategy and kind of scaling, oversubscribed ones only for want of others.

    Nothing of a busy machine, where parts of any size cancel out.
    """
    explained = [each for each in attributions if len(each.parts) > 1 and not each.disturbed]
    groups = group_by(explained, lambda each: (each.scaling, each.case.strategy)).values()
    return [max(group, key=lambda each: (not each.oversubscribed, each.case.devices)) for group in groups]


def _draw_waterfall(axes: drawing.Axes, each: Attribution, largest_loss: float) -> None:
    """Draws one case; `largest_loss` is that of all panels, ms, as they will have one axis."""
    steps = np.array([1000 * part.step_seconds.value for part in each.parts])
    starts = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
    biggest = each.biggest.name if each.biggest else None
    total = 1000 * (each.step_seconds.value - each.ideal_step_seconds.value)
    left, right = min(0.0, *starts, *(starts + steps)), max(0.0, *starts, *(starts + steps))
    span = max(right - left, largest_loss) or 1.0
    for place, (part, step, start) in enumerate(zip(each.parts, steps, starts, strict=True)):
        colour = drawing.LARGEST_LOSS if part.name == biggest else drawing.LOSS if step > 0 else drawing.GAIN
        axes.barh(place, step, left=start, height=0.62, color=colour)
        low, high = (start + 1000 * bound for bound in (part.step_seconds.low, part.step_seconds.high))
        axes.hlines(place, low, high, color=drawing.INK, linewidth=1.2)
        end = np.nanmin([np.nanmax([start, start + step, high]), right + 0.3 * span])
        _label_bar(axes, place, float(end), step, part.share.value)
    axes.barh(len(steps), total, height=0.62, color=drawing.MUTED)
    _label_bar(axes, len(steps), max(0.0, total), total, each.loss.value)
    axes.set_yticks(range(len(steps) + 1), [*(label_part(part.name) for part in each.parts), "all"])
    axes.set_ylim(len(steps) + 0.5, -0.5)
    lows = [1000 * part.step_seconds.low for part in each.parts]
    lowest = np.nanmin([left, *(starts + lows)])
    # Room for the texts; only intervals wider than all that is lost run off the picture.
    axes.set_xlim(max(lowest, left - span) - 0.1 * span, right + 0.9 * span)
    axes.axvline(0, color=drawing.MUTED, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms per step more than ideal")


def _label_bar(axes: drawing.Axes, place: int, end: float, milliseconds: float, share: float) -> None:
    text = f"{milliseconds:+.2f} ms, {round(100 * share) + 0:d} %"
    behind = {"facecolor": drawing.PAPER, "edgecolor": "none", "pad": 1}
    style: dict[str, Any] = {"va": "center", "color": drawing.INK, "fontsize": 10.5, "bbox": behind}
    axes.annotate(text, (end, place), (6, 0), textcoords="offset points", **style)
