"""What the report's pictures have in common: colours, panels, points with their labels, and their two files.

They are drawn through `matplotlib.figure.Figure`, not pyplot, so they need no display and leave no figure behind.
Strategies keep their colour and marker in all of them.
"""

from __future__ import annotations

import heapq
import io
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mnist_dist.benchmarks.analysis.scaling import is_oversubscribed
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.labels import label_duration, label_number, label_other_settings
from mnist_dist.benchmarks.report.pages import read_resource
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.errors import counted, one_line
from mnist_dist.strategies import STRATEGIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130
LONGEST_NAME = 36
LINE_STYLES = ("-", "--", ":", "-.")
LABEL_POINTS = 8.0  # From a point to the text beside it.
SHIFTS = range(-150, 151)  # Points by which labels may stand higher or lower.
LABELS_ABOVE, POINTS_ABOVE = 3, 4  # Lines are 2: labels interrupt them, and cover no point.
CSS_PIXELS_PER_INCH = 96
MOST_LINES, MOST_POINTS, MOST_PANELS = 12, 18, 6  # Of one panel, or of one picture, that can be told apart.
WIDTH = 5.7  # Inches; half of a wide page, and still readable when a phone shrinks it.
# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), some darkened
# so that text in them can be read; beside each the colour on a dark page.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#e1e4e8", "#fffffe"
PALETTE = {"#54595f": "#b4bac2", "#0067a3": "#5ab4f0", "#b84d00": "#ff9d57", "#007a59": "#43d3a4", "#8f3f73": "#e69fc9"}
COLOURS = dict(zip(STRATEGIES, itertools.cycle(PALETTE), strict=False))
MARKERS = dict(zip(STRATEGIES, itertools.cycle("so^Dvp*"), strict=False))
LOSS, LARGEST_LOSS, GAIN = "#d9a441", "#a3412e", "#4a9fc9"
ON_DARK = {
    INK: "#e8eaed",
    MUTED: "#a8b0ba",
    GRID: "#3a4048",
    PAPER: "#1d2127",
    **PALETTE,
    LOSS: "#d9a442",
    LARGEST_LOSS: "#f07f68",
    GAIN: "#4a9fca",
}


@dataclass(frozen=True)
class Picture:
    """One figure, with what stands above and below it, and the text for who cannot see it."""

    name: str
    title: str
    caption: str
    alternative: str
    svg: str
    png: bytes
    width: int  # CSS pixels.
    height: int

    @property
    def wide(self) -> bool:
        """Whether it has two panels beside each other."""
        return self.width > 1.5 * WIDTH * CSS_PIXELS_PER_INCH


@dataclass(frozen=True)
class Label:
    """Text beside a point in data coordinates."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool = False


def new_figure(panels: int = 1, height: float = 4.1) -> tuple[Figure, list[Axes]]:
    """Returns a figure with panels beside each other, two at most in a row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns, rows = min(panels, 2), -(-panels // 2)
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    figure = Figure(figsize=(WIDTH * columns, height * rows), layout=layout, facecolor=PAPER)
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for unused in axes[panels:]:
        unused.set_axis_off()
    for each in axes[:panels]:
        each.set_facecolor(PAPER)
        each.grid(color=GRID, linewidth=0.8)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(MUTED)
        each.tick_params(colors=MUTED, labelcolor=INK, labelsize=11)
        each.tick_params(which="minor", length=0)
        for label in (each.xaxis.label, each.yaxis.label):
            label.set(color=INK, fontsize=12)
    return figure, axes[:panels]


def set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", pad=10, color=INK, fontsize=12)


def place_labels(axes: Axes, labels: Sequence[Label], bars: Sequence[tuple[tuple[float, float], ...]] = ()) -> None:
    """Writes each label right of its point, higher or lower by as little as keeps it off points, bars and other labels.

    It stands to the left where another point is to the right, at the same height. Lines that pass behind it keep clear
    of its letters.

    Args:
        bars: both ends of each, x and y in the units of the axes.
    """
    from matplotlib.transforms import Bbox

    texts = [
        axes.annotate(
            label.text,
            (label.x, label.y),
            (LABEL_POINTS, 0),
            textcoords="offset points",
            va="center",
            color=label.colour,
            fontsize=11,
            fontweight="bold" if label.bold else "normal",
            annotation_clip=False,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0},
            zorder=LABELS_ABOVE,
        )
        for label in labels
    ]
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    pixel = 72 / axes.figure.dpi  # In points.
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    taken += [Bbox(axes.transData.transform(ends)).padded(4) for ends in bars]  # With their caps.
    for text, point in zip(texts, points, strict=True):
        width, (across, up) = text.get_window_extent().width, (points - point).T
        right, left = ((np.abs(up) < 4) & (side * across > 8) & (side * across < width) for side in (1, -1))
        if right.any() and not left.any() and point[0] - width > axes.bbox.x0:
            text.set(ha="right", position=(-LABEL_POINTS, 0))
    heights = points[:, 1] - np.median(points[:, 1])
    # From the middle outwards, and inwards only where that saves 4 points: so labels keep the order of their points.
    for text, height in sorted(zip(texts, heights, strict=True), key=lambda pair: abs(pair[1])):
        shifts = sorted(SHIFTS, key=lambda shift: abs(shift) + 4 * (shift * height < 0))
        box = text.get_window_extent().padded(1)
        free = (shift for shift in shifts if not box.translated(0, shift / pixel).count_overlaps(taken))
        shift = next(free, shifts[0])
        text.set_position((text.get_position()[0], shift))
        taken.append(box.translated(0, shift / pixel))


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
    cores = "all cores" if case.cores_per_device is None else counted(case.cores_per_device, "core")
    precision, xla = (summary.measured_setting(name) for name in ("precision", "xla"))
    return (
        batch,
        cores,
        precision.removeprefix("mixed_"),
        f"XLA {xla}",
        # Without the section, for which there is no room.
        re.sub(r"\b[a-z]+\.(?=[a-z_]+=)", "", label_other_settings(case)),
        label_duration(case),
    )


def telling(variants: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """Returns of each variant the parts in which not all are equal."""
    differing = [index for index, values in enumerate(zip(*variants, strict=True)) if len(set(values)) > 1]
    return [[variant[index] for index in differing] for variant in variants]


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
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [factor * decade for decade in decades for factor in factors if low <= factor * decade <= high]
        if len(ticks) >= 3:
            break
    axis.set_ticks(ticks, [f"{tick / 1e6:g} million" if tick >= 1e6 else f"{tick:,.0f}" for tick in ticks])
    axis.set_ticks([], minor=True)


def fold(items: Collection[Any], most: int, rank: Callable[[Any], float], what: str) -> tuple[list[Any], str]:
    """Returns those items that a picture has room for, in their order, and what its caption says of the others.

    Args:
        rank: the items with the highest are kept.
        what: they are, such as `fastest cases`.
    """
    kept = {id(item) for item in heapq.nlargest(most, items, key=rank)}
    shown = [item for item in items if id(item) in kept]
    return shown, f" Only the {most} {what} of {len(items):,}." if len(items) > most else ""


def measured_apart(summaries: Iterable[CaseSummary]) -> bool:
    """Whether two of some cases took turns, but never with each other, as in a study that was gone on with."""
    rounds = [{run.turns.round_id for run in each.records if run.turns} for each in summaries]
    return any(one.isdisjoint(other) for one, other in itertools.combinations(filter(None, rounds), 2))


def make_picture(figure: Figure, name: str, alternative: str, folded: str = "", **occurs: bool) -> Picture:
    """Renders a figure; the SVG has text as text and takes the colours of the page's dark mode.

    Its name is that of its texts in pictures.yaml, some of which are told only of what `occurs` in it; `folded` is what
    `fold` says of the items left out.
    """
    import matplotlib

    texts = yaml.safe_load(read_resource("pictures.yaml"))[name]
    caption = " ".join([texts["caption"], *(texts[each] for each, is_there in occurs.items() if is_there)])
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    # Text stays text: a third of the size, and sharper than outlines. The salt makes equal figures equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["sans-serif"]}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (round(CSS_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    page_svg = _follow_dark_mode(svg.getvalue())
    return Picture(name, texts["title"], caption + folded, alternative, page_svg, png.getvalue(), width, height)


def _follow_dark_mode(svg: str) -> str:
    names = {light: f"--c{index}" for index, light in enumerate(ON_DARK)}
    body = svg[svg.index("<svg") :]
    for light, name in names.items():
        body = body.replace(light, f"var({name})")
    light_style = ";".join(f"{name}:{light}" for light, name in names.items())
    dark_style = ";".join(f"{names[light]}:{dark}" for light, dark in ON_DARK.items())
    style = f"<style>:root{{{light_style}}}@media (prefers-color-scheme:dark){{:root{{{dark_style}}}}}</style>"
    head, _, rest = body.partition(">")
    return re.sub(r"\s*\n\s*", "\n", f"{head}>{style}{rest}")
