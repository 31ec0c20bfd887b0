"""How replicas work together, behind one interface that the training loop knows.

A *replica* is one copy of the model on one device; a *process* (rank) drives one or more replicas. N replicas on a
global batch compute the update that one replica computes on it: each contributes the sum of its images' gradients
divided by the global batch size, and the contributions are summed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mnist_dist.config import RuntimeConfig
from mnist_dist.data.dataset import Shard
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.errors import UserError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    MakeDataset = Callable[[Shard], tf.data.Dataset]


GATHER_GROUP_KEY = 1_000_000  # TensorFlow counts its own groups from 1.
LAST_WAIT_SECONDS = 600.0  # For the chief to save, test and draw, while the others have nothing left to do.


class Strategy(Protocol):
    """What the training loop asks of a way to distribute it."""

    name: str
    shard: Shard
    is_chief: bool  # Whether this process reads and writes the workdir.
    gathers: bool  # Whether `gather` of a message takes less time than `reduce` of one twice as long.

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which model and optimizer are built."""

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        """Returns an iterator over what `run` takes, from the pipeline of this process' replicas."""

    def run(self, step: Callable[..., tf.Tensor], batch: Any) -> Any:
        """Runs `step(*batch)` on every replica of this process."""

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        """Adds up what `run` returned over the replicas of this process."""

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        """Within `run`: sums a tensor over all replicas; differentiable."""

    def gather(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Within `run`, where `gathers`: returns the vectors of all replicas, in their order."""

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        """Outside `run`: sums a tensor over all processes."""

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        """Outside `run`: sets variables to the chief's values in all processes."""

    def barrier(self) -> None:
        """Waits, at the end, until all processes have come here."""


class Summing:
    """What strategies have in common that only sum."""

    gathers = False

    def gather(self, vector: tf.Tensor) -> list[tf.Tensor]:
        raise NotImplementedError


class Single(Summing):
    """One replica in one process."""

    name = "single"
    shard = Shard()
    is_chief = True

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        return iter(make_dataset(self.shard))

    def run(self, step: Callable[..., tf.Tensor], batch: Any) -> Any:
        return step(*batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        return per_replica

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        pass

    def barrier(self) -> None:
        pass


class Mirrored(Summing):
    """Several replicas in one process: one per GPU, or per logical CPU device where there is no GPU."""

    name = "mirrored"
    is_chief = True

    def __init__(self, devices: Sequence[str]) -> None:
        self._strategy = _mirrored_strategy(tuple(devices))
        self.shard = Shard(0, len(devices), len(devices))

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        # Not distribute_datasets_from_function: TensorFlow's iterator over several devices now and then blocks for
        # tens of seconds on logical CPU devices, when read or when released.
        return iter(make_dataset(self.shard))

    def run(self, step: Callable[..., tf.Tensor], batch: Any) -> Any:
        import tensorflow as tf

        def run_on_replica(*tensors: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            with tf.device("CPU:0"):  # So that only its part of the batch is copied to each GPU.
                parts = [_part(tensor, replica, self.shard.local_replicas) for tensor in tensors]
            return step(*parts)

        return self._strategy.run(run_on_replica, args=batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        import tensorflow as tf

        return tf.add_n(self._strategy.experimental_local_results(per_replica))

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return _reduce_in_replica_context(tensor)

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        pass

    def barrier(self) -> None:
        pass


class MultiWorker:
    """One replica in each of several processes, joined by TensorFlow's collectives (TF_CONFIG)."""

    name = "multiworker"

    def __init__(self, cluster: Cluster) -> None:
        import tensorflow as tf

        _send_whole_messages()
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._cluster = cluster
        self.is_chief = cluster.is_chief
        self.shard = Shard(cluster.rank, 1, cluster.size)
        # A rank sends a message of n bytes (N - 1) n times to gather it, and 2 (N - 1) / N 2 n to sum one of 2 n.
        self.gathers = 1 < cluster.size < 4 and not tf.config.get_visible_devices("GPU")
        self._gather_keys = itertools.count(1)  # The same on all ranks, as they build the same graphs in one order.
        # Compiled once: eager calls through a multi-worker strategy are slow.
        self._compiled_all_reduce = tf.function(self._all_reduce, reduce_retracing=True, autograph=False)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        # With one replica in each process a plain iterator serves. TensorFlow's distributed one would add a
        # collective to each step, to ask all workers whether they still have data.
        return iter(make_dataset(self.shard))

    def run(self, step: Callable[..., tf.Tensor], batch: Any) -> Any:
        return self._strategy.run(step, args=batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        return per_replica

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return _reduce_in_replica_context(tensor)

    def gather(self, vector: tf.Tensor) -> list[tf.Tensor]:
        import tensorflow as tf

        # Each rank sends to all. TensorFlow's gathering would ask the other rank for its vector only when the own one
        # is there; these operations wait for it from the beginning of the step.
        gathered = []
        for source in range(self._cluster.size):
            instance = {
                "group_size": self._cluster.size,
                "group_key": GATHER_GROUP_KEY,
                "instance_key": next(self._gather_keys),
            }
            if source == self._cluster.rank:
                # Its output, which is the vector: an operation without a use would be left out.
                gathered.append(tf.raw_ops.CollectiveBcastSendV2(input=vector, **instance))
            else:
                shape = vector.shape.as_list()
                gathered.append(tf.raw_ops.CollectiveBcastRecvV2(T=vector.dtype, shape=shape, **instance))
        return gathered

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._compiled_all_reduce(tensor)

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        import tensorflow as tf

        for variable in variables:
            # A sum in float64, exact for float32 and int32: the chief's value plus zeros.
            value = tf.cast(variable.value, tf.float64)
            total = self.all_reduce(value if self.is_chief else tf.zeros_like(value))
            variable.assign(tf.cast(total, variable.dtype))

    def barrier(self) -> None:
        # Not a collective: who leaves it first would break it for the others, with pages of complaints.
        roll_call(self._cluster, LAST_WAIT_SECONDS)

    def _all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        # The copy has a device, which TensorFlow needs to choose a collective; an argument may have none.
        return self._strategy.run(lambda: _reduce_in_replica_context(tf.identity(tensor)))


class Horovod(Summing):
    """One replica in each of several processes, joined by Horovod."""

    name = "horovod"

    def __init__(self, cluster: Cluster) -> None:
        import horovod.tensorflow as hvd

        hvd.init()
        if (hvd.rank(), hvd.size()) != (cluster.rank, cluster.size):
            raise UserError(
                f"runtime.strategy: Horovod found itself to be rank {hvd.rank()} of {hvd.size()}, but the launcher "
                f"says {cluster.rank} of {cluster.size}; start all ranks with one launcher."
            )
        self._hvd = hvd
        self.is_chief = cluster.is_chief
        self.shard = Shard(cluster.rank, 1, cluster.size)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def distribute(self, make_dataset: MakeDataset) -> tf.data.Iterator:
        return iter(make_dataset(self.shard))

    def run(self, step: Callable[..., tf.Tensor], batch: Any) -> Any:
        return step(*batch)

    def local_sum(self, per_replica: Any) -> tf.Tensor:
        return per_replica

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._hvd.allreduce(tensor, op=self._hvd.Sum)

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._hvd.allreduce(tensor, op=self._hvd.Sum)

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:  # Not all in one call: Horovod's makes a function of them, with autograph.
            variable.assign(self._hvd.broadcast(variable.value, root_rank=0))

    def barrier(self) -> None:
        import tensorflow as tf

        self.all_reduce(tf.zeros([1])).numpy()
        self._hvd.shutdown()


class Unreduced(Summing):
    """A strategy whose replicas keep their gradients and metrics to themselves, and never wait for one another.

    What it trains is wrong; how long its steps take says what communication costs.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.name, self.shard, self.is_chief = strategy.name, strategy.shard, strategy.is_chief
        self.scope, self.distribute = strategy.scope, strategy.distribute
        self.run, self.local_sum = strategy.run, strategy.local_sum
        self.broadcast, self.barrier = strategy.broadcast, strategy.barrier

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor


def resolve_strategy(config: RuntimeConfig, cluster: Cluster) -> RuntimeConfig:
    """Replaces `auto` and completes the number of devices from what the launcher says.

    Raises:
        UserError: strategy, devices and launcher contradict one another.
    """
    several = cluster.launcher != "none"
    name: str = config.strategy
    if name == "auto":
        alone = "single" if config.devices == 1 else "mirrored"
        name = "horovod" if several else alone
    if several and name in ("single", "mirrored") and cluster.size > 1:
        raise UserError(
            f"runtime.strategy: received '{name}', which is one process, but {cluster.launcher} started "
            f"{cluster.size}; expected multiworker or horovod."
        )
    knows_hosts = cluster.launcher in ("mnist-dist", "srun") or (cluster.launcher, name) == ("horovodrun", "horovod")
    if several and cluster.local_size < cluster.size and not knows_hosts:
        raise UserError(
            f"runtime.strategy: received '{name}' on several hosts under {cluster.launcher}, which does not tell a "
            "rank the hosts of the others; expected one host, srun, or `horovodrun` with horovod."
        )
    devices = config.devices
    if several and devices == 1:
        devices = cluster.size
    if several and devices != cluster.size:
        raise UserError(
            f"runtime.devices: received {devices}, but {cluster.launcher} started {cluster.size} processes; "
            "leave it out."
        )
    if name == "single" and devices != 1:
        raise UserError(f"runtime.devices: received {devices}, expected 1 with the strategy 'single'.")
    return config.model_copy(update={"strategy": name, "devices": devices})


def make_strategy(config: RuntimeConfig, cluster: Cluster) -> Strategy:
    """Returns the resolved strategy; joins the other processes where there are some.

    TensorFlow must not have touched its devices before.
    """
    import tensorflow as tf

    if config.strategy == "mirrored":
        kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
        return Mirrored([f"{kind}:{index}" for index in range(config.devices)])
    if config.strategy == "multiworker":
        os.environ["TF_CONFIG"] = json.dumps(tf_config(cluster))
        return MultiWorker(cluster)
    if config.strategy == "horovod":
        return Horovod(cluster)
    return Single()


def tf_config(cluster: Cluster) -> dict[str, Any]:
    """Returns the content of TF_CONFIG; rank r listens on the port r + 1 after the job's first."""
    workers = [f"{address}:{cluster.port + 1 + rank}" for rank, address in enumerate(cluster.addresses)]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": cluster.rank}}


def mean_over_replicas(strategy: Strategy, tensor: tf.Tensor) -> tf.Tensor:
    """Within `run`: the mean of a tensor over all replicas; differentiable."""
    return strategy.reduce(tensor) / strategy.shard.num_replicas


def all_gather(strategy: Strategy, values: Sequence[float]) -> np.ndarray:
    """Returns the values of every process, equally many from each, as float64 [processes, values]."""
    import tensorflow as tf

    shard = strategy.shard
    table = np.zeros([shard.num_replicas // shard.local_replicas, len(values)])
    table[shard.first_replica // shard.local_replicas] = values
    return np.asarray(strategy.all_reduce(tf.constant(table)))


@functools.cache
def _mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns one object per set of devices: a second one would reuse the first one's keys of collectives."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices)


def _send_whole_messages() -> None:
    """Keeps TensorFlow's servers from copying what collectives send in pieces of 4 KB.

    An all-reduce of this network's gradients between two ranks with a core each takes a tenth less time. There is no
    public way to this setting of the servers that MultiWorkerMirroredStrategy starts.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    config = tf.compat.v1.ConfigProto()
    config.experimental.recv_buf_max_chunk = -1  # The source calls it off with a negative number.
    context.context()._config = config


def _part(tensor: tf.Tensor, index: tf.Tensor, count: int) -> tf.Tensor:
    """Returns one of `count` equal parts of a tensor along its first axis."""
    import tensorflow as tf

    rows = tensor.shape[0] // count
    begin = [index * rows, *([0] * (tensor.shape.rank - 1))]
    return tf.slice(tensor, begin, [rows, *tensor.shape[1:]])


def _reduce_in_replica_context(tensor: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensor)
