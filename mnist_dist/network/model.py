"""The CNN: raw pixels in, logits or probabilities of the ten digits out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_dist.config import ModelConfig
from mnist_dist.data.dataset import IMAGE_SIZE, NUM_CLASSES
from mnist_dist.errors import UserError
from mnist_dist.lazy import keras, tf

# Mean and standard deviation of all pixels of MNIST's 60,000 training images (checked by a test).
PIXEL_MEAN = 33.3184
PIXEL_STD = 78.5675


def build_model(
    config: ModelConfig,
    *,
    precision: str = "float32",
    probabilities: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    replica_mean: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> keras.Model:
    """Builds the network.

    Args:
        config: widths, dropout and batch normalisation.
        precision: Keras dtype policy of the hidden layers; weights are float32 with every policy.
        probabilities: end in a softmax instead of logits.
        temperature: divides the logits before that softmax, see `inference/calibration.py`.
        seed: of the initial weights (the same whatever ran before) and of dropout.
        replica_mean: the mean of a tensor over all replicas, so that batch normalisation sees the global batch;
            without it, each replica normalises with its own images.

    Returns:
        A model from pixels float32 [batch, 28, 28, 1] in 0 to 255 to float32 [batch, 10].
    """
    from keras import layers

    def glorot(index: int) -> keras.Initializer:
        return keras.initializers.GlorotUniform(seed=seed * 100 + index)

    inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1), name="pixels")
    x = layers.Rescaling(1 / PIXEL_STD, offset=-PIXEL_MEAN / PIXEL_STD, dtype="float32", name="normalize")(inputs)
    for index, (filters, kernel_size) in enumerate(zip(config.filters, config.kernel_sizes, strict=True), start=1):
        x = layers.Conv2D(
            filters,
            kernel_size,
            use_bias=not config.batch_norm,  # Batch normalisation has its own offset.
            kernel_initializer=glorot(index),
            dtype=precision,
            name=f"conv_{index}",
        )(x)
        if config.batch_norm:
            x = _batch_normalization(replica_mean, momentum=0.9, dtype=precision, name=f"norm_{index}")(x)
        x = layers.ReLU(dtype=precision, name=f"relu_{index}")(x)
        x = layers.MaxPooling2D(dtype=precision, name=f"pool_{index}")(x)
    x = layers.Flatten(dtype=precision, name="flatten")(x)
    x = layers.Dense(config.dense_units, kernel_initializer=glorot(3), dtype=precision, name="dense")(x)
    x = layers.ReLU(dtype=precision, name="relu_dense")(x)
    if config.dropout:
        x = layers.Dropout(config.dropout, seed=seed, dtype=precision, name="dropout")(x)
    # Logits stay float32: cross-entropy loses digits in 16 bits.
    x = layers.Dense(NUM_CLASSES, kernel_initializer=glorot(4), dtype="float32", name="logits")(x)
    if probabilities:
        x = layers.Rescaling(1 / temperature, dtype="float32", name="temperature")(x)
        x = layers.Softmax(dtype="float32", name="probabilities")(x)
    return keras.Model(inputs, x, name="mnist_cnn")


def build_inference_model(config: ModelConfig, trained: keras.Model, temperature: float = 1.0) -> keras.Model:
    """Copies trained weights into a float32 model that ends in probabilities and runs on any device."""
    model = build_model(config, probabilities=True, temperature=temperature)
    model.set_weights(trained.get_weights())
    return model


def load_model(workdir: Path) -> keras.Model:
    """Loads the finished model of a workdir, or raises UserError where there is none or it is damaged."""
    file = workdir / "model.keras"
    if not workdir.is_dir():
        what = "is a file" if workdir.exists() else "does not exist"
        raise UserError(f"WORKDIR: '{workdir}' {what}; expected a folder written by `mnist-dist train`.")
    if not file.is_file() and not (workdir / "config.yaml").is_file():
        raise UserError(f"WORKDIR: '{workdir}' is not the folder of a run; expected one written by `mnist-dist train`.")
    if not file.is_file():
        raise UserError(
            f"WORKDIR: '{workdir}' holds no model.keras; finish the training with "
            f"`mnist-dist train --workdir {shlex.quote(str(workdir))} --resume`."
        )
    try:
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its archive readers raise.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"WORKDIR: cannot load '{file}' ({reason}); it is damaged: train again.") from None


def _batch_normalization(replica_mean: Callable[[tf.Tensor], tf.Tensor] | None, **options: Any) -> keras.Layer:
    """Builds batch normalisation over all replicas; Keras' own synchronises under tf.distribute only."""
    if replica_mean is None:
        return keras.layers.BatchNormalization(**options)

    mean_of_replicas = replica_mean  # A name that is never None, for the type checker.

    class SynchronizedBatchNormalization(keras.layers.BatchNormalization):
        def _moments(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            # Means of replicas of equal size: the global mean, then the variance around it. The shorter way over the
            # mean of squares would lose half of float32's digits where the variance is small.
            x = tf.cast(inputs, tf.float32)
            axes = [0, 1, 2]
            mean = mean_of_replicas(tf.reduce_mean(x, axes))
            variance = mean_of_replicas(tf.reduce_mean(tf.math.squared_difference(x, mean), axes))
            return mean, variance

    return SynchronizedBatchNormalization(**options)
