"""Loops within a compiled function, without autograph.

Autograph would make them of Python's own. It converts the source of every function on the way, at 15 to 60 ms each, and
leaves a temporary file of each behind where a process ends in a hurry. So compiled functions are
`tf.function(autograph=False)` here, and what tf.data maps is marked `do_not_convert`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mnist_dist.lazy import tf

State = TypeVar("State")


def repeat(count: tf.Tensor, step: Callable[[tf.Tensor, State], State], start: State) -> State:
    """Returns `step(count - 1, ... step(1, step(0, start)))`.

    Args:
        count: int32 [].
        step: from the index, int32 [], and the state to the next state, of the same dtypes and shapes.
        start: a tensor, or what else `tf.while_loop` carries along.
    """
    return tf.while_loop(
        lambda index, _: index < count,
        lambda index, state: (index + 1, step(index, state)),
        (tf.constant(0), start),
    )[1]
