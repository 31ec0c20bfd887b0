"""Where the level of a series changes for good, whatever the distribution of its noise, if that is independent.

Values become the normal scores of their ranks, so that noise with clusters or heavy tails is like any other, and one
penalty holds for all. PELT (Killick, Fearnhead and Eckley, JASA 107, 2012) cuts where that explains more squares than
it costs. Each piece is searched again by its own ranks, as large changes leave little of the scale to small ones.
"""

from itertools import pairwise

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import centred_ranks
from mnist_dist.benchmarks.statistics.stats import student_quantile
from mnist_dist.lazy import scipy

# Of a single place; tests.benchmarks.adversary_trend measures what follows for 20 years of nights.
SIGNIFICANCE = 2.5e-5
CONFIRMING = 3  # Values that a level has at least.
FEWEST_VALUES = 20  # In fewer hardly any change could be told.
WILD = 0.02  # Of the values on either side, which do not tell where a change is.
LOCATION_DROP = -2 * np.log(1 - np.sqrt(0.95))  # Of twice the log likelihood, for 95 % confidence.


def find_changes(values: np.ndarray) -> list[int]:
    """Returns the places, in rising order, from which on a series, float64 [n], has another level than before."""
    if len(values) < FEWEST_VALUES or np.ptp(values) == 0:
        return []
    scores = scipy.special.ndtri(0.5 + centred_ranks(values) / (len(values) + 1 / 4))  # Blom's.
    quantile = student_quantile(1 - SIGNIFICANCE / 2, 2 * (len(values) - 1) / 3)
    places = pelt(scores, _noise_variance(scores) * quantile**2, CONFIRMING)
    pieces = pairwise([0, *places, len(values)]) if places else ()
    return sorted([*places, *(low + place for low, high in pieces for place in find_changes(values[low:high]))])


def locate_change(values: np.ndarray) -> tuple[int, int, int]:
    """Returns the most probable place of the one change of a series, and the first and last with 95 % confidence.

    By inverting the likelihood ratio (Siegmund, International Statistical Review 56, 1988), without the wildest values.
    """
    tame = np.clip(values, *np.quantile(values, [WILD, 1 - WILD]))
    places = np.arange(CONFIRMING, len(values) - CONFIRMING + 1)
    explained = np.cumsum(tame - tame.mean())[places - 1] ** 2 * (1 / places + 1 / places[::-1])
    possible = places[explained >= explained.max() - LOCATION_DROP * _noise_variance(tame)]
    return int(places[explained.argmax()]), int(possible[0]), int(possible[-1])


def _noise_variance(values: np.ndarray) -> float:
    """Returns the variance of the noise from differences, of which few are changes (von Neumann, 1941)."""
    return float(np.mean(np.diff(values) ** 2)) / 2


def pelt(values: np.ndarray, penalty: float, shortest: int) -> list[int]:
    """Returns where pieces of that length or more begin whose squares about their means, and penalties, are least."""
    count = len(values)
    sums, best, beginning = np.append(0.0, np.cumsum(values)), np.full(count + 1, np.inf), [0] * (count + 1)
    alive, worse = np.ones(count + 1, bool), [np.empty(0, int)] * (count + 1)
    best[0], alive[1:shortest] = -penalty, False
    for end in range(shortest, count + 1):
        # What is worse as a beginning than a cut at `end - shortest` is so for good, now that a piece may begin there.
        alive[worse[end - shortest]] = False
        starts = np.flatnonzero(alive[: end - shortest + 1])
        costs = best[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        beginning[end], best[end] = int(starts[costs.argmin()]), costs.min() + penalty
        worse[end] = starts[costs > best[end]]
    places = [count]
    while places[-1]:
        places.append(beginning[places[-1]])
    return places[-2:0:-1]
