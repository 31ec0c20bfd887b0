"""What the report's pictures have in common: colours, panels, labels beside the data, and their two files.

They are drawn through `matplotlib.figure.Figure`, not pyplot, so they need no display and leave no figure behind.
Strategies keep their colour and marker in all of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130
LABEL_POINTS = 8.0  # From a point to the text beside it.
SHIFTS = sorted(range(-150, 151), key=abs)  # Points by which labels may stand higher or lower, the nearest first.
LABELS_ABOVE, POINTS_ABOVE = 3, 4  # Lines are 2: labels interrupt them, and cover no point.
CSS_PIXELS_PER_INCH = 96
WIDTH = 5.7  # Inches; half of a wide page, and still readable when a phone shrinks it.
# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), some darkened
# so that text in them can be read; beside each the colour on a dark page.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#e1e4e8", "#fffffe"
COLOURS = {"single": "#54595f", "mirrored": "#0067a3", "multiworker": "#b84d00", "horovod": "#007a59"}
MARKERS = {"single": "s", "mirrored": "o", "multiworker": "^", "horovod": "D"}
LOSS, LARGEST_LOSS, GAIN = "#d9a441", "#a3412e", "#4a9fc9"
ON_DARK = {
    INK: "#e8eaed",
    MUTED: "#a8b0ba",
    GRID: "#3a4048",
    PAPER: "#1d2127",
    COLOURS["single"]: "#b4bac2",
    COLOURS["mirrored"]: "#5ab4f0",
    COLOURS["multiworker"]: "#ff9d57",
    COLOURS["horovod"]: "#43d3a4",
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
    """Writes each label to the right of its point, higher or lower by as little as keeps it off all points and labels.

    Lines that pass behind it keep clear of its letters.
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
    middle = np.median(points[:, 1])
    # From the middle outwards, so that of labels one above the other the upper ones move up and the lower ones down.
    for text, _ in sorted(zip(texts, points[:, 1], strict=True), key=lambda pair: abs(pair[1] - middle)):
        places = [(shift, text.get_window_extent().translated(0, shift / pixel).padded(1)) for shift in SHIFTS]
        shift, box = next((place for place in places if not place[1].count_overlaps(taken)), places[0])
        text.set_position((LABEL_POINTS, shift))
        taken.append(box)


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
