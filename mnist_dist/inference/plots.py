"""Pictures of one run: training curves, confusion matrix, sample predictions. Each is one PNG file.

They are drawn through `matplotlib.figure.Figure`, not pyplot, so they need no display and leave no figure behind. A
file that cannot be written is a UserError.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnist_dist.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DOTS_PER_INCH = 150
# Okabe and Ito's colours, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PALE = "#E0E0E0"
SPLITS = {"holdout": (GREEN, "D"), "test": (ORANGE, "o")}
AVERAGED_SHARE = 1 / 30  # Of a run, in its moving averages.
LONE_POINT: Mapping[str, Any] = {"marker": "o", "markersize": 6}  # A line through one point is invisible.
SAMPLE_COLUMNS = 10
SAMPLE_PITCH = (32, 46)  # Pixels from one image of 28 x 28 to the next, with its caption.
MISTAKE_ROWS = 2

Entry = Mapping[str, Any]
Metric = Callable[[Entry], float]


def save_curves(path: Path, history: Iterable[Entry]) -> None:
    """Draws loss, error and learning rate against the epoch.

    The error (100 % - accuracy) stands on a logarithmic axis: from 98 % to 99 % accuracy is half the mistakes, which
    a plot of the accuracy hides. Many training points are drawn thin, with their moving average on top; a point
    without any error is left out of the thin line, as zero has no place on the axis, but counts in the average.

    Args:
        history: entries of metrics.jsonl: of kind `train` with `step`, `epoch`, `loss`, `accuracy` (0..1) and
            `learning_rate`, and of kind `evaluate` with `step`, `epoch`, `split`, `loss` and `accuracy`. Others are
            ignored. Of entries for the same step the later counts, since a resumed run may repeat steps.

    Raises:
        UserError: the file cannot be written.
    """
    entries = list(history)
    train = _by_step(entry for entry in entries if entry["kind"] == "train")
    evaluations = {
        split: _by_step(entry for entry in entries if entry["kind"] == "evaluate" and entry["split"] == split)
        for split in SPLITS
    }
    figure = _figure(8, 8.5)
    loss, error, rate = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.5])
    averaged = _without_short_end(train)
    _draw_metric(loss, averaged, evaluations, lambda entry: entry["loss"])
    _draw_metric(error, averaged, evaluations, lambda entry: 100 * (1 - entry["accuracy"]))
    _draw_line(rate, train, [entry["learning_rate"] for entry in train], color=BLUE, linewidth=2)
    for axes, label in (loss, "loss (cross-entropy, nats)"), (error, "error (% of images)"), (rate, "learning rate"):
        axes.set_ylabel(label, fontsize=12)
        axes.grid(color=PALE)
        axes.tick_params(labelsize=10.5)
    rate.set_ylim(bottom=0)
    rate.set_xlim(left=0)
    rate.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    rate.set_xlabel("epoch", fontsize=12)
    if loss.get_lines():
        loss.legend(fontsize=11, frameon=False)
    figure.suptitle(_curves_title(train, evaluations), fontsize=14)
    figure.align_ylabels()
    _save(figure, path)


def _by_step(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for _, entry in sorted({entry["step"]: entry for entry in entries}.items())]


def _without_short_end(train: Sequence[Entry]) -> Sequence[Entry]:
    """Leaves out a last entry that averages less than half as many steps as the one before: mostly noise."""
    if len(train) < 3:
        return train
    before, last = np.diff([entry["step"] for entry in train[-3:]])
    return train[:-1] if last < before / 2 else train


def _draw_metric(
    axes: "Axes", train: Sequence[Entry], evaluations: Mapping[str, Sequence[Entry]], metric: Metric
) -> None:
    _draw_training(axes, train, [metric(entry) for entry in train])
    for split, (color, marker) in SPLITS.items():
        values = [metric(entry) for entry in evaluations[split]]
        _draw_line(axes, evaluations[split], values, color=color, marker=marker, linewidth=2, label=f"{split} images")
    if any(np.greater(line.get_ydata(), 0).any() for line in axes.get_lines()):
        _make_logarithmic(axes)


def _draw_training(axes: "Axes", train: Sequence[Entry], values: Sequence[float]) -> None:
    points = int(len(train) * AVERAGED_SHARE) // 2 * 2 + 1
    if points == 1:
        _draw_line(axes, train, values, color=BLUE, linewidth=1.5, label="training images")
    else:
        _draw_line(axes, train, values, color=BLUE, linewidth=0.8, alpha=0.4)
        label = f"training images (mean of {points} points)"
        _draw_line(axes, train, _moving_average(values, points), color=BLUE, linewidth=2, label=label)


def _moving_average(values: Sequence[float], points: int) -> Sequence[float]:
    """Averages each value with its neighbours, with fewer near the ends so that a steep start keeps its shape."""
    reach = [min(points // 2, index // 2, len(values) - 1 - index) for index in range(len(values))]
    return [float(np.mean(values[index - n : index + n + 1])) for index, n in enumerate(reach)]


def _draw_line(axes: "Axes", entries: Sequence[Entry], values: Sequence[float], **style: Any) -> None:
    if entries:
        lone = LONE_POINT if len(entries) == 1 else {}
        axes.plot([entry["epoch"] for entry in entries], values, **{**lone, **style})


def _make_logarithmic(axes: "Axes") -> None:
    """Marks 1, 2, 5, 10 (decades only if there are many), written as 0.5 rather than 5e-1."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter("")


def _curves_title(train: Sequence[Entry], evaluations: Mapping[str, Sequence[Entry]]) -> str:
    for split in ("test", "holdout"):
        if evaluations[split]:
            last = evaluations[split][-1]
            return f"Accuracy {100 * last['accuracy']:.2f} % on the {split} images after {_epochs(last['epoch'])}"
    return f"Training for {_epochs(train[-1]['epoch'])}" if train else "Nothing was logged"


def _epochs(count: float) -> str:
    text = f"{count:.3g}"
    return f"{text} epoch{'s' if text != '1' else ''}"


def save_confusion_matrix(path: Path, confusion: np.ndarray) -> None:
    """Draws the counts of a confusion matrix, integers [10, 10] with true classes in rows.

    Only mistakes are coloured: beside the diagonal's thousand images, a colour scale over all cells would show nothing.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    mistakes = confusion - np.diag(confusion.diagonal())
    images, wrong, most = int(confusion.sum()), int(mistakes.sum()), int(mistakes.max())
    figure = _figure(8, 7.4)
    axes = figure.subplots()
    axes.imshow(np.where(np.eye(len(confusion)), 1, np.nan), cmap="Greys", vmin=0, vmax=8)
    shades = axes.imshow(np.ma.masked_equal(mistakes, 0), cmap="YlOrBr", vmin=0, vmax=max(1, most))
    for (true, predicted), count in np.ndenumerate(confusion):
        color = "white" if mistakes[true, predicted] > 0.6 * most else "black"
        axes.text(predicted, true, f"{count:,}" if count else "", ha="center", va="center", fontsize=11, color=color)
    _label_cells(axes, len(confusion))
    axes.set_title(f"{wrong:,} of {images:,} images misclassified ({100 * wrong / images:.2f} %)", fontsize=14, pad=12)
    if wrong:
        bar = figure.colorbar(shades, ax=axes, shrink=0.8, ticks=MaxNLocator(integer=True))
        bar.set_label("misclassified images (grey cells: correct ones)", fontsize=12)
    _save(figure, path)


def _label_cells(axes: "Axes", classes: int) -> None:
    axes.set_xlabel("predicted digit", fontsize=13)
    axes.set_ylabel("true digit", fontsize=13)
    axes.set_xticks(range(classes))
    axes.set_yticks(range(classes))
    axes.set_xticks(np.arange(0.5, classes - 1), minor=True)
    axes.set_yticks(np.arange(0.5, classes - 1), minor=True)
    axes.grid(which="minor", color=PALE)
    axes.tick_params(which="both", length=0, labelsize=12)


def save_samples(path: Path, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Draws the first image of each digit as the model reads it, and below the most confident mistakes.

    Args:
        images: uint8 [n, 28, 28].
        labels: the true digits, integers [n].
        probabilities: float [n, 10].

    Raises:
        UserError: the file cannot be written.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    first = [int(np.argmax(labels == digit)) for digit in np.unique(labels)]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][: SAMPLE_COLUMNS * MISTAKE_ROWS].tolist()
    samples = [Sample(*each) for each in zip(images, labels, predicted, confidence, strict=True)]

    rows = -(-len(worst) // SAMPLE_COLUMNS)
    heights = [1, rows or 0.2]
    figure = _figure(11, 1.75 * sum(heights) + 0.4)
    top, bottom = figure.subfigures(2, squeeze=False, height_ratios=heights).flat
    top.suptitle("The first image of each digit, and the model's probability", fontsize=14)
    _draw_samples(top, [samples[index] for index in first])
    bottom.suptitle(_mistakes_title(len(worst), len(wrong), len(labels)), fontsize=14)
    _draw_samples(bottom, [samples[index] for index in worst])
    _save(figure, path)


class Sample(NamedTuple):
    image: np.ndarray
    true: int
    predicted: int
    confidence: float


def _mistakes_title(shown: int, wrong: int, images: int) -> str:
    if not wrong:
        return f"No mistakes in {images:,} images"
    which = f"The {shown} most confident of {wrong:,}" if shown < wrong else f"All {wrong}" if wrong > 1 else "The only"
    return f"{which} mistake{'s' if wrong > 1 else ''} in {images:,} images"


def _draw_samples(area: "SubFigure", samples: Sequence[Sample]) -> None:
    axes = area.add_subplot(xticks=[], yticks=[])  # One for all: each costs as much as all the rest.
    axes.set_axis_off()
    for position, sample in enumerate(samples):
        row, column = divmod(position, SAMPLE_COLUMNS)
        left, top = column * SAMPLE_PITCH[0], row * SAMPLE_PITCH[1]
        edges = (left, left + 28, top + 28, top)
        axes.imshow(sample.image, extent=edges, interpolation="none", cmap="gray_r", vmin=0, vmax=255)
        correct = sample.predicted == sample.true
        reading = f"read as {sample.predicted}" if correct else f"{sample.true} read as {sample.predicted}"
        caption = f"{reading}\n{100 * sample.confidence:.1f} %"
        color = BLUE if correct else ORANGE
        axes.text(left + 14, top - 1, caption, ha="center", va="bottom", fontsize=11, color=color)
    rows = -(-len(samples) // SAMPLE_COLUMNS)
    axes.set_xlim(-2, SAMPLE_COLUMNS * SAMPLE_PITCH[0] - 2)
    axes.set_ylim(rows * SAMPLE_PITCH[1] - 16, -12)


def _figure(width_inches: float, height_inches: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DOTS_PER_INCH)
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)  # `savefig` would draw it twice.
