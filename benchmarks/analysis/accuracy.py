"""Which cases of a study train less accurate models than another's, beyond what their seeds explain.

A case is less accurate if the mean of its seeds is lower by Welch's one-sided t-test, or if one of its seeds alone
lies below what the base's let expect, by Crawford and Howell's test of a single case (The Clinical Neuropsychologist
12, 1998): a mean over seeds would call a training that sometimes diverges just noisy. Bonferroni's correction joins
the two, Holm's the cases. No difference found is not enough to pass: the mean must be shown not to be lower by more
than a margin (non-inferiority: Piaggio et al., JAMA 308, 2012).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.analysis.summary import accuracy_by_seed
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import Mean, drop_p_value, drop_power, estimate_mean, holm_levels

Outcome = Literal["lower", "unclear", "kept"]

SMALLEST_DROP = 0.0005  # Of a mean, that counts if seeds do not explain it: five of the 10,000 test images.
LARGEST_DROP = 0.0025  # The margin of non-inferiority; also, what a single seed may lie below the others in any case.
TOLD_DROP = 0.001  # Of which the power is told.


@dataclass(frozen=True)
class AccuracyChange:
    """The test accuracies of one case in both studies.

    Attributes:
        lowest: of the new seeds.
        outcome: unclear if neither a drop nor its absence is shown.
        power: how probably a drop by 0.1 points is found, were seeds to vary as they did; nan with one seed a side.
    """

    base: Mean
    new: Mean
    lowest: float
    outcome: Outcome
    power: float


def compare_accuracies(
    sides: Sequence[tuple[Sequence[Record], Sequence[Record]]], significance: float
) -> list[AccuracyChange | None]:
    """Compares the cases of two studies, as one family of tests; None for a case of which a side left no model."""
    seeds = [(accuracy_by_seed(base), accuracy_by_seed(new)) for base, new in sides]
    p_values = np.array([_p_value_of_drop(base, new) if base and new else math.nan for base, new in seeds])
    level = significance / 2 / max(int(np.sum(~np.isnan(p_values))), 1)
    found: list[AccuracyChange | None] = []
    for (base, new), is_lower in zip(seeds, p_values <= holm_levels(p_values, significance), strict=True):
        if not base or not new:
            found.append(None)
            continue
        before, after = estimate_mean([*base.values()], most=1.0), estimate_mean([*new.values()], most=1.0)
        # The same seeds that end in the same models were trained alike, however few they are.
        is_kept = base == new or 1 - drop_p_value(before, after, LARGEST_DROP) <= significance
        power = drop_power(before, after, TOLD_DROP, level)
        outcome: Outcome = "lower" if is_lower else "kept" if is_kept else "unclear"
        found.append(AccuracyChange(before, after, min(new.values()), outcome, power))
    return found


def _p_value_of_drop(base: Mapping[int, float], new: Mapping[int, float]) -> float:
    """Returns nan with one seed on either side."""
    before, after = (estimate_mean([*each.values()], most=1.0) for each in (base, new))
    lowest = min(new.values())
    of_mean = drop_p_value(before, after) if before.value - after.value >= SMALLEST_DROP else 1.0
    of_seed = len(new) * drop_p_value(before, estimate_mean([lowest])) if before.value - lowest >= LARGEST_DROP else 1.0
    return math.nan if len(base) == len(new) == 1 else min(2 * float(np.fmin(of_mean, of_seed)), 1.0)
