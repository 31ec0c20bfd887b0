"""Messages of an all-reduce, which are as large as their record says."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from mnist_dist.benchmarks.kinds import collectives
from mnist_dist.benchmarks.measure.timing import Timing
from mnist_dist.distributed.strategies.single import Single
from mnist_dist.runtime import Decision, Device, Runtime

if TYPE_CHECKING:
    import tensorflow as tf


class Noting(Single):
    """Notes how many bytes it is to sum."""

    def __init__(self) -> None:
        self.message_bytes: list[int] = []

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        self.message_bytes.append(tensor.shape.num_elements() * tensor.dtype.size)
        return super().reduce(tensor)


def test_messages_grow_eightfold_from_4_bytes_to_64_mib(tf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(runs: dict[str, Any], turns: None) -> dict[str, list[Timing]]:
        assert [run(2) for run in runs.values()] == [1.0] * len(runs), "one replica has the sum of its own ones"
        return {name: [Timing(cycle=3, count=4, seconds=2.0)] for name in runs}

    monkeypatch.setattr(collectives, "take_timings", take)
    nothing: Any = None
    strategy = Noting()
    runtime = Runtime(Device("CPU", "a device"), 1, Decision("float32", ""), Decision("off", ""))
    messages = collectives.KIND.measure(nothing, strategy, runtime, nothing)["messages"]
    sizes = [4, 32, 256, 2048, 16_384, 131_072, 1_048_576, 8_388_608, 67_108_864]
    assert [message["bytes"] for message in messages] == list(dict.fromkeys(strategy.message_bytes)) == sizes
    assert {(message["calls"], *message["seconds"][0], *message["cycles"]) for message in messages} == {(1, 0.5, 3)}
