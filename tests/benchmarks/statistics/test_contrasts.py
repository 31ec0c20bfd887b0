"""Contrasts of groups that took turns, where each process has a level of its own in each round."""

import numpy as np
import pytest

from mnist_dist.benchmarks.statistics.contrasts import CycleMeans

LEVEL, PLANTED = 0.03, 0.18  # Standard deviation of a process; what several devices add to the step of one.
STUDIES = 600


def contentions(rounds: int, of_rounds: float, planted: float) -> tuple[float, float]:
    """Returns the shares of the intervals of a difference that hold it, and of those that lie above zero.

    Args:
        of_rounds: standard deviation of what slows a whole round.
        planted: the difference.
    """
    rng, held, found = np.random.default_rng(rounds), 0, 0
    weights = np.array([[-1.0], [1.0], [0.0]])  # Of one device, and of several in two variants with one level.
    for _ in range(STUDIES):
        levels = 1 + LEVEL * rng.standard_normal((rounds, 2)) + of_rounds * rng.standard_normal((rounds, 1))
        times = levels[:, [0, 1, 1]] * [1.0, 1 + planted, 1 + planted]
        noise = 1 + 1e-4 * rng.standard_normal((rounds, 3, 1, 8))
        means = CycleMeans(list(times[:, :, None, None] * noise), np.array([0, 1, 1]))
        estimate = means.contrast(weights)
        held += estimate.low <= planted <= estimate.high
        found += estimate.low > 0
    return held / STUDIES, found / STUDIES


@pytest.mark.parametrize("rounds", [3, 5])
@pytest.mark.parametrize("of_rounds", [0.0, 0.03, 0.1])
def test_intervals_between_processes_hold_the_truth(rounds: int, of_rounds: float) -> None:
    """93 % at least, less two standard errors."""
    held, _ = contentions(rounds, of_rounds, planted=0.0)
    assert 0.91 <= held <= 0.98


def test_what_differs_between_processes_is_found_in_three_rounds() -> None:
    """By differences between rounds alone, with two degrees of freedom, it is in 93 %."""
    _, found = contentions(3, 0.0, PLANTED)
    assert found >= 0.975


def test_a_slow_round_hides_nothing() -> None:
    """The processes by themselves would find it in less than half of the studies."""
    _, found = contentions(3, 0.1, PLANTED)
    assert found >= 0.8


def test_a_share_is_known_as_well_as_its_seconds() -> None:
    rng = np.random.default_rng(0)
    levels = 1 + LEVEL * rng.standard_normal((3, 2))
    times = (levels * [1.0, 1.2])[:, :, None, None] * (1 + 1e-4 * rng.standard_normal((3, 2, 1, 8)))
    means, weights, to = CycleMeans(list(times), np.arange(2)), np.array([[-1.0], [1.0]]), np.array([[0.0], [1.0]])
    share, seconds = means.relative_contrast(weights, to), means.contrast(weights)
    total = times[:, 1].mean()
    assert share.value == pytest.approx(seconds.value / total, rel=0.02)
    assert share.high - share.low == pytest.approx((seconds.high - seconds.low) / total, rel=0.5)
