"""Probabilities mean what they say, in every exported format, and the weights stay as they were trained."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.config import load_config
from mnist_dist.data.dataset import Arrays
from mnist_dist.inference import export as exports
from mnist_dist.inference.calibration import BOUNDS, calibration_images, fit_temperature
from mnist_dist.inference.evaluate import predict
from mnist_dist.network.model import load_model
from mnist_dist.training.trainer import train

BINS = 15


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean gap, 0..1, between highest probability and accuracy, over bins of equal width (Guo et al.)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    gaps = confidence - (probabilities.argmax(axis=1) == labels)
    of_bin = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(of_bin, weights=gaps)).sum() / len(labels))


def test_the_temperature_that_made_labels_is_found() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (20_000, 10))
    labels = (logits / 0.5 + random.gumbel(size=logits.shape)).argmax(axis=1)  # Samples of the softmax at 0.5.
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert fit_temperature(labels, probabilities) == pytest.approx(0.5, rel=0.03)
    assert fit_temperature(logits.argmax(axis=1), probabilities) == pytest.approx(BOUNDS[0], rel=0.01)  # All are right.


def test_held_out_images_calibrate_where_there_are_some(arrays: Arrays) -> None:
    images, labels = calibration_images(arrays)
    assert images.shape == (5000, 28, 28) and np.array_equal(labels, arrays.train_labels[-5000:])
    for offset, shift in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
        np.testing.assert_array_equal(images[offset::4], np.roll(arrays.train_images[-5000:][offset::4], shift, (1, 2)))
    held_out = dataclasses.replace(arrays, holdout_images=arrays.test_images[:7], holdout_labels=arrays.test_labels[:7])
    assert calibration_images(held_out)[0] is not arrays.train_images and len(calibration_images(held_out)[0]) == 7


@pytest.mark.thorough
@pytest.mark.slow
def test_every_format_is_calibrated_on_the_test_set(arrays: Arrays, tmp_path: Path) -> None:
    """Within 1 %, though label smoothing alone leaves a gap of about 10 %."""
    settings = {"training.steps": 300, "logging.tensorboard": False, "model.filters": [8, 16], "model.dense_units": 32}
    train(load_config("default", settings), tmp_path / "run")
    model = load_model(tmp_path / "run")
    wanted = predict(model, arrays.test_images)
    assert expected_calibration_error(arrays.test_labels, wanted) <= 0.01
    scale = model.get_layer("temperature").scale
    plain = wanted ** (1 / scale)
    plain /= plain.sum(axis=1, keepdims=True)
    assert expected_calibration_error(arrays.test_labels, plain) > 0.04
    for name in exports.FILE_NAMES:
        path = exports.export(model, arrays, tmp_path, name).path
        classify = exports._load_saved_model(path) if name == "savedmodel" else exports._load_tflite(path)
        given = np.concatenate([classify(part[..., None]) for part in np.array_split(arrays.test_images, 10)])
        given = given / 256 if given.dtype == np.uint8 else given
        assert expected_calibration_error(arrays.test_labels, given) <= 0.01
        assert np.abs(given - wanted).mean() < (0.005 if name == "tflite-int8" else 1e-5)
