"""Test metrics of a classifier: predictions, the summary of them, and its text."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_dist.data.dataset import NUM_CLASSES
from mnist_dist.lazy import keras, tf

SMALLEST_PROBABILITY = 1e-7  # Keras clips its cross-entropy here too, so the two losses agree.


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one set of labelled images says about a model.

    Attributes:
        accuracy: share of images whose most probable class is the true one, 0..1.
        loss: mean cross-entropy in nats; NaN if a probability is NaN.
        confusion: int64 [10, 10] images by true (row) and predicted (column) class.
        precision: float64 [10]; 0.0 for a class that was never predicted.
        recall: float64 [10]; 0.0 for a class without images.
        f1: float64 [10], harmonic mean of precision and recall; 0.0 where both are 0.
        support: int64 [10] images of each true class.
    """

    accuracy: float
    loss: float
    confusion: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def predict(model: "keras.Model", images: np.ndarray, batch_size: int = 1000) -> np.ndarray:
    """Returns the probabilities float32 [n, 10] of images uint8 [n, 28, 28], in their order.

    Every image is seen exactly once; the last batch may be smaller.
    """
    pixels = tf.TensorSpec([None, 28, 28, 1], tf.uint8)  # Not the batch size: the last batch would be traced anew.
    forward = tf.function(lambda batch: model(batch, training=False), input_signature=[pixels], autograph=False)
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    # Two batches at once keep a CPU's cores busier than the threads within operations, of which training leaves one.
    with ThreadPoolExecutor(2) as pool:
        return np.concatenate(list(pool.map(lambda batch: forward(batch[..., np.newaxis]).numpy(), batches)))


def summarize(labels: np.ndarray, probabilities: np.ndarray) -> Evaluation:
    """Computes all metrics from labels (integers [n], 0..9) and probabilities float [n, 10], for n > 0.

    Of equally probable classes the lowest counts as predicted. The loss is the mean of -ln p(true class), with p
    raised to at least 1e-7, so that one image that the model excludes does not make it infinite.
    """
    predicted = probabilities.argmax(axis=1)
    cells = np.bincount(NUM_CLASSES * labels + predicted, minlength=NUM_CLASSES**2)
    confusion = cells.reshape(NUM_CLASSES, NUM_CLASSES).astype(np.int64)
    correct, support = confusion.diagonal(), confusion.sum(axis=1)
    precision = _ratio(correct, confusion.sum(axis=0))
    recall = _ratio(correct, support)
    true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Evaluation(
        accuracy=float(np.mean(predicted == labels)),
        loss=float(-np.log(np.maximum(true_class, SMALLEST_PROBABILITY)).mean()),
        confusion=confusion,
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        support=support,
    )


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns plain numbers and lists; a loss that is not finite becomes None, since JSON has no NaN."""
    return {
        "images": int(evaluation.support.sum()),
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss if math.isfinite(evaluation.loss) else None,
        **{name: getattr(evaluation, name).tolist() for name in ("precision", "recall", "f1", "support", "confusion")},
    }


def render(evaluation: Evaluation) -> str:
    """Returns plain text for a terminal or a file: headline, metrics per digit, confusion matrix."""
    return "\n\n".join([_headline(evaluation), _class_table(evaluation), _confusion_table(evaluation.confusion)])


def _worst_confusions(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Returns up to `count` most frequent mistakes as (true class, predicted class, images)."""
    mistakes = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    cells = [divmod(int(index), NUM_CLASSES) for index in order]
    return [(true, predicted, int(mistakes[true, predicted])) for true, predicted in cells if mistakes[true, predicted]]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides, with 0/0 = 0.0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator != 0)


def _headline(evaluation: Evaluation) -> str:
    images = int(evaluation.support.sum())
    wrong = images - int(evaluation.confusion.trace())
    return (
        f"Accuracy {evaluation.accuracy:.4f} ({wrong:,} of {images:,} images wrong), "
        f"cross-entropy {evaluation.loss:.4f} nats"
    )


def _class_table(evaluation: Evaluation) -> str:
    columns = evaluation.precision, evaluation.recall, evaluation.f1
    lines = [f"{'digit':>6} {'precision':>10} {'recall':>10} {'F1':>10} {'images':>10}"]
    for digit, (precision, recall, f1, images) in enumerate(zip(*columns, evaluation.support, strict=True)):
        lines.append(f"{digit:>6} {precision:>10.4f} {recall:>10.4f} {f1:>10.4f} {images:>10,}")
    means = " ".join(f"{column.mean():>10.4f}" for column in columns)
    lines.append(f"{'mean':>6} {means} {evaluation.support.sum():>10,}")
    return "\n".join(lines)


def _confusion_table(confusion: np.ndarray) -> str:
    width = max(5, len(str(confusion.max()))) + 1
    lines = ["Confusion matrix: true digit in rows, predicted digit in columns, '.' for none"]
    lines.append(" " * 6 + "".join(f"{digit:>{width}}" for digit in range(NUM_CLASSES)))
    for digit, row in enumerate(confusion):
        lines.append(f"{digit:>6}" + "".join(f"{count or '.':>{width}}" for count in row.tolist()))
    worst = [f"{true} read as {predicted} ({images:,})" for true, predicted, images in _worst_confusions(confusion, 3)]
    lines += ["", f"Most frequent mistakes: {', '.join(worst)}" if worst else "No mistakes."]
    return "\n".join(lines)
