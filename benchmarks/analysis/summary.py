"""What the records of one case say together: throughput, step times, accuracy, time to accuracy, memory, energy.

The windows of a repeat count from the end of its warm-up on. A repeat that drifts is never left out, as that would
flatter the rest: if half of them or more do, the case is unstable and has no throughput; fewer count like the others.
A repeat too short to tell makes the case unstable, as the others are hardly longer. Where repeats took turns, it is the
machine that drifts if most ratios to the others in the round do not.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.in_turns import log_rates_of_both
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, one_line
from mnist_dist.benchmarks.statistics import stats
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.steady_state import (
    FEWEST_WINDOWS,
    MERGED_SECONDS,
    SteadyState,
    find_drift,
    find_steady_state,
    merge_windows,
)
from mnist_dist.distributed.turns import FULL
from mnist_dist.training.variants import VARIANTS

ACCURACY_TARGETS = (0.98, 0.99, 0.993)
Rounds = Mapping[str, Sequence[Record]]  # By their identifiers.


@dataclass(frozen=True)
class TimeToAccuracy:
    """How long training takes to reach an accuracy, the evaluations that decide it included.

    Attributes:
        reached: runs that reached it.
        runs: all runs, also those that failed.
        median_seconds: over all runs, of which one that does not reach it takes infinitely long.
        expected_seconds: all runs' seconds over `reached`, which is what repeating until success takes; may be inf.
        median_tracing_seconds: part of the time that the first step took, which traces and compiles; nan if all failed.
    """

    reached: int
    runs: int
    median_seconds: float
    expected_seconds: float
    median_tracing_seconds: float


@dataclass(frozen=True, eq=False)
class RunSummary:
    """A run that ended well, or one of its variants. What is derived from its windows is computed once."""

    record: Record
    variant: str = FULL  # Of the training step, whose windows count; see `training.variants`.

    @cached_property
    def steady_state(self) -> SteadyState:
        return find_steady_state(*self.measured_windows, self._longer, self._shortest_window)

    @property
    def _shortest_window(self) -> float:
        """Turns have steps enough to stand by themselves, also where the core's pace made one shorter than planned."""
        return 0.0 if len(self.cycles) else MERGED_SECONDS

    @property
    def _longer(self) -> str:
        """How whoever has made this study can measure for longer."""
        case, flags = self.record.case, {"peers": "--seconds", "perf": "--seconds", "reproduce": "--time"}
        if case.measure_seconds:
            return flags.get(self.record.suite, "a larger measure_seconds in a copy of the suite's file")
        return "more epochs: --set training.epochs=N" if case.kind == "train" and self.variant == FULL else ""

    @cached_property
    def series(self) -> stats.Series:
        """The images and seconds of the steady windows.

        The seconds are those of the rank that took longest over all of them: as the windows of all ranks have the same
        edges, that is what the job took. Summing the slowest rank of each window would count the jitter of the edges.
        """
        steps, seconds = self.windows
        return stats.Series(steps * float(self.record.case.global_batch_size), seconds[np.argmax(seconds.sum(axis=1))])

    @property
    def step_seconds(self) -> np.ndarray:
        """Step times of every rank in each steady window, float64 [ranks, windows]; short windows are merged."""
        steps, seconds = self.windows
        return seconds / steps

    @cached_property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps, int64 [windows], and seconds, float64 [ranks, windows], of the steady windows."""
        steps, seconds = self.measured_windows
        first = self.steady_state.first_window
        steps, seconds, _ = merge_windows(steps[first:], seconds[:, first:], self._shortest_window)
        return steps, seconds

    @cached_property
    def cycles(self) -> np.ndarray:
        """The cycle of the turn of each of `measured_windows`, int64 [windows]; empty of a run without turns."""
        cycles = self.record.measured.get("window_cycles")
        return np.empty(0, np.int64) if cycles is None else np.asarray(cycles)[self.chosen]

    @cached_property
    def chosen(self) -> np.ndarray:
        """Which windows are of this variant, and of no cycle before measuring began, bool [windows]."""
        measured = self.record.measured
        windows = len(measured["window_steps"])
        cycles = np.asarray(measured.get("window_cycles") or np.zeros(windows, np.int64))
        variants = np.asarray(measured.get("window_variants") or [FULL] * windows)
        return (cycles >= 0) & (variants == self.variant)

    @cached_property
    def measured_windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps, int64 [windows], and seconds, float64 [ranks, windows], as they were measured."""
        steps, seconds = (np.asarray(self.record.measured[name]) for name in ("window_steps", "window_seconds"))
        return steps[self.chosen], seconds[:, self.chosen]


@dataclass(frozen=True, eq=False)
class CaseSummary:
    """One case over its repeats. What was not measured is None.

    Attributes:
        runs: the repeats that ended well, in order.
        failures: the others, also those that were skipped.
        unstable: why there is no throughput although the repeats ended well.
        unsettled_repeats: how many drifted; if the case is not unstable, they count like the others.
        images_per_second: of all devices together.
        step_seconds: percentiles of the slowest rank's mean step time in each steady window; none where unstable.
        first_step_seconds: of the slowest rank: tracing, compiling and the first step.
        startup_seconds: of the slowest rank: from the start of its process to its first step.
        peak_memory_bytes, peak_gpu_memory_bytes: of the largest rank, or GPU, of any repeat.
        power_watts: the mean while training; start-up is not in it.
    """

    case: Case
    case_id: str
    runs: tuple[RunSummary, ...]
    failures: tuple[Record, ...]
    unstable: str | None
    unsettled_repeats: int
    images_per_second: stats.Estimate | None
    variance: stats.VarianceSplit | None
    step_seconds: dict[str, float]
    first_step_seconds: stats.Estimate | None
    startup_seconds: stats.Estimate | None
    peak_memory_bytes: float | None
    peak_gpu_memory_bytes: float | None
    test_accuracy: stats.Mean | None
    time_to_accuracy: dict[float, TimeToAccuracy]
    model_flops_per_image: int | None
    power_watts: float | None
    gpu_utilisation_percent: float | None

    @property
    def images_per_joule(self) -> float | None:
        rate, watts = self.images_per_second, self.power_watts
        return rate.value / watts if rate and watts else None

    @property
    def seed_accuracies(self) -> list[float]:
        """The test accuracy of every run that left a model, from 0 to 1."""
        return _measured(self.records, "test_accuracy") if self.test_accuracy else []

    def measured_setting(self, name: str) -> str:
        """Returns the precision or XLA mode that ran, which `auto` chose; empty where nothing ran."""
        return one_line(", ".join(sorted(set(map(str, _measured(self.records, name))))), 60)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Of the runs."""
        return tuple(run.record for run in self.runs)

    @cached_property
    def untimed_case(self) -> str:
        """See `untimed`."""
        return untimed(self.case)


def untimed(case: Case) -> str:
    """Returns what runs that explain each other share: a run without input or all-reduce never trains to its end."""
    return json.dumps(case.model_dump(mode="json", exclude={"measure_seconds"}), sort_keys=True)


def summarize_variants(records: Sequence[Record], rounds: Rounds) -> list[CaseSummary]:
    """Summarises the records of one case, and those of their variants that have windows, each as a case of its own."""
    names = {name for record in records for name in record.measured.get("window_variants") or ()} - {FULL}
    return [summarize(records, name, rounds) for name in (FULL, *(each for each in VARIANTS if each in names))]


def summarize(records: Sequence[Record], variant: str = FULL, rounds: Rounds | None = None) -> CaseSummary:
    """Summarises the records of one case, of any kind and in any order.

    Args:
        rounds: the records of each round, those of other cases included.

    Raises:
        ValueError: there are none, or they are of several cases.
    """
    if len({record.case_id for record in records}) != 1:
        raise ValueError(f"expected the records of one case, received {len({record.case_id for record in records})}")
    ok, failures = split_by_success(records)
    runs = tuple(RunSummary(record, variant) for record in ok)
    case, changed = records[0].case, VARIANTS[variant]
    if variant != FULL:
        case = case.model_copy(update={"synthetic_input": changed.resident, "all_reduce": changed.reduced})
    has_windows = all("window_steps" in record.measured for record in ok)
    states = [_beside_others(run, rounds or {}) for run in runs] if has_windows else []
    unstable = why_unstable(states)
    series = [run.series for run in runs] if states and not unstable else []
    slowest = [run.step_seconds.max(axis=0) for run in runs] if series else []
    # The steps of other variants come after the training, and are those of none.
    accuracies = accuracy_by_seed(ok) if variant == FULL else {}
    return CaseSummary(
        case=case,
        case_id=case.case_id,
        runs=runs,
        failures=failures,
        unstable=unstable,
        unsettled_repeats=sum(state.reason_unstable is not None for state in states),
        images_per_second=stats.estimate_rate(series).at_level() if series else None,
        variance=stats.split_variance(series) if series else None,
        step_seconds=stats.percentiles(np.concatenate(slowest)) if slowest else {},
        first_step_seconds=_mean(_largest(ok, "first_step_seconds")),
        startup_seconds=_mean(_largest(ok, "startup_seconds")),
        peak_memory_bytes=max(_largest(ok, "peak_memory_bytes"), default=None),
        peak_gpu_memory_bytes=max(_largest(ok, "peak_device_memory_bytes"), default=None),
        test_accuracy=_mean([*accuracies.values()], most=1.0),
        time_to_accuracy=_times_to_accuracy(ok, failures) if variant == FULL else {},
        model_flops_per_image=next(iter(_measured(ok, "flops_per_image")), None),
        power_watts=_mean_telemetry(ok, "power_watts"),
        gpu_utilisation_percent=_mean_telemetry(ok, "gpu_utilisation_percent"),
    )


def split_by_success(records: Sequence[Record]) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Returns the records that ended well and the others, each in the order of their repeats."""
    ordered = sorted(records, key=lambda record: (record.repeat, record.started_at, record.record_id))
    ok = tuple(record for record in ordered if record.status == "ok")
    return ok, tuple(record for record in ordered if record.status != "ok")


def _beside_others(run: RunSummary, rounds: Rounds) -> SteadyState:
    """Returns the steady state of a run, whose drift is none if most ratios to the others in its round do not drift."""
    state, turns = run.steady_state, run.record.turns
    if state.reason_unstable is None or state.windows < FEWEST_WINDOWS or turns is None:
        return state
    beside = (each for each in rounds.get(turns.round_id, ()) if each is not run.record)
    others = [each for each in beside if each.case.kind == run.record.case.kind]
    both = [log_rates_of_both(run.record, each, run.variant) for each in others]
    drifts = [find_drift(other - own) is not None for own, other in both if len(own) >= FEWEST_WINDOWS]
    return replace(state, reason_unstable=None) if 2 * sum(drifts) < len(drifts) else state


def why_unstable(states: Sequence[SteadyState]) -> str | None:
    """Returns a reason if half of a case's repeats or more did not settle, or one is too short."""
    reasons = [state.reason_unstable for state in states if state.reason_unstable]
    too_short = any(state.windows < FEWEST_WINDOWS for state in states)
    if not reasons or (2 * len(reasons) < len(states) and not too_short):
        return None
    return reasons[0] if len(states) == 1 else f"{len(reasons)} of {len(states)} repeats did not settle: {reasons[0]}"


def accuracy_by_seed(records: Sequence[Record]) -> dict[int, float]:
    """Returns the test accuracy of each seed; runs that share a seed count as one, with their mean."""
    by_seed = group_by(records, lambda record: record.seed)
    accuracies = {seed: _measured(of_seed, "test_accuracy") for seed, of_seed in by_seed.items()}
    return {seed: float(np.mean(values)) for seed, values in accuracies.items() if values}


def _measured(records: Sequence[Record], name: str) -> list[Any]:
    """Returns what each record measured under a name, without the records that did not."""
    values = [record.measured.get(name) for record in records]
    return [value for value in values if value is not None]


def _largest(records: Sequence[Record], name: str) -> list[float]:
    """Returns of each record that has them the largest value of its ranks."""
    return [max(ranks) for ranks in _measured(records, name) if ranks]


def _mean(values: Sequence[float], most: float = math.inf) -> stats.Mean | None:
    return stats.estimate_mean(values, most) if values else None


def _times_to_accuracy(ok: Sequence[Record], failures: Sequence[Record]) -> dict[float, TimeToAccuracy]:
    """Returns nothing for cases that were not to be trained to the end."""
    runs = [record for record in ok if record.measured.get("evaluations")]
    case = (*ok, *failures)[0].case
    if not runs and (ok or case.kind != "train" or case.measure_seconds is not None):
        return {}
    # A success is timed from its first step on. How long a failure took to start is not known: as long as the others.
    startup = _median(_largest(runs, "startup_seconds")) if runs else 0.0
    failed_seconds = [max(record.seconds - startup, 0.0) for record in failures if record.status != "skipped"]
    return {target: _time_to_accuracy(target, runs, failed_seconds) for target in ACCURACY_TARGETS}


def _time_to_accuracy(target: float, runs: Sequence[Record], failed_seconds: Sequence[float]) -> TimeToAccuracy:
    """A run that failed, for example because it diverged, has not reached the target in all its seconds."""
    outcomes = [(seconds, False) for seconds in failed_seconds]
    outcomes += [seconds_to_accuracy(record, target) for record in runs]
    reached = [hit for _, hit in outcomes]
    return TimeToAccuracy(
        reached=sum(reached),
        runs=len(reached),
        median_seconds=_median([seconds if hit else math.inf for seconds, hit in outcomes]),
        expected_seconds=stats.expected_running_time([seconds for seconds, _ in outcomes], reached),
        median_tracing_seconds=_median(_largest(runs, "first_step_seconds")),
    )


def seconds_to_accuracy(record: Record, target: float) -> tuple[float, bool]:
    """Returns how long a run with evaluations took to reach an accuracy, or to its end, and whether it did reach it."""
    evaluations = record.measured["evaluations"]
    first = next((each for each in evaluations if each["accuracy"] >= target), None)
    decisive = first or evaluations[-1]
    return decisive["training_seconds"] + decisive["evaluation_seconds"], first is not None


def _median(values: Sequence[float]) -> float:
    """The median; of an even number of values, some of them infinite, the mean of the middle two; nan for none."""
    return float(np.median(values)) if values else math.nan


def _mean_telemetry(records: Sequence[Record], name: str) -> float | None:
    told = [getattr(record.telemetry, name) for record in records if record.telemetry]
    values = [value for value in told if value is not None]
    return float(np.mean(values)) if values else None
