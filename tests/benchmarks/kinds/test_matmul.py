"""Matrix products that are large enough for the device, which for a GPU the CPU computes here in small."""

from types import ModuleType
from typing import Any

import pytest

from mnist_dist.benchmarks.kinds import matmul
from mnist_dist.benchmarks.measure.timing import Timing
from mnist_dist.distributed.turns import FULL
from mnist_dist.runtime import Decision, Device, Runtime


@pytest.mark.parametrize(("kind", "size"), [("CPU", 8), ("GPU", 16)])
def test_products_are_larger_on_a_gpu(kind: str, size: int, tf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(runs: dict[str, Any], turns: None) -> dict[str, list[Timing]]:
        assert runs[FULL](2).shape == ()
        return {FULL: [Timing(cycle=0, count=3, seconds=0.5)]}

    assert matmul.GPU_SIZE == 4 * matmul.SIZE
    monkeypatch.setattr(matmul, "SIZE", 8)
    monkeypatch.setattr(matmul, "GPU_SIZE", 16)
    monkeypatch.setattr(matmul, "take_timings", take)
    nothing: Any = None
    runtime = Runtime(Device(kind, "a device"), 1, Decision("float32", ""), Decision("off", ""))
    measured = matmul.KIND.measure(nothing, nothing, runtime, nothing)
    assert (measured["size"], measured["dtype"]) == (size, "float32")
    assert measured["flops_per_second"] == [2 * size**3 * 3 / 0.5]
