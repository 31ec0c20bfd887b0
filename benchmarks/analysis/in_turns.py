"""Rates of runs that took turns, and their ratios: within a cycle, what slows the machine slows both sides alike."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.paired import mean_of_alike, mean_of_rounds, ratio_of_totals
from mnist_dist.benchmarks.statistics.stats import LogEstimate
from mnist_dist.cpuinfo import MOST_OTHERS
from mnist_dist.distributed.turns import FULL

PROCESS_DEVIATION = 0.015  # Of the level of a process, where one round cannot measure it: an assumption.


def other_cores(record: Record) -> float:
    """Returns how many cores other programs used while it was measured, on average; 0 where that is not known."""
    return (record.turns and record.turns.other_cores) or 0.0


def met_others(record: Record) -> bool:
    """Whether other programs used a notable share of the cores while a record was measured."""
    return other_cores(record) > MOST_OTHERS * record.identity.hardware.cores


def log_rates_by_cycle(record: Record, variant: str = FULL) -> dict[int, float]:
    """Returns the logarithm of the work per second in each cycle; nothing of a run without turns."""
    if record.turns is None or record.measurements is None:
        return {}
    rates = kind(record.case.kind).rates_by_cycle(record, variant)
    return {cycle: float(np.log(rate)) for cycle, rate in rates.items()}


def paired_ratio(
    records_a: Sequence[Record], records_b: Sequence[Record], variant_a: str = FULL, variant_b: str = FULL
) -> LogEstimate | None:
    """Estimates the logarithm of the rate of `a` over that of `b` from all rounds that both took part in.

    None without a common cycle; a single round tells nothing of how much fresh processes differ.
    """
    pairs = [log_rates_of_both(a, b, variant_a, variant_b) for a in records_a for b in records_b]
    rounds = [a - b for a, b in pairs if len(a)]
    return LogEstimate(*mean_of_alike(rounds), len(rounds)) if rounds else None


def ratio_of_total_rates(records_a: Sequence[Record], records_b: Sequence[Record]) -> LogEstimate | None:
    """Does the same for sides that are not alike, so that cycles in which one of them was held up are part of it."""
    pairs = [log_rates_of_both(a, b) for a in records_a for b in records_b]
    ratios = [ratio_of_totals(np.exp(-b), np.exp(-a)) for a, b in pairs if len(a)]
    rounds = [np.log(each.mean()) + each / each.mean() - 1 for each in ratios]
    return LogEstimate(*mean_of_rounds(rounds, trimmed=0.0), len(rounds)) if rounds else None


def of_fresh_processes(ratio: LogEstimate) -> LogEstimate:
    """Returns the ratio with the variance of processes that one round cannot measure, where it comes from one."""
    return replace(ratio, variance=ratio.variance + 2 * PROCESS_DEVIATION**2) if ratio.repeats == 1 else ratio


def rate_in_turns(records: Sequence[Record], variant: str = FULL) -> LogEstimate | None:
    """Estimates the logarithm of the work per second over the rounds of one case; None if it took no turns."""
    series = [list(log_rates_by_cycle(record, variant).values()) for record in records]
    rounds = [np.array(values) for values in series if values]
    return LogEstimate(*mean_of_rounds(rounds), len(rounds)) if rounds else None


def log_rates_of_both(
    a: Record, b: Record, variant_a: str = FULL, variant_b: str = FULL
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logarithms of both rates, float64 [cycles], in the cycles of one round that both took part in."""
    if a.turns is None or b.turns is None or a.turns.round_id != b.turns.round_id:
        return np.empty(0), np.empty(0)
    rates_a, rates_b = log_rates_by_cycle(a, variant_a), log_rates_by_cycle(b, variant_b)
    common = np.array([(rates_a[each], rates_b[each]) for each in sorted(rates_a.keys() & rates_b.keys())])
    of_a, of_b = common.reshape(-1, 2).T
    return of_a, of_b
