"""Training images that live on the devices, so that a step need only be told which of them it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnist_dist.lazy import tf


class Resident:
    """All training images and labels, a copy for each replica of this process.

    The copies are variables: a loop of TensorFlow's hands tensors from step to step through its own device, from which
    each other one would fetch its copy in every step.

    Args:
        images: uint8 [n, 28, 28].
        labels: integers [n].
        devices: of the replicas; None is TensorFlow's choice.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, devices: Sequence[str | None]) -> None:
        self._copies = []
        for device in devices:
            with tf.device(device):
                self._copies.append([tf.Variable(array) for array in (images, labels.astype(np.int64))])
        # On a GPU, XLA alone gathers uint8; TensorFlow would copy all images to the host for it.
        self.take = tf.function(self._take, jit_compile=True, autograph=False)

    def _take(self, replica: int, indices: tf.Tensor, shifts: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a replica's part of a batch from its own copy: uint8 [b, 28, 28, 1] and int64 [b].

        Args:
            replica: in this process.
            indices: int64 [replicas of this process * b].
            shifts: int64 [replicas of this process * b, 2], as `shift_images` takes them.
        """
        images, labels = self._copies[replica]
        size = indices.shape[0] // len(self._copies)
        mine = slice(replica * size, (replica + 1) * size)
        taken = tf.gather(images, indices[mine]) if shifts is None else _shifted(images, indices[mine], shifts[mine])
        return taken[..., tf.newaxis], tf.gather(labels, indices[mine])


def _shifted(images: tf.Variable, indices: tf.Tensor, shifts: tf.Tensor) -> tf.Tensor:
    """Returns what `shift_images` does, uint8 [b, h, w], pixel by pixel: XLA has no projective transform."""
    _, height, width = images.shape
    rows = tf.range(height, dtype=tf.int64)[tf.newaxis, :, tf.newaxis] - shifts[:, 0, tf.newaxis, tf.newaxis]
    columns = tf.range(width, dtype=tf.int64)[tf.newaxis, tf.newaxis, :] - shifts[:, 1, tf.newaxis, tf.newaxis]
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = (indices[:, tf.newaxis, tf.newaxis] * height + rows) * width + columns
    shifted = tf.gather(tf.reshape(images, [-1]), tf.where(is_inside, pixels, 0))
    return tf.where(is_inside, shifted, tf.zeros_like(shifted))
