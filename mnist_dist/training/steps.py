"""The compiled training and evaluation steps. Gradients are computed apart from their reduction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnist_dist.data.resident import Resident
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.lazy import keras, tf
from mnist_dist.loops import repeat
from mnist_dist.network.forward import Forward

TrainSteps = Callable[["tf.data.Iterator", int], "tf.Tensor"]
StepCall = Callable[[int], np.ndarray]  # Takes so many steps; returns float32 [steps, 2] as `TrainSteps` does.
EvalSteps = Callable[["tf.data.Iterator", int], "tf.Tensor"]
ALIGNED = 32  # Elements: 64 bytes of bfloat16. TensorFlow copies a part of a tensor that begins elsewhere.


def make_train_steps(
    model: keras.Model,
    optimizer: keras.Optimizer,
    strategy: Strategy,
    *,
    batch_size: int,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
    gradient_compression: str = "none",
    xla: bool = False,
    forward: Forward | None = None,
    resident: Resident | None = None,
) -> TrainSteps:
    """Compiles a call that trains several steps without returning to Python.

    Args:
        model: from pixels [b, 28, 28, 1] to logits [b, 10].
        batch_size: global; the loss is the mean over it.
        label_smoothing: share of the target spread over all classes (in the gradients, not in the reported loss).
        accumulation_steps: parts into which each replica's batch is divided; the update stays the same, but for
            batch normalisation, which sees the parts one by one.
        gradient_compression: "float16" to halve what travels between replicas, or "none".
        xla: compile the step with XLA, as one function, or as one before and one after the all-reduce.
        forward: how to compute the model, if not layer by layer.
        resident: where to take the images from, if the batches only say which.

    Returns:
        `train_steps(batches, count)` takes `count` steps and returns float32 [count, 2]: for each step the mean
        cross-entropy in nats and the share of correct predictions over the global batch, before its update.
    """
    forward = forward or Forward(model)
    compute_gradients = _make_gradients(model, optimizer, strategy, forward, batch_size, label_smoothing)

    def split(*batch: Any) -> list[tuple[tf.Tensor, ...]]:
        images, labels = resident.take(*batch) if resident else batch
        return _split(max(accumulation_steps, forward.count_parts(images.shape[0])), images, labels)

    def finish(parts: Sequence[tuple[list[tf.Tensor], tf.Tensor]]) -> tuple[Any, tf.Tensor]:
        """Sums the parts, and updates the weights or returns what to send to the other replicas."""
        gradients, metrics = parts[0]
        if len(parts) > 1:
            gradients = [
                tf.add_n([tf.cast(of_part, tf.float32) for of_part in slices])
                for slices in zip(*(gradients for gradients, _ in parts), strict=True)
            ]
            metrics = tf.add_n([metrics for _, metrics in parts])
        if strategy.shard.num_replicas > 1:
            return gradients if strategy.gathers else _pack(gradients, gradient_compression), metrics
        optimizer.apply(gradients, model.trainable_variables)
        return None, metrics

    def contribute(*batch: Any) -> tuple[Any, tf.Tensor]:
        return finish([compute_gradients(*part) for part in split(*batch)])

    def update(total: Any) -> None:
        gradients = total if strategy.gathers else _unpadded(total, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    compiled: Any = functools.partial(tf.function, jit_compile=xla or None, autograph=False)
    if xla and accumulation_steps == 1:
        contribute, update = compiled(contribute), compiled(update)
    elif xla:  # Apart, as XLA would compile the same part again and again, and may hold several in memory at once.
        split, compute_gradients, finish, update = map(compiled, (split, compute_gradients, finish, update))
    elif forward.traced_apart:
        compute_gradients = compiled(compute_gradients)

    def replica_step(*batch: Any) -> tf.Tensor:
        sent, metrics = contribute(*batch)
        if strategy.gathers:
            update(reduce_gradients(strategy, sent, gradient_compression))
        elif sent is not None:
            update(strategy.reduce(sent))
        return metrics

    @tf.function(autograph=False)
    def train_steps(batches: tf.data.Iterator, count: tf.Tensor) -> tf.Tensor:
        def step(index: tf.Tensor, metrics: tf.TensorArray) -> tf.TensorArray:
            # The compiled step takes a replica's part of indices by itself, where there are resident images.
            of_replicas = strategy.run(replica_step, batches.get_next(), whole=bool(resident))
            return metrics.write(index, strategy.local_sum(of_replicas))

        metrics = repeat(count, step, tf.TensorArray(tf.float32, size=count, element_shape=[2]))
        return strategy.all_reduce(metrics.stack())

    # A Python number would be a new trace for every count.
    return lambda batches, count: train_steps(batches, tf.constant(count))


def _make_gradients(
    model: keras.Model,
    optimizer: keras.Optimizer,
    strategy: Strategy,
    forward: Forward,
    batch_size: int,
    label_smoothing: float,
) -> Callable[[tf.Tensor, tf.Tensor], tuple[list[tf.Tensor], tf.Tensor]]:
    """Returns a function from images and labels to their part of the gradients and of a step's metrics, float32 [2]."""
    loss_scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def compute_gradients(images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape() as tape:
            log_probabilities = tf.nn.log_softmax(forward.compute(images, training=True))
            true_class = tf.gather(log_probabilities, labels, batch_dims=1)
            objective = (1 - label_smoothing) * true_class
            if label_smoothing:
                objective += label_smoothing * tf.reduce_mean(log_probabilities, axis=1)
            loss = -tf.reduce_sum(objective) / batch_size
            scaled_loss = optimizer.scale_loss(loss) if loss_scaling else loss
        gradients = tape.gradient(scaled_loss, [variable.value for variable in model.trainable_variables])
        if strategy.gathers:
            gradients = [_as_computed(gradient) for gradient in gradients]
        correct = tf.equal(tf.argmax(log_probabilities, axis=1, output_type=labels.dtype), labels)
        sums = tf.stack([-tf.reduce_sum(true_class), tf.reduce_sum(tf.cast(correct, tf.float32))])
        return gradients, sums / batch_size

    return compute_gradients


def reduce_gradients(strategy: Strategy, gradients: Sequence[tf.Tensor], compression: str) -> list[tf.Tensor]:
    """Sums gradients over all replicas in one message of one flat tensor, optionally of float16; returns float32.

    This network's gradients are small: what costs is the number of messages, not their size. A gradient that
    overflowed on one replica is infinite in the sum, so with loss scaling all replicas leave out the same step.
    """
    if compression == "none" and any(gradient.dtype == tf.bfloat16 for gradient in gradients):
        return _sum_gathered(strategy, gradients)
    return _unpadded(strategy.reduce(_pack(gradients, compression)), gradients)


def _pack(gradients: Sequence[tf.Tensor], compression: str) -> tf.Tensor:
    flat = tf.concat([_padded(tf.cast(gradient, tf.float32)) for gradient in gradients], axis=0)
    return tf.cast(flat, tf.float16 if compression == "float16" else tf.float32)


def _sum_gathered(strategy: Strategy, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums gradients, some of which are bfloat16 and travel as such: about half of the bytes for this network.

    Every replica adds up what all of them computed, in float32 and in the same order, so that the sum is no less exact
    than an all-reduce of float32. Sums on the way, in bfloat16, would be.
    """

    def in_pairs(flat: tf.Tensor) -> tf.Tensor:
        return tf.bitcast(tf.reshape(flat, [-1, 2]), tf.float32)

    def from_pairs(flat: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.reshape(tf.bitcast(flat, tf.bfloat16), [-1]), tf.float32)

    long, short = ([each for each in gradients if each.dtype == dtype] for dtype in (tf.float32, tf.bfloat16))
    longs, shorts = [_padded(each) for each in long], [in_pairs(_padded(each)) for each in short]
    messages = strategy.gather(tf.concat([*longs, *shorts], axis=0))
    middle = sum(each.shape[0] for each in longs)
    sum_of_longs = tf.add_n([message[:middle] for message in messages])
    sum_of_shorts = tf.add_n([from_pairs(message[middle:]) for message in messages])
    of_long, of_short = iter(_unpadded(sum_of_longs, long)), iter(_unpadded(sum_of_shorts, short))
    return [next(of_short if each.dtype == tf.bfloat16 else of_long) for each in gradients]


def _as_computed(gradient: tf.Tensor) -> tf.Tensor:
    """Returns the gradient in bfloat16 if it is no more than that made longer, as of a layer that computes in it."""
    source = gradient.op.inputs[0] if gradient.op.type == "Cast" else gradient
    return source if source.dtype == tf.bfloat16 else gradient


def _padded(tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor's elements in one row, with zeros behind them so that what follows in a message is aligned."""
    missing = -tensor.shape.num_elements() % ALIGNED
    flat = tf.reshape(tensor, [-1])
    return tf.pad(flat, [[0, missing]]) if missing else flat


def _unpadded(message: tf.Tensor, tensors: Sequence[tf.Tensor | keras.Variable]) -> list[tf.Tensor]:
    """Returns the parts of a message of padded tensors, in the shapes of these; nothing is copied where aligned."""
    message, parts, start = tf.cast(message, tf.float32), [], 0
    for tensor in tensors:
        size = tensor.shape.num_elements()
        parts.append(tf.reshape(message[start : start + size], tensor.shape))
        start += size + -size % ALIGNED
    return parts


def make_eval_steps(model: keras.Model, strategy: Strategy, forward: Forward | None = None) -> EvalSteps:
    """Compiles a call that evaluates a whole set.

    Returns:
        `eval_steps(batches, count)` consumes `count` batches of (images, labels, weights) and returns float32 [3]:
        the sums of cross-entropy in nats, of correct predictions and of the weights, over all replicas.
    """
    forward = forward or Forward(model)

    @tf.function(autograph=False)  # Traced once for all parts.
    def compute_logits(images: tf.Tensor) -> tf.Tensor:
        return forward.compute(images, training=False)

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        parts = _split(forward.count_parts(images.shape[0]), images)
        logits = tf.concat([compute_logits(part) for (part,) in parts], axis=0)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        correct = tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels), tf.float32)
        return tf.stack([tf.reduce_sum(loss * weights), tf.reduce_sum(correct * weights), tf.reduce_sum(weights)])

    @tf.function(autograph=False)
    def eval_steps(batches: tf.data.Iterator, count: tf.Tensor) -> tf.Tensor:
        def step(_: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
            return sums + strategy.local_sum(strategy.run(replica_step, batches.get_next()))

        return strategy.all_reduce(repeat(count, step, tf.zeros([3])))

    return lambda batches, count: eval_steps(batches, tf.constant(count))


def _split(count: int, *tensors: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
    """Splits tensors of one length into parts that differ by one row at most."""
    if count == 1:
        return [tensors]
    short, longer = divmod(tensors[0].shape[0], count)
    sizes = [short + (part < longer) for part in range(count)]
    return list(zip(*(tf.split(tensor, sizes) for tensor in tensors), strict=True))
