"""Estimates with intervals from repeats of a benchmark, and tests on them.

Two levels of variation: between repeats, which are fresh processes, and between windows within one. Both enter by a
hierarchical bootstrap (Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013), on logarithms, as
disturbances multiply a time. Percentiles of a bootstrap of three to five repeats give intervals far too narrow: they
stay within the values seen, and the variance comes out too small by (n - 1) / n. The bootstrap therefore supplies a
standard error, corrected for that, and Student's t the multiplier (Hesterberg, "What teachers should know about the
bootstrap", The American Statistician 69, 2015, on small samples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
WITHIN_RESAMPLES = 2_000
MOST_REPEATS = 10_000  # Nobody plans more; `repeats_needed` stops there.


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        low, high: nan where the number of repeats does not tell.
        repeats: from which it comes. With one repeat the interval of a throughput holds only what varied within it.
    """

    value: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy over seeds, from 0 to 1, with its 95 % t-interval.

    Attributes:
        low, high, deviation: nan for a single seed, which says nothing about others.
        deviation: the standard deviation over seeds.
    """

    mean: float
    low: float
    high: float
    deviation: float
    seeds: int


@dataclass(frozen=True, eq=False)
class Series:
    """What one repeat did in its steady windows.

    Attributes:
        work: float64 [windows], for example images.
        seconds: float64 [windows].
    """

    work: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class LogEstimate:
    """The logarithm of a positive quantity or of a ratio, with the variance of the estimate.

    Attributes:
        freedom: degrees of freedom of the variance; nan where too few repeats tell nothing about it.
    """

    value: float
    variance: float
    freedom: float
    repeats: int

    def at_level(self, confidence: float = CONFIDENCE) -> Estimate:
        """Returns the quantity itself with its t-interval."""
        half = self.half_width(confidence)
        value = math.exp(self.value)
        return Estimate(value, value * math.exp(-half), value * math.exp(min(half, 500)), self.repeats)

    def half_width(self, confidence: float) -> float:
        """Returns half the length of the interval of the logarithm."""
        return float(student_quantile((1 + confidence) / 2, self.freedom)) * math.sqrt(self.variance)

    def p_value(self) -> float:
        """Returns the two-sided p-value of the hypothesis that the quantity is 1: its inverted interval."""
        from scipy import special

        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.freedom, -abs(self.value) / math.sqrt(self.variance)))


@dataclass(frozen=True)
class VarianceSplit:
    """Where the variation of a throughput comes from.

    Attributes:
        between: standard deviation between repeats, as a share of the throughput; nan for a single one.
        within: standard deviation of one repeat's throughput that the variation of its windows explains, alike.
        repeats_needed: for a 95 % interval of +-2 %; None if unknown or more than 10,000.
    """

    between: float
    within: float
    repeats_needed: int | None


def estimate_rate(repeats: Sequence[Series], seed: int = 0) -> LogEstimate:
    """Estimates the logarithm of total work / total seconds by the hierarchical bootstrap.

    With one repeat the variance is that of resampling its windows, with as many degrees of freedom as it has
    independent blocks of them, less one.
    """
    rng = np.random.default_rng(seed)
    arm = _Arm(repeats, rng)
    freedom = len(repeats) - 1 if len(repeats) > 1 else _blocks(repeats[0]) - 1
    return LogEstimate(
        arm.log_rate, _bootstrap_variance(arm.log_rates, len(repeats), rng), freedom or math.nan, len(repeats)
    )


def estimate_ratio(base: Sequence[Series], new: Sequence[Series], *, paired: bool, seed: int = 0) -> LogEstimate:
    """Estimates the logarithm of the rate of `new` over that of `base`: positive if new is faster.

    Unpaired, the variances add up, with Welch and Satterthwaite's degrees of freedom. Where one side has a single
    repeat, the variance between repeats of the other is taken for both, as in Crawford and Howell's comparison of a
    single case (The Clinical Neuropsychologist 12, 1998). With a single repeat on either side nothing is known of it:
    variance and degrees of freedom are nan.

    Args:
        paired: base[i] and new[i] were measured one right after the other, so what slows both of them cancels out;
            the pairs are resampled.
    """
    rng = np.random.default_rng(seed)
    arms = _Arm(base, rng), _Arm(new, rng)
    value = arms[1].log_rate - arms[0].log_rate
    repeats = min(len(base), len(new))
    if max(len(base), len(new)) == 1:
        return LogEstimate(value, math.nan, math.nan, repeats)
    if paired:

        def log_ratios(picks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return arms[1].log_rates(picks, rng) - arms[0].log_rates(picks, rng)

        return LogEstimate(value, _bootstrap_variance(log_ratios, repeats, rng), repeats - 1, repeats)
    variances = [_bootstrap_variance(arm.log_rates, arm.repeats, rng) for arm in arms]
    counts = [arm.repeats for arm in arms]
    if repeats == 1:
        several = int(counts[1] > 1)
        variances[1 - several] = max(variances[1 - several], variances[several] * counts[several])
        return LogEstimate(value, sum(variances), counts[several] - 1, repeats)
    squares = sum(variance**2 / (count - 1) for variance, count in zip(variances, counts, strict=True))
    freedom = sum(variances) ** 2 / squares if squares else sum(counts) - 2
    return LogEstimate(value, sum(variances), freedom, repeats)


def split_variance(repeats: Sequence[Series], resolution: float = 0.02, seed: int = 0) -> VarianceSplit:
    """Returns how much of the variation is between repeats, and how many of them resolve +-`resolution`.

    The variance between is that of the repeats' log rates less the mean variance within (Kalibera and Jones, 2013).
    """
    arm = _Arm(repeats, np.random.default_rng(seed))
    within = float(np.mean(np.var(arm.deviations, axis=1)))
    if len(repeats) == 1:
        return VarianceSplit(math.nan, math.sqrt(within), None)
    total = float(np.var(np.log(arm.work / arm.seconds), ddof=1))
    between = max(total - within, 0.0)
    needed = repeats_needed(between + within, math.log1p(resolution))
    return VarianceSplit(math.sqrt(between), math.sqrt(within), needed)


def repeats_needed(variance: float, half_width: float, confidence: float = CONFIDENCE, arms: int = 1) -> int | None:
    """Returns the fewest repeats, of each of `arms` alike, whose t-interval is at most so wide.

    Args:
        variance: of the logarithm of one repeat's rate, or of the difference of one repeat of each arm.
        half_width: of the interval of the logarithm.

    Returns:
        At least 2; None if more than 10,000.
    """
    counts = np.arange(2, MOST_REPEATS + 1)
    widths = student_quantile((1 + confidence) / 2, arms * (counts - 1)) * np.sqrt(variance / counts)
    enough = np.flatnonzero(widths <= half_width)
    return int(counts[enough[0]]) if len(enough) else None


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Returns the mean of one value from each repeat with its t-interval, which a single value does not have.

    Args:
        values: none of them negative.
    """
    mean, half, _ = _mean(values)
    return Estimate(mean, max(mean - half, 0.0), mean + half, len(values))


def mean_accuracy(accuracies: Sequence[float]) -> Accuracy:
    """Returns the mean over seeds with its t-interval, cut at 0 and 1.

    Args:
        accuracies: of one run for each seed.
    """
    mean, half, deviation = _mean(accuracies)
    return Accuracy(mean, max(mean - half, 0.0), min(mean + half, 1.0), deviation, len(accuracies))


def accuracy_p_value(base: Accuracy, new: Accuracy) -> float:
    """Returns the two-sided p-value of Welch's t-test of equal means; nan with a single seed on either side."""
    from scipy import stats

    if min(base.seeds, new.seeds) < 2:
        return math.nan
    if base.deviation == new.deviation == 0:
        return float(base.mean == new.mean)
    sides = (base.mean, base.deviation, base.seeds), (new.mean, new.deviation, new.seeds)
    return float(stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue)


def percentiles(values: np.ndarray) -> Percentiles:
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return Percentiles(float(p50), float(p95), float(p99))


def expected_running_time(seconds: Sequence[float], reached: Sequence[bool]) -> float:
    """Returns the expected time to reach a target, starting anew after each run that fails to.

    All runs' seconds over the number that reached it: ERT of BBOB (Hansen et al., "Real-parameter black-box
    optimization benchmarking: experimental setup", 2010). Infinite if none did.

    Args:
        seconds: until the target where it was reached, else until the run ended.
    """
    return sum(seconds) / sum(reached) if any(reached) else math.inf


def holm_levels(p_values: np.ndarray, significance: float = 0.05) -> np.ndarray:
    """Returns the level at which Holm's procedure decides each hypothesis: it is rejected if p is at most that.

    Of m p-values in rising order the k-th is compared with significance / (m - k + 1), until the first that exceeds
    its level, which then holds for all the others (Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6, 1979). An interval of confidence 1 - level agrees with the decision.

    Args:
        p_values: float64 [m], in any order.

    Returns:
        float64 [m].
    """
    order = np.argsort(p_values, kind="stable")
    levels = significance / np.arange(len(order), 0, -1)
    failed = np.flatnonzero(p_values[order] > levels)
    if len(failed):
        levels[failed[0] :] = levels[failed[0]]
    decided = np.empty(len(order))
    decided[order] = levels
    return decided


def student_quantile(probability: float, freedom: float | np.ndarray) -> float | np.ndarray:
    """Returns the quantile of Student's t distribution; nan where the degrees of freedom are."""
    from scipy import special

    return special.stdtrit(freedom, probability)


def lag_one_correlation(values: np.ndarray) -> float:
    """Returns the correlation of neighbouring values, from their ranks so that outliers matter little.

    Args:
        values: float64 [windows].
    """
    from scipy import stats

    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    power = float(ranks @ ranks)
    return float(ranks[1:] @ ranks[:-1]) / power if power else 0.0


def block_length(values: np.ndarray) -> int:
    """Returns Politis and White's block length for noise of the first order (Econometric Reviews 23, 2004).

    Args:
        values: float64 [windows].
    """
    memory = min(max(lag_one_correlation(values), 0.0), 0.9)
    best = (6 * len(values)) ** (1 / 3) * (memory / (1 - memory**2)) ** (2 / 3)
    return max(1, min(round(best), len(values) // 3))


class _Arm:
    """The repeats of one case, ready to be resampled.

    Attributes:
        work, seconds: float64 [repeats], totals.
        deviations: float64 [repeats, draws], logarithms of seconds per work, from resampled windows less the true one.
    """

    def __init__(self, repeats: Sequence[Series], rng: np.random.Generator) -> None:
        self.repeats = len(repeats)
        self.work = np.array([series.work.sum() for series in repeats])
        self.seconds = np.array([series.seconds.sum() for series in repeats])
        self.deviations = np.stack([_resample_windows(series, rng) for series in repeats])
        self.log_rate = math.log(self.work.sum() / self.seconds.sum())

    def log_rates(self, picks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns log total work / total seconds, float64 [resamples], of the picked repeats with resampled windows.

        Args:
            picks: int64 [resamples, repeats], indices of repeats.
        """
        draws = rng.integers(self.deviations.shape[1], size=picks.shape)
        seconds = self.seconds[picks] * np.exp(self.deviations[picks, draws])
        return np.log(self.work[picks].sum(axis=1) / seconds.sum(axis=1))


def _bootstrap_variance(
    statistic: Callable[[np.ndarray, np.random.Generator], np.ndarray], repeats: int, rng: np.random.Generator
) -> float:
    """Returns the variance of a statistic over repeats and windows.

    Drawing both with replacement counts the variance W within repeats twice, and that between n repeats (n - 1) / n
    times (Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8). With V the variance of
    that bootstrap, and W the variance when windows alone are drawn, (V - W) n / (n - 1) is unbiased; at least W.
    """
    every = np.broadcast_to(np.arange(repeats), (RESAMPLES, repeats))
    within = float(np.var(statistic(every, rng)))
    if repeats == 1:
        return within
    both = float(np.var(statistic(rng.integers(repeats, size=(RESAMPLES, repeats)), rng)))
    return max((both - within) * repeats / (repeats - 1), within)


def _resample_windows(series: Series, rng: np.random.Generator) -> np.ndarray:
    """Returns float64 [draws]: by how much the logarithm of seconds per work changes when windows are drawn anew.

    Blocks of neighbouring windows are drawn, as these resemble one another; they may wrap round the end (Politis and
    Romano, "A circular block-resampling procedure for stationary data", 1992).
    """
    windows, length = len(series.work), block_length(series.seconds / series.work)
    if windows == 1:
        return np.zeros(WITHIN_RESAMPLES)
    count = math.ceil(windows / length)
    starts = rng.integers(windows, size=(WITHIN_RESAMPLES, count))
    seconds, work = (_block_sums(values, length)[starts].sum(axis=1) for values in (series.seconds, series.work))
    deviations = np.log(seconds / work * (series.work.sum() / series.seconds.sum()))
    # As many values as windows, of which a mean of blocks has lost `length` degrees of freedom.
    return deviations * math.sqrt(count * length / (windows - length))


def _block_sums(values: np.ndarray, length: int) -> np.ndarray:
    """Returns float64 [windows]: the sum of the `length` values from each one on, round the end."""
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: length - 1]]))])
    return sums[length:] - sums[:-length]


def _blocks(series: Series) -> int:
    return len(series.work) // block_length(series.seconds / series.work)


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns mean, half the length of the t-interval and standard deviation; the last two nan for a single value."""
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, math.nan, math.nan
    deviation = float(np.std(values, ddof=1))
    half = float(student_quantile((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return mean, half, deviation
