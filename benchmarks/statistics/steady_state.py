"""Where the warm-up of a run ends, and whether the rest drifts.

Warm-up is an initial stretch, of at most a fifth of the run, that is slower than nearly all that follows. Whatever
comes later counts: a clock that is throttled or a neighbour on the same host is part of how fast a machine is, and
leaving such stretches out would flatter it. A run that becomes slower or faster throughout is unstable.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mnist_dist.benchmarks.statistics.blocks import centred_ranks, lag_one_correlation
from mnist_dist.lazy import scipy

MERGED_SECONDS = 0.1  # Shorter windows are joined: their noise is that of the timer and of the scheduler.
MOST_MERGED_WINDOWS = 400
FEWEST_WINDOWS = 10  # Merged. Below this neither a trend nor the noise can be told.
LONGEST_WARM_UP = 0.2  # Of the windows.
SLOW_QUANTILE = 0.9  # Of the later windows, which those of a warm-up exceed.
SMALLEST_CHANGE = 0.03  # Of the step time; smaller changes do not matter.
DRIFT_SIGNIFICANCE = 0.005
OBVIOUS_DRIFT = 0.8  # Share of the variance of the ranks that a straight line explains.


@dataclass(frozen=True)
class SteadyState:
    """The result for one run.

    Attributes:
        windows: of the whole run, after joining short ones.
        first_window: the first after the warm-up, as an index of the windows as they were given.
        reason_unstable: why the rest does not tell how fast the run would go on, in words for a report; None if
            nothing speaks against it.
    """

    windows: int
    first_window: int
    reason_unstable: str | None = None


def find_steady_state(
    window_steps: ArrayLike, window_seconds: ArrayLike, longer: str = "", shortest: float = MERGED_SECONDS
) -> SteadyState:
    """Finds where the warm-up of a run ends, by the slowest rank's step times; `merge_windows` has the shapes.

    The run is unstable if fewer than ten windows are left, or if they drift by more than 3 %.

    Args:
        longer: how a run that is too short can be measured for longer, in words.
    """
    steps, seconds, starts = merge_windows(window_steps, window_seconds, shortest)
    slowest = seconds.max(axis=0)
    times = np.log(slowest / steps)
    first = warm_up_windows(times)
    if len(times) - first < FEWEST_WINDOWS:
        return SteadyState(len(times), 0, _too_short(slowest, first, longer))
    drift = find_drift(times[first:])
    reason = f"the step time drifts by {100 * np.expm1(drift):+.1f} % after the warm-up" if drift else None
    return SteadyState(len(times), int(starts[first]), reason)


def warm_up_windows(times: np.ndarray) -> int:
    """Returns how many windows, of the first fifth of log step times, float64 [windows], are warm-up.

    A window is slow if it exceeds the 90th percentile of the later four fifths, and their median by 3 %. It counts by
    how far it lies above or below that limit, but no further than their median does, so that one slow window weighs
    no more than a usual one. The warm-up ends where the sum is largest (a CUSUM: Page, Biometrika 41, 1954).
    """
    longest = int(LONGEST_WARM_UP * len(times))
    if longest == 0:
        return 0
    middle, high = np.quantile(times[longest:], [0.5, SLOW_QUANTILE])
    limit = max(high, middle + np.log1p(SMALLEST_CHANGE))
    excesses = np.clip(times[:longest] - limit, middle - limit, limit - middle)
    return int(np.argmax(np.cumsum([0.0, *excesses])))


def merge_windows(
    window_steps: ArrayLike, window_seconds: ArrayLike, shortest: float = MERGED_SECONDS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins neighbouring windows until each lasts long enough and there are at most 400.

    Args:
        window_steps: [windows].
        window_seconds: [ranks][windows].
        shortest: seconds that a window lasts at least; 0 joins none but the too many.

    Returns:
        steps, int64 [merged]; seconds, float64 [ranks, merged]; starts, int64 [merged]: the first of the windows
        that each was made of. What is left at the end and too short joins the last.
    """
    seconds = np.atleast_2d(np.asarray(window_seconds, np.float64))
    slowest = seconds.max(axis=0, initial=0.0)
    shortest = max(shortest, float(slowest.sum()) / MOST_MERGED_WINDOWS)
    starts, elapsed, start = [], 0.0, 0
    for window, duration in enumerate(slowest):
        elapsed += duration
        if elapsed >= shortest:
            starts.append(start)
            start, elapsed = window + 1, 0.0
    if not starts and elapsed > 0:
        starts = [0]
    edges, steps = np.asarray(starts, np.int64), np.asarray(window_steps, np.int64)
    return np.add.reduceat(steps, edges), np.add.reduceat(seconds, edges, axis=1), edges


def find_drift(values: np.ndarray) -> float | None:
    """Returns by how much log step times, float64 [windows], drift from the first to the last; None if they do not.

    The size is Theil and Sen's slope, the test that of Mann and Kendall. Neighbouring windows resemble one another,
    which makes chance look like a trend: the variance of Kendall's statistic is multiplied by the sum of the
    autocorrelation (Hamed and Rao, Journal of Hydrology 204, 1998, here for noise of the first order). That of a smooth
    curve is large, so one that rises or falls nearly all the time is a drift without the test. A single change of level
    that describes the ranks better than a straight line does is none.
    """
    count = len(values)
    windows = np.arange(count) - (count - 1) / 2
    ranks = centred_ranks(values)
    before = np.arange(1, count)
    # Parts of the sum of squares of the ranks.
    line = (windows @ ranks) ** 2 / (windows @ windows)
    two_levels = np.max(np.cumsum(ranks)[:-1] ** 2 * (1 / before + 1 / before[::-1]))
    if line <= two_levels:
        return None
    slope, intercept, _, _ = scipy.stats.theilslopes(values, windows)
    drift = float(slope) * (count - 1)
    if abs(drift) < np.log1p(SMALLEST_CHANGE):
        return None
    memory = np.clip(lag_one_correlation(values - intercept - slope * windows), 0, 0.9)
    variance = 2 * (2 * count + 5) / (9 * count * (count - 1)) * (1 + memory) / (1 - memory)
    tau = scipy.stats.kendalltau(windows, values).statistic
    p_value = 2 * scipy.stats.norm.sf(abs(tau) / np.sqrt(variance))
    return drift if p_value < DRIFT_SIGNIFICANCE or line > OBVIOUS_DRIFT * (ranks @ ranks) else None


def _too_short(slowest: np.ndarray, warm_up: int, longer: str) -> str:
    steady = slowest[warm_up:]
    window = max(MERGED_SECONDS, float(np.mean(steady)) if len(steady) else 0.0)
    needed = float(slowest[:warm_up].sum()) + FEWEST_WINDOWS * window
    return (
        f"too short: {len(steady)} of the {FEWEST_WINDOWS} windows needed after the warm-up ({steady.sum():.1f} s); "
        f"measure for at least {needed:.1f} s{f' ({longer})' if longer else ''}"
    )
