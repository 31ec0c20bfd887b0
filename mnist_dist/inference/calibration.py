"""Probabilities that mean what they say: one temperature divides all logits.

Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599. The most probable digit
stays the same.
"""

import numpy as np

from mnist_dist.data.dataset import Arrays
from mnist_dist.inference.evaluate import SMALLEST_PROBABILITY
from mnist_dist.lazy import scipy

IMAGES = 5000
BOUNDS = 0.2, 5.0  # Of the temperature; it has no minimum of its own where every image is read right.


def calibration_images(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [n, 28, 28] that the network was not trained on as they are, and their labels [n].

    These are the held-out images, or without any the last training images, a quarter each shifted by a pixel up, down,
    left and right: holding out more would change the weights.
    """
    if len(arrays.holdout_images):
        return arrays.holdout_images[-IMAGES:], arrays.holdout_labels[-IMAGES:]
    images = arrays.train_images[-IMAGES:].copy()
    for quarter, (shift, axis) in enumerate(((-1, 1), (1, 1), (-1, 2), (1, 2))):
        images[quarter::4] = np.roll(images[quarter::4], shift, axis)
    return images, arrays.train_labels[-IMAGES:]


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the temperature of least cross-entropy, to three digits.

    Args:
        labels: integers [n], 0..9.
        probabilities: float [n, 10] at the temperature 1.
    """
    # Up to a constant that the softmax drops.
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY**4))

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(scipy.special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

    # In three digits, so that the last bits of a sum do not decide the model's.
    best = scipy.optimize.minimize_scalar(cross_entropy, bounds=np.log(BOUNDS), method="bounded").x
    return float(f"{np.exp(best):.3g}")
