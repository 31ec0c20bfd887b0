"""Changes of level: where they are, and that noise makes none; adversary_trend.py measures both at length."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from mnist_dist.benchmarks.statistics.change_points import find_changes, locate_change, pelt
from tests.benchmarks.adversary import Machine
from tests.benchmarks.adversary_trend import MACHINES, false_changes, nights_until_told


@pytest.mark.parametrize("seed", range(30))
def test_pelt_is_exact(seed: int) -> None:
    """Against all ways to cut a short series; pruning must not forget that pieces have a least length."""
    rng = np.random.default_rng(seed)
    values, penalty = np.repeat(rng.normal(0, 2, 4), 4)[:13] + rng.standard_normal(13), 1.5

    def cost(places: tuple[int, ...]) -> float:
        pieces = [values[low:high] for low, high in pairwise([0, *places, len(values)])]
        if min(map(len, pieces)) < 3:
            return np.inf
        return sum(float(((piece - piece.mean()) ** 2).sum()) for piece in pieces) + penalty * len(places)

    ways = [places for count in range(4) for places in combinations(range(1, len(values)), count)]
    assert tuple(pelt(values, penalty, 3)) == min(ways, key=cost)


def test_changes_of_all_sizes_are_found_in_one_series() -> None:
    """A large one leaves the ranks little room for the small one within the upper half."""
    rng = np.random.default_rng(1)
    values = np.repeat([0.0, 0.7, 0.65, 0.3], [100, 100, 60, 10]) + 0.02 * rng.standard_normal(270)
    found = find_changes(values)
    assert len(found) == 3 and np.allclose(found, [100, 200, 260], atol=2)


@pytest.mark.parametrize(
    "values",
    [
        np.empty(0),
        np.zeros(50),
        np.arange(19) > 9,
        np.eye(1, 100, 50)[0],
    ],
)
def test_nothing_short_equal_or_single_is_a_change(values: np.ndarray) -> None:
    assert find_changes(np.asarray(values, float)) == []


def test_a_change_lies_within_its_interval() -> None:
    """As often as that says, and the interval is longer the smaller the change is."""
    held, widths = {}, {}
    for size in (1.5, 3.0):
        held[size], widths[size] = [], []
        for seed in range(60):
            values = np.random.default_rng(seed).standard_normal(120)
            values[60:] += size
            places = find_changes(values)
            if len(places) == 1:
                _, first, last = locate_change(values)
                held[size].append(first <= 60 <= last)
                widths[size].append(last - first)
    assert all(np.mean(each) > 0.92 for each in held.values()), held
    assert np.mean(widths[1.5]) > np.mean(widths[3.0])


@pytest.mark.slow
def test_noise_is_seldom_a_change_and_a_slowdown_is_soon_one() -> None:
    """Each of 240 nights looks at those before; slowdowns are by 5 % at 3 % of noise, after 120 nights."""
    assert false_changes(MACHINES["3 % between nights, heavy tails"], range(3), heavy=True, count=80) == 0
    assert np.median(nights_until_told(Machine(), range(3), before=120)) <= 10
