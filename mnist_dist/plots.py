"""Pictures of one run: training curves, confusion matrix, sample predictions. Each is one PNG file.

They are drawn through `matplotlib.figure.Figure`, not pyplot, so they need no display and leave no figure behind.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
# Okabe and Ito's colours, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, PALE = "#595959", "#EDEDED"
SPLIT_STYLES = {"test": (ORANGE, "o"), "holdout": (GREEN, "D")}
SAMPLE_COLUMNS = 10
MISTAKE_ROWS = 2

Entry = Mapping[str, Any]


def save_curves(path: Path, history: Iterable[Entry]) -> None:
    """Draws loss, error and learning rate against the epoch.

    Args:
        path: the PNG file.
        history: entries of metrics.jsonl: of kind `train` with `step`, `epoch`, `loss`, `accuracy` (0..1) and
            `learning_rate`, and of kind `evaluate` with `step`, `epoch`, `split`, `loss` and `accuracy`. Others are
            ignored. Of entries for the same step the later counts, since a resumed run may repeat steps.

    Raises:
        UserError: the file cannot be written.
    """
    entries = list(history)
    train = _by_step(entry for entry in entries if entry["kind"] == "train")
    evaluations = {
        split: _by_step(e for e in entries if e["kind"] == "evaluate" and e["split"] == split)
        for split in SPLIT_STYLES
    }
    figure = _figure(8, 8.5)
    loss, error, rate = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.5])
    for axes, metric in (loss, _loss), (error, _error_percent):
        _draw_metric(axes, train, evaluations, metric)
    rate.plot(_epochs(train), [entry["learning_rate"] for entry in train], color=BLUE, linewidth=2)
    _label(loss, "loss (cross-entropy, nats)", log=True)
    _label(error, "error (% of images)", log=True)
    _label(rate, "learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch", fontsize=12)
    loss.legend(fontsize=11, frameon=False)
    figure.suptitle(_curves_title(evaluations), fontsize=14)
    figure.align_ylabels()
    _save(figure, path)


def _by_step(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for _, entry in sorted({entry["step"]: entry for entry in entries}.items())]


def _epochs(entries: Sequence[Entry]) -> list[float]:
    return [entry["epoch"] for entry in entries]


def _loss(entry: Entry) -> float:
    return entry["loss"]


def _error_percent(entry: Entry) -> float:
    return 100 * (1 - entry["accuracy"])


def _draw_metric(axes: "Axes", train: Sequence[Entry], evaluations: Mapping[str, Sequence[Entry]], metric: Any) -> None:
    axes.plot(_epochs(train), [metric(e) for e in train], color=BLUE, linewidth=1.2, label="training")
    for split, entries in evaluations.items():
        color, marker = SPLIT_STYLES[split]
        axes.plot(_epochs(entries), [metric(e) for e in entries], color=color, marker=marker, linewidth=2, label=split)


def _label(axes: "Axes", text: str, log: bool = False) -> None:
    axes.set_ylabel(text, fontsize=12)
    axes.grid(color=PALE)
    if log:
        axes.set_yscale("log")


def _curves_title(evaluations: Mapping[str, Sequence[Entry]]) -> str:
    return "Training curves"


def _figure(width_inches: float, height_inches: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
