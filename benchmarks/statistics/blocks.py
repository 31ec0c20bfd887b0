"""How far the mean of a series can be trusted whose neighbouring values resemble one another."""

from __future__ import annotations

import numpy as np


def lag_one_correlation(values: np.ndarray) -> np.ndarray:
    """Returns the correlation of neighbouring values, from their ranks so that outliers matter little, float64 [...].

    Args:
        values: float64 [..., windows].
    """
    from scipy import stats

    ranks = stats.rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2
    power = np.sum(ranks**2, axis=-1)
    return np.sum(ranks[..., 1:] * ranks[..., :-1], axis=-1) / np.where(power > 0, power, 1.0)


def block_length(series: np.ndarray) -> int:
    """Returns Politis and White's block length for noise of the first order (Econometric Reviews 23, 2004).

    Args:
        series: float64 [rows, windows], of which that with the longest memory decides.
    """
    windows = series.shape[1]
    memory = float(np.clip(lag_one_correlation(series).max(), 0.0, 0.9))
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
    from scipy import ndimage

    windows = series.shape[1]
    deviations = series - series.mean(axis=1, keepdims=True)
    blocks = ndimage.uniform_filter1d(deviations, length, axis=1, mode="wrap")
    return blocks @ blocks.T / windows * length / max(windows - length, 1)
