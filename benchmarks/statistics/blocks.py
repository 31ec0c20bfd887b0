"""How far the mean of a series can be trusted whose neighbouring values resemble one another."""

import numpy as np

from mnist_dist.lazy import ndimage


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks of some values less the mean rank, equal values sharing theirs, float64 [windows].

    `scipy.stats.rankdata` gives the same, and takes a study of thousands of runs ten times as long.

    Args:
        values: float64 [windows].
    """
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right") - len(values)) / 2


def lag_one_correlation(values: np.ndarray) -> float:
    """Returns the correlation of neighbouring values, from their ranks so that outliers matter little.

    Args:
        values: float64 [windows].
    """
    return _lag_one(centred_ranks(values))


def block_length(series: np.ndarray) -> int:
    """Returns Politis and White's block length for noise of the first order (Econometric Reviews 23, 2004).

    The memory is the larger of what ranks and values have: outliers hide it from the values; and from the ranks, noise
    in most windows hides that of the few stretches of another pace from which nearly all of the variance comes.

    Args:
        series: float64 [rows, windows], of which that with the longest memory decides.
    """
    windows = series.shape[1]
    memories = [max(lag_one_correlation(row), _lag_one(row - row.mean())) for row in series]
    memory = min(max(0.0, *memories), 0.9)
    best = (6 * windows) ** (1 / 3) * (memory / (1 - memory**2)) ** (2 / 3)
    return max(1, min(round(best), windows // 3))


def covariance_of_means(series: np.ndarray, length: int) -> np.ndarray:
    """Returns the covariance of the means over windows, float64 [rows, rows]: zero for a single window.

    It is what drawing blocks anew that may wrap round the end tends to (Politis and Romano, "A circular
    block-resampling procedure for stationary data", 1992), without the draws; a mean of blocks has lost `length`
    degrees of freedom.

    Args:
        series: float64 [rows, windows].
        length: of the blocks, see `block_length`.
    """
    windows = series.shape[1]
    deviations = series - series.mean(axis=1, keepdims=True)
    blocks = ndimage.uniform_filter1d(deviations, length, axis=1, mode="wrap")
    return blocks @ blocks.T / windows * length / max(windows - length, 1)


def _lag_one(centred: np.ndarray) -> float:
    return float(centred[1:] @ centred[:-1] / (centred @ centred or 1.0))
