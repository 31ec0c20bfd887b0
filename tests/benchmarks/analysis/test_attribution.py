"""Planted causes of lost efficiency are found again, each with its size; where nothing is planted, nothing is found."""

from dataclasses import replace

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.attribution import Attribution, attribute
from mnist_dist.benchmarks.analysis.scaling import find_curves
from mnist_dist.benchmarks.analysis.summary import RunSummary, summarize
from mnist_dist.benchmarks.records.case import Case, StrategyName
from mnist_dist.benchmarks.report.explanation import explain
from tests.benchmarks.factory import make_study
from tests.benchmarks.planted import (
    CAUSES,
    MILLISECONDS,
    QUIET,
    Truth,
    ablation,
    find,
    plant,
    point_cases,
    train,
)


def milliseconds(attribution: Attribution) -> dict[str, float]:
    return {part.name: 1e3 * part.step_seconds.value for part in attribution.parts}


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("cause", CAUSES)
def test_planted_cause_is_the_biggest_and_has_its_size(cause: str, devices: int) -> None:
    found = find(plant(point_cases(devices=devices), CAUSES[cause]))
    assert found.is_significant
    assert found.biggest is not None and found.biggest.name == cause
    assert milliseconds(found)[cause] == pytest.approx(MILLISECONDS, abs=0.45)
    assert found.loss.value == pytest.approx(1 - 10 / (10 + MILLISECONDS), abs=0.04)
    for name, lost in milliseconds(found).items():
        assert name == cause or abs(lost) < 0.6, name


@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES)
def test_planted_cause_in_much_noise(cause: str) -> None:
    """As on a machine with other work on it: windows vary by 4 %, one in twenty takes half as long again."""
    rough = replace(CAUSES[cause], run_deviation=0.02, window_deviation=0.04, outliers=0.05)
    twice = replace(
        rough,
        input_at_n=2 * rough.input_at_n,
        all_reduce=2 * rough.all_reduce,
        contention=2 * rough.contention,
        slow_ranks={rank: 2 * seconds for rank, seconds in rough.slow_ranks.items()},
    )
    found = [find(plant(point_cases(), twice, seed)).biggest for seed in range(6)]
    assert sum(biggest is not None and biggest.name == cause for biggest in found) >= 5


@pytest.mark.slow
def test_without_a_loss_nothing_is_significant() -> None:
    """Of one process: several ranks, each with the same noise of its own, do lose by waiting for one another."""
    found = [find(plant(point_cases("mirrored"), Truth(), seed)) for seed in range(20)]
    assert sum(each.is_significant for each in found) <= 3
    quiet = next(each for each in found if not each.is_significant)
    assert explain(quiet).startswith("mirrored on 2 devices, weak scaling, loses nothing significant: ")
    assert "try" not in explain(quiet)


@pytest.mark.slow
def test_equal_ranks_lose_by_waiting_and_none_is_named() -> None:
    """Half as long again in 2 % of each one's windows, and the expected maximum of two normal values of 1.5 %."""
    found = [find(plant(point_cases(), Truth(), seed)) for seed in range(20)]
    assert not any(each.slowest for each in found)
    alone, both = 1 + 0.5 * 0.02, (1 + 0.5 * (1 - 0.98**2)) * (1 + 0.564 * 0.015)
    assert np.mean([each.loss.value for each in found]) == pytest.approx(1 - alone / both, abs=0.005)


def test_a_loss_that_noise_hides_is_not_called_absent() -> None:
    found = find(plant(point_cases(), Truth(all_reduce=1e-3, run_deviation=0.3), seed=1, repeats=2))
    assert found.loss.low < 0 < found.loss.value < found.loss.high < 1
    assert "is within the noise; more repeats would tell" in explain(found)


@pytest.mark.slow
def test_intervals_hold_the_planted_size() -> None:
    truth = Truth(all_reduce=1e-3 * MILLISECONDS, outliers=0.0)
    intervals = []
    for seed in range(40):
        (part,) = (each for each in find(plant(point_cases(), truth, seed)).parts if each.name == "communication")
        intervals.append((1e3 * part.step_seconds.low, 1e3 * part.step_seconds.high))
    low, high = np.transpose(intervals)
    assert np.mean((low <= MILLISECONDS) & (high >= MILLISECONDS)) >= 0.85
    assert np.median(high - low) < 1.0


@pytest.mark.parametrize("strategy, devices", [("horovod", 2), ("horovod", 8), ("mirrored", 2)])
def test_parts_add_up(strategy: StrategyName, devices: int) -> None:
    truth = Truth(input_at_n=1e-3, all_reduce=2e-3, contention=1e-3, slow_ranks={0: 1e-3})
    found = find(plant(point_cases(strategy, devices), truth))
    lost = found.step_seconds.value - found.ideal_step_seconds.value
    assert sum(part.step_seconds.value for part in found.parts) == pytest.approx(lost, rel=1e-12)
    assert sum(part.share.value for part in found.parts) == pytest.approx(found.loss.value, rel=1e-12)
    assert found.loss.value == pytest.approx(lost / found.step_seconds.value, rel=1e-12)


def test_several_causes_at_once() -> None:
    truth = Truth(input_at_n=1e-3, all_reduce=2e-3, contention=0.5e-3, slow_ranks={1: 1.5e-3}, **QUIET)
    found = find(plant(point_cases(), truth))
    expected = {"input": 1.0, "communication": 2.0, "stragglers": 1.5, "contention": 0.5, "unexplained": 0.0}
    assert milliseconds(found) == pytest.approx(expected, abs=1e-6)
    assert "13 points to exposed communication, 10 points to stragglers, 7 points to input, 3 points to" in explain(
        found
    )


def test_input_that_one_device_pays_too_is_no_loss() -> None:
    found = find(plant(point_cases(), Truth(input_at_1=2e-3, input_at_n=2e-3, **QUIET)))
    assert milliseconds(found)["input"] == pytest.approx(0.0, abs=1e-6)
    assert not found.is_significant


@pytest.mark.parametrize(("devices", "share", "factor"), [(8, 0.03, 1.5), (32, 0.01, 2.0)])
def test_ranks_that_are_slow_by_chance_are_stragglers(devices: int, share: float, factor: float) -> None:
    """Each window waits for the slowest of the ranks, which is seldom the same; medians over windows see none of it."""
    truth = replace(Truth(**QUIET), outliers=share, outlier_factor=factor)
    found = find(plant(point_cases(devices=devices), truth, repeats=6))
    some = 1 - (1 - share) ** devices
    loss = 1 - (1 + (factor - 1) * share) / (1 + (factor - 1) * some)
    assert found.loss.value == pytest.approx(loss, abs=0.02)
    assert found.biggest is not None and found.biggest.name == "stragglers"
    assert found.biggest.share.value == pytest.approx(loss, abs=0.03)
    assert found.slowest is None


def test_slow_rank_is_named_and_is_no_contention() -> None:
    """Of two ranks, the mean would put half of the delay down to contention."""
    found = find(plant(point_cases(), CAUSES["stragglers"], hosts=["n1", "n2"]))
    assert found.slowest is not None
    assert (found.slowest.name, found.slowest.host, found.slowest.ranks) == ("rank 1 on host n2", "n2", (1,))
    assert found.slowest.excess == pytest.approx(0.15, abs=0.03)
    assert abs(milliseconds(found)["contention"]) < 0.4
    assert (
        f"rank 1 on host n2 is the slowest in {found.slowest.windows} of {found.slowest.all_windows} windows, by 1"
        in (explain(found))
    )


def test_slow_input_of_one_rank_is_named() -> None:
    """It shows in the run with real input and no all-reduce only."""
    full, *others = point_cases()
    without = full.model_copy(update={"all_reduce": False})
    summaries = plant([full, *others, without], Truth(input_at_n=2e-3))
    slow_input = plant([without], Truth(slow_ranks={0: 2e-3}))
    found = find([each for each in summaries if each.case != without] + slow_input)
    assert found.biggest is not None and found.biggest.name == "input"
    assert found.slowest is not None and found.slowest.with_real_input and found.slowest.ranks == (0,)
    assert "with real input, by" in explain(found)
    assert abs(milliseconds(found)["stragglers"]) < 0.3


def test_input_that_hides_behind_communication() -> None:
    full, *others = point_cases()
    without = full.model_copy(update={"all_reduce": False})
    summaries = plant([full, *others], Truth(all_reduce=3e-3, **QUIET))
    found = find(summaries + plant([without], Truth(input_at_n=2e-3, **QUIET)))
    (interaction,) = (part for part in found.parts if part.name == "interaction")
    assert interaction.share.value == pytest.approx(2 / 13)
    assert "interaction" not in {part.name for part in find(summaries).parts}


def test_the_whole_waits_for_slow_single_steps() -> None:
    """Windows of 20 steps do not show which rank was slow in a step; the all-reduce by itself is faster than that."""
    messages = [{"bytes": size, "calls": 10, "seconds": [[2e-3] * 5] * 8} for size in (10**5, 10**7)]
    (collectives,) = plant([train(devices=8, kind="collectives")], Truth(), repeats=1)
    record = collectives.records[0].model_copy(update={"measurements": {"messages": messages}})
    summaries = plant(point_cases(devices=8), Truth(step_deviation=0.1, all_reduce=0.2e-3))
    summaries.append(replace(collectives, runs=(RunSummary(record),)))
    found = find(summaries)
    assert found.biggest is not None and found.biggest.name == "stragglers"
    assert milliseconds(found)["communication"] == pytest.approx(0.2)


class TestMissingRuns:
    full, synthetic, free, single, synthetic_single = point_cases()
    truth = Truth(input_at_n=1e-3, all_reduce=2e-3, contention=0.5e-3, **QUIET)

    @pytest.mark.parametrize(
        "missing, told",
        [
            (synthetic, {"stragglers", "contention"}),
            (free, {"input"}),
            (synthetic_single, {"communication", "stragglers"}),
        ],
    )
    def test_the_others_are_still_told_apart(self, missing: Case, told: set[str]) -> None:
        complete = milliseconds(find(plant(point_cases(), self.truth)))
        found = find(plant([case for case in point_cases() if case != missing], self.truth))
        parts = milliseconds(found)
        assert set(parts) == told | {"unexplained"}
        for name in told:
            assert parts[name] == pytest.approx(complete[name])
        assert sum(parts.values()) == pytest.approx(3.5)
        assert found.missing
        assert all(reason in explain(found) for reason in found.missing)

    def test_nothing_but_the_full_runs(self) -> None:
        found = find(plant([self.full, self.single], self.truth))
        assert milliseconds(found) == pytest.approx({"unexplained": 3.5})
        assert found.biggest is None and found.slowest is None
        assert explain(found).startswith("horovod on 2 devices, weak scaling, loses 26 % ")

    def test_an_unstable_run_is_as_good_as_missing(self) -> None:
        records = make_study([self.free], 3, unstable=[self.free])
        summaries = plant([case for case in point_cases() if case != self.free], self.truth)
        assert summarize(records).unstable
        found = find([*summaries, summarize(records)])
        assert set(milliseconds(found)) == {"input", "unexplained"}

    def test_replicas_in_one_process_show_no_stragglers(self) -> None:
        found = find(plant(point_cases("mirrored"), self.truth))
        assert set(milliseconds(found)) == {"input", "communication", "contention", "unexplained"}
        assert "stragglers count as contention, as the devices of mirrored are one process" in explain(found)

    def test_one_device_loses_nothing_and_is_no_point(self) -> None:
        summaries = plant([self.single, self.synthetic_single], self.truth)
        assert find_curves(summaries) == []
        started_as_several = train("horovod", 1)
        summaries = plant([started_as_several, *point_cases()], self.truth)
        (curve,) = find_curves(summaries)
        assert [each.case.devices for each in attribute(curve, summaries)] == [2]

    def test_one_repeat_has_intervals_from_its_windows(self) -> None:
        found = find(plant(point_cases(), CAUSES["communication"], repeats=1))
        (part,) = (each for each in found.parts if each.name == "communication")
        assert part.step_seconds.repeats == 1
        assert part.step_seconds.low < part.step_seconds.value < part.step_seconds.high
        assert found.biggest == part
        assert ", within single runs) of the ideal throughput" in explain(found)


class TestStrongScaling:
    truth = Truth(fixed_seconds=2e-3, all_reduce=1e-3, **QUIET)
    whole = train("single", 1)
    half = train("single", 1, images=64)
    shared = train("horovod", 2, images=64)
    cases = (whole, ablation(whole), shared, ablation(shared), ablation(shared, all_reduce=False))

    def test_small_batches_are_a_cause_of_their_own(self) -> None:
        """Two devices take 2 + 4 + 1 ms for what one does in 2 + 8 ms, so the ideal is 5 ms."""
        found = find(plant([*self.cases, self.half, ablation(self.half)], self.truth), "strong")
        assert found.ideal_step_seconds.value == pytest.approx(5e-3)
        expected = {"small batches": 1.0, "input": 0.0, "communication": 1.0, "stragglers": 0.0, "contention": 0.0}
        assert milliseconds(found) == pytest.approx(expected | {"unexplained": 0.0}, abs=1e-6)
        assert found.loss.value == pytest.approx(2 / 7)
        assert found.missing == ("interaction counts as communication, as no run had real input without an all-reduce",)

    def test_without_the_small_batch_on_one_device_it_is_in_the_rest(self) -> None:
        found = find(plant(self.cases, self.truth), "strong")
        expected = {"input": 0.0, "communication": 1.0, "stragglers": 0.0, "contention": 1.0, "unexplained": 0.0}
        assert milliseconds(found) == pytest.approx(expected, abs=1e-6)
        assert "small batches count as contention, as one device was not measured with 64 images" in explain(found)

    def test_the_loss_is_that_of_the_efficiency(self) -> None:
        summaries = plant(self.cases, self.truth)
        (curve,) = find_curves(summaries)
        assert find(summaries, "strong").loss.value == pytest.approx(1 - curve.points[-1].efficiency.value)
