"""Ratios of rates within cycles of turns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.in_turns import log_rates_of_both, paired_ratio, rate_in_turns
from tests.benchmarks.peers.made import CYCLES, bad_record, rate_record, rate_records

MACHINE_PACE = np.exp(0.3 * np.sin(np.arange(CYCLES)))  # What slows a cycle, slows all alike.


def test_what_slows_the_machine_does_not_widen_the_ratio() -> None:
    new, base = ([rate_record(name, 0, rate * MACHINE_PACE)] for name, rate in (("ours", 4000), ("keras-fit", 1000)))
    rate, ratio = rate_in_turns(base), paired_ratio(new, base)
    assert rate and rate.half_width(0.95) > 0.05
    assert ratio and ratio.half_width(0.95) < 0.01
    assert math.exp(ratio.value) == pytest.approx(4, rel=0.01)


def test_between_rounds_processes_may_differ() -> None:
    new, base = rate_records("ours", [4000, 4400, 3600]), rate_records("keras-fit", [1000] * 3)
    ratio = paired_ratio(new, base)
    assert ratio and ratio.repeats == 3 and ratio.freedom == 2
    assert ratio.half_width(0.95) > 0.15


def test_only_common_rounds_and_cycles_are_compared() -> None:
    ours = rate_records("ours", [4000, 4000])
    ratio = paired_ratio([*ours, bad_record("ours", "throughput", 2)], rate_records("keras-fit", [1000, 1000, 10]))
    assert ratio and ratio.repeats == 2 and math.exp(ratio.value) == pytest.approx(4, rel=0.01)
    assert len(log_rates_of_both(ours[0], ours[1])[0]) == 0
    assert paired_ratio(ours[:1], rate_records("keras-fit", [1000] * 2)[1:]) is None
    measured = dict(ours[0].measurements or {})
    measured["window_cycles"] = [-1, *measured["window_cycles"][1:]]
    part = ours[0].model_copy(update={"measurements": measured})
    assert len(log_rates_of_both(part, ours[0])[0]) == CYCLES - 1, "calibrating is no cycle"


def test_variants_of_one_run() -> None:
    record = rate_record("ours", 0, [3000.0, 4000.0] * (CYCLES // 2))
    measured = dict(record.measurements or {})
    measured["window_cycles"] = [cycle // 2 for cycle in range(CYCLES)]
    measured["window_variants"] = ["full", "resident"] * (CYCLES // 2)
    both = [record.model_copy(update={"measurements": measured})]
    ratio = paired_ratio(both, both, "full", "resident")
    assert ratio and math.exp(ratio.value) == pytest.approx(0.75, rel=0.01)


def test_without_turns_there_is_no_ratio() -> None:
    alone = [rate_record("ours", 0, 4000.0, turns=None)]
    assert rate_in_turns(alone) is None and paired_ratio(alone, alone) is None


def test_the_slowest_rank_counts_in_each_cycle() -> None:
    record = rate_record("ours", 0, 1000.0)
    measured = dict(record.measurements or {})
    (row,) = measured["window_seconds"]
    measured["window_seconds"] = [row, [2 * seconds for seconds in row]]
    rate = rate_in_turns([record.model_copy(update={"measurements": measured})])
    assert rate and math.exp(rate.value) == pytest.approx(500, rel=0.01)
