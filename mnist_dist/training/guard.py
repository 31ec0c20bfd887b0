"""Checks, while a run goes on, that distributing it has not changed what it computes.

Switched on by `runtime.guard`, and in the tests. Each check runs the pipeline, model and strategy of the run itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_dist.data.resident import Resident
from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.errors import TrainingError
from mnist_dist.lazy import keras, tf
from mnist_dist.loops import repeat


def check_shards(
    strategy: Strategy, batches: tf.data.Iterator, num_images: int, batch_size: int, resident: Resident | None = None
) -> None:
    """Checks that one epoch shows each replica other images, and all but the remainder to some replica.

    Args:
        batches: the training pipeline over images whose label is their own index.
        num_images: in the training set.
        batch_size: global.
        resident: what the batches refer to.

    Raises:
        TrainingError: an image came twice or not at all, or a global batch had another size.
    """
    steps_per_epoch = num_images // batch_size

    def count(*batch: Any) -> tf.Tensor:
        _, indices = resident.take(*batch) if resident else batch
        # A replica's tensor reaches local_sum as float32, exact for counts below 2^24.
        with tf.device("CPU:0"):  # GPUs have no deterministic kernel for it.
            indices = tf.cast(indices, tf.int32)
            return tf.math.bincount(indices, minlength=num_images, maxlength=num_images, dtype=tf.float32)

    @tf.function(autograph=False)
    def count_steps(steps: tf.Tensor) -> tf.Tensor:
        def step(_: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
            return seen + strategy.local_sum(strategy.run(count, batches.get_next(), whole=bool(resident)))

        return strategy.all_reduce(repeat(steps, step, tf.zeros([num_images])))

    first = count_steps(tf.constant(1)).numpy()
    if first.sum() != batch_size:
        _fail(f"the first global batch holds {first.sum():.0f} images, expected {batch_size}")
    seen = first + count_steps(tf.constant(steps_per_epoch - 1)).numpy()
    if seen.max() > 1:
        _fail(f"training image {seen.argmax()} came {seen.max():.0f} times in one epoch, expected once")
    if seen.sum() != steps_per_epoch * batch_size:
        _fail(f"an epoch showed {seen.sum():.0f} images, expected {steps_per_epoch * batch_size}")


def check_learning_rate(optimizer: keras.Optimizer, learning_rates: np.ndarray, step: int) -> None:
    """Checks that the optimizer has taken all steps and takes the next one with its scheduled learning rate.

    With loss scaling it may have left steps out, and is that many entries behind in the schedule.
    """
    loss_scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if loss_scaling else optimizer
    taken = int(inner.iterations.numpy())
    if taken > step or (taken < step and not loss_scaling):
        _fail(f"the optimizer has taken {taken} steps, expected {step}")
    actual, expected = float(inner.learning_rate), float(learning_rates[min(taken, len(learning_rates) - 1)])
    if actual != expected:
        _fail(f"the learning rate after step {step} is {actual:g}, expected {expected:g}")


def check_evaluated(images: int, expected: int) -> None:
    """Checks that an evaluation over all replicas counted each image once."""
    if images != expected:
        _fail(f"an evaluation counted {images} images, expected {expected}")


def check_equal_weights(variables: Sequence[keras.Variable], strategy: Strategy, step: int) -> None:
    """Checks that all replicas hold the same weights, bit for bit."""
    digests = _replica_digests(variables)
    if len(set(digests)) > 1:
        _fail(f"the replicas of this process hold different weights after step {step}")
    # 48 bits of the digest, exact in float64.
    of_ranks = all_gather(strategy, [float(int.from_bytes(digests[0][:6], "big"))])[:, 0]
    different = np.flatnonzero(of_ranks != of_ranks[0])
    if different.size:
        _fail(f"rank {different[0]} holds other weights than rank 0 after step {step}")


def _replica_digests(variables: Sequence[keras.Variable]) -> list[bytes]:
    """Returns one digest of all variables for each replica of this process."""
    copies = [getattr(variable.value, "values", (variable.value,)) for variable in variables]
    return [
        hashlib.sha256(b"".join(np.asarray(copy).tobytes() for copy in replica)).digest()
        for replica in zip(*copies, strict=True)
    ]


def _fail(finding: str) -> None:
    raise TrainingError(f"guard: {finding}.")
