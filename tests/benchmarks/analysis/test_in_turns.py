"""Runs that took turns: their ratios hold on a machine that throttles, drifts and stalls, where others' do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.attribution import Attribution, attribute
from mnist_dist.benchmarks.analysis.compare import Verdict, compare
from mnist_dist.benchmarks.analysis.in_turns import log_rates_of_both, paired_ratio
from mnist_dist.benchmarks.analysis.scaling import find_curves
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.records.record import Record
from tests.benchmarks.rounds import FULL, Machine, make_round
from tests.benchmarks.simulation import CASE

SINGLE = CASE.model_copy(update={"global_batch_size": 128})
TWO = SINGLE.model_copy(update={"strategy": "horovod", "devices": 2, "global_batch_size": 256})
RESIDENT, UNREDUCED, NEITHER = "resident", "unreduced", "resident-unreduced"
STEP = 0.010


def two_sides(rng: np.random.Generator, slower: float, **options: Any) -> tuple[list[Record], list[Record]]:
    sides: tuple[list[Record], list[Record]] = ([], [])
    for repeat in range(options.pop("repeats", 1)):
        contenders = [(SINGLE, {FULL: [STEP]}, {"study": "base"}), (SINGLE, {FULL: [STEP * slower]}, {"study": "new"})]
        for side, record in zip(sides, make_round(rng, contenders, repeat=repeat, **options), strict=True):
            side.append(record)
    return sides


def verdict_of(rng: np.random.Generator, slower: float, smallest_effect: float, **options: Any) -> Verdict:
    (verdict,) = compare(*two_sides(rng, slower, **options), smallest_effect=smallest_effect).verdicts
    return verdict


def test_ratios_within_cycles_leave_out_what_slows_both() -> None:
    base, new = two_sides(np.random.default_rng(0), 1.1)
    assert np.std(np.subtract(*log_rates_of_both(new[0], base[0]))) < 0.3
    ratio = paired_ratio(new, base)
    assert ratio is not None and ratio.at_level().value == pytest.approx(1 / 1.1, abs=0.02)


def test_only_runs_of_one_round_have_a_ratio() -> None:
    rng = np.random.default_rng(0)
    (base, _), (_, new) = two_sides(rng, 1.0), two_sides(rng, 1.0)
    assert len(log_rates_of_both(new[0], base[0])[0]) == 0
    assert paired_ratio(new, base) is None
    (verdict,) = compare(base, new).verdicts
    assert not verdict.in_turns


def test_a_machine_that_slows_down_makes_no_run_unstable_but_a_run_that_slows_down_by_itself_is() -> None:
    contenders = [(SINGLE, {FULL: [STEP]}, {}), (TWO, {FULL: [STEP, STEP]}, {})]
    slow_machine = make_round(
        np.random.default_rng(0), contenders, machine=Machine(drift=0.01, throttled=0.0, slowdown=0.6)
    )
    assert all(summarize([record]).unstable for record in slow_machine)
    study = Analysis(slow_machine)
    assert [each.unstable for each in study.summaries] == [None, None]
    (curve,) = study.curves
    assert [point.efficiency.value for point in curve.points] == pytest.approx([1.0, 1.0], abs=0.05)
    single, two = make_round(np.random.default_rng(0), contenders, machine=Machine(drift=0.01, throttled=0.0))
    growth = np.exp(0.6 * np.array(two.measured["window_cycles"]) / 40)
    slowed = two.measured | {"window_seconds": (growth * two.measured["window_seconds"]).tolist()}
    by_itself = Analysis([single, two.model_copy(update={"measurements": slowed})]).summaries
    assert [bool(each.unstable) for each in by_itself] == [False, True]


def test_equal_commits_are_the_same_and_slower_ones_are_slower() -> None:
    """One round of forty cycles, with 20 % of the time throttled: equal within 5 %, and 10 % slower."""
    equal = [verdict_of(np.random.default_rng(seed), 1.0, 0.05, cycles=60).outcome for seed in range(20)]
    assert equal.count("slower") == equal.count("faster") == 0 and equal.count("same") >= 18
    slower = [verdict_of(np.random.default_rng(seed), 1.10, 0.03, cycles=60).outcome for seed in range(20)]
    assert slower.count("slower") >= 19 and slower.count("faster") == 0


def test_one_round_calls_nobody_slower_for_the_level_of_its_process() -> None:
    """Of equal commits whose processes differ by 1.5 %, the cycles by themselves called 13 of 60 slower or faster."""
    options: dict[str, Any] = {"machine": Machine(throttled=0.0), "deviation": 0.015}
    verdicts = [verdict_of(np.random.default_rng(seed), 1.0, 0.02, **options) for seed in range(60)]
    assert sum(each.outcome in ("slower", "faster") for each in verdicts) <= 5
    assert all("one round" in each.remark for each in verdicts)


@pytest.mark.slow
def test_processes_that_differ_are_seen_in_several_rounds() -> None:
    """Each fresh process has a level of its own of 4 %, of which the cycles within a round know nothing."""
    options: dict[str, Any] = {"machine": Machine(throttled=0.0), "deviation": 0.04}
    wrong = {1: 0, 3: 0}
    for repeats in wrong:
        for seed in range(60):
            ratio = paired_ratio(*reversed(two_sides(np.random.default_rng(seed), 1.0, repeats=repeats, **options)))
            assert ratio is not None
            estimate = ratio.at_level()
            wrong[repeats] += not estimate.low <= 1 <= estimate.high
    assert wrong[3] <= 6 < wrong[1]


@pytest.mark.slow
def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        ratio = paired_ratio(*reversed(two_sides(np.random.default_rng(seed), 1.2, machine=Machine(stalls=0.05))))
        assert ratio is not None
        estimate = ratio.at_level()
        held += estimate.low <= 1 / 1.2 <= estimate.high
    assert held >= 184, "95 % less three standard deviations"


def study(seed: int, **seconds: Any) -> Analysis:
    """One device, and two in turns with all variants; `seconds` are planted: input, all_reduce, rank, input_at_1."""
    extra = {"input": 0.0, "all_reduce": 0.0, "rank": 0.0, "input_at_1": 0.0} | seconds
    free = np.array([STEP, STEP + extra["rank"]])
    slowest = free.max() + extra["all_reduce"]
    variants = {
        FULL: [slowest + extra["input"]] * 2,
        RESIDENT: [slowest] * 2,
        UNREDUCED: (free + extra["input"]).tolist(),
        NEITHER: free.tolist(),
    }
    single = {FULL: [STEP + extra["input_at_1"]], RESIDENT: [STEP]}
    contenders = [(SINGLE, single, {}), (TWO, variants, {"identity": {"hosts": ["n1", "n1"]}})]
    return Analysis(make_round(np.random.default_rng(seed), contenders, cycles=240))


def _train_first(record: Record, slower: float) -> Record:
    """Leaves the full step alone in the first half of the cycles, which takes longer there on several devices."""
    measured = dict(record.measurements or {})
    cycles, variants = np.array(measured["window_cycles"]), np.array(measured["window_variants"])
    early = cycles < 120
    kept = ~early | (variants == FULL)
    factors = np.where(early & (record.case.devices > 1), slower, 1.0)
    for name in ("window_cycles", "window_variants", "window_steps"):
        measured[name] = np.array(measured[name])[kept].tolist()
    measured["window_seconds"] = (np.array(measured["window_seconds"]) * factors)[:, kept].tolist()
    return record.model_copy(update={"measurements": measured})


def only(analysis: Analysis) -> Attribution:
    (found,) = analysis.attributions
    return found


def test_variants_become_cases_of_their_own() -> None:
    cases = {(each.case.devices, each.case.synthetic_input, each.case.all_reduce) for each in study(0).summaries}
    assert cases == {
        *((1, synthetic, True) for synthetic in (False, True)),
        *((2, synthetic, reduced) for synthetic in (False, True) for reduced in (False, True)),
    }


def test_efficiency_is_taken_within_cycles() -> None:
    (curve,) = find_curves(study(0, all_reduce=0.0025).summaries)
    point = curve.points[-1].efficiency
    assert point.value == pytest.approx(0.8, abs=0.02) and point.high - point.low < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "name", "share"),
    [
        ({"input": 0.002}, "input", 0.002 / 0.012),
        ({"all_reduce": 0.0025}, "communication", 0.2),
        ({"rank": 0.002}, "stragglers", 0.002 / 0.012),
    ],
)
def test_planted_causes_are_named_with_their_share(planted: dict[str, float], name: str, share: float) -> None:
    for seed in range(10):
        found = only(study(seed, **planted))
        assert found.biggest is not None and found.biggest.name == name
        assert found.biggest.share.value == pytest.approx(share, abs=0.03)
        assert found.is_significant


def test_the_loss_is_that_of_the_efficiency_and_what_its_causes_leave_is_unexplained() -> None:
    """Full steps may have cycles without other variants, as in a training to the end, here with a loss of their own."""
    records = [_train_first(record, slower=1.6) for record in study(0, all_reduce=0.0025).records]
    analysis = Analysis(records)
    found = only(analysis)
    (curve,) = find_curves(analysis.summaries)
    efficiency = curve.points[-1].efficiency
    assert efficiency.value == pytest.approx(0.8 / 1.3, abs=0.02)
    assert found.loss.value == pytest.approx(1 - efficiency.value, rel=1e-12)
    assert sum(part.share.value for part in found.parts) == pytest.approx(found.loss.value, rel=1e-12)
    lost = found.step_seconds.value - found.ideal_step_seconds.value
    assert sum(part.step_seconds.value for part in found.parts) == pytest.approx(lost, rel=1e-12)
    (unexplained,) = (part.share for part in found.parts if part.name == "unexplained")
    assert unexplained.value == pytest.approx(found.loss.value - 0.2, abs=0.03) and unexplained.low > 0


@pytest.mark.slow
def test_nothing_is_named_where_nothing_is_planted() -> None:
    for seed in range(10):
        assert not only(study(seed)).is_significant


def test_input_that_one_device_pays_as_well_is_no_loss() -> None:
    found = only(study(0, input=0.002, input_at_1=0.002))
    (input_,) = (part for part in found.parts if part.name == "input")
    assert input_.share.value == pytest.approx(0.0, abs=0.02)


def test_both_orders_of_removal_count_and_what_differs_is_shown() -> None:
    """Input that hides behind the all-reduce costs nothing while that is there, and 2 ms without it."""
    variants = {FULL: [0.0125] * 2, RESIDENT: [0.0125] * 2, UNREDUCED: [0.012] * 2, NEITHER: [STEP] * 2}
    single = {FULL: [STEP], RESIDENT: [STEP]}
    contenders = [(SINGLE, single, {}), (TWO, variants, {"identity": {"hosts": ["n1", "n1"]}})]
    found = only(Analysis(make_round(np.random.default_rng(0), contenders, cycles=80)))
    parts = {part.name: part.share.value for part in found.parts}
    assert parts["input"] == pytest.approx(0.0, abs=0.02)
    assert parts["communication"] == pytest.approx(0.0005 / 0.0125, abs=0.02)
    assert parts["interaction"] == pytest.approx(0.002 / 0.0125, abs=0.03)


def test_a_study_without_turns_is_still_explained() -> None:
    records = [record.model_copy(update={"turns": None}) for record in study(0, all_reduce=0.0025).records]
    summaries = Analysis(records).summaries
    (curve,) = find_curves(summaries)
    (found,) = attribute(curve, summaries)
    assert found.biggest is not None and found.biggest.name == "communication"
