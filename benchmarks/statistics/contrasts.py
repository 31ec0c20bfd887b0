"""Sums and differences of the mean times of several groups of repeats, with intervals.

Groups that took turns are compared within each cycle. Others are not, and need more repeats:

Repeats differ in their level, by a share of the time that is taken to be alike in all groups, as in an analysis of
variance: two or three repeats of one group tell too little of it. The windows, by blocks, set the least variance of a
group. Intervals are Student's, with Satterthwaite's degrees of freedom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import block_length, covariance_of_means
from mnist_dist.benchmarks.statistics.paired import mean_of_rounds, ratio_of_totals
from mnist_dist.benchmarks.statistics.stats import Estimate, student_quantile, sum_of_variances

Repeat = tuple[np.ndarray, np.ndarray]  # Steps, [windows], and what they took by several clocks, [rows, windows].


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """Seconds of a step in several groups of repeats: all seconds over all steps.

    Attributes:
        values: float64 [groups, rows].
        repeats: int64 [groups].
        level_variance: of the logarithm of one repeat's first row, from the differences between repeats.
        pattern: float64 [groups, rows, rows], covariance of the values from the other differences between repeats.
        within: float64 [groups, rows, rows], covariance of the values from the differences between windows alone.
        within_freedom: int64 [groups], its degrees of freedom.
    """

    values: np.ndarray
    repeats: np.ndarray
    level_variance: float
    pattern: np.ndarray
    within: np.ndarray
    within_freedom: np.ndarray

    def contrast(self, weights: np.ndarray) -> Estimate:
        """Returns the sum of the values with these weights, float64 [groups, rows]."""
        return self._with_interval(float(np.sum(weights * self.values)), weights)

    def relative_contrast(self, weights: np.ndarray, to: np.ndarray) -> Estimate:
        """Returns one contrast over another; its variance is that of the linear approximation."""
        scale = float(np.sum(to * self.values))
        ratio = float(np.sum(weights * self.values)) / scale
        return self._with_interval(ratio, (weights - ratio * to) / scale)

    def _with_interval(self, value: float, slope: np.ndarray) -> Estimate:
        pattern, within = (np.einsum("gi,gij,gj->g", slope, each, slope) for each in (self.pattern, self.within))
        level = self.level_variance / self.repeats * np.sum(slope * self.values, axis=1) ** 2
        total = float(np.maximum(level + pattern, within).sum())
        freedom = int(np.sum(self.repeats - 1))
        squares = level.sum() ** 2 / max(freedom, 1) + np.sum(pattern**2 / np.maximum(self.repeats - 1, 1))
        if freedom == 0:
            squares += np.sum(within**2 / self.within_freedom)
        half = student_quantile(0.975, total**2 / squares) * math.sqrt(total) if squares else 0.0
        used = slope.any(axis=1) if slope.any() else np.full(len(slope), True)
        return Estimate(value, value - half, value + half, int(self.repeats[used].min()))


@dataclass(frozen=True, eq=False)
class CycleMeans:
    """Seconds of a step in several groups that took turns.

    Between rounds each process differs by its level, and all by what slowed the machine, which cancels out. Where the
    variances of the processes by themselves add up to less, though, a round slowed nothing: these then serve, with
    more degrees of freedom. As that is found out afterwards, intervals of 95 % hold 93 to 95 % (3 and 5 rounds).

    Attributes:
        rounds: float64 [groups, rows, cycles] of each round.
        processes: int64 [groups], which groups are variants within the same processes, and so share a level.
    """

    rounds: Sequence[np.ndarray]
    processes: np.ndarray

    def contrast(self, weights: np.ndarray) -> Estimate:
        """Returns the sum of the values with these weights, float64 [groups, rows]."""
        return self._estimate([np.einsum("gr,grc->c", weights, times) for times in self.rounds], weights)

    def relative_contrast(self, weights: np.ndarray, to: np.ndarray) -> Estimate:
        """Returns one contrast over another, of the same cycles."""
        pairs = [[np.einsum("gr,grc->c", each, times) for each in (weights, to)] for times in self.rounds]
        total, scale = np.array([[series.mean() for series in pair] for pair in pairs]).mean(axis=0)
        slope = (weights - total / scale * to) / scale
        return self._estimate([ratio_of_totals(contrast, scale) for contrast, scale in pairs], slope)

    def _estimate(self, rounds: Sequence[np.ndarray], slope: np.ndarray) -> Estimate:
        value, variance, freedom = mean_of_rounds(rounds, trimmed=0.0, apart=self._variance_apart(slope))
        half = student_quantile(0.975, freedom) * math.sqrt(variance)
        return Estimate(value, value - half, value + half, len(rounds))

    def _variance_apart(self, slope: np.ndarray) -> tuple[float, float]:
        """Returns the variance of a contrast were its processes independent, and Satterthwaite's degrees of freedom."""
        of_groups = np.array([np.einsum("gr,grc->g", slope, times) / times.shape[2] for times in self.rounds])
        levels = of_groups @ (self.processes[:, None] == np.unique(self.processes))  # [rounds, processes]
        if len(levels) == 1:
            return math.nan, math.nan
        return sum_of_variances(np.var(levels, axis=0, ddof=1) / len(levels), len(levels) - 1)


def estimate_means(groups: Sequence[Sequence[Repeat]]) -> GroupMeans:
    """Reduces the repeats of several groups, of which each has one at least."""
    counts = np.array([len(repeats) for repeats in groups])
    values, logs, patterns, withins, freedoms = [], [], [], [], []
    for repeats in groups:
        of_repeats, covariances, blocks = zip(*(_reduce(*repeat) for repeat in repeats), strict=True)
        means, count = np.array(of_repeats), len(repeats)
        values.append(np.average(means, axis=0, weights=[steps.sum() for steps, _ in repeats]))
        logs.append(np.log(means[:, 0]))
        of_one_level = means / means[:, :1] * values[-1][0]
        patterns.append(np.cov(of_one_level, rowvar=False) / count if count > 1 else np.zeros_like(covariances[0]))
        withins.append(np.mean(covariances, axis=0) / count)
        freedoms.append(max(sum(blocks) - 1, 1))
    squares = sum(float(np.sum((each - each.mean()) ** 2)) for each in logs)
    level_variance = squares / max(int(np.sum(counts - 1)), 1)
    return GroupMeans(
        np.array(values), counts, level_variance, np.array(patterns), np.array(withins), np.array(freedoms)
    )


def _reduce(steps: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the seconds of a step by each clock, their covariance from the windows, and the number of blocks."""
    means = seconds.sum(axis=1) / steps.sum()
    length = block_length(seconds / steps)
    influence = (seconds - means[:, None] * steps) / steps.mean()
    return means, covariance_of_means(influence, length), len(steps) // length
