"""Several replicas in one process."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from mnist_dist.config import RuntimeConfig
from mnist_dist.data.dataset import Shard
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.strategies.interface import Strategy, backend_of, sum_in_replica_context
from mnist_dist.lazy import tf


class Mirrored(Strategy):
    """Several replicas in one process: one per GPU, or per logical CPU device where there is no GPU."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._strategy = _mirrored_strategy(tuple(devices))
        self.backend = backend_of(self._strategy)
        self.shard = Shard(0, len(devices), len(devices))
        self.devices = devices

    @classmethod
    def make(cls, config: RuntimeConfig, cluster: Cluster) -> Mirrored:
        kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
        return cls([f"{kind}:{index}" for index in range(config.devices)])

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    # The plain iterator of `distribute` serves: TensorFlow's own over several devices now and then blocks for tens of
    # seconds on logical CPU devices, when read or when released.

    def run(self, step: Callable[..., tf.Tensor], batch: Any, *, whole: bool = False) -> Any:
        def run_on_replica(*tensors: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            if whole:
                return step(int(tf.get_static_value(replica)), *tensors)
            with tf.device("CPU:0"):  # So that only its part of the batch is copied to each GPU.
                parts = [_part(tensor, replica, self.shard.local_replicas) for tensor in tensors]
            return step(*parts)

        return self._strategy.run(run_on_replica, args=batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        return tf.add_n(self._strategy.experimental_local_results(per_replica))

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return sum_in_replica_context(tensor)


@functools.cache
def _mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns one object per set of devices: a second one would reuse the first one's keys of collectives."""
    return tf.distribute.MirroredStrategy(devices)


def _part(tensor: tf.Tensor, index: tf.Tensor, count: int) -> tf.Tensor:
    """Returns one of `count` equal parts of a tensor along its first axis."""
    rows = tensor.shape[0] // count
    begin = [index * rows, *([0] * (tensor.shape.rank - 1))]
    return tf.slice(tensor, begin, [rows, *tensor.shape[1:]])
