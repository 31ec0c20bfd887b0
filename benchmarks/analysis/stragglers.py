"""Whether a rank or a host is slower than the others, from step times of ranks that do not wait for each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnist_dist.benchmarks.statistics.blocks import block_length
from mnist_dist.lazy import scipy

NOTABLE_EXCESS = 0.05  # By which a rank must be slower than the others to be named.
SIGNIFICANCE = 0.05
SMALLEST_DEVIATION = 1e-6  # Of logarithms: no clock tells less.
FEWEST_WINDOWS = 10  # For the second test; of fewer, it is not known how much they resemble one another.


@dataclass(frozen=True)
class SlowPlace:
    """A rank or host that is slower than the others, beyond chance and by more than 5 %.

    Attributes:
        name: for example "rank 1 on host n2" or, where all of several ranks on a host are slow, "host n2".
        windows: in how many of `all_windows` it was the slowest.
        excess: its step time relative to the median of the others, less 1.
        with_real_input: whether it was seen with real input only, so that its input is slow.
    """

    name: str
    host: str | None
    ranks: tuple[int, ...]
    windows: int
    all_windows: int
    excess: float
    with_real_input: bool = False


def find_slow_place(repeats: Sequence[np.ndarray], hosts: Sequence[str] | None) -> SlowPlace | None:
    """Returns the host or rank that is slower than the others in far more windows than chance, and by more than 5 %.

    Neighbouring windows resemble one another, so blocks of them vote, each for the slowest by its mean. Two tests,
    corrected for their number and that of the candidates, decide about the one with the most votes: a binomial one of
    the votes, which outliers do not disturb, and Student's of whether it was more than 5 % slower, which needs few
    blocks where it was much slower. As the level of a rank may last for a whole repeat, it must be slower in each.

    Args:
        repeats: for each, step times of ranks that do not wait for each other, float64 [ranks, windows].
        hosts: [ranks], or None where they are not known.
    """
    windows = sum(times.shape[1] for times in repeats)
    names = list(dict.fromkeys(hosts or ()))
    if hosts and 1 < len(names) < len(hosts):  # Of hosts with several ranks, all must be slow.
        members = [tuple(rank for rank, host in enumerate(hosts) if host == name) for name in names]
        of_hosts = [np.stack([times[list(ranks)].mean(axis=0) for ranks in members]) for times in repeats]
        if found := _outstanding(of_hosts):
            index, slowest, excess = found
            ranks = members[index]
            if all(_excess(repeats, rank, ranks) > NOTABLE_EXCESS for rank in ranks):
                return SlowPlace(f"host {names[index]}", names[index], ranks, slowest, windows, excess)
    if found := _outstanding(repeats):
        rank, slowest, excess = found
        host = hosts[rank] if hosts else None
        name = f"rank {rank} on host {host}" if host else f"rank {rank}"
        return SlowPlace(name, host, (rank,), slowest, windows, excess)
    return None


def _outstanding(repeats: Sequence[np.ndarray]) -> tuple[int, int, float] | None:
    """Returns index, number of windows in which it was the slowest, and excess of the row that stands out, or None."""
    candidates = len(repeats[0]) if repeats else 0
    if candidates < 2:
        return None
    slowest = np.concatenate([times.argmax(axis=0) for times in repeats])
    means = np.concatenate([_block_means(times) for times in repeats], axis=1)
    counts = np.bincount(means.argmax(axis=0), minlength=candidates)
    index = int(counts.argmax())
    p_values = [scipy.stats.binom.sf(counts[index] - 1, means.shape[1], 1 / candidates)]
    if len(slowest) >= FEWEST_WINDOWS:
        excesses = np.log(means[index] / np.median(np.delete(means, index, axis=0), axis=0))
        error = max(float(np.std(excesses, ddof=1)), SMALLEST_DEVIATION) / np.sqrt(len(excesses))
        p_values.append(scipy.stats.t.sf((excesses.mean() - np.log1p(NOTABLE_EXCESS)) / error, len(excesses) - 1))
    p_value = len(p_values) * candidates * min(p_values)
    excess = _excess(repeats, index, [index])
    if p_value >= SIGNIFICANCE or excess <= NOTABLE_EXCESS:
        return None
    if any(_excess([times], index, [index]) <= 0 for times in repeats):
        return None
    return index, int(np.sum(slowest == index)), excess


def _excess(repeats: Sequence[np.ndarray], index: int, left_out: Sequence[int]) -> float:
    """Returns by what share a row's step times exceed the median of the rows not left out, as a median over windows."""
    others = [row for row in range(len(repeats[0])) if row not in left_out]
    ratios = [times[index] / np.median(times[others], axis=0) for times in repeats]
    return float(np.median(np.concatenate(ratios))) - 1


def _block_means(times: np.ndarray) -> np.ndarray:
    """Returns the means over blocks of windows that are long enough to be nearly independent, [ranks, blocks]."""
    relative = times / times.mean(axis=0)
    blocks = max(times.shape[1] // block_length(relative), 1)
    return np.stack([part.mean(axis=1) for part in np.array_split(times, blocks, axis=1)], axis=1)
