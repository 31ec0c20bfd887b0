"""Where the level of a series changes for good, whatever the distribution of its noise, if that is independent.

Values become the normal scores of their ranks, so that noise with clusters or heavy tails is like any other, and one
penalty holds for all. PELT (Killick, Fearnhead and Eckley, JASA 107, 2012) cuts where that explains more squares than
it costs. Each piece is searched again by its own ranks, as large changes leave little of the scale to small ones.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import centred_ranks
from mnist_dist.benchmarks.statistics.stats import student_quantile

SIGNIFICANCE = (
    2.5e-5  # Of a single place; tests.benchmarks.adversary_trend measures what follows for 20 years of nights.
)
CONFIRMING = 3  # Values that a level has at least.
FEWEST_VALUES = 20  # In fewer hardly any change could be told.
LOCATION_DROP = -2 * np.log(1 - np.sqrt(0.95))  # Of twice the log likelihood, for 95 % confidence.


def find_changes(values: np.ndarray) -> list[int]:
    """Returns the places, in rising order, from which on a series, float64 [n], has another level than before."""
    if len(values) < FEWEST_VALUES or np.ptp(values) == 0:
        return []
    scores, noise = _normal_scores(values)
    quantile = student_quantile(1 - SIGNIFICANCE / 2, 2 * (len(values) - 1) / 3)
    places = pelt(scores, noise * quantile**2, CONFIRMING)
    pieces = pairwise([0, *places, len(values)]) if places else ()
    return sorted([*places, *(low + place for low, high in pieces for place in find_changes(values[low:high]))])


def possible_places(values: np.ndarray, place: int) -> tuple[int, int]:
    """Returns between which places the one change of a series, probably at `place`, lies with 95 % confidence.

    By inverting the likelihood ratio (Siegmund, International Statistical Review 56, 1988).
    """
    scores, noise = _normal_scores(values)
    before = np.arange(1, len(values))
    explained = np.cumsum(scores)[:-1] ** 2 * (1 / before + 1 / before[::-1])  # As the scores add up to zero.
    possible = np.flatnonzero(explained >= explained[place - 1] - LOCATION_DROP * noise) + 1
    return int(possible[0]), int(possible[-1])


def _normal_scores(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns Blom's scores and the variance of their noise, from differences, of which few are changes."""
    from scipy import special

    scores = np.asarray(special.ndtri(0.5 + centred_ranks(values) / (len(values) + 1 / 4)))
    return scores, float(np.mean(np.diff(scores) ** 2)) / 2


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
