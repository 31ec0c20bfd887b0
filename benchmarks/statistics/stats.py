"""Estimates with intervals from repeats of a benchmark, and tests on them.

Two levels of variation: between repeats, which are fresh processes, and between windows within one (Kalibera and
Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). Rates are compared on logarithms, as disturbances
multiply a time. The variance of the mean over n repeats is that of their log rates over n, and no less than what their
windows explain, by blocks; intervals are Student's.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import block_length, covariance_of_means
from mnist_dist.lazy import scipy

CONFIDENCE = 0.95
FEWEST_CLUSTERED = 4  # Runs: of three, one is often far from the others.
NOTABLE_GAP = 0.1  # Between two clusters of runs.
FEWEST_SECONDS = 60.0  # Of a run apart that is likely to meet the machine's slow stretches.
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
class Mean(Estimate):
    """The mean of one value from each repeat, or from each seed, with its 95 % t-interval.

    Attributes:
        deviation: the standard deviation; as the bounds nan for a single value, which says nothing about others.
    """

    deviation: float


@dataclass(frozen=True, eq=False)
class Series:
    """What one repeat did in its steady windows.

    Attributes:
        work: float64 [windows], for example images.
        seconds: float64 [windows].
    """

    work: np.ndarray
    seconds: np.ndarray

    @property
    def log_rate(self) -> float:
        """Of all work over all seconds."""
        return math.log(self.work.sum() / self.seconds.sum())

    def winsorized(self, share: float) -> Series:
        """Returns it with that share of the windows on either end at the pace of the next (Tukey, 1962)."""
        times, cut = self.seconds / self.work, int(share * len(self.work))
        low, high = np.sort(times)[[cut, len(times) - 1 - cut]]
        return Series(self.work, self.work * np.clip(times, low, high))

    @cached_property
    def variance(self) -> float:
        """What the variation of the windows explains of that of the log rate.

        The delta method for a ratio of two sums (Cochran, "Sampling techniques", 1977, section 6.3).
        """
        influence = self.seconds / self.seconds.mean() - self.work / self.work.mean()
        return float(covariance_of_means(influence[None], self._block_length)[0, 0])

    @property
    def blocks(self) -> int:
        """How many blocks of windows are nearly independent."""
        return len(self.work) // self._block_length

    @property
    def may_miss_stretches(self) -> bool:
        """Whether runs as short, measured apart, may meet none of the stretches in which the machine is slow.

        What they met does not tell. A single window is no series in time.
        """
        return len(self.work) > 1 and float(self.seconds.sum()) < FEWEST_SECONDS

    @cached_property
    def _block_length(self) -> int:
        return block_length((self.seconds / self.work)[None])


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
        return self.with_half_width(self.half_width(confidence))

    def with_half_width(self, half: float) -> Estimate:
        """Returns the quantity itself with an interval that is so wide in its logarithm."""
        value = math.exp(self.value)
        return Estimate(value, value * math.exp(-half), value * math.exp(min(half, 500)), self.repeats)

    def half_width(self, confidence: float) -> float:
        """Returns half the length of the interval of the logarithm."""
        return student_quantile((1 + confidence) / 2, self.freedom) * math.sqrt(self.variance)

    def p_value(self) -> float:
        """Returns the two-sided p-value of the hypothesis that the quantity is 1: its inverted interval."""
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * scipy.special.stdtr(self.freedom, -abs(self.value) / math.sqrt(self.variance)))


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


def estimate_rate(repeats: Sequence[Series]) -> LogEstimate:
    """Estimates the logarithm of total work / total seconds.

    The windows of the most restless repeat count for all, as a calm one may merely not have met what disturbed that.
    With one repeat the variance is what its windows explain, with as many degrees of freedom as it has independent
    blocks of them, less one.
    """
    within = max(series.variance for series in repeats) / len(repeats)
    rates = [series.log_rate for series in repeats]
    variance = max(float(np.var(rates, ddof=1)) / len(rates), within) if len(rates) > 1 else within
    freedom = len(repeats) - 1 if len(repeats) > 1 else repeats[0].blocks - 1
    return LogEstimate(log_total_rate(repeats), variance, freedom or math.nan, len(repeats))


def estimate_ratio(base: Sequence[Series], new: Sequence[Series]) -> LogEstimate:
    """Estimates the logarithm of the rate of `new` over that of `base`: positive if new is faster.

    The variances add up, with Welch and Satterthwaite's degrees of freedom. Where one side has a single repeat, the
    variance between repeats of the other is taken for both, as in Crawford and Howell's comparison of a single case
    (The Clinical Neuropsychologist 12, 1998). With a single repeat on either side nothing is known of it: variance and
    degrees of freedom are nan.
    """
    value = log_total_rate(new) - log_total_rate(base)
    counts = len(base), len(new)
    repeats = min(counts)
    if max(counts) == 1:
        return LogEstimate(value, math.nan, math.nan, repeats)
    variances = [estimate_rate(side).variance for side in (base, new)]
    if repeats == 1:
        several = int(counts[1] > 1)
        variances[1 - several] = max(variances[1 - several], variances[several] * counts[several])
        return LogEstimate(value, sum(variances), counts[several] - 1, repeats)
    return LogEstimate(value, *sum_of_variances(np.array(variances), np.array(counts) - 1), repeats)


def sum_of_variances(variances: np.ndarray, freedoms: np.ndarray | int) -> tuple[float, float]:
    """Returns the sum of the variances of independent estimates, and Satterthwaite's degrees of freedom of that."""
    squares = float(np.sum(variances**2 / freedoms))
    total = float(variances.sum())
    return total, total**2 / squares if squares else float(np.sum(freedoms))


def log_total_rate(repeats: Sequence[Series]) -> float:
    """Returns the logarithm of the rate of several repeats together."""
    return math.log(sum(series.work.sum() for series in repeats) / sum(series.seconds.sum() for series in repeats))


def find_clusters(log_rates: Sequence[float]) -> int | None:
    """Returns how many of several runs, in rising order, are in the slower of two clusters; None where there are none.

    The widest gap between neighbours must be 10 % or more, and three times as wide as either side of it.
    """
    if len(log_rates) < FEWEST_CLUSTERED:
        return None
    rates = np.sort(log_rates)
    slower = int(np.diff(rates).argmax()) + 1
    gap = rates[slower] - rates[slower - 1]
    widest = max(float(np.ptp(side)) for side in (rates[:slower], rates[slower:]))
    return slower if gap >= math.log1p(NOTABLE_GAP) and gap >= 3 * widest else None


def split_variance(repeats: Sequence[Series], resolution: float = 0.02) -> VarianceSplit:
    """Returns how much of the variation is between repeats, and how many of them resolve +-`resolution`.

    The variance between is that of the repeats' log rates less the mean variance within (Kalibera and Jones, 2013).
    """
    within = float(np.mean([series.variance for series in repeats]))
    if len(repeats) == 1:
        return VarianceSplit(math.nan, math.sqrt(within), None)
    between = max(float(np.var([series.log_rate for series in repeats], ddof=1)) - within, 0.0)
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

    def is_enough(count: int) -> bool:
        quantile = student_quantile((1 + confidence) / 2, arms * (count - 1))
        return bool(quantile * math.sqrt(variance / count) <= half_width)

    counts = range(2, MOST_REPEATS + 1)
    place = bisect.bisect_left(counts, True, key=is_enough)
    return counts[place] if place < len(counts) else None


def estimate_mean(values: Sequence[float], most: float = math.inf) -> Mean:
    """Returns a mean with its t-interval.

    Args:
        values: from 0 to the most that there can be, where the interval is cut.
    """
    mean, count = float(np.mean(values)), len(values)
    deviation = float(np.std(values, ddof=1)) if count > 1 else math.nan
    half = student_quantile((1 + CONFIDENCE) / 2, count - 1) * deviation / math.sqrt(count)
    return Mean(mean, max(mean - half, 0.0), min(mean + half, most), count, deviation)


def drop_p_value(base: Mean, new: Mean, margin: float = 0.0) -> float:
    """Returns the p-value of the hypothesis that `new` is lower than `base` by no more than a margin.

    By Welch's one-sided t-test; with a single seed on one side by Crawford and Howell's, for which that seed has the
    deviation of the others. nan with a single seed on either side.
    """
    if base.repeats + new.repeats == 2:
        return math.nan
    before, after = ((each.value, float(np.nan_to_num(each.deviation)), each.repeats) for each in (base, new))
    if before[1] == after[1] == 0:
        return float(base.value - margin <= new.value)
    shifted, alone = (base.value - margin, *before[1:]), min(base.repeats, new.repeats) == 1
    return float(scipy.stats.ttest_ind_from_stats(*shifted, *after, equal_var=alone, alternative="greater").pvalue)


def drop_power(base: Mean, new: Mean, drop: float, significance: float) -> float:
    """Returns how probably a one-sided t-test finds a drop, were the seeds to vary as they did; nan if that is unknown.

    From the noncentral t distribution (Cohen, "Statistical power analysis for the behavioral sciences", 1988).
    """
    freedom = base.repeats + new.repeats - 2
    squares = [np.nan_to_num(each.deviation) ** 2 * (each.repeats - 1) for each in (base, new)]
    if freedom == 0 or sum(squares) == 0:
        return math.nan
    error = math.sqrt(sum(squares) / freedom * (1 / base.repeats + 1 / new.repeats))
    return float(scipy.stats.nct.sf(scipy.stats.t.isf(significance, freedom), freedom, drop / error))


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Returns p50, p95 and p99."""
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


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
        p_values: float64 [m], in any order; nan, outside of the family, where there is no test.

    Returns:
        float64 [m].
    """
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    levels = significance / np.arange(len(order), 0, -1)
    failed = np.flatnonzero(p_values[order] > levels)
    if len(failed):
        levels[failed[0] :] = levels[failed[0]]
    decided = np.full(len(p_values), math.nan)
    decided[order] = levels
    return decided


def student_quantile(probability: float, freedom: float) -> float:
    """Returns the quantile of Student's t distribution; nan where the degrees of freedom are."""
    return float(scipy.special.stdtrit(freedom, probability))
