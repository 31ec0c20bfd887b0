"""Summaries of records whose content is known."""

import math
from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.summary import ACCURACY_TARGETS, summarize
from mnist_dist.benchmarks.measure.suite import Machine, Narrowing, load_suite, plan_cases
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, Telemetry
from mnist_dist.distributed.turns import FULL
from tests.benchmarks.simulation import CASE, WINDOW_SECONDS, correlated_noise, make_record, make_runs, throttled

TO_THE_END = CASE.model_copy(update={"measure_seconds": None})
INPUT = CASE.model_copy(update={"kind": "input"})
STEADY = [WINDOW_SECONDS] * 40
RAMP = (WINDOW_SECONDS * np.linspace(1, 1.5, 40)).tolist()


def evaluation(step: int, training: float, evaluating: float, accuracy: float) -> dict[str, Any]:
    return {
        "step": step,
        "training_seconds": training,
        "evaluation_seconds": evaluating,
        "split": "test",
        "accuracy": accuracy,
        "loss": 0.1,
    }


def trained(repeat: int, accuracies: list[float], **fields: Any) -> Record:
    """A run of 10 s of training and 1 s of evaluation for each of the accuracies."""
    evaluations = [evaluation(100 * n, 10.0 * n, 1.0 * n, accuracy) for n, accuracy in enumerate(accuracies, start=1)]
    measured = {"evaluations": evaluations, "test_accuracy": accuracies[-1], "test_loss": 0.1}
    return make_record(TO_THE_END, repeat, measurements=measured, **fields)


@pytest.mark.parametrize(
    ("suite", "changes", "variant", "longer"),
    [
        ("quick", {"measure_seconds": None}, FULL, " (more epochs: --set training.epochs=N)"),
        ("quick", {"measure_seconds": None}, "resident", ""),
        ("scaling", {}, FULL, " (a larger measure_seconds in a copy of the suite's file)"),
        ("scaling", {}, "resident", " (a larger measure_seconds in a copy of the suite's file)"),
        ("input", {"kind": "input", "measure_seconds": None}, FULL, ""),
        ("peers", {}, FULL, " (--seconds)"),
        ("perf", {}, FULL, " (--seconds)"),
        ("reproduce", {}, FULL, " (--time)"),
    ],
)
def test_who_measured_too_short_is_told_what_they_can_change(
    suite: str, changes: dict[str, Any], variant: str, longer: str
) -> None:
    windows = {"window_variants": [variant] * 5, "window_cycles": [0] * 5}
    case = CASE.model_copy(update=changes)
    record = make_record(case, window_seconds=[STEADY[:5]], suite=suite, measurements=windows)
    unstable = summarize([record], variant).unstable
    assert unstable is not None and unstable.endswith(f"measure for at least 1.2 s{longer}")


def test_what_a_training_came_to_is_not_what_its_variants_did() -> None:
    record = trained(0, [0.99])
    windows = {"window_variants": [FULL] * 20 + ["resident"] * 20, "window_cycles": [*range(20)] * 2}
    record = record.model_copy(update={"measurements": record.measured | windows})
    full, resident = (summarize([record], variant) for variant in (FULL, "resident"))
    assert full.seed_accuracies == [0.99] and full.test_accuracy and full.time_to_accuracy
    assert resident.seed_accuracies == [] and resident.test_accuracy is None and not resident.time_to_accuracy


def test_a_suite_takes_more_epochs_on_the_command_line() -> None:
    machine, settings = Machine(2, 0, 2), {"training.epochs": 4}
    planned = plan_cases(load_suite("quick"), machine, Narrowing(settings=settings))
    assert {each.case.settings["training.epochs"] for each in planned if each.case.kind == "train"} == {4}


def test_throughput_is_images_over_the_seconds_of_the_slowest_rank() -> None:
    slow = [1.25 * seconds for seconds in STEADY]
    summary = summarize([make_record(repeat=repeat, window_seconds=[STEADY, slow]) for repeat in range(3)])
    assert summary.images_per_second is not None
    assert summary.images_per_second.value == pytest.approx(10 * 100 / (1.25 * WINDOW_SECONDS))
    assert summary.images_per_second.repeats == 3
    assert summary.unstable is None and summary.unsettled_repeats == 0


def test_jitter_of_the_edges_does_not_count_as_time() -> None:
    """Two ranks meet at each edge 5 ms early or late in turn; what the job takes is the same."""
    jitter = 0.005 * (-1.0) ** np.arange(40)
    summary = summarize([make_record(window_seconds=np.stack([STEADY + jitter, STEADY - jitter]).tolist())])
    assert summary.images_per_second is not None
    assert summary.images_per_second.value == pytest.approx(1000 / WINDOW_SECONDS)
    assert summary.step_seconds["p50"] == pytest.approx((WINDOW_SECONDS + 0.005) / 10)


def test_warm_up_is_left_out() -> None:
    warm_up = [3 * WINDOW_SECONDS] * 6
    summary = summarize([make_record(window_seconds=[warm_up + STEADY])])
    assert summary.images_per_second is not None
    assert summary.images_per_second.value == pytest.approx(1000 / WINDOW_SECONDS)
    assert summary.step_seconds["p99"] == pytest.approx(WINDOW_SECONDS / 10)


def test_percentiles_of_step_times() -> None:
    rows = np.outer([1.0, 1.1, 1.05], np.linspace(0.118, 0.122, 41)[np.random.default_rng(0).permutation(41)])
    summary = summarize([make_record(repeat=repeat, window_seconds=rows.tolist()) for repeat in range(2)])
    assert summary.step_seconds["p50"] == pytest.approx(0.0132)
    assert summary.step_seconds["p95"] == pytest.approx(1.1 * np.percentile(np.linspace(0.0118, 0.0122, 41), 95))


def test_unstable_case_has_no_throughput() -> None:
    summary = summarize([make_record(repeat=n, window_seconds=[RAMP if n < 2 else STEADY]) for n in range(4)])
    assert summary.unstable is not None and summary.unstable.startswith("2 of 4 repeats did not settle: the step time")
    assert summary.images_per_second is None and summary.variance is None
    assert summary.step_seconds == {}
    assert summary.peak_memory_bytes == 1e9


def test_few_unsettled_repeats_count_from_the_end_of_their_warm_up_on() -> None:
    """Leaving out the slow one would flatter the case."""
    warm_up = [3 * WINDOW_SECONDS] * 4
    rows = [warm_up + (RAMP if n == 0 else STEADY) for n in range(4)]
    summary = summarize([make_record(repeat=n, window_seconds=[row]) for n, row in enumerate(rows)])
    assert summary.unstable is None and summary.unsettled_repeats == 1
    assert summary.images_per_second is not None
    assert summary.images_per_second.value == pytest.approx(4 * 40 * 1000 / (sum(RAMP) + 3 * sum(STEADY)))


@pytest.mark.slow
@pytest.mark.parametrize("stretch", [8, 25])
def test_interval_covers_where_clocks_are_throttled(stretch: int) -> None:
    """A fifth of the time, 1.3 times as long. A third would have a change of level so late as to seem unstable."""
    rng, studies, windows = np.random.default_rng(0), 100, 250
    truth = 1000 / WINDOW_SECONDS / (0.8 + 0.2 * 1.3) / float(np.exp((0.01**2 + 0.03**2) / 2))
    estimates = []
    for _ in range(studies):
        times = correlated_noise(rng, windows, 0.03, 0.6, rows=3) + 0.01 * rng.standard_normal((3, 1))
        times[:, :3] += [0.5, 0.3, 0.2]
        times += [math.log(1.3) * throttled(rng, windows, 0.2, stretch) for _ in range(3)]
        rows = WINDOW_SECONDS * np.exp(times)
        summary = summarize([make_record(repeat=n, window_seconds=[row.tolist()]) for n, row in enumerate(rows)])
        if summary.images_per_second:
            estimates.append(summary.images_per_second)
    assert len(estimates) >= 0.99 * studies
    assert np.mean([each.low <= truth <= each.high for each in estimates]) >= 0.92
    assert np.mean([each.value for each in estimates]) == pytest.approx(truth, rel=0.01)


def test_steady_windows_are_found_once_and_leave_the_warm_up_out() -> None:
    (run,) = summarize([make_record(window_seconds=[[0.3] * 5 + STEADY, [0.4] * 5 + STEADY])]).runs
    assert run.step_seconds == pytest.approx(np.full((2, 40), WINDOW_SECONDS / 10))
    assert run.steady_state is run.steady_state and run.series is run.series


@pytest.mark.parametrize("windows", [0, 1, 8])
def test_repeat_too_short_to_tell_makes_the_case_unstable(windows: int) -> None:
    runs = [make_record(repeat=n, window_seconds=[STEADY[:windows] if n == 0 else STEADY]) for n in range(4)]
    assert "too short" in (summarize(runs).unstable or "")


def test_thirteen_turns_that_were_a_little_short_are_enough() -> None:
    """Which is what a round has at least; other windows that are as short are joined."""
    turns = {"window_cycles": [*range(13)], "window_variants": [FULL] * 13}
    seconds = [[0.09, 0.1] * 6 + [0.09]]
    in_turns, apart = (make_record(window_seconds=seconds, measurements=marks) for marks in (turns, {}))
    assert summarize([in_turns]).unstable is None
    assert "too short: 6 of the 10 windows" in (summarize([apart]).unstable or "")


def test_order_of_records_does_not_matter() -> None:
    runs = make_runs(np.random.default_rng(0), 5)
    first, second = summarize(runs), summarize(runs[::-1])
    assert first.images_per_second == second.images_per_second
    assert first.variance == second.variance
    assert first.records == second.records


def test_records_of_several_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="one case"):
        summarize([make_record(), make_record(INPUT)])
    with pytest.raises(ValueError, match="one case"):
        summarize([])


def test_failures_are_kept_apart() -> None:
    failed = make_record(repeat=1, status="failed", reason="exit code 1")
    summary = summarize([failed, make_record()])
    assert summary.failures == (failed,) and len(summary.records) == 1
    alone = summarize([failed])
    assert alone.images_per_second is None and alone.unstable is None and alone.test_accuracy is None
    assert alone.time_to_accuracy == {}  # It was not to be trained to the end.


def test_starting_and_memory_are_those_of_the_worst_rank() -> None:
    measured = [
        {"first_step_seconds": [2.0, 3.0], "startup_seconds": [8.0, 7.0], "peak_memory_bytes": [5e8, 6e8]},
        {"first_step_seconds": [4.0, 1.0], "startup_seconds": [9.0, 7.0], "peak_memory_bytes": [9e8, 6e8]},
    ]
    runs = [make_record(repeat=n, window_seconds=[STEADY] * 2, measurements=each) for n, each in enumerate(measured)]
    summary = summarize(runs)
    assert summary.first_step_seconds is not None and summary.startup_seconds is not None
    assert summary.first_step_seconds.value == 3.5 and summary.startup_seconds.value == 8.5
    assert summary.peak_memory_bytes == 9e8
    assert summary.model_flops_per_image == 1_000_000


def test_time_to_accuracy_counts_every_run() -> None:
    """Of four runs one misses 0.99 and one ends with an error; times are training plus evaluations until then.

    The harness timed the failed process for 50 s, of which starting took as long as in the others: 5 s.
    """
    runs = [
        trained(0, [0.970, 0.985, 0.991]),
        trained(1, [0.981, 0.990, 0.992]),
        trained(2, [0.975, 0.985, 0.989]),
        trained(3, [0.9], status="failed", reason="loss is not a number", seconds=50.0),
    ]
    times = summarize(runs).time_to_accuracy
    assert tuple(times) == ACCURACY_TARGETS
    assert (times[0.98].reached, times[0.98].runs) == (3, 4)
    assert times[0.98].expected_seconds == pytest.approx((22 + 11 + 22 + 45) / 3)
    assert times[0.98].median_seconds == 22
    assert (times[0.99].reached, times[0.99].runs) == (2, 4)
    assert times[0.99].expected_seconds == pytest.approx((33 + 22 + 33 + 45) / 2)
    assert times[0.99].median_seconds == math.inf
    assert (times[0.993].reached, times[0.993].expected_seconds) == (0, math.inf)
    assert times[0.99].median_tracing_seconds == 2.0


def test_all_failed_trainings_reach_nothing() -> None:
    times = summarize([trained(0, [0.9], status="timeout", reason="too slow")]).time_to_accuracy
    assert times[0.98].reached == 0 and times[0.98].runs == 1 and times[0.98].expected_seconds == math.inf


def test_timed_runs_have_no_time_to_accuracy() -> None:
    assert summarize([make_record()]).time_to_accuracy == {}


def test_accuracy_is_over_seeds() -> None:
    runs = [trained(0, [0.990]), trained(1, [0.994]), trained(2, [0.991], seed=0)]
    accuracy = summarize(runs).test_accuracy
    assert accuracy is not None
    assert accuracy.repeats == 2
    assert accuracy.value == pytest.approx((0.9905 + 0.994) / 2)


def test_images_per_joule_by_the_power_while_training() -> None:
    telemetry = Telemetry(source="rapl", seconds=20, energy_joules=800, power_watts=50, gpu_utilisation_percent=None)
    summary = summarize([make_record(repeat=n, telemetry=telemetry) for n in range(2)])
    assert summary.images_per_joule == pytest.approx(1000 / WINDOW_SECONDS / 50)
    assert summarize([make_record()]).images_per_joule is None


def test_input_has_a_throughput_and_nothing_of_a_training() -> None:
    summary = summarize([make_record(INPUT, repeat) for repeat in range(3)])
    assert summary.images_per_second is not None
    assert summary.images_per_second.value == pytest.approx(1000 / WINDOW_SECONDS)
    assert summary.first_step_seconds is None and summary.test_accuracy is None and summary.time_to_accuracy == {}
    assert summary.model_flops_per_image is None and summary.peak_memory_bytes is None


@pytest.mark.parametrize(
    ("kind", "measured"),
    [
        ("matmul", {"size": 64, "dtype": "float32", "flops_per_second": [1e9, 2e9]}),
        ("collectives", {"messages": [{"bytes": 4, "calls": 2, "seconds": [[0.1, 0.2]]}]}),
    ],
)
def test_other_kinds_have_no_throughput_in_images(kind: Any, measured: dict[str, Any]) -> None:
    case = Case(kind=kind, global_batch_size=100)
    summary = summarize([make_record(case, repeat, measurements=measured) for repeat in range(2)])
    assert len(summary.records) == 2
    assert summary.images_per_second is None and summary.unstable is None


@pytest.mark.parametrize("record", [make_record(), make_record(INPUT), trained(0, [0.9]), make_record(seed=3)])
def test_simulated_records_are_ones_that_could_be_read(record: Record) -> None:
    record.check()
