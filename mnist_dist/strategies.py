"""How replicas work together, behind one interface that the training loop knows.

A *replica* is one copy of the model on one device; a *process* (rank) drives one or more replicas. N replicas on a
global batch compute the update that one replica computes on it: each contributes the sum of its images' gradients
divided by the global batch size, and the contributions are summed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mnist_dist.config import RuntimeConfig
from mnist_dist.dataset import Shard
from mnist_dist.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

    Gradients = Sequence[tf.Tensor]


class Strategy(Protocol):
    """What the training loop asks of a way to distribute it."""

    name: str
    shard: Shard

    @property
    def is_chief(self) -> bool:
        """Whether this process writes results."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which model and optimizer are built."""

    def distribute(self, make_dataset: Callable[[Shard], tf.data.Dataset]) -> Iterator[Any]:
        """Returns an iterator over what `run` takes, from the pipeline of this process' replicas."""

    def run(self, step: Callable[..., Any], batch: Any) -> Any:
        """Runs `step(*batch)` on every replica of this process."""

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        """Adds up what `run` returned over the replicas of this process."""

    def reduce_gradients(self, gradients: Gradients) -> Gradients:
        """Within `run`: sums gradients over all replicas where the optimizer does not do so itself."""

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        """Outside `run`: sums a tensor over all processes."""


class Single:
    """One replica in one process."""

    name = "single"
    shard = Shard()
    is_chief = True

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def distribute(self, make_dataset: Callable[[Shard], tf.data.Dataset]) -> Iterator[Any]:
        return iter(make_dataset(self.shard))

    def run(self, step: Callable[..., Any], batch: Any) -> Any:
        return step(*batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        return per_replica

    def reduce_gradients(self, gradients: Gradients) -> Gradients:
        return gradients

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor


def make_strategy(config: RuntimeConfig) -> Strategy:
    """Returns the strategy that the configuration names.

    Raises:
        UserError: it cannot use that many devices.
    """
    if config.devices != 1:
        raise UserError(f"runtime.devices: received {config.devices}, expected 1 with the strategy 'single'.")
    return Single()
