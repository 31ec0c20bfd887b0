import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.stragglers import find_slow_place


def step_seconds(
    factors: list[float], seed: int = 0, windows: int = 40, repeats: int = 3, memory: float = 0.6
) -> list[np.ndarray]:
    """Ranks with noise of 2 % of the first order and, in one window of 25, half as much time again."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        noise = rng.standard_normal((len(factors), windows))
        for window in range(1, windows):
            noise[:, window] = memory * noise[:, window - 1] + np.sqrt(1 - memory**2) * noise[:, window]
        outliers = np.where(rng.random(noise.shape) < 0.04, 1.5, 1.0)
        found.append(0.01 * np.array(factors)[:, None] * np.exp(0.02 * noise) * outliers)
    return found


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_slow_rank_is_named(ranks: int) -> None:
    factors = [1.0] * ranks
    factors[ranks - 1] = 1.12
    found = find_slow_place(step_seconds(factors), [f"n{rank}" for rank in range(ranks)])
    assert found is not None
    assert (found.name, found.ranks) == (f"rank {ranks - 1} on host n{ranks - 1}", (ranks - 1,))
    assert found.excess == pytest.approx(0.12, abs=0.02)
    assert found.all_windows == 120 and found.windows > 80


def test_ranks_that_are_slow_in_turn_are_not_named() -> None:
    named = [find_slow_place(step_seconds([1.0] * ranks, seed), None) for ranks in (2, 4) for seed in range(30)]
    assert not any(named)


def test_a_lasting_disturbance_is_one_vote_and_not_many() -> None:
    """One rank is 30 % slower in the first half of a run, the other in the second: neither is a slow rank."""
    times = np.full((2, 40), 0.01)
    times[0, :20] = times[1, 20:] = 0.013
    assert find_slow_place([times], None) is None
    wandering = step_seconds([1.0, 1.0], seed=1, repeats=1, memory=0.97)
    assert find_slow_place(wandering, None) is None


def test_a_rank_that_is_much_slower_needs_few_blocks() -> None:
    """Of a run whose slow rank drifts, so that its windows make but three blocks."""
    (times,) = step_seconds([1.0, 3.0], windows=24, repeats=1)
    times[1] *= np.linspace(1.0, 1.4, 24)
    found = find_slow_place([times], None)
    assert found is not None and found.ranks == (1,)


def test_a_rank_must_be_slow_in_every_repeat() -> None:
    slow, not_slow = step_seconds([1.3, 1.0], repeats=4), step_seconds([0.98, 1.0], repeats=1)
    assert find_slow_place(slow, None) is not None
    assert find_slow_place(slow + not_slow, None) is None


def test_a_certain_but_small_difference_is_not_named() -> None:
    assert find_slow_place(step_seconds([1.0, 1.04]), None) is None
    assert find_slow_place(step_seconds([1.0, 1.08]), None) is not None


def test_too_few_windows_prove_nothing() -> None:
    assert find_slow_place(step_seconds([1.0, 1.3], windows=4, repeats=1), None) is None


def test_a_slow_host_is_named_rather_than_one_of_its_ranks() -> None:
    hosts = ["n1", "n1", "n2", "n2"]
    found = find_slow_place(step_seconds([1.0, 1.0, 1.15, 1.15]), hosts)
    assert found is not None and (found.name, found.host, found.ranks) == ("host n2", "n2", (2, 3))
    assert found.excess == pytest.approx(0.15, abs=0.02)
    one_rank = find_slow_place(step_seconds([1.0, 1.0, 1.0, 1.3]), hosts)
    assert one_rank is not None and one_rank.name == "rank 3 on host n2"


def test_without_hosts_or_a_second_rank() -> None:
    unknown = find_slow_place(step_seconds([1.2, 1.0]), None)
    assert unknown is not None and (unknown.name, unknown.host) == ("rank 0", None)
    assert find_slow_place(step_seconds([1.0]), ["n1"]) is None
    assert find_slow_place([], None) is None
