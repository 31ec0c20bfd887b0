"""What a strategy is without its communication."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mnist_dist.distributed.strategies.interface import Strategy

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from mnist_dist.distributed.strategies.interface import MakeDataset


class Unreduced(Strategy):
    """A strategy whose replicas keep their gradients and metrics to themselves, and never wait for one another.

    What it trains is wrong; how long its steps take says what communication costs.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.shard, self.is_chief = strategy.shard, strategy.is_chief

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        return self._strategy.distribute(make_dataset)

    def run(self, step: Callable[..., tf.Tensor], batch: Any) -> Any:
        return self._strategy.run(step, batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        return self._strategy.local_sum(per_replica)

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        self._strategy.broadcast(variables)

    def barrier(self) -> None:
        self._strategy.barrier()
