"""Where the warm-up of a run ends, and whether what follows is steady enough to be averaged.

Change points as in Barrett et al., "Virtual machine warmup blows hot and cold", OOPSLA 2017, followed by a test for
drift. Isolated slow windows (a garbage collection, a neighbour on the same host) are neither warm-up nor a change.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.statistics.stats import lag_one_correlation

MERGED_SECONDS = 0.1  # Shorter windows are joined: their noise is that of the timer and of the scheduler.
MOST_MERGED_WINDOWS = 400
FEWEST_WINDOWS = 10  # Merged. Below this neither a trend nor the noise can be told.
SMALLEST_CHANGE = 0.03  # Of the step time; smaller changes of level and smaller drifts do not matter.
STEADY_SHARE = 0.25  # Barrett et al. demand the same: the last 500 of 2,000 iterations without a change.
SHORTEST_LEVEL = 5  # Merged windows; fewer are a disturbance, not a level.
DRIFT_SIGNIFICANCE = 0.005


@dataclass(frozen=True)
class SteadyState:
    """The result for one run.

    Attributes:
        windows: of the whole run, after joining short ones.
        first_window: index of the first steady window, in the windows as they were given; 0 if the run is unstable.
        reason_unstable: why no part of the run is known to be steady, in words for a report; None if one is.
    """

    windows: int
    first_window: int
    reason_unstable: str | None = None


def find_steady_state(window_steps: Sequence[int], window_seconds: Sequence[Sequence[float]]) -> SteadyState:
    """Finds where the warm-up of a run ends.

    The level of the last segment between change points of the slowest rank's log step times is the steady one; the
    steady part starts with the first segment from which on all levels are within 3 % of it. The run is unstable if
    that is less than its last quarter, or if the step time drifts by more than 3 % within the steady part.

    Args:
        window_steps: [windows], steps of each window.
        window_seconds: [ranks][windows], each rank's seconds for these steps.
    """
    steps, seconds, starts = merge_windows(window_steps, window_seconds)
    slowest = seconds.max(axis=0)
    if len(steps) < FEWEST_WINDOWS:
        return SteadyState(len(steps), 0, _too_short(slowest, warm_up=0))
    times = np.log(slowest / steps)
    first, level_before = _last_level(times)
    steady = times[first:]
    if len(steady) < STEADY_SHARE * len(times):
        change = _percent(float(np.median(steady)) - level_before)
        when = f"{slowest[:first].sum():.1f} s of {slowest.sum():.1f} s"
        return SteadyState(len(steps), 0, f"the step time changes by {change} as late as after {when}")
    if len(steady) < FEWEST_WINDOWS:
        return SteadyState(len(steps), 0, _too_short(slowest, warm_up=first))
    half = len(times) // 2
    drift = find_drift(times[half:]) if first > half and _climbs(times[half:], first - half) else None
    drift = drift or find_drift(steady)
    if drift is not None:
        return SteadyState(
            len(steps), 0, f"the step time still changes, by {_percent(drift)} within the part taken for steady"
        )
    return SteadyState(len(steps), int(starts[first]))


def merge_windows(
    window_steps: Sequence[int], window_seconds: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins neighbouring windows until each lasts at least 0.1 s and there are at most 400.

    Args:
        window_steps: [windows].
        window_seconds: [ranks][windows].

    Returns:
        steps, int64 [merged]; seconds, float64 [ranks, merged]; starts, int64 [merged]: the first of the windows
        that each was made of. What is left at the end and too short joins the last.
    """
    seconds = np.atleast_2d(np.asarray(window_seconds, np.float64))
    slowest = seconds.max(axis=0, initial=0.0)
    shortest = max(MERGED_SECONDS, float(slowest.sum()) / MOST_MERGED_WINDOWS)
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
    """Returns by how much a series drifts from its first to its last value, or None if it does not.

    The size is Theil and Sen's slope, the test that of Mann and Kendall. Neighbouring windows resemble one another,
    which makes chance look like a trend: the variance of Kendall's statistic is multiplied by the sum of the
    autocorrelation (Hamed and Rao, Journal of Hydrology 204, 1998, here for noise of the first order).

    Args:
        values: float64 [windows], log step times.
    """
    from scipy import stats

    count = len(values)
    windows = np.arange(count)
    slope, intercept, _, _ = stats.theilslopes(values, windows)
    drift = float(slope) * (count - 1)
    if abs(drift) < np.log1p(SMALLEST_CHANGE):
        return None
    memory = np.clip(lag_one_correlation(values - intercept - slope * windows), 0, 0.9)
    variance = 2 * (2 * count + 5) / (9 * count * (count - 1)) * (1 + memory) / (1 - memory)
    tau = stats.kendalltau(windows, values).statistic
    p_value = 2 * stats.norm.sf(abs(tau) / np.sqrt(variance))
    return drift if p_value < DRIFT_SIGNIFICANCE else None


def _climbs(times: np.ndarray, change: int) -> bool:
    """Whether a straight line describes a series about as well as a level before and one after `change` do.

    PELT cuts a ramp into stairs, the last of which can look steady. It puts the cut where the levels fit best, so the
    line, which has no such choice, may have residuals larger by a tenth.
    """
    from scipy import stats

    windows = np.arange(len(times))
    slope, intercept, _, _ = stats.theilslopes(times, windows)
    levels = np.where(windows < change, np.median(times[:change]), np.median(times[change:]))
    line_residual = np.abs(times - intercept - slope * windows).sum()
    return bool(line_residual < 1.1 * np.abs(times - levels).sum())


def _last_level(times: np.ndarray) -> tuple[int, float]:
    """Returns where the last level begins and the level before it (nan if there is none); log step times."""
    deviation, memory = _noise(times)
    edges = [0, *_change_points(times, deviation, memory)]
    levels = [float(np.median(times[start:end])) for start, end in itertools.pairwise(edges)]
    first = len(levels) - 1
    while first > 0 and abs(levels[first - 1] - levels[-1]) <= np.log1p(SMALLEST_CHANGE):
        first -= 1
    start = edges[first]
    # Change points of fewer than SHORTEST_LEVEL windows are not looked for, but warm-up can be as short as one.
    slow = levels[-1] + max(4 * deviation, np.log1p(SMALLEST_CHANGE))
    while first == 0 and start < SHORTEST_LEVEL and times[start] > slow:
        start += 1
    return start, levels[first - 1] if first > 0 else float("nan")


def _change_points(times: np.ndarray, deviation: float, memory: float) -> list[int]:
    """Returns the ends of the segments of equal level, the last included.

    PELT with squared errors and the penalty 4 log(n) times the long-run variance of noise of the first order, which is
    that of independent noise times (1 + memory) / (1 - memory). Outliers are first cut off at two deviations from
    a running median, so that a change needs several windows.
    """
    import ruptures
    from scipy import ndimage

    middle = ndimage.median_filter(times, 2 * SHORTEST_LEVEL + 1, mode="nearest")
    smooth = np.clip(times, middle - 2 * deviation, middle + 2 * deviation)
    penalty = 4 * np.log(len(times)) * deviation**2 * (1 + memory) / (1 - memory)
    search = ruptures.KernelCPD(kernel="linear", min_size=SHORTEST_LEVEL)
    return search.fit(smooth).predict(pen=penalty)


def _noise(times: np.ndarray) -> tuple[float, float]:
    """Returns the standard deviation of the noise and its lag-one correlation, whatever the levels do.

    Both withstand outliers and changes of level: the deviation comes from the median difference of neighbours, the
    correlation from the ranks of the distances to a running median.
    """
    from scipy import ndimage

    distances = times - ndimage.median_filter(times, 2 * SHORTEST_LEVEL + 1, mode="nearest")
    # The running median follows correlated noise; simulated for correlations from 0 to 0.8, this undoes it on average.
    memory = float(np.clip(1.6 * (lag_one_correlation(distances) + 0.1), 0, 0.8))
    difference = float(np.median(np.abs(np.diff(times))))
    deviation = difference / 0.6745 / np.sqrt(2 * (1 - memory))  # 0.6745: the median of |x| for normal x of variance 1.
    return max(float(deviation), 1e-4), memory


def _too_short(slowest: np.ndarray, warm_up: int) -> str:
    steady = slowest[warm_up:]
    window = max(MERGED_SECONDS, float(np.mean(steady)) if len(steady) else 0.0)
    needed = float(slowest[:warm_up].sum()) + FEWEST_WINDOWS * window
    return (
        f"too short: {len(steady)} of the {FEWEST_WINDOWS} windows needed after the warm-up ({steady.sum():.1f} s); "
        f"measure for at least {needed:.1f} s (a suite's measure_seconds, --seconds of peers and perf, or more "
        "training.epochs)"
    )


def _percent(log_ratio: float) -> str:
    return f"{100 * np.expm1(log_ratio):+.1f} %"
