"""Statistics against known answers: simulation, theory and published examples."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mnist_dist.benchmarks.statistics.blocks import block_length
from mnist_dist.benchmarks.statistics.stats import (
    Mean,
    Series,
    drop_p_value,
    drop_power,
    estimate_mean,
    estimate_rate,
    estimate_ratio,
    expected_running_time,
    holm_levels,
    percentiles,
    repeats_needed,
    split_variance,
)
from tests.benchmarks.simulation import correlated_noise, make_series, throttled, true_rate


def coverage(repeats: int, studies: int, *, between: float, within: float, windows: int = 40) -> float:
    """Returns in what share of simulated studies the 95 % interval holds the true rate."""
    rng = np.random.default_rng(repeats)
    rate = true_rate(between, within)
    hits = 0
    for _ in range(studies):
        runs = make_series(rng, repeats, between, within, windows=windows)
        estimate = estimate_rate(runs).at_level()
        hits += estimate.low <= rate <= estimate.high
    return hits / studies


def test_rate_is_total_work_over_total_seconds_not_a_mean_of_rates() -> None:
    fast, slow = Series(np.array([100.0]), np.array([1.0])), Series(np.array([100.0, 100.0]), np.array([4.0, 4.0]))
    estimate = estimate_rate([fast, slow]).at_level()
    assert estimate.value == pytest.approx(300 / 9)
    assert estimate.repeats == 2


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [3, 5, 10])
def test_interval_covers_the_true_rate_as_often_as_it_says(repeats: int) -> None:
    covered = coverage(repeats, 300, between=0.03, within=0.03)
    assert 0.92 <= covered <= 0.985  # 95 % within three standard errors, and a little above for the floor.


def test_interval_covers_where_runs_differ_by_their_windows_only() -> None:
    assert coverage(3, 200, between=0.0, within=0.05) >= 0.95


def test_interval_of_a_single_run_covers_what_varies_within_it() -> None:
    assert 0.88 <= coverage(1, 300, between=0.0, within=0.05, windows=60) <= 0.98


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_variance_from_blocks_is_that_of_theory(memory: float) -> None:
    """The mean of n values of an AR(1) process has variance s^2 / n (1 + memory) / (1 - memory) for large n."""
    rng = np.random.default_rng(0)
    windows, deviation = 400, 0.02
    found = []
    for row in correlated_noise(rng, windows, deviation, memory, rows=30):
        found.append(estimate_rate([Series(np.ones(windows), np.exp(row))]).variance)
    expected = deviation**2 / windows * (1 + memory) / (1 - memory)
    assert np.mean(found) == pytest.approx(expected, rel=0.2)


def test_variance_from_blocks_holds_seldom_stretches_of_another_pace() -> None:
    """A tenth of the windows takes 1.6 times as long, nearly all of the variance; the ranks of the others are noise."""
    rng = np.random.default_rng(0)
    slow = [throttled(rng, 100, share=0.1, stretch=4.0) for _ in range(300)]
    runs = [Series(np.ones(100), np.where(each, 1.6, 1.0) * (1 + 0.01 * rng.standard_normal(100))) for each in slow]
    assert np.mean([run.variance for run in runs]) >= 0.6 * np.var([run.log_rate for run in runs])


def test_blocks_are_of_one_window_where_windows_are_independent() -> None:
    rng = np.random.default_rng(0)
    independent = block_length(np.exp(0.02 * rng.standard_normal((1, 200))))
    correlated = block_length(np.exp(correlated_noise(rng, 200, 0.02, 0.8)))
    assert independent <= 3 < 8 <= correlated <= 66


def test_variance_of_several_runs_is_that_of_their_log_rates() -> None:
    """Where the runs, not the windows, vary."""
    repeats = make_series(np.random.default_rng(4), 6, between=0.05, within=0.01, memory=0.0, windows=50)
    log_rates = [math.log(series.work.sum() / series.seconds.sum()) for series in repeats]
    assert estimate_rate(repeats).variance == pytest.approx(np.var(log_rates, ddof=1) / 6)
    assert estimate_rate(repeats).freedom == 5


def test_unpaired_ratio_follows_welch() -> None:
    rng = np.random.default_rng(7)
    base = make_series(rng, 4, between=0.06, within=0.001)
    new = make_series(rng, 8, between=0.02, within=0.001, slower=1.1)
    logs = [[math.log(series.work.sum() / series.seconds.sum()) for series in side] for side in (base, new)]
    welch = scipy_stats.ttest_ind(logs[1], logs[0], equal_var=False)
    ratio = estimate_ratio(base, new)
    assert ratio.value == pytest.approx(np.mean(logs[1]) - np.mean(logs[0]), abs=0.002)
    assert ratio.freedom == pytest.approx(welch.df)
    assert ratio.p_value() == pytest.approx(welch.pvalue, rel=0.05)


def test_single_run_borrows_the_spread_of_the_other_side() -> None:
    """Crawford and Howell: t = difference / (s sqrt((n + 1) / n)) with n - 1 degrees of freedom."""
    rng = np.random.default_rng(3)
    base, new = make_series(rng, 6, between=0.03, within=0.001), make_series(rng, 1, between=0.03, within=0.001)
    logs = [math.log(series.work.sum() / series.seconds.sum()) for series in base]
    ratio = estimate_ratio(base, new)
    assert math.sqrt(ratio.variance) == pytest.approx(np.std(logs, ddof=1) * math.sqrt(7 / 6))
    assert ratio.freedom == 5
    assert estimate_ratio(new, base).variance == pytest.approx(ratio.variance)


def test_nothing_is_known_from_one_run_of_each() -> None:
    rng = np.random.default_rng(0)
    ratio = estimate_ratio(make_series(rng, 1), make_series(rng, 1))
    assert math.isnan(ratio.p_value()) and math.isnan(ratio.at_level().low) and ratio.at_level().value > 0


def test_p_value_is_the_level_at_which_the_interval_touches_one() -> None:
    rng = np.random.default_rng(1)
    ratio = estimate_ratio(make_series(rng, 5), make_series(rng, 5, slower=1.05))
    touching = ratio.at_level(1 - ratio.p_value())
    assert touching.high == pytest.approx(1.0, abs=1e-9)


def test_variance_splits_into_what_was_simulated() -> None:
    split = split_variance(
        make_series(np.random.default_rng(2), 200, between=0.03, within=0.04, memory=0.0, windows=30)
    )
    assert split.between == pytest.approx(0.03, rel=0.15)
    assert split.within == pytest.approx(0.04 / math.sqrt(30), rel=0.15)


def test_single_run_says_nothing_about_others() -> None:
    split = split_variance(make_series(np.random.default_rng(2), 1))
    assert math.isnan(split.between) and split.within > 0 and split.repeats_needed is None


def test_repeats_needed_are_the_fewest_that_suffice() -> None:
    needed = repeats_needed(variance=0.03**2, half_width=0.02)
    assert needed is not None
    widths = {n: scipy_stats.t.ppf(0.975, n - 1) * 0.03 / math.sqrt(n) for n in (needed - 1, needed)}
    assert widths[needed] <= 0.02 < widths[needed - 1]
    assert repeats_needed(variance=1e-9, half_width=0.02) == 2
    assert repeats_needed(variance=1.0, half_width=1e-4) is None


def test_mean_has_students_interval() -> None:
    values = [2.1, 2.5, 2.3, 2.2]
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(values), scipy_stats.sem(values))
    estimate = estimate_mean(values)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((np.mean(values), low, high))
    assert estimate_mean([0.1, 3.0]).low == 0
    assert math.isnan(estimate_mean([2.0]).low) and math.isnan(estimate_mean([2.0]).high)


def test_accuracy_over_seeds() -> None:
    accuracy = estimate_mean([0.991, 0.992, 0.993])
    assert accuracy.value == pytest.approx(0.992) and accuracy.deviation == pytest.approx(0.001)
    assert accuracy.high - accuracy.value == pytest.approx(4.302653 * 0.001 / math.sqrt(3))
    assert estimate_mean([0.9, 0.999], most=1.0).high == 1
    single = estimate_mean([0.99])
    assert (single.value, single.repeats) == (0.99, 1) and math.isnan(single.low) and math.isnan(single.deviation)


def test_accuracies_are_compared_by_welch_and_a_single_seed_by_crawford_and_howell() -> None:
    first, second = [0.991, 0.992, 0.9925], [0.989, 0.9905, 0.990, 0.9895]
    base, new = estimate_mean(first), estimate_mean(second)
    expected = scipy_stats.ttest_ind(first, second, equal_var=False, alternative="greater").pvalue
    assert drop_p_value(base, new) == pytest.approx(expected)
    shifted = scipy_stats.ttest_ind(np.subtract(first, 0.001), second, equal_var=False, alternative="greater").pvalue
    assert drop_p_value(base, new, margin=0.001) == pytest.approx(shifted)
    t = (base.value - 0.99) / (base.deviation * math.sqrt(4 / 3))
    assert drop_p_value(base, estimate_mean([0.99])) == pytest.approx(scipy_stats.t.sf(t, 2))
    assert math.isnan(drop_p_value(estimate_mean([0.99]), estimate_mean([0.99])))
    exact = Mean(0.99, 0.99, 0.99, 3, 0.0)
    assert drop_p_value(exact, exact) == 1 and drop_p_value(exact, Mean(0.98, 0.98, 0.98, 3, 0.0)) == 0


def test_power_is_how_often_a_drop_is_found() -> None:
    rng = np.random.default_rng(0)
    sides = [[estimate_mean(0.99 - drop + 0.0007 * rng.standard_normal(5)) for drop in (0, 0.001)] for _ in range(400)]
    found = np.mean([drop_p_value(*each) <= 0.025 for each in sides])
    typical = Mean(0.99, 0.99, 0.99, 5, 0.0007)
    assert drop_power(typical, typical, 0.001, 0.025) == pytest.approx(found, abs=0.08)
    assert math.isnan(drop_power(estimate_mean([0.99]), estimate_mean([0.99]), 0.001, 0.025))


def test_percentiles_of_known_values() -> None:
    assert percentiles(np.arange(101.0)[::-1]) == pytest.approx({"p50": 50, "p95": 95, "p99": 99})


def test_expected_running_time_counts_failures() -> None:
    assert expected_running_time([10.0, 20.0, 60.0], [True, True, False]) == 45.0
    assert expected_running_time([10.0, 20.0], [True, True]) == 15.0
    assert expected_running_time([10.0, 20.0], [False, False]) == math.inf


def test_expected_running_time_is_what_restarting_takes() -> None:
    """Runs succeed with probability 0.3 after 5 s, else give up after 8 s; restart until one succeeds."""
    rng = np.random.default_rng(0)
    success = rng.random(200_000) < 0.3
    restarted = 5 + 8 * (rng.geometric(0.3, 200_000) - 1)
    assert expected_running_time(np.where(success, 5.0, 8.0).tolist(), success.tolist()) == pytest.approx(
        restarted.mean(), rel=0.01
    )


def test_holm_decides_the_published_example() -> None:
    """The example of pingouin's documentation of Holm's method, with its adjusted p-values."""
    p_values = np.array([0.50, 0.003, 0.32, 0.054, 0.0003])
    adjusted = np.array([0.64, 0.012, 0.64, 0.162, 0.0015])
    assert (p_values <= holm_levels(p_values, 0.05)).tolist() == [False, True, False, False, True]
    for significance in np.unique(adjusted):  # An adjusted p-value is the smallest significance that rejects.
        for just in (0.999, 1.001):
            rejected = p_values <= holm_levels(p_values, just * significance)
            assert rejected.tolist() == (adjusted <= just * significance).tolist()


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """A hypothesis is rejected if Bonferroni rejects every intersection that it belongs to (Marcus et al., 1976)."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(5) ** 4
        closed = [
            all(
                min(p_values[list(subset)]) <= 0.05 / len(subset)
                for size in range(1, 6)
                for subset in itertools.combinations(range(5), size)
                if index in subset
            )
            for index in range(5)
        ]
        assert (p_values <= holm_levels(p_values, 0.05)).tolist() == closed


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm_levels(np.array([math.nan, 0.5, 0.01])).tolist() == pytest.approx([math.nan, 0.05, 0.025], nan_ok=True)


def test_winsorizing_takes_the_slowest_and_fastest_windows_for_the_next() -> None:
    seconds = np.array([1.0, 1.1, 9.0, 0.1, *[1.0] * 6])
    assert Series(np.ones(10), seconds).winsorized(0.1).seconds.tolist() == [1.0, 1.1, 1.1, 1.0, *[1.0] * 6]


def test_holm_of_nothing() -> None:
    assert holm_levels(np.array([])).tolist() == []
