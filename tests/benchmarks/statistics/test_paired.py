"""Means of rounds whose processes differ, and whose cycles do, too."""

import numpy as np
import pytest

from mnist_dist.benchmarks.statistics.paired import mean_of_alike, mean_of_rounds
from mnist_dist.benchmarks.statistics.stats import LogEstimate

CYCLES, STUDIES = 40, 1000


@pytest.mark.parametrize(("rounds", "of_cycles"), [(2, 0.1), (3, 0.3)])
def test_intervals_hold_the_truth_where_cycles_explain_a_part_of_what_rounds_differ_by(
    rounds: int, of_cycles: float
) -> None:
    """Two rounds seem alike by chance in a quarter of the studies: what the cycles explain is then no whole variance.

    Args:
        of_cycles: their share of the variance of a round, for which an interval by them alone held 87 and 93 %.
    """
    rng, held = np.random.default_rng(rounds), 0
    levels = np.sqrt(1 - of_cycles) * rng.standard_normal((STUDIES, rounds, 1))
    cycles = np.sqrt(of_cycles * CYCLES) * rng.standard_normal((STUDIES, rounds, CYCLES))
    for study in levels + cycles:
        half = LogEstimate(*mean_of_rounds(list(study), trimmed=0.0), rounds).half_width(0.95)
        held += abs(study.mean()) <= half
    assert held / STUDIES >= 0.94


def two_paces(rng: np.random.Generator, cycles: int, share: float = 0.25, stay: float = 0.5) -> np.ndarray:
    """Returns log rates of two alike sides by turns, [cycles, 2]: a core is at times half as fast again, for both."""
    fast = np.empty(2 * cycles, bool)
    fast[0] = rng.random() < share
    for turn in range(1, 2 * cycles):
        fast[turn] = fast[turn - 1] if rng.random() < stay else rng.random() < share
    return (0.05 * rng.standard_normal(2 * cycles) + np.log(1.5) * fast).reshape(cycles, 2)


def test_cycles_in_which_the_pace_changed_between_both_turns_widen_no_comparison() -> None:
    rng, studies, held, widths = np.random.default_rng(0), 300, 0, []
    for _ in range(studies):
        ratios = np.diff(two_paces(rng, 140))[:, 0]
        halves = [LogEstimate(*of, 1).half_width(0.95) for of in (mean_of_alike([ratios]), mean_of_rounds([ratios]))]
        held += abs(mean_of_alike([ratios])[0]) <= halves[0]
        widths.append(halves)
    assert held / studies >= 0.93
    alike, trimmed = np.median(widths, axis=0)
    assert alike < 0.85 * trimmed


def test_a_side_that_is_held_up_by_itself_is_slower() -> None:
    """A tenth of its turns take twice as long; without a tenth of the cycles on either side, 64 % of means told it."""
    rng, studies, held = np.random.default_rng(0), 300, 0
    for _ in range(studies):
        rates = two_paces(rng, 140)
        rates[:, 0] -= np.log(2) * (rng.random(140) < 0.1)
        estimate = LogEstimate(*mean_of_alike([np.diff(rates)[:, 0]]), 1)
        held += abs(estimate.value - 0.1 * np.log(2)) <= estimate.half_width(0.95)
    assert held / studies >= 0.93
