"""What each strategy leaves outside of compiled functions in a step with XLA, by the graphs that real ranks trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_dist
from mnist_dist.distributed.launch import run_ranks

REPOSITORY = Path(mnist_dist.__file__).parent.parent
# Prints the operations of a step on resident images, and on those that a pipeline delivers.
RANK = """
import json, os, sys
from mnist_dist.config import DataConfig, ModelConfig, RuntimeConfig
from mnist_dist.data.dataset import load_arrays
from mnist_dist.distributed.cluster import find_cluster
from mnist_dist.distributed.launch import join_ranks
from mnist_dist.distributed.strategies.resolve import make_strategy
from mnist_dist.runtime import import_tensorflow, select_devices
from tests.training.test_steps import ADAMW, Training, operations_of_a_step
cluster, config = find_cluster(os.environ), RuntimeConfig(strategy=sys.argv[1], devices=2)
with join_ranks(cluster, config):
    tf = import_tensorflow()
    select_devices(config.devices // cluster.size)
    strategy = make_strategy(config, cluster)
    strategy.gathers = False  # As on GPUs.
    model, arrays, found = ModelConfig(filters=(3, 4), dense_units=6, dropout=0.5), load_arrays(DataConfig()), []
    for resident in (True, False):
        options = {"xla": True, "label_smoothing": 0.1}
        training = Training(
            arrays, model, optimizer_config=ADAMW, strategy=strategy, resident=resident, options=options
        )
        found.append(operations_of_a_step(training, tf))
    print(json.dumps(found), flush=True)
    strategy.barrier()
os._exit(0)
"""
LOOP = {"AddV2": 2, "IteratorGetNext": 1, "TensorListSetItem": 1}
# What TensorFlow packs and unpacks around a message copies nothing where it is a single tensor, as ours is.
COLLECTIVE = {"CollectiveReduceV2": 1, "Reshape": 2, "SplitV": 1, "IdentityN": 1}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("strategy", "replicas", "of_reduce", "of_delivery"),
    [
        # Each replica slices images and labels, on the CPU, where they are.
        ("mirrored", 2, COLLECTIVE, {"Slice": 4}),
        ("multiworker", 1, COLLECTIVE, {}),
        ("horovod", 1, {"HorovodAllreduce": 1}, {}),
    ],
)
def test_xla_compiles_all_but_the_all_reduce(
    strategy: str,
    replicas: int,
    of_reduce: dict[str, int],
    of_delivery: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Per replica a function before and one after it; all else is of the loop, and nothing computes int32s."""
    if strategy == "horovod":
        pytest.importorskip("horovod")
    command = [sys.executable, "-c", RANK, strategy]
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    if strategy == "mirrored":
        subprocess.run(command, check=True)
    else:
        run_ranks(command, 2, strategy=strategy)
    lines = [line.partition("] ")[2] if replicas == 1 else line for line in capfd.readouterr().out.splitlines()]
    expected = LOOP | {name: count * replicas for name, count in ({"compiled": 2} | of_reduce).items()}
    expected |= {"AddN": 1} if replicas > 1 else {}  # Of the replicas' metrics.
    for line in lines:
        resident, delivered = json.loads(line)
        for found in (resident, delivered):
            for name in ("Identity", "NoOp"):
                found.pop(name, None)
        assert resident == expected and delivered == expected | of_delivery
    assert len(lines) == 2 // replicas
