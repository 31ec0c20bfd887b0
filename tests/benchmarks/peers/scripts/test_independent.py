"""Adding up processes that know nothing of one another."""

import pytest

from mnist_dist.benchmarks.peers.scripts.independent import add_up


def test_rates_add_up_in_each_turn() -> None:
    common = {"window_steps": [10, 20], "window_cycles": [-1, 0], "startup_seconds": [1.0]}
    times = [
        common | {"window_seconds": [seconds], "first_step_seconds": [first]}
        for seconds, first in (([0.2, 0.4], 1.5), ([0.1, 0.4], 2.5))
    ]
    added = add_up(times)
    assert added["window_images"] == [5120, 10240]
    rates = [images / seconds for images, seconds in zip(added["window_images"], added["window_seconds"], strict=True)]
    assert rates == pytest.approx([2560 / 0.2 + 2560 / 0.1, 2 * 5120 / 0.4])
    assert added["window_cycles"] == [-1, 0] and added["first_step_seconds"] == 2.5
