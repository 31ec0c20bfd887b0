"""Keras' `model.fit` with its defaults, batch 128: the published MNIST convnet, or the default CNN with Adam.

The convnet and its training are those of https://keras.io/examples/vision/mnist_convnet/ (keras-team/keras-io,
Apache-2.0), with two differences: the example holds out a tenth of the training images to validate on, while this
trains on all of them and validates on the test set, whose accuracy is what we time; and it ends when that is reached.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from mnist_dist.benchmarks.peers.scripts.script import Clock, load_mnist, make_parser, run

BATCH_SIZE, EPOCHS = 128, 15


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--network", choices=("example", "seed"), default="example")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    x_train, y_train, x_test, y_test = load_mnist(args.data)
    x_train, x_test = ((images[..., np.newaxis] / np.float32(255)) for images in (x_train, x_test))
    y_train, y_test = (keras.utils.to_categorical(labels, 10) for labels in (y_train, y_test))

    model = _build(layers.Dropout(0.5)) if args.network == "example" else build_seed()
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    clock = Clock(args.mode)
    model.fit(
        x_train,
        y_train,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS if args.mode == "accuracy" else 1_000_000,
        validation_data=(x_test, y_test) if args.mode == "accuracy" else None,
        callbacks=[Watch(clock, len(x_train))],
        verbose=2,
    )
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    clock.write(args.out, device=device, precision="float32", tensorflow=tf.__version__, keras=keras.__version__)


def build_seed() -> keras.Model:
    return _build(layers.Dense(128, activation="relu"))


def _build(before_the_last: keras.Layer) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Flatten(),
            before_the_last,
            layers.Dense(10, activation="softmax"),
        ]
    )


class Watch(keras.callbacks.Callback):
    """Feeds the clock when the next step begins: a callback at the end of steps would make `fit` wait for each."""

    def __init__(self, clock: Clock, images: int) -> None:
        super().__init__()
        self._clock = clock
        self._batch_sizes = [min(BATCH_SIZE, images - first) for first in range(0, images, BATCH_SIZE)]
        self._running: int | None = None  # The index of the step that has begun and is not counted yet.

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._running is None and self._clock.step == 0:
            self._clock.start()
        self._count_step()
        self._running = batch

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._count_step()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs and "val_accuracy" in logs and self._clock.after_evaluation(logs["val_accuracy"]):
            self.model.stop_training = True

    def _count_step(self) -> None:
        if self._running is None:
            return
        images, self._running = self._batch_sizes[self._running], None
        if self._clock.after_step(images, lambda: float(self.model.metrics[0].result())):
            self.model.stop_training = True


if __name__ == "__main__":
    run(main)
