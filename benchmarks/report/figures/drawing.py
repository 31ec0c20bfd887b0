"""What the report's pictures have in common: colours, panels, labels beside the data, and their two files.

They are drawn through `matplotlib.figure.Figure`, not pyplot, so they need no display and leave no figure behind.
Strategies keep their colour and marker in all of them.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.strategies import STRATEGIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DOTS_PER_INCH = 130
LINE_POINTS = 14.0  # From one line of a label to the next.
CSS_PIXELS_PER_INCH = 96
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


# Where a label may stand, in points from what it names, and how it is then aligned; the first free place is taken.
PLACES = [
    (8, 0, "left", "center"),
    (8, 9, "left", "center"),
    (8, -9, "left", "center"),
    (-8, 9, "right", "center"),
    (-8, -9, "right", "center"),
    (0, 11, "center", "bottom"),
    (0, -11, "center", "top"),
    (8, 20, "left", "center"),
    (8, -20, "left", "center"),
    (-8, 20, "right", "center"),
    (-8, -20, "right", "center"),
]


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
        _style(each)
    return figure, axes[:panels]


def _style(axes: Axes) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=11)
    axes.tick_params(which="minor", length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(12)


def set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", pad=10, color=INK, fontsize=12)


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes each label where it covers neither another one nor what is drawn, as far as there is such a place."""
    from matplotlib.collections import LineCollection

    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    paths = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    bars = [each for each in axes.collections if isinstance(each, LineCollection)]
    paths += [path.transformed(each.get_transform()) for each in bars for path in each.get_paths()]
    markers = axes.transData.transform([(label.x, label.y) for label in labels])
    taken: list[Bbox] = []
    for label in labels:
        candidates = [_annotate(axes, label, place) for place in PLACES]
        boxes = [each.get_window_extent() for each in candidates]
        costs = [
            3 * sum(map(box.overlaps, taken))
            + 3 * _leaves(box, axes.bbox)
            + sum(map(box.padded(4).contains, *markers.T))
            + 0.5 * sum(path.intersects_bbox(box, filled=False) for path in paths)
            + 0.01 * index
            for index, box in enumerate(boxes)
        ]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        for index, candidate in enumerate(candidates):
            if index != best:
                candidate.remove()


def stack_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes labels to the right of points that lie above one another, in their order, moved as little as need be."""
    from scipy.optimize import isotonic_regression

    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    points_per_pixel = 72 / figure.dpi
    ordered = sorted(labels, key=lambda label: label.y)
    heights = points_per_pixel * axes.transData.transform([(label.x, label.y) for label in ordered])[:, 1]
    steps = LINE_POINTS * np.arange(len(ordered))
    # Places that rise by a line at least, with the least squared distance from the points.
    places = isotonic_regression(heights - steps).x + steps
    for label, place, height in zip(ordered, places, heights, strict=True):
        _annotate(axes, label, (8, float(place - height), "left", "center"))


def _annotate(axes: Axes, label: Label, place: tuple[float, float, str, str]) -> Any:
    right, up, horizontal, vertical = place
    return axes.annotate(
        label.text,
        (label.x, label.y),
        (right, up),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        color=label.colour,
        fontsize=11,
        fontweight="bold" if label.bold else "normal",
        annotation_clip=False,
    )


def _leaves(box: Bbox, panel: Bbox) -> bool:
    """Whether text covers what stands left, above or below the panel; on the right there is room for it."""
    return box.x0 < panel.x0 or box.y0 < panel.y0 or box.y1 > panel.y1


def make_picture(figure: Figure, name: str, title: str, caption: str, alternative: str) -> Picture:
    """Renders a figure; the SVG has text as text and takes the colours of the page's dark mode."""
    import matplotlib

    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    # Text stays text: a third of the size, and sharper than outlines. The salt makes equal figures equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["sans-serif"]}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (round(CSS_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    page_svg = _follow_dark_mode(svg.getvalue())
    return Picture(name, title, caption, alternative, page_svg, png.getvalue(), width, height)


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
