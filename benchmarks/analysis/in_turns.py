"""Rates of runs that took turns, and their ratios: within a cycle, what slows the machine slows both sides alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.paired import mean_of_rounds
from mnist_dist.benchmarks.statistics.stats import LogEstimate
from mnist_dist.distributed.turns import FULL


def log_rates_by_cycle(record: Record, variant: str = FULL) -> dict[int, float]:
    """Returns the logarithm of the work per second in each cycle; nothing of a run without turns."""
    if record.turns is None or record.measurements is None:
        return {}
    rates = kind(record.case.kind).rates_by_cycle(record, variant)
    return {cycle: float(np.log(rate)) for cycle, rate in rates.items()}


def log_ratios_by_cycle(record_a: Record, record_b: Record, variant_a: str = FULL, variant_b: str = FULL) -> np.ndarray:
    """Returns the logarithm of the rate of `a` over that of `b` in each cycle that both took part in, float64 [cycles].

    It is empty unless they are of the same round.
    """
    if record_a.turns is None or record_b.turns is None or record_a.turns.round_id != record_b.turns.round_id:
        return np.empty(0)
    a, b = log_rates_by_cycle(record_a, variant_a), log_rates_by_cycle(record_b, variant_b)
    return np.array([a[cycle] - b[cycle] for cycle in sorted(a.keys() & b.keys())])


def paired_ratio(
    records_a: Sequence[Record], records_b: Sequence[Record], variant_a: str = FULL, variant_b: str = FULL
) -> LogEstimate | None:
    """Estimates the logarithm of the rate of `a` over that of `b` from all rounds that both took part in.

    Returns:
        None without a common cycle; a single round tells nothing of how much fresh processes differ.
    """
    pairs = [log_ratios_by_cycle(a, b, variant_a, variant_b) for a in records_a for b in records_b]
    return _estimate([ratios for ratios in pairs if len(ratios)])


def rate_in_turns(records: Sequence[Record], variant: str = FULL) -> LogEstimate | None:
    """Estimates the logarithm of the work per second over the rounds of one case; None if it took no turns."""
    rounds = [list(log_rates_by_cycle(record, variant).values()) for record in records]
    return _estimate([np.array(values) for values in rounds if values])


def _estimate(rounds: Sequence[np.ndarray]) -> LogEstimate | None:
    return LogEstimate(*mean_of_rounds(rounds), len(rounds)) if rounds else None
