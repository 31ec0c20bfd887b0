"""What sums gradients where there are GPUs: what TensorFlow is told in the graph itself, and what records call it.

This machine has no GPU: only the list of visible devices is made up, and no collective runs on one.
"""

import json
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.launch import run_ranks
from mnist_dist.distributed.strategies.interface import Strategy, backend_of
from mnist_dist.distributed.strategies.mirrored import Mirrored

# A rank that takes a CPU for a GPU: the hint in its graph of an all-reduce, what a record would say, and a real sum.
RANK = """
import json, os, sys
from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.cluster import find_cluster
from mnist_dist.distributed.launch import join_ranks
from mnist_dist.distributed.strategies.multiworker import MultiWorker
from mnist_dist.runtime import import_tensorflow
cluster, config = find_cluster(os.environ), RuntimeConfig(strategy="multiworker")
with join_ranks(cluster, config):
    tf = import_tensorflow()
    from tensorflow.python.eager import context
    tf.config.get_visible_devices = lambda kind=None: [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    strategy = MultiWorker.make(config, cluster)
    graph = strategy._compiled_all_reduce.get_concrete_function(tf.ones([3])).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    hints = {node.attr["communication_hint"].s.decode() for node in nodes if node.op.startswith("CollectiveReduce")}
    total = strategy.all_reduce(tf.ones([3])).numpy().tolist()
    patience = context.context().coordination_service.heartbeat_timeout_in_ms
    print(json.dumps([sorted(hints), getattr(strategy, "backend", None), total, patience]))
    strategy.barrier()
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_multiworker_asks_for_nccl_where_gpus_are_visible(capfd: pytest.CaptureFixture[str]) -> None:
    run_ranks([sys.executable, "-c", RANK], 2, strategy="multiworker")
    lines = [line.partition("] ")[2] for line in capfd.readouterr().out.splitlines()]
    # The devices are CPUs all the same, so that TensorFlow sums over gRPC whatever the hint, and the record says so.
    # Its patience with ranks that stand still is ours, and a little more.
    assert [json.loads(line) for line in lines] == [[["nccl"], "gRPC", [2.0] * 3, 630_000]] * 2


def test_a_record_names_nccl_only_where_all_devices_are_gpus(tf: ModuleType) -> None:
    implementations = tf.distribute.experimental.CommunicationImplementation

    def made(implementation: str, *devices: str) -> SimpleNamespace:
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementations[implementation])
        extended = SimpleNamespace(_cross_device_ops=SimpleNamespace(_options=options), worker_devices=devices)
        return SimpleNamespace(extended=extended)

    gpus = [f"/job:localhost/replica:0/task:0/device:GPU:{index}" for index in range(2)]
    assert backend_of(made("NCCL", *gpus)) == "NCCL"
    assert backend_of(made("RING", *gpus)) == "memory"  # Of virtual GPUs.
    assert backend_of(made("NCCL", gpus[0], gpus[0].replace("GPU", "CPU"))) == "memory"
    assert Mirrored(["CPU:0"]).backend == "memory"
    assert Strategy.backend == "none"


def test_horovod_without_nccl_is_refused_on_gpus(
    tf: ModuleType, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    hvd = pytest.importorskip("horovod.tensorflow", reason="needs Horovod")
    if hvd.nccl_built():
        pytest.skip("this Horovod has NCCL")
    from mnist_dist.distributed.strategies.horovod import Horovod

    monkeypatch.setattr(hvd, "init", lambda: pytest.fail("it joined the others"))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU"])
    line = user_error(Horovod, Cluster())
    assert line.startswith("runtime.strategy: received 'horovod' on GPUs, but this Horovod was built without NCCL")
    assert "install-horovod --force" in line and "--strategy multiworker" in line
