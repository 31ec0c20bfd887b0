"""Metrics against values worked out by hand, predictions against the model itself."""

import json
import math
from typing import Any

import numpy as np
import pytest

from mnist_dist.inference.evaluate import predict, render, summarize, to_json


@pytest.fixture(scope="module")
def model() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(10),
            layers.Softmax(),
        ]
    )


def certain(predicted: list[int]) -> np.ndarray:
    """Probabilities of a model without doubts."""
    return np.eye(10, dtype=np.float32)[predicted]


def table(values: dict[int, float]) -> list[float]:
    return [values.get(digit, 0) for digit in range(10)]


@pytest.mark.parametrize(
    ("labels", "predicted", "accuracy", "precision", "recall", "f1"),
    [
        pytest.param([3], [3], 1, {3: 1}, {3: 1}, {3: 1}, id="one right"),
        pytest.param([3], [9], 0, {}, {}, {}, id="one wrong: each 0/0 is 0"),
        # Digit 0: 1 of 1 prediction right, 1 of 2 found. Digit 1: 1 of 3 right, 1 of 1 found. Digit 2: never predicted.
        pytest.param(
            [0, 0, 1, 2], [0, 1, 1, 1], 0.5, {0: 1, 1: 1 / 3}, {0: 0.5, 1: 1}, {0: 2 / 3, 1: 0.5}, id="unequal classes"
        ),
        pytest.param([9, 9, 9, 8], [9, 8, 9, 8], 0.75, {9: 1, 8: 0.5}, {9: 2 / 3, 8: 1}, {9: 0.8, 8: 2 / 3}, id="last"),
    ],
)
def test_metrics_of_certain_predictions(
    labels: list[int],
    predicted: list[int],
    accuracy: float,
    precision: dict[int, float],
    recall: dict[int, float],
    f1: dict[int, float],
) -> None:
    evaluation = summarize(np.array(labels, np.uint8), certain(predicted))
    assert evaluation.accuracy == accuracy
    np.testing.assert_allclose(evaluation.precision, table(precision))
    np.testing.assert_allclose(evaluation.recall, table(recall))
    np.testing.assert_allclose(evaluation.f1, table(f1))
    assert evaluation.support.tolist() == [labels.count(digit) for digit in range(10)]


def test_confusion_has_true_classes_in_rows() -> None:
    confusion = summarize(np.array([0, 0, 9], np.uint8), certain([0, 7, 9])).confusion
    expected = np.zeros((10, 10), np.int64)
    expected[0, 0] = expected[0, 7] = expected[9, 9] = 1
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, expected)


@pytest.mark.parametrize(
    ("true_class_probabilities", "loss"),
    [([1.0], 0.0), ([0.5], math.log(2)), ([0.5, 0.125], 2 * math.log(2)), ([0.0], 7 * math.log(10))],
)
def test_loss_is_the_mean_cross_entropy(true_class_probabilities: list[float], loss: float) -> None:
    probabilities = np.zeros((len(true_class_probabilities), 10), np.float32)
    probabilities[:, 4] = true_class_probabilities
    probabilities[:, 6] = 1 - probabilities[:, 4]
    labels = np.full(len(probabilities), 4, np.uint8)
    assert summarize(labels, probabilities).loss == pytest.approx(loss, abs=1e-6)


def test_of_equal_probabilities_the_lowest_class_counts() -> None:
    assert summarize(np.array([0, 9], np.uint8), np.full((2, 10), 0.1, np.float32)).accuracy == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 9, 1000])
def test_predict_gives_each_image_its_own_row(model: Any, batch_size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    probabilities = predict(model, images, batch_size)
    assert probabilities.shape == (9, 10)
    assert probabilities.dtype == np.float32
    alone = np.concatenate([model(image[np.newaxis, ..., np.newaxis]).numpy() for image in images])
    np.testing.assert_allclose(probabilities, alone, atol=1e-5)
    assert len(np.unique(probabilities.round(4), axis=0)) == 9  # Else rows could be swapped without notice.


@pytest.mark.slow
def test_summary_agrees_with_keras(model: Any) -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (50, 28, 28), np.uint8)
    labels = generator.integers(0, 10, 50).astype(np.uint8)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(images[..., np.newaxis], labels, verbose=0)
    evaluation = summarize(labels, predict(model, images))
    assert evaluation.loss == pytest.approx(loss, rel=1e-4)
    assert evaluation.accuracy == pytest.approx(accuracy)


def test_json_is_complete_and_plain() -> None:
    evaluation = summarize(np.array([0, 1, 1], np.uint8), certain([0, 1, 2]))
    content = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert content["images"] == 3
    assert content["accuracy"] == pytest.approx(2 / 3)
    assert content["recall"][:3] == [1, 0.5, 0]
    assert content["confusion"][1][:3] == [0, 1, 1]
    assert set(content) == {"images", "accuracy", "loss", "precision", "recall", "f1", "support", "confusion"}


def test_a_diverged_model_is_still_valid_json() -> None:
    evaluation = summarize(np.array([5], np.uint8), np.full((1, 10), np.nan, np.float32))
    assert math.isnan(evaluation.loss)
    assert json.loads(json.dumps(to_json(evaluation), allow_nan=False))["loss"] is None


def test_text_shows_metrics_and_mistakes() -> None:
    lines = render(summarize(np.array([0, 0, 0, 1, 1, 2]), certain([0, 7, 7, 1, 2, 2]))).splitlines()
    assert lines[0].startswith("Accuracy 0.5000 (3 of 6 images wrong)")
    assert lines[3].split() == ["0", "1.0000", "0.3333", "0.5000", "3"]
    assert "     0     1     .     .     .     .     .     .     2     .     ." in lines
    assert lines[-1] == "Most frequent mistakes: 0 read as 7 (2), 1 read as 2 (1)"


@pytest.mark.parametrize("images", [1, 60_000])
def test_text_is_ascii_in_80_columns(images: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, images)
    text = render(summarize(labels, generator.random((images, 10)).astype(np.float32)))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_text_without_mistakes_says_so() -> None:
    assert render(summarize(np.arange(10), certain(list(range(10))))).endswith("No mistakes.")
