"""Adding up processes that know nothing of one another."""

import numpy as np
import pytest

from mnist_dist.benchmarks.peers.scripts.independent import add_up


def test_rates_add_up_over_the_common_time() -> None:
    images, seconds = add_up([np.full(20, 500), np.full(20, 500)], [np.full(20, 0.5), np.full(20, 0.25)])
    assert seconds.sum() == pytest.approx(5.0), "the faster ended after five seconds"
    assert images.sum() == 5000 + 10_000
    assert np.ptp(seconds) < 1e-9
    assert np.all(np.abs(images / seconds - 3000) <= 2 / seconds[0]), "images are whole"


def test_no_stretch_is_shorter_than_a_window() -> None:
    _, seconds = add_up([np.array([10, 10, 10]), np.array([1] * 100)], [np.full(3, 1.0), np.full(100, 0.03)])
    assert seconds.min() >= 1.0
    _, seconds = add_up([np.full(1000, 1)] * 2, [np.full(1000, 0.001)] * 2)
    assert seconds.min() >= 0.0999
