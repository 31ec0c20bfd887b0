"""Contrasts of rates that were taken in turns: what slows the machine for longer than a cycle falls on all alike.

The sample is one value for each cycle. Where two sides are alike, as in a comparison, it is the log ratio of their
rates, whose middle half withstands cycles in which one side alone was disturbed. Where they are not, as in an
efficiency, such cycles are part of the truth: several ranks are held up more often than one. Then it is what each cycle
adds to the ratio of the totals, untrimmed. Blocks of cycles, which resemble their neighbours, say how far a mean can be
trusted (Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61, 1974, with the winsorised
series in blocks). Several rounds are fresh processes each: their mean has Student's t, and an interval
that is never narrower than what the cycles within them explain.
"""

import math
from collections.abc import Sequence

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import block_length, covariance_of_means
from mnist_dist.benchmarks.statistics.stats import CONFIDENCE, student_quantile

TRIMMED = 0.1  # Of the cycles, on either side.
# Of two alike sides: the share to leave out on either side, unless that pulls the mean to one, with this confidence.
TRIMMED_UNLESS = ((0.25, 0.8), (TRIMMED, 0.95))


def mean_of_cycles(values: np.ndarray, trimmed: float) -> tuple[float, float, int]:
    """Estimates the centre of one round's cycles.

    Args:
        values: float64 [cycles], at least one.
        trimmed: share of the cycles to leave out on either side.

    Returns:
        The trimmed mean; its variance, nan for fewer than two blocks; and how many blocks of the cycles that the
        trimming left are nearly independent.
    """
    influence = influence_of_cycles(values, trimmed)
    length = block_length(influence[None]) if len(values) > 2 else 1
    blocks = (len(values) - 2 * int(trimmed * len(values))) // length
    variance = float(covariance_of_means(influence[None], length)[0, 0])
    return float(influence.mean()), variance if blocks > 1 else math.nan, blocks


def influence_of_cycles(values: np.ndarray, trimmed: float) -> np.ndarray:
    """Returns a series, float64 [cycles], whose mean is the trimmed mean of the values, and has its variance."""
    cut = int(trimmed * len(values))
    kept = np.sort(values)[cut : len(values) - cut]
    winsorised = np.clip(values, kept[0], kept[-1])
    return kept.mean() + (winsorised - winsorised.mean()) * len(values) / len(kept)


def mean_of_alike(rounds: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Estimates the log ratio of two sides that are alike, from the middle half of the cycles where that is enough.

    A core has several paces where its other thread, its clock or its neighbours come and go. Cycles in which the pace
    changed between both turns lie far out, as often on one side as on the other, and make most of the variance. But
    where far cycles pull to one side, it is held up by itself now and then, which is part of what it takes: they count.

    Args:
        rounds: float64 [cycles] of each.
    """
    for trimmed, confidence in TRIMMED_UNLESS:
        if not _leans(rounds, trimmed, confidence):
            return mean_of_rounds(rounds, trimmed)
    return mean_of_rounds(rounds, 0.0)


def _leans(rounds: Sequence[np.ndarray], trimmed: float, confidence: float) -> bool:
    """Whether the cycles that trimming leaves out pull the mean to one side."""
    far = [mean_of_cycles(values - influence_of_cycles(values, trimmed), 0.0) for values in rounds]
    pull, variance, blocks = (sum(each) for each in zip(*far, strict=True))
    freedom = max(blocks - len(rounds), 1)
    return abs(pull) > student_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)


def mean_of_rounds(
    rounds: Sequence[np.ndarray], trimmed: float = TRIMMED, apart: tuple[float, float] = (math.nan, math.nan)
) -> tuple[float, float, float]:
    """Estimates the centre of what several rounds measured, each by its cycles.

    Args:
        rounds: float64 [cycles] of each.
        trimmed: see `mean_of_cycles`.
        apart: the variance and its degrees of freedom were the sides independent, for where pairing gains nothing.

    Returns:
        The mean, its variance, and the degrees of freedom of that; nan where too few cycles tell nothing about it.
    """
    means, variances, blocks = zip(*(mean_of_cycles(values, trimmed) for values in rounds), strict=True)
    count = len(means)
    value, within, freedom = sum(means) / count, sum(variances) / count**2, sum(blocks) - count or math.nan
    if count > 1:
        between, between_freedom = float(np.var(means, ddof=1)) / count, float(count - 1)
        if apart[0] <= between:
            between, between_freedom = apart
        # Not the larger variance: two degrees of freedom often find too little of one that counts, and the many of the
        # windows would hide that. The wider interval holds the truth as often as that between rounds alone, or more.
        if not _reach(between, between_freedom) <= _reach(within, freedom):  # Or what is within is not known.
            return value, between, between_freedom
    return value, within, freedom


def _reach(variance: float, freedom: float) -> float:
    """Returns half the width of the 95 % interval."""
    return student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)


def ratio_of_totals(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns a series whose mean is the ratio of two totals, and whose variance that of the ratio.

    It is linearised as in Cochran, "Sampling techniques", 1977, section 6.3: what slows a whole cycle cancels out.

    Args:
        above: float64 [cycles].
        below: float64 [cycles], positive.
    """
    ratio = above.mean() / below.mean()
    return ratio + (above - ratio * below) / below.mean()
