"""The optimizer that a configuration names, on a given series of learning rates."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mnist_dist.config import OptimizerConfig
from mnist_dist.lazy import keras, tf


def build_optimizer(
    config: OptimizerConfig, learning_rates: np.ndarray, *, loss_scaling: bool, one_operation: bool = False
) -> keras.Optimizer:
    """Builds a Keras optimizer; step i uses `learning_rates[i]` (float32 [total_steps]).

    With `loss_scaling` it multiplies the loss by a factor found while running, so that float16 gradients neither
    vanish nor overflow, and leaves out a step whose gradients do overflow. With `one_operation`, Adam and AdamW update
    each variable in one instead of ten; the values are the same.
    """
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    common: dict[str, Any] = {
        "learning_rate": _table(learning_rates),
        # None, because Keras spends an operation per variable on a decay of zero.
        "weight_decay": config.weight_decay or None,
        "name": "optimizer",
    }
    adaptive = {"epsilon": config.epsilon}
    moments = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    adam, adamw = keras.optimizers.Adam, keras.optimizers.AdamW
    if one_operation:
        adam, adamw = _fused(adam), _fused(adamw)
    classes = {
        "adam": (adam, moments | adaptive),
        # AdamW insists on a number.
        "adamw": (adamw, moments | adaptive | {"weight_decay": config.weight_decay}),
        "rmsprop": (keras.optimizers.RMSprop, adaptive | {"momentum": config.momentum}),
        "sgd": (keras.optimizers.SGD, {"momentum": config.momentum, "nesterov": True}),
        "lamb": (keras.optimizers.Lamb, moments | adaptive),
    }
    make, own = classes[config.name]
    optimizer = make(**(common | own))
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Keras would sum the gradients over the replicas of tf.distribute, and merge their calls for each update, which no
    # compiled function can do. The training step has done the former already, in the same way under every strategy, so
    # every replica makes the same update of its own copies.
    for update in ("_backend_update_step", "_apply_weight_decay"):
        setattr(optimizer, update, functools.partial(getattr(BaseOptimizer, update), optimizer))
    optimizer.iterations.value._aggregation = tf.VariableAggregation.NONE
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
        optimizer._tf_apply = optimizer._common_apply
    return optimizer


def _fused(adam: type[keras.optimizers.Adam]) -> type[keras.optimizers.Adam]:
    """Returns the class with its update done by TensorFlow's own operation for Adam, on the variables of Keras."""

    class FusedAdam(adam):
        def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
            index = self._get_variable_index(variable)
            step = tf.cast(self.iterations.value + 1, tf.float32)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=self.beta_1**step,
                beta2_power=self.beta_2**step,
                lr=tf.cast(learning_rate, tf.float32),
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )

    return FusedAdam


def _table(learning_rates: np.ndarray) -> keras.optimizers.schedules.LearningRateSchedule:
    class LearningRateTable(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> tf.Tensor:
            # TensorFlow computes int32 on the host, for which each step would wait.
            step = tf.minimum(tf.cast(step, tf.int64), len(learning_rates) - 1)
            return tf.gather(tf.constant(learning_rates), step)

        def get_config(self) -> dict[str, Any]:
            return {}

    return LearningRateTable()
