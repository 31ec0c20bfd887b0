"""Horovod's TensorFlow 2 example, ported to Keras 3: a loop of single steps with one all-reduce for each gradient.

The loop follows examples/tensorflow2/tensorflow2_mnist.py of https://github.com/horovod/horovod (Apache-2.0): element
by element through tf.data, batch 128 per rank, Adam with 0.001 times the number of ranks, variables broadcast after
the first step. It trains the default CNN, so that an image costs what it costs us. `hvd.DistributedGradientTape` does
not work with Keras 3 (https://github.com/horovod/horovod/issues/4290), hence the all-reduce by hand. The example
neither stops early nor evaluates; here rank 0 does, after as many steps as make an epoch. Started by `horovodrun`, or
alone.
"""

import threading

import horovod
import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from mnist_dist.benchmarks.peers.scripts.keras_fit import build_seed
from mnist_dist.benchmarks.peers.scripts.script import Clock, load_mnist, make_parser, run

BATCH_SIZE, EPOCHS = 128, 15
SHUTDOWN_SECONDS = 5.0


def main() -> None:
    args = make_parser(__doc__).parse_args()
    hvd.init()
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
    keras.utils.set_random_seed(1000 * args.seed + hvd.rank())  # Each rank shuffles in its own order.

    x_train, y_train, x_test, y_test = load_mnist(args.data)
    dataset, test_dataset = (
        tf.data.Dataset.from_tensor_slices(
            (tf.cast(images[..., np.newaxis] / np.float32(255), tf.float32), tf.cast(labels, tf.int64))
        )
        for images, labels in ((x_train, y_train), (x_test, y_test))
    )
    dataset, test_batches = dataset.repeat().shuffle(10_000).batch(BATCH_SIZE), test_dataset.batch(1000)
    model = build_seed()
    loss = keras.losses.SparseCategoricalCrossentropy()
    optimizer = keras.optimizers.Adam(0.001 * hvd.size())

    @tf.function
    def training_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss_value = loss(labels, model(images, training=True))
        variables = [variable.value for variable in model.trainable_variables]
        gradients = [hvd.allreduce(gradient) for gradient in tape.gradient(loss_value, variables)]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss_value

    @tf.function
    def count_correct(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        predicted = tf.argmax(model(images, training=False), axis=1)
        return tf.math.count_nonzero(predicted == labels)

    steps_per_epoch = len(x_train) // (BATCH_SIZE * hvd.size())
    clock = Clock(args.mode, hvd.rank(), hvd.size())
    batches = iter(dataset)
    enough = False
    clock.start()
    while not enough and (clock.step < EPOCHS * steps_per_epoch or args.mode == "throughput"):
        images, labels = next(batches)
        loss_value = training_step(images, labels)
        if clock.step == 0:
            hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)
            hvd.broadcast_variables([variable.value for variable in optimizer.variables], root_rank=0)
        enough = clock.after_step(BATCH_SIZE * hvd.size(), loss_value.numpy)
        if args.mode == "accuracy" and clock.step % steps_per_epoch == 0:
            correct = sum(int(count_correct(*batch)) for batch in test_batches) if hvd.rank() == 0 else 0
            enough = clock.after_evaluation(int(hvd.broadcast(tf.constant(correct), root_rank=0)) / len(x_test))
    versions = {name.__name__: name.__version__ for name in (horovod, keras)} | {"tensorflow": tf.__version__}
    clock.write(args.out, device="GPU" if gpus else "CPU", precision="float32", **versions)
    # It waits for the other ranks without a limit, and all that matters is written.
    leaving = threading.Thread(target=hvd.shutdown, daemon=True)
    leaving.start()
    leaving.join(SHUTDOWN_SECONDS)


if __name__ == "__main__":
    run(main)
