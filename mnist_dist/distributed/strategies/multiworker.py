"""One replica in each of several processes, joined by TensorFlow."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnist_dist.config import RuntimeConfig
from mnist_dist.data.dataset import Shard
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.distributed.strategies.interface import Strategy, backend_of, sum_in_replica_context
from mnist_dist.errors import TrainingError
from mnist_dist.lazy import keras, tf

GATHER_GROUP_KEY = 1_000_000  # TensorFlow counts its own groups from 1.
WATCHDOG_SECONDS = 30.0  # Longer than our own watchdog, which names the rank and so must speak first.
LAST_WAIT_SECONDS = 600.0  # For the chief to save, test and draw, while the others have nothing left to do.


class MultiWorker(Strategy):
    """One replica in each of several processes, joined by TensorFlow's collectives (TF_CONFIG)."""

    def __init__(self, cluster: Cluster, stall_timeout_seconds: float) -> None:
        _send_whole_messages()
        _allow_silence(cluster, stall_timeout_seconds + WATCHDOG_SECONDS)
        on_gpus = bool(tf.config.get_visible_devices("GPU"))
        # By itself TensorFlow would take its own ring over gRPC on GPUs, too.
        implementation = tf.distribute.experimental.CommunicationImplementation[("AUTO", "NCCL")[on_gpus]]
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        try:
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except tf.errors.UnknownError as error:  # It does not say which port.
            where = f"rank {cluster.rank} cannot listen on port {cluster.port + 1 + cluster.rank}"
            raise TrainingError(f"launch: {where} ({error.message}); is it taken? Try again.") from None
        self.backend = backend_of(self._strategy)
        self._cluster = cluster
        self.is_chief = cluster.is_chief
        self.shard = Shard(cluster.rank, 1, cluster.size)
        # A rank sends a message of n bytes (N - 1) n times to gather it, and 2 (N - 1) / N 2 n to sum one of 2 n.
        self.gathers = 1 < cluster.size < 4 and not on_gpus
        self._gather_keys = itertools.count(1)  # The same on all ranks, as they build the same graphs in one order.
        # Compiled once: eager calls through a multi-worker strategy are slow.
        self._compiled_all_reduce = tf.function(self._all_reduce, reduce_retracing=True, autograph=False)

    @classmethod
    def make(cls, config: RuntimeConfig, cluster: Cluster) -> MultiWorker:
        os.environ["TF_CONFIG"] = json.dumps(tf_config(cluster))
        os.environ["no_grpc_proxy"] = without_proxy(cluster, os.environ)  # noqa: SIM112 - in small letters only.
        return cls(cluster, config.stall_timeout_seconds)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    # With one replica in each process, the plain iterator of `distribute` serves. TensorFlow's distributed one would
    # add a collective to each step, to ask all workers whether they still have data.

    def run(self, step: Callable[..., tf.Tensor], batch: Any, *, whole: bool = False) -> Any:
        return self._strategy.run(step, args=(0, *batch) if whole else batch)

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return sum_in_replica_context(tensor)

    def gather(self, vector: tf.Tensor) -> list[tf.Tensor]:
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
        for variable in variables:
            # A sum in float64, exact for float32 and int32: the chief's value plus zeros.
            value = tf.cast(variable.value, tf.float64)
            total = self.all_reduce(value if self.is_chief else tf.zeros_like(value))
            variable.assign(tf.cast(total, variable.dtype))

    def barrier(self) -> None:
        # Not a collective: who leaves it first would break it for the others, with pages of complaints.
        roll_call(self._cluster, LAST_WAIT_SECONDS)

    def _all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        # The copy has a device, which TensorFlow needs to choose a collective; an argument may have none.
        return self._strategy.run(lambda: sum_in_replica_context(tf.identity(tensor)))


def tf_config(cluster: Cluster) -> dict[str, Any]:
    """Returns the content of TF_CONFIG; rank r listens on the port r + 1 after the job's first."""
    addresses = [f"[{address}]" if ":" in address else address for address in cluster.addresses]  # As IPv6 is written.
    workers = [f"{address}:{cluster.port + 1 + rank}" for rank, address in enumerate(addresses)]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": cluster.rank}}


def without_proxy(cluster: Cluster, environment: Mapping[str, str]) -> str:
    """Returns the hosts that gRPC reaches itself, though `http_proxy` or another variable names a proxy for all.

    Of `no_grpc_proxy` and `no_proxy` it reads the first that is set:
    https://github.com/grpc/grpc/blob/master/doc/environment_variables.md
    """
    before = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
    return ",".join(dict.fromkeys([*filter(None, before.split(",")), *cluster.addresses]))


def _allow_silence(cluster: Cluster, seconds: float) -> None:
    """Lets a rank stand still for so long, as in a suspended job; by itself TensorFlow gives it up after ten seconds.

    There is no public way to this setting: MultiWorkerMirroredStrategy leaves alone what has been configured before.
    """
    from tensorflow.python.distribute.collective_all_reduce_strategy import coordination_config_pb2
    from tensorflow.python.eager import context

    job = coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=cluster.size)
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        coordinated_jobs=[job],
        heartbeat_timeout_in_ms=int(1000 * seconds),
    )


def _send_whole_messages() -> None:
    """Keeps TensorFlow's servers from copying what collectives send in pieces of 4 KB.

    An all-reduce of this network's gradients between two ranks with a core each takes a tenth less time. There is no
    public way to this setting of the servers that MultiWorkerMirroredStrategy starts.
    """
    from tensorflow.python.eager import context

    config = tf.compat.v1.ConfigProto()
    config.experimental.recv_buf_max_chunk = -1  # The source calls it off with a negative number.
    context.context()._config = config
