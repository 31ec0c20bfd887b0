"""Contrasts of rates that were taken in turns: what slows the machine for longer than a cycle falls on all alike.

The sample is one value for each cycle. Where two sides are alike, as in a comparison, it is the log ratio of their
rates, whose trimmed mean withstands cycles in which one side alone was disturbed. Where they are not, as in an
efficiency, such cycles are part of the truth: several ranks are held up more often than one. Then it is what each cycle
adds to the ratio of the totals, untrimmed. Blocks of cycles, which resemble their neighbours, say how far a mean can be
trusted (Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61, 1974, with the winsorised
series in blocks). Several rounds are fresh processes each: their mean has Student's t, and never less variance than
the cycles within them explain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import block_length, covariance_of_means

TRIMMED = 0.1  # Of the cycles, on either side.


@dataclass(frozen=True)
class CycleMean:
    """The trimmed mean of one round's cycles.

    Attributes:
        variance: of the mean; nan for fewer than two blocks.
        blocks: nearly independent ones among the cycles that the trimming left.
    """

    value: float
    variance: float
    blocks: int


def mean_of_cycles(values: np.ndarray, trimmed: float = TRIMMED) -> CycleMean:
    """Estimates the centre of a series.

    Args:
        values: float64 [cycles], at least one.
        trimmed: share of the cycles to leave out on either side.
    """
    count = len(values)
    cut = int(trimmed * count)
    kept = np.sort(values)[cut : count - cut]
    winsorised = np.clip(values, kept[0], kept[-1])
    length = block_length(winsorised[None]) if count > 2 else 1
    blocks = len(kept) // length
    variance = float(covariance_of_means(winsorised[None], length)[0, 0]) * (count / len(kept)) ** 2
    return CycleMean(float(kept.mean()), variance if blocks > 1 else math.nan, blocks)


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
    means = [mean_of_cycles(values, trimmed) for values in rounds]
    count = len(means)
    value = sum(each.value for each in means) / count
    within = sum(each.variance for each in means) / count**2
    freedom = sum(each.blocks - 1 for each in means) or math.nan
    if count > 1:
        between, between_freedom = float(np.var([each.value for each in means], ddof=1)) / count, float(count - 1)
        if apart[0] <= between:
            between, between_freedom = apart
        if not between <= within:  # Or what is within is not known.
            return value, between, between_freedom
    return value, within, freedom


def ratio_of_totals(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns a series whose mean is the ratio of two totals, and whose variance that of the ratio.

    It is linearised as in Cochran, "Sampling techniques", 1977, section 6.3: what slows a whole cycle cancels out.

    Args:
        above: float64 [cycles].
        below: float64 [cycles], positive.
    """
    ratio = above.mean() / below.mean()
    return ratio + (above - ratio * below) / below.mean()
