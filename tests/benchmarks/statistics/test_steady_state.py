"""The end of the warm-up, and what is not steady, on simulated step times whose truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from mnist_dist.benchmarks.statistics.steady_state import SteadyState, find_drift, find_steady_state, merge_windows
from tests.benchmarks.simulation import correlated_noise, outliers, throttled

Shape = Callable[[np.ndarray], np.ndarray]


def find(log_times: np.ndarray, steps: int = 10) -> SteadyState:
    """Treats each value as the log of 0.12 s in a window of one rank."""
    return find_steady_state([steps] * len(log_times), [(0.12 * np.exp(log_times)).tolist()])


def noise(rng: np.random.Generator, windows: int, deviation: float = 0.03, memory: float = 0.3) -> np.ndarray:
    return correlated_noise(rng, windows, deviation, memory)[0] + outliers(rng, windows)


def unstable_share(shape: Shape, windows: int = 60, studies: int = 100, **options: float) -> float:
    """Returns how many of the simulated runs with noise, outliers and a shape over [0, 1] are unstable, as a share."""
    rng = np.random.default_rng(1)
    times = [noise(rng, windows, **options) + shape(np.linspace(0, 1, windows)) for _ in range(studies)]
    return float(np.mean([find(each).reason_unstable is not None for each in times]))


@pytest.mark.parametrize("windows", [30, 60, 200])
@pytest.mark.parametrize(("deviation", "memory"), [(0.01, 0.3), (0.03, 0.0), (0.03, 0.6), (0.08, 0.3)])
def test_stationary_noise_with_outliers_is_steady(windows: int, deviation: float, memory: float) -> None:
    assert unstable_share(np.zeros_like, windows, deviation=deviation, memory=memory) <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize("windows", [60, 200])
def test_ramp_is_unstable(windows: int) -> None:
    assert unstable_share(lambda x: 0.3 * x, windows) >= 0.8
    assert unstable_share(lambda x: -0.3 * x, windows, deviation=0.01) >= 0.95


@pytest.mark.parametrize("where", [0.4, 0.6, 0.82, 0.95])
@pytest.mark.parametrize("change", [0.2, -0.2])
def test_later_change_of_level_is_variation_and_counts(change: float, where: float) -> None:
    rng = np.random.default_rng(1)
    found = [find(noise(rng, 60) + change * (np.linspace(0, 1, 60) > where)) for _ in range(50)]
    assert np.mean([state.reason_unstable is not None for state in found]) <= 0.1
    assert np.median([state.first_window for state in found]) == 0


@pytest.mark.parametrize("stretch", [8, 25])
def test_throttled_run_counts_from_its_warm_up_on(stretch: int) -> None:
    """A fifth of the time, in stretches of 1 s and 3 s: trimming to the last change of level would flatter the run."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(200):
        times = noise(rng, 100) + math.log(1.3) * throttled(rng, 100, 0.2, stretch)
        times[:4] += [0.5, 0.3, 0.2, 0.1]
        found.append(find(times))
    assert np.mean([state.reason_unstable is not None for state in found]) <= 0.01
    assert np.median([state.first_window for state in found]) <= 4


def test_tiny_changes_do_not_matter() -> None:
    assert unstable_share(lambda x: 0.02 * (x > 0.85), 200, deviation=0.005) == 0
    assert unstable_share(lambda x: 0.02 * x, 200, deviation=0.005) == 0


def test_burst_of_slow_windows_is_no_change() -> None:
    """A neighbour on the host for three windows, late in the run."""
    assert unstable_share(lambda x: 0.5 * ((x > 0.85) & (x < 0.895))) <= 0.1


@pytest.mark.parametrize(("warm_up", "height"), [(15, 0.2), (15, 0.5), (4, 0.2), (1, 1.0)])
def test_warm_up_ends_at_the_change_of_level(warm_up: int, height: float) -> None:
    rng = np.random.default_rng(2)
    found = [find(noise(rng, 80) + height * (np.arange(80) < warm_up)) for _ in range(30)]
    steady = [state.first_window for state in found if state.reason_unstable is None]
    assert len(steady) >= 27
    assert np.median(steady) == pytest.approx(warm_up, abs=1)


def test_warm_up_is_slow_and_at_most_a_fifth() -> None:
    """A fast start, such as that of a clock that is still cool, is no warm-up; nor is half of the run."""
    rng = np.random.default_rng(2)
    for shape in (0.2 * (np.arange(80) < 40), -0.3 * (np.arange(80) < 10)):
        assert np.median([find(noise(rng, 80) + shape).first_window for _ in range(30)]) <= 1
    assert max(find(noise(rng, 80) + 0.5 * (np.arange(80) < 20)).first_window for _ in range(30)) == 16


def test_gradual_warm_up_is_left_out() -> None:
    """exp(-i / 3) has lost all but 3 % of its first 60 % after nine windows."""
    rng = np.random.default_rng(3)
    found = [find(noise(rng, 80, 0.01) + 0.6 * np.exp(-np.arange(80) / 3)) for _ in range(30)]
    assert sum(state.reason_unstable is None for state in found) >= 28
    assert 5 <= np.median([state.first_window for state in found]) <= 15


def test_single_slow_first_window_is_warm_up() -> None:
    times = noise(np.random.default_rng(4), 40, 0.01, 0)
    times[0] += 0.5
    assert find(times) == SteadyState(40, 1)


def test_isolated_slow_windows_stay_in() -> None:
    times = 0.01 * np.random.default_rng(0).standard_normal(40)
    times[[7, 20, 33]] += 1.0
    assert find(times) == SteadyState(40, 0)


def test_run_without_any_noise() -> None:
    assert find(np.zeros(40)) == SteadyState(40, 0)
    assert find(0.5 * (np.arange(40) < 8)) == SteadyState(40, 8)


@pytest.mark.parametrize(
    ("seconds", "needed"), [([], "1.0 s"), ([0.01], "1.0 s"), ([0.11] * 6, "1.1 s"), ([0.5] * 9, "5.0 s")]
)
def test_too_short_says_how_long_it_needs(seconds: list[float], needed: str) -> None:
    state = find_steady_state([1] * len(seconds), [seconds], "more epochs")
    assert state.first_window == 0
    assert state.reason_unstable is not None and state.reason_unstable.startswith("too short")
    assert state.reason_unstable.endswith(f"measure for at least {needed} (more epochs)")
    unknown = find_steady_state([1] * len(seconds), [seconds]).reason_unstable
    assert unknown is not None and unknown.endswith(f"measure for at least {needed}")


def test_too_little_left_after_the_warm_up() -> None:
    state = find(0.5 * (np.arange(10) < 2))
    assert state.reason_unstable is not None
    assert "8 of the 10 windows needed after the warm-up" in state.reason_unstable


def test_reason_names_the_size_of_the_drift() -> None:
    drifting = find(noise(np.random.default_rng(0), 60, 0.005) + 0.1 * np.linspace(0, 1, 60)).reason_unstable
    assert drifting is not None
    assert float(drifting.split("drifts by ")[1].split(" %")[0]) == pytest.approx(100 * np.expm1(0.1), abs=1.5)


def test_slowest_rank_decides() -> None:
    """One rank of four drifts; the others, which do not wait for it here, stay as they were."""
    seconds = np.full((4, 60), 0.12)
    noisy = 0.12 * np.exp(noise(np.random.default_rng(0), 60, 0.01))
    seconds[2] = noisy * np.linspace(1, 1.3, 60)
    assert find_steady_state([10] * 60, seconds.tolist()).reason_unstable is not None
    seconds[2] = noisy * np.linspace(0.8, 0.6, 60)
    assert find_steady_state([10] * 60, seconds.tolist()).reason_unstable is None


def test_windows_are_joined_by_time() -> None:
    steps, seconds, starts = merge_windows([1] * 10, [[0.03] * 10, [0.02] * 10])
    assert starts.tolist() == [0, 4]  # Two more are left, too short for a window of their own.
    assert steps.tolist() == [4, 6]
    assert seconds == pytest.approx(np.array([[0.12, 0.18], [0.08, 0.12]]))


def test_long_windows_stay_apart() -> None:
    _, seconds, starts = merge_windows([5, 5, 5], [[0.2, 0.1, 0.3]])
    assert starts.tolist() == [0, 1, 2] and seconds.tolist() == [[0.2, 0.1, 0.3]]


def test_long_runs_are_joined_to_a_few_hundred_windows() -> None:
    steps, seconds, _ = merge_windows([1] * 5000, [[0.11] * 5000])
    assert 200 <= len(steps) <= 400 and steps.sum() == 5000 and seconds.sum() == pytest.approx(550)


def test_first_window_counts_the_windows_as_given() -> None:
    """Windows of 0.02 s are joined by sixes, but the answer refers to the short ones."""
    times = np.where(np.arange(600) < 90, 0.03, 0.02)
    state = find_steady_state([1] * 600, [times.tolist()])
    assert state.reason_unstable is None
    assert state.first_window == pytest.approx(90, abs=6)


def test_drift_is_measured_from_end_to_end() -> None:
    rng = np.random.default_rng(0)
    drift = find_drift(np.linspace(0, -0.1, 100) + 0.01 * rng.standard_normal(100))
    assert drift == pytest.approx(-0.1, abs=0.01)


def test_correlated_noise_is_no_drift() -> None:
    """Mann and Kendall's test for independent values would see a trend in every fourth of these series."""
    rng = np.random.default_rng(0)
    drifts = [find_drift(row) for row in correlated_noise(rng, 60, 0.08, 0.6, rows=200)]
    assert sum(drift is not None for drift in drifts) <= 10
