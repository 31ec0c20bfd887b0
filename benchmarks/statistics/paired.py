"""Contrasts of rates that were taken in turns: what slows the machine for longer than a cycle falls on all alike.

The sample is one value for each cycle, such as the log ratio of two rates. The trimmed mean over cycles withstands
those in which one side alone was disturbed; blocks of cycles, which resemble their neighbours, say how far it can be
trusted (Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61, 1974, with the winsorised
series in blocks). Several rounds are fresh processes each: their mean has Student's t, and never less variance than
the cycles within them explain.
"""

from __future__ import annotations

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


def mean_of_cycles(values: np.ndarray) -> CycleMean:
    """Estimates the centre of a series.

    Args:
        values: float64 [cycles], at least one.
    """
    count = len(values)
    cut = int(TRIMMED * count)
    kept = np.sort(values)[cut : count - cut]
    winsorised = np.clip(values, kept[0], kept[-1])
    length = block_length(winsorised[None]) if count > 2 else 1
    blocks = len(kept) // length
    variance = float(covariance_of_means(winsorised[None], length)[0, 0]) * (count / len(kept)) ** 2
    return CycleMean(float(kept.mean()), variance if blocks > 1 else math.nan, blocks)


def mean_of_rounds(rounds: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Estimates the centre of what several rounds measured, each by its cycles.

    Args:
        rounds: float64 [cycles] of each.

    Returns:
        The mean, its variance, and the degrees of freedom of that; nan where too few cycles tell nothing about it.
    """
    means = [mean_of_cycles(values) for values in rounds]
    count = len(means)
    value = sum(each.value for each in means) / count
    within = sum(each.variance for each in means) / count**2
    freedom = sum(each.blocks - 1 for each in means) or math.nan
    if count > 1:
        between = float(np.var([each.value for each in means], ddof=1)) / count
        if not between <= within:  # Or what is within is not known.
            return value, between, count - 1
    return value, within, freedom
