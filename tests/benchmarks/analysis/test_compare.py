"""Comparisons of simulated studies: what is planted is found, what is not is not, and unlike is not compared."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis.compare import Comparison, Verdict, compare
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.comparison import MOST_RUNS_TOLD, render_comparison, render_comparison_markdown
from mnist_dist.benchmarks.report.table import escape_markdown
from mnist_dist.benchmarks.statistics.stats import Estimate
from tests.benchmarks.adversary_compare import Machine, in_turns
from tests.benchmarks.simulation import CASE, WINDOW_SECONDS, make_record, make_runs

LATER = 1000  # Minutes: the studies are not interleaved.
CASES = [CASE.model_copy(update={"global_batch_size": 100 * (n + 1)}) for n in range(6)]
QUIET: dict[str, Any] = {"between": 0.003, "within": 0.01, "outlier_share": 0.0}


def studies(
    seed: int, slower: float = 1.0, cases: Sequence[Case] = (CASE,), repeats: int = 5, **noise: Any
) -> tuple[list[Record], list[Record]]:
    """Simulates two studies; in the second everything takes `slower` times as long."""
    rng = np.random.default_rng(seed)
    base = [run for case in cases for run in make_runs(rng, repeats, case, **noise)]
    new = [run for case in cases for run in make_runs(rng, repeats, case, slower=slower, first_minute=LATER, **noise)]
    return base, new


def outcomes(comparison: Comparison) -> list[str]:
    return [verdict.outcome for verdict in comparison.verdicts]


def only_verdict(base: Sequence[Record], new: Sequence[Record], **options: Any) -> Verdict:
    (verdict,) = compare(base, new, **options).verdicts
    return verdict


@pytest.mark.slow
def test_planted_slowdown_of_fifteen_percent_is_found_although_days_differ() -> None:
    """Ten percent are found in turns: see test_verdicts."""
    found = [compare(*studies(seed, slower=1.15)) for seed in range(100)]
    assert sum(comparison.exit_code == 1 for comparison in found) >= 95
    values = [verdict.ratio.value for comparison in found for verdict in comparison.verdicts if verdict.ratio]
    assert np.median(values) == pytest.approx(1 / 1.15, abs=0.01)


@pytest.mark.slow
def test_one_slow_case_of_six_is_found_in_spite_of_the_correction() -> None:
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = [run for case in CASES for run in make_runs(rng, 5, case, between=0.015)]
        new = [
            run
            for case in CASES
            for run in make_runs(
                rng, 5, case, between=0.015, slower=1.2 if case == CASES[3] else 1.0, first_minute=LATER
            )
        ]
        slower = [verdict.case for verdict in compare(base, new).verdicts if verdict.outcome == "slower"]
        found += slower == [CASES[3]]
    assert found >= 38


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.02, 0.10])
def test_equal_studies_are_seldom_called_slower(between: float) -> None:
    """With runs that differ by 10 % even large differences come by chance: the interval must hold, not only d."""
    found = [compare(*studies(seed, between=between)) for seed in range(100)]
    assert sum("slower" in outcomes(comparison) for comparison in found) <= 5


@pytest.mark.thorough
@pytest.mark.slow
def test_families_of_cases_are_seldom_called_slower() -> None:
    found = [compare(*studies(seed, cases=CASES, repeats=4, between=0.10)) for seed in range(100)]
    assert sum("slower" in outcomes(comparison) for comparison in found) <= 5
    ratios = [[each.estimate.at_level(0.9) for each in comparison.verdicts if each.estimate] for comparison in found]
    uncorrected = [any(ratio.high < 1 and ratio.value < 1 / 1.05 for ratio in family) for family in ratios]
    assert sum(uncorrected) > 5  # What Holm's correction and the days are for.


def test_speed_up_is_faster() -> None:
    comparison = compare(*studies(0, slower=1 / 1.2))
    assert outcomes(comparison) == ["faster"]
    assert comparison.exit_code == 0


def test_equal_quiet_studies_are_alike_and_the_same_only_in_turns() -> None:
    comparison = compare(*studies(0, **QUIET))
    assert outcomes(comparison) == ["alike"] and comparison.exit_code == 0
    text = " ".join(render_comparison(comparison).split())
    assert "Apart: not measured in turns" in text
    assert "Intervals of runs of 5 s without turns may miss" in text and "for 60 s a run" in text
    comparison = compare(*in_turns(np.random.default_rng(0), Machine(), [1.0]))
    assert outcomes(comparison) == ["same"] and comparison.exit_code == 0
    assert "without turns" not in render_comparison(comparison) and "Apart" not in render_comparison(comparison)


@pytest.mark.slow
def test_ten_equal_cases_end_with_0_although_windows_are_disturbed() -> None:
    """Here a fiftieth of the windows takes 1.2 to 2.2 times as long."""
    cases = [CASE.model_copy(update={"measure_seconds": None, "global_batch_size": 100 + n}) for n in range(10)]
    found = [compare(*studies(seed, cases=cases, between=0.01)).exit_code for seed in range(20)]
    assert found.count(0) >= 18


def test_real_but_small_slowdown_is_alike() -> None:
    verdict = only_verdict(*studies(1, slower=1.03, **QUIET))
    assert verdict.ratio is not None and verdict.ratio.high < 1
    assert verdict.outcome == "alike"


def test_what_the_day_may_explain_is_not_slower() -> None:
    base, new = studies(1, slower=1.07, **QUIET)
    verdict = only_verdict(base, new)
    assert verdict.outcome == "undecided" and "day-to-day variation" in verdict.remark and verdict.more_runs is None
    assert compare(*in_turns(np.random.default_rng(0), Machine(), [1.08])).exit_code == 1


def test_stalls_are_not_winsorized_away() -> None:
    """A twelfth of the windows takes twice as long, which is 8 % of the time."""
    base, _ = studies(0, **QUIET)
    stalled = [(WINDOW_SECONDS * (1 + (np.arange(48) % 12 == 5))).tolist()]
    verdict = only_verdict(base, [make_record(repeat=n, window_seconds=stalled, minute=LATER + n) for n in range(5)])
    assert verdict.outcome == "undecided" and "slowest windows in full, the ratio is 0.9" in verdict.remark


def test_smallest_effect_decides_what_matters() -> None:
    base, new = studies(1, slower=1.12, **QUIET)
    assert only_verdict(base, new).outcome == "slower"
    assert only_verdict(base, new, smallest_effect=0.2).outcome == "alike"


def test_noisy_studies_are_undecided_and_say_how_many_runs_they_need() -> None:
    base, new = studies(0, between=0.08)
    comparison = compare(base, new)
    assert outcomes(comparison) == ["undecided"] and comparison.exit_code == 3
    more_runs = comparison.verdicts[0].more_runs
    assert more_runs is not None and more_runs > 2
    told = f"about {more_runs}" if more_runs <= MOST_RUNS_TOLD else f"more than {MOST_RUNS_TOLD}"
    assert f"{told} further runs of each needed" in render_comparison_markdown(comparison)


@pytest.mark.thorough
@pytest.mark.slow
def test_runs_said_to_be_needed_suffice_in_most_studies() -> None:
    decided = []
    for seed in range(30):
        base, new = studies(seed, between=0.04)
        more_runs = only_verdict(base, new).more_runs
        if more_runs is not None and more_runs <= 40:
            outcome = only_verdict(*studies(1000 + seed, between=0.04, repeats=5 + more_runs)).outcome
            decided.append(outcome != "undecided")
    assert len(decided) >= 10 and np.mean(decided) > 0.5


@pytest.mark.parametrize(
    ("base_failures", "new_failures", "exit_code"),
    [((), (2,), 1), ((1, 2), (2,), 0), ((2,), (1, 2), 1), ((2,), (2,), 0)],
)
def test_new_failures_are_worse(base_failures: tuple[int, ...], new_failures: tuple[int, ...], exit_code: int) -> None:
    """Runs that failed are left out of the rate."""
    base, new = studies(0, **QUIET)
    for side, failures in ((base, base_failures), (new, new_failures)):
        for repeat in failures:
            side[repeat] = make_record(repeat=repeat, status="failed", reason="exit code 1")
    comparison = compare(base, new)
    (verdict,) = comparison.verdicts
    assert (len(verdict.base), len(verdict.new)) == (5 - len(base_failures), 5 - len(new_failures))
    assert f"failed runs: {len(base_failures)}, {len(new_failures)}" in verdict.remark
    assert comparison.exit_code == exit_code and (verdict.outcome == "failing") == (exit_code == 1)


def test_a_failure_that_resuming_made_good_is_none() -> None:
    base, new = studies(0, **QUIET)
    assert compare(base, [*new, make_record(repeat=2, status="failed", reason="exit code 1")]).exit_code == 0


def test_order_of_records_does_not_matter() -> None:
    base, new = studies(0, cases=CASES[:3])
    assert compare(base, new) == compare(base[::-1], new[::-1])
    assert compare(base, new) == compare(base, new)


def test_one_run_of_each_is_never_enough() -> None:
    comparison = compare(*studies(0, slower=2.0, repeats=1))
    assert outcomes(comparison) == ["undecided"] and comparison.exit_code == 3
    text = " ".join(render_comparison(comparison).split())
    assert text.startswith("Undecided: ") and "one run of each: run-to-run variation is unknown" in text
    assert "To decide cases with one run of each, measure both with --repeats 3 or more, or " in text
    assert "in turns: mnist-dist bench compare --interleave." in text and "above 1 where new is faster" in text
    assert "To decide" not in render_comparison(compare(*studies(0, **QUIET)))
    assert "| 0.5" in render_comparison_markdown(comparison)


def test_one_new_run_is_judged_by_the_spread_of_the_base() -> None:
    base, new = studies(0, slower=1.3, **QUIET)
    verdict = only_verdict(base, new[:1])
    assert verdict.outcome == "slower" and "the other side's spread is used for both" in verdict.remark
    base, new = studies(0, slower=1.1, between=0.15)
    assert only_verdict(base, new[:1]).outcome == "undecided"


def changed(part: str, **values: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `make_runs` that change a part of the identity."""
    return {"identity": {part: values}}


@pytest.mark.parametrize(
    ("change", "subject", "reason"),
    [
        (changed("hardware", cpu_model="Other CPU"), "hardware", "processor: base Example CPU, new Other CPU"),
        (changed("hardware", cores=4), "hardware", "cores: base 2, new 4"),
        (
            changed("hardware", gpus=[{"name": "H200", "memory_bytes": 141 * 2**30}]),
            "hardware",
            'GPUs: base none, new ["H200, 141 GiB"]',
        ),
        (changed("hardware", memory_bytes=16 * 2**30), "hardware", "memory: from 8.0 to 16.0 GiB"),
        (changed("hardware", gpu_driver="550"), "software", "GPU driver: base none, new 550"),
        (changed("software", tensorflow="2.22.0"), "software", "tensorflow: base 2.21.0, new 2.22.0"),
        (changed("software", cuda="12.9"), "software", "cuda: base none, new 12.9"),
        (changed("config", training={"epochs": 5}), "config", "training.epochs: base 3, new 5"),
        (changed("environment", OMP_NUM_THREADS="1"), "config", "OMP_NUM_THREADS: base none, new 1"),
        ({"identity": {"launcher": "srun"}}, "config", "launcher: base mnist-dist, new srun"),
    ],
)
def test_different_runs_are_not_compared_unless_allowed(change: dict[str, Any], subject: Any, reason: str) -> None:
    rng = np.random.default_rng(0)
    base, new = make_runs(rng, 3, between=0.005), make_runs(rng, 3, between=0.005, first_minute=LATER, **change)
    comparison = compare(base, new)
    assert comparison.verdicts == () and comparison.exit_code == 3
    assert comparison.incomparable[0].reason == f"{subject} differs: {reason}"
    assert escape_markdown(reason) in render_comparison_markdown(comparison)
    assert len(compare(base, new, allow={subject}).verdicts) == 1
    others: set[Any] = {"hardware", "software", "config"} - {subject}
    assert compare(base, new, allow=others).verdicts == ()


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {"git": {"commit": "fedcba", "dirty": True}}},
        {"identity": {"hosts": ["n2"]}},
        changed("software", mnist_dist="1.1.0"),
        changed("software", horovod="0.29"),  # It does not run in this case.
        changed("hardware", memory_bytes=8 * 2**30 + 2**20),
        changed("config", seed=7, added={"by": "a later commit"}),
        changed("environment", CUDA_VISIBLE_DEVICES="3"),
    ],
)
def test_what_may_always_differ(change: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    base, new = make_runs(rng, 3, between=0.005), make_runs(rng, 3, between=0.005, first_minute=LATER, **change)
    assert len(compare(base, new).verdicts) == 1


def test_horovod_matters_where_it_runs() -> None:
    case = CASE.model_copy(update={"strategy": "horovod"})
    base, new = make_record(case), make_record(case, **changed("software", horovod="0.29"))
    assert compare([base], [new]).incomparable[0].reason == "software differs: horovod: base 0.28.1, new 0.29"


def test_mixed_hardware_within_a_study_is_not_compared() -> None:
    base = [make_record(repeat=0), make_record(repeat=1, **changed("hardware", cores=4))]
    assert compare(base, [make_record()]).incomparable[0].reason == "hardware differs: cores: base 2 and 4, new 2"


def test_missing_cases_are_counted_and_not_passed() -> None:
    base, new = studies(0, cases=CASES[:3], **QUIET)
    comparison = compare(base, new[:5])
    assert [records[0].case for records in comparison.only_in_base] == CASES[2:0:-1] and comparison.exit_code == 3
    text = render_comparison_markdown(comparison)
    assert text.startswith("**Undecided: of 3 cases 1 alike, 2 missing.**")
    only = "single, 1 × 1 core, 200 images per device, trained 5 s"  # noqa: RUF001
    assert "Missing, only in the base:\n\n- " in text and f"\n- {only}\n" in text
    added = compare(base[:5], new)
    assert [records[0].case for records in added.only_in_new] == CASES[2:0:-1] and added.exit_code == 0


@pytest.mark.parametrize(("slower", "said"), [(1.04, "slower"), (1 / 1.04, "faster"), (None, "")])
def test_what_all_cases_share_is_put_down_to_the_machine(slower: float | None, said: str) -> None:
    base, new = studies(0, cases=CASES[:4], slower=slower or 1.06, **QUIET)
    if slower is None:  # One became faster.
        base, new = base[:-5], new[:-5]
        more = studies(1, cases=CASES[3:4], slower=0.95, **QUIET)
        base, new = base + more[0], new + more[1]
    text = " ".join(render_comparison(compare(base, new)).split())
    assert (f"New looks {said} in all 4 cases (median" in text) == bool(said)
    assert ("as on a day when the machine itself is" in text) == bool(said)


def test_cases_that_are_skipped_now_are_missing() -> None:
    base, new = studies(0, **QUIET)
    skipped = make_record(CASES[1], status="skipped", reason="no such GPU")
    comparison = compare(base, [*new, skipped])
    assert comparison.only_in_new == () and comparison.exit_code == 0
    measured, _ = studies(1, cases=CASES[1:2], **QUIET)
    assert compare([*base, *measured], [*new, skipped]).exit_code == 3
    assert compare([*base, skipped], [*new, skipped]).exit_code == 0


def test_what_only_explains_is_listed_apart_and_not_judged() -> None:
    """An ablation that is slower, a matrix product without a counterpart, and a training that is alike."""
    ablation = CASE.model_copy(update={"synthetic_input": True})
    base, new = studies(0, **QUIET)
    slow = studies(0, cases=[ablation], slower=1.3, **QUIET)
    comparison = compare([*base, *slow[0], *of_kind("matmul", matmul, 1.0, 0)], [*new, *slow[1]])
    assert outcomes(comparison) == ["alike"] and comparison.exit_code == 0
    assert [verdict.outcome for verdict in comparison.unjudged] == ["slower"]
    text = render_comparison(comparison)
    assert (
        text.startswith("Nothing is worse, unless day-to-day variation hides it: of 1 case 1 alike.\n")
        and "Not in the verdict without --judge all" in text
    )
    judged = compare([*base, *slow[0], *of_kind("matmul", matmul, 1.0, 0)], [*new, *slow[1]], judge_all=True)
    assert outcomes(judged) == ["slower", "alike"] and len(judged.only_in_base) == 1 and judged.exit_code == 1


def test_nothing_at_all() -> None:
    comparison = compare([], [])
    assert comparison.exit_code == 3 and "there was nothing to compare" in render_comparison_markdown(comparison)


def with_setting(value: str, rng: np.random.Generator, first_minute: int, **settings: Any) -> list[Record]:
    case = CASE.model_copy(update={"settings": {"runtime.xla": value, **settings}})
    return make_runs(rng, 3, case, first_minute=first_minute, **QUIET)


def test_settings_can_be_the_subject() -> None:
    rng = np.random.default_rng(0)
    base, new = with_setting("off", rng, 0), with_setting("on", rng, LATER)
    assert compare(base, new).verdicts == ()
    verdict = only_verdict(base, new, allow={"config"})
    assert verdict.outcome == "alike" and verdict.remark == "runtime.xla: off became on"


def test_other_settings_still_tell_cases_apart() -> None:
    rng = np.random.default_rng(0)
    precisions = ("float32", "mixed_bfloat16")
    base, new = (
        [run for name in precisions for run in with_setting(xla, rng, minute, **{"runtime.precision": name})]
        for xla, minute in (("off", 0), ("on", LATER))
    )
    comparison = compare(base, new, allow={"config"})
    assert sorted(verdict.case.settings["runtime.precision"] for verdict in comparison.verdicts) == list(precisions)
    assert {verdict.remark for verdict in comparison.verdicts} == {"runtime.xla: off became on"}


def test_unstable_cases_are_undecided() -> None:
    base, _ = studies(0, between=0.01)
    ramp = [(WINDOW_SECONDS * np.linspace(1, 1.5, 40)).tolist()]
    new = [make_record(repeat=repeat, window_seconds=ramp, minute=LATER + repeat) for repeat in range(5)]
    verdict = only_verdict(base, new)
    assert verdict.outcome == "undecided" and verdict.ratio is None
    assert verdict.remark.startswith("new: unstable: 5 of 5 repeats did not settle")


def test_case_that_fails_now_is_worse_and_says_why() -> None:
    base, _ = studies(0, between=0.01)
    comparison = compare(base, [make_record(status="out_of_memory", reason="the | kernel ended it")])
    assert outcomes(comparison) == ["failing"] and comparison.exit_code == 1
    reason = escape_markdown("no run of new ended well: out_of_memory: the | kernel ended it")
    assert reason in render_comparison_markdown(comparison)


def of_kind(kind: str, measured: Callable[[float], dict[str, Any]], factor: float, minute: int) -> list[Record]:
    case = Case.model_validate({"kind": kind, "global_batch_size": 100})
    noise = np.exp(0.005 * np.random.default_rng(minute).standard_normal(4)) * factor
    return [make_record(case, n, measurements=measured(x), minute=minute + n) for n, x in enumerate(noise)]


def matmul(slower: float) -> dict[str, Any]:
    return {"size": 64, "dtype": "float32", "flops_per_second": [1e12 / slower, 1.01e12 / slower]}


def collectives(slower: float) -> dict[str, Any]:
    """Only the larger message becomes slower, by the square, so that the geometric mean does by `slower`."""
    seconds = {1024: 1e-4, 2**20: 1e-2 * slower**2}
    return {"messages": [{"bytes": size, "calls": 4, "seconds": [[4 * s] * 3]} for size, s in seconds.items()]}


@pytest.mark.parametrize(("kind", "measured"), [("matmul", matmul), ("collectives", collectives)])
def test_other_kinds_are_compared_by_their_own_rates(kind: str, measured: Callable[[float], dict[str, Any]]) -> None:
    base = of_kind(kind, measured, 1.0, 0)
    verdict = only_verdict(base, of_kind(kind, measured, 1.2, LATER), judge_all=True)
    assert verdict.outcome == "slower"
    assert verdict.ratio is not None and verdict.ratio.value == pytest.approx(1 / 1.2, rel=0.01)
    assert only_verdict(base, of_kind(kind, measured, 1.0, LATER), judge_all=True).outcome == "alike"


def test_all_reduces_that_took_turns_are_compared_cycle_by_cycle() -> None:
    """The machine is twice as slow in every other cycle; of the last cycle, one size is missing."""
    case = Case.model_validate({"kind": "collectives", "devices": 2, "strategy": "horovod", "global_batch_size": 128})
    paces, turns = (
        np.tile([1.0, 2.0], 20),
        {"round_id": "0" * 32, "contenders": 2, "waiting_cores": 0.0, "ended": "time"},
    )

    def measured(factor: float) -> dict[str, Any]:
        seconds = [(paces * 1e-3 * factor).tolist()] * 2
        both = {"bytes": 4, "calls": 1, "cycles": [*range(40)], "seconds": seconds}
        return {"messages": [both, both | {"bytes": 1024, "cycles": [*range(39), 38]}]}

    base, new = (make_record(case, measurements=measured(factor), turns=turns) for factor in (1.0, 1.1))
    rates = kind("collectives").rates_by_cycle(base)
    assert list(rates) == [*range(39)] and [rates[0], rates[1]] == pytest.approx([1000, 500])
    (verdict,) = compare([base], [new]).verdicts
    assert verdict.in_turns and verdict.ratio is not None and verdict.ratio.value == pytest.approx(1 / 1.1)
    training, _ = studies(0, **QUIET)
    assert [each.case.kind for each in compare([*training, base], [*training, new]).unjudged] == ["collectives"]


def beside_others(records: Sequence[Record], cores: float) -> list[Record]:
    """The same records, measured while other programs used so many of two cores."""
    turns = {"contenders": 1, "waiting_cores": 0.0, "other_cores": cores, "ended": "time"}
    return [Record.model_validate(each.to_json() | {"turns": {"round_id": each.record_id} | turns}) for each in records]


@pytest.mark.parametrize(("cores", "expected"), [(0.1, "slower"), (0.9, "undecided")])
def test_what_other_programs_may_have_slowed_is_not_called_slower(cores: float, expected: str) -> None:
    base, new = studies(0, slower=1.3, **QUIET)
    comparison = compare(base, beside_others(new, cores))
    assert outcomes(comparison) == [expected]
    text = render_comparison(comparison)
    warning = "New was measured on a busy machine: other programs used 0.9 of 2 cores."
    assert (text.splitlines()[1] == warning) == (expected == "undecided") == ("may be due to other programs" in text)


def test_a_machine_that_has_changed_is_told_of_first() -> None:
    products = Case(kind="matmul", cores_per_device=1)
    base, new = studies(0, slower=1.3, **QUIET)
    for side, flops in ((base, 1e11), (new, 7e10)):
        measured = {"dtype": "float32", "size": 512, "flops_per_second": [flops, 1.01 * flops]}
        side += [make_record(products, repeat, measurements=measured) for repeat in range(3)]
    lines = render_comparison(compare(base, new)).splitlines()
    assert lines[1] == "Matrix products became slower: the machine itself may have changed."


def test_the_interval_shown_is_that_on_which_the_verdict_rests() -> None:
    (equal,), (slower,) = (compare(*studies(0, slower=factor, **QUIET)).verdicts for factor in (1.0, 1.3))
    assert equal.estimate and slower.estimate and equal.outcome == "alike" and slower.outcome == "slower"
    assert equal.ratio == equal.estimate.at_level(0.9) and slower.ratio == slower.corrected != equal.corrected


def test_no_message_size_in_common() -> None:
    case = Case(kind="collectives")
    base, new = (
        [make_record(case, measurements={"messages": [{"bytes": size, "calls": 1, "seconds": [[0.1]]}]})]
        for size in (4, 8)
    )
    assert only_verdict(base, new).remark == "base: no message size was measured in all runs"


def test_table_reads_well() -> None:
    rng = np.random.default_rng(0)
    base = [run for case in CASES[:3] for run in make_runs(rng, 5, case, study="monday", **QUIET)]
    dirty = {"git": {"commit": "fedcba9876543210", "dirty": True}}
    options: dict[str, Any] = {"study": "tuesday", "identity": dirty, "first_minute": LATER}
    new = []
    for case, slower, between in zip(CASES, (1.0, 1.2, 1.0), (0.003, 0.003, 0.2), strict=False):
        new += make_runs(rng, 5, case, slower=slower, **(QUIET | {"between": between}), **options)
    comparison = compare(base, new)
    text = render_comparison_markdown(comparison)
    lines = text.splitlines()
    assert lines[0] == "**New is worse: of 3 cases 1 slower, 1 undecided, 1 alike.**"
    assert lines[2] == "Base: monday (commit 0123456789)"
    assert lines[4] == "New: tuesday (commit fedcba9876, changed)"
    assert lines[6].startswith("Compared: single, 1 × 1 core, trained 5 s; 5 runs of each; measured apart")  # noqa: RUF001
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert [line.split(" | ")[3].rstrip(" |") for line in table[2:]] == ["**slower**", "undecided", "alike"]
    shown = re.search(r"\| 200 images \| (0\.8\d\d) \| (0\.\d{3})–(0\.\d{3}) \|", table[2])  # noqa: RUF001
    ratio = comparison.verdicts[0].ratio
    assert shown is not None and isinstance(ratio, Estimate)
    assert [float(value) for value in shown.groups()] == pytest.approx([ratio.value, ratio.low, ratio.high], abs=6e-4)
    assert "corrected for 3 tests (Holm)" in text
