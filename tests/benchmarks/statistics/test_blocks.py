"""The covariance of means, against what is known without blocks and by hand."""

import numpy as np
import pytest

from mnist_dist.benchmarks.statistics.blocks import covariance_of_means


def test_with_blocks_of_one_window_it_is_that_of_independent_values() -> None:
    series = np.random.default_rng(0).standard_normal((2, 7))
    assert covariance_of_means(series, 1) == pytest.approx(np.cov(series) / 7)


def test_a_block_costs_a_degree_of_freedom_for_each_of_its_windows() -> None:
    """The means of blocks of two, wrapped round, are 2, 0, 2 and 4: their variance is 2, in 2 blocks of 4 windows."""
    assert covariance_of_means(np.array([[0.0, 0.0, 4.0, 4.0]]), 2)[0, 0] == pytest.approx(2.0 * 2 / (4 - 2))
