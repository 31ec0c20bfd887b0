"""The optimizer that a configuration names, on a given series of learning rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.config import OptimizerConfig

if TYPE_CHECKING:
    import keras


def build_optimizer(config: OptimizerConfig, learning_rates: np.ndarray, *, loss_scaling: bool) -> keras.Optimizer:
    """Builds a Keras optimizer; step i uses `learning_rates[i]` (float32 [total_steps]).

    With `loss_scaling` it multiplies the loss by a factor found while running, so that float16 gradients neither
    vanish nor overflow, and leaves out a step whose gradients do overflow.
    """
    import keras

    common: dict[str, Any] = {
        "learning_rate": _table(learning_rates),
        # None, because Keras spends an operation per variable on a decay of zero.
        "weight_decay": config.weight_decay or None,
        "name": "optimizer",
    }
    adaptive = {"epsilon": config.epsilon}
    moments = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    classes = {
        "adam": (keras.optimizers.Adam, moments | adaptive),
        # AdamW insists on a number.
        "adamw": (keras.optimizers.AdamW, moments | adaptive | {"weight_decay": config.weight_decay}),
        "rmsprop": (keras.optimizers.RMSprop, adaptive | {"momentum": config.momentum}),
        "sgd": (keras.optimizers.SGD, {"momentum": config.momentum, "nesterov": True}),
        "lamb": (keras.optimizers.Lamb, moments | adaptive),
    }
    make, own = classes[config.name]
    optimizer = make(**(common | own))
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Keras would sum the gradients over the replicas of tf.distribute. The training step has done that already, in
    # the same way under every strategy.
    optimizer._all_reduce_sum_gradients = list
    return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale") if loss_scaling else optimizer


def _table(learning_rates: np.ndarray) -> keras.optimizers.schedules.LearningRateSchedule:
    import keras
    import tensorflow as tf

    class LearningRateTable(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> tf.Tensor:
            last = len(learning_rates) - 1
            return tf.gather(tf.constant(learning_rates), tf.minimum(tf.cast(step, tf.int32), last))

        def get_config(self) -> dict[str, Any]:
            return {}

    return LearningRateTable()
