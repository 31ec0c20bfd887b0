"""What the training loop asks of a way to distribute it.

A *replica* is one copy of the model on one device; a *process* (rank) drives one or more replicas. N replicas on a
global batch compute the update that one replica computes on it: each contributes the sum of its images' gradients
divided by the global batch size, and the contributions are summed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnist_dist.config import RuntimeConfig
from mnist_dist.data.dataset import Shard
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.lazy import keras, tf

MakeDataset = Callable[[Shard], "tf.data.Dataset"]


class Strategy:
    """One replica in one process on its own; a subclass says what differs where there are more."""

    shard = Shard()
    is_chief = True  # Whether this process reads and writes the workdir.
    backend = "none"  # What sums the gradients, such as NCCL.
    devices: Sequence[str | None] = (None,)  # Of this process' replicas; None is TensorFlow's choice.
    gathers = False  # Whether `gather` of a message takes less time than `reduce` of one twice as long.

    @classmethod
    def describe_installation(cls) -> str:
        """Says, for the doctor, what the package that it needs has to offer; raises UserError if it does not load."""
        return ""

    @classmethod
    def rendezvous(cls, cluster: Cluster) -> contextlib.AbstractContextManager[Any]:
        """What whoever starts the ranks, or else the chief, holds for them to find each other.

        Args:
            cluster: whose first rank's place is this host; ranks of one host are neighbours.

        Raises:
            UserError: the package that it needs is not installed, or the port is taken.
        """
        return contextlib.nullcontext()

    @classmethod
    def prepare_rank(cls, cluster: Cluster, address: str, join_timeout_seconds: float) -> None:
        """Sets up this process as a rank, before TensorFlow is imported; `address` is its own towards the chief."""

    @classmethod
    def make(cls, config: RuntimeConfig, cluster: Cluster) -> Strategy:
        """Joins the other processes where there are some. TensorFlow must not have touched its devices before."""
        return cls()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which model and optimizer are built."""
        return contextlib.nullcontext()

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        """Returns an iterator over what `run` takes, from the pipeline of this process' replicas."""
        return iter(make_dataset(self.shard))

    def run(self, step: Callable[..., tf.Tensor], batch: Any, *, whole: bool = False) -> Any:
        """Runs `step(*batch)` on every replica of this process with its part of the batch.

        With `whole` it is `step(replica, *batch)` with all of the batch; `replica` counts those of this process.
        """
        return step(0, *batch) if whole else step(*batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        """Adds up what `run` returned over the replicas of this process."""
        return per_replica

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        """Within `run`: sums a tensor over all replicas; differentiable."""
        return tensor

    def replica_mean(self, tensor: tf.Tensor) -> tf.Tensor:
        """Within `run`: the mean of a tensor over all replicas; differentiable."""
        return self.reduce(tensor) / self.shard.num_replicas

    def gather(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Within `run`, where `gathers`: returns the vectors of all replicas, in their order."""
        raise NotImplementedError

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        """Outside `run`: sums a tensor over all processes."""
        return tensor

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        """Outside `run`: sets variables to the chief's values in all processes."""

    def barrier(self) -> None:
        """Waits, at the end, until all processes have come here."""


def all_gather(strategy: Strategy, values: Sequence[float]) -> np.ndarray:
    """Returns the values of every process, equally many from each, as float64 [processes, values]."""
    shard = strategy.shard
    table = np.zeros([shard.num_replicas // shard.local_replicas, len(values)])
    table[shard.first_replica // shard.local_replicas] = values
    return np.asarray(strategy.all_reduce(tf.constant(table)))


def sum_in_replica_context(tensor: tf.Tensor) -> tf.Tensor:
    """Within `run` of a strategy of tf.distribute: sums a tensor over all its replicas."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def backend_of(strategy: tf.distribute.Strategy) -> str:
    """Returns what a strategy of tf.distribute sums with, by what it has itself decided.

    TensorFlow takes NCCL where it is told to and the devices are GPUs (AssignCollectiveType in
    core/common_runtime/collective_param_resolver_local.cc).
    """
    extended = strategy.extended
    implementation = extended._cross_device_ops._options.implementation
    on_gpus = all("GPU" in device for device in extended.worker_devices)
    if on_gpus and implementation == tf.distribute.experimental.CommunicationImplementation.NCCL:
        return "NCCL"
    return "gRPC" if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else "memory"
