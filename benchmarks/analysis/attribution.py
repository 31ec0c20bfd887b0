"""Why N devices do not do N times the work of one: the lost step time, split into its causes. Imports no TensorFlow.

Runs of one study tell the causes apart: *full*, training as it is; *synthetic*, with resident instead of real input;
*free*, with synthetic input and without all-reduce, so that no rank waits for another. With the step time of each, the
median over its steady windows, averaged over its repeats, N devices lose against one device to

- *small batches* (strong scaling only): one device's full step with the images that each of N has, less the ideal, the
  N-th part of its step with all of them. Where one device was not measured with so few, this counts as contention;
- *input*: full less synthetic at N, less the same difference at 1;
- *communication*: synthetic at N, less the slowest rank of free. That is exposed communication. As a window holds
  several steps, the waiting for ranks that are slow in single steps is in it too, and the time that the all-reduce
  takes by itself tells how much that can be;
- *stragglers*: the slowest rank of free less the mean of its ranks, since every step waits for the slowest. A rank or
  host that stands out as slow is left out of this mean: of two ranks, half its delay would else count as contention;
- *contention* for memory, cores and power: this mean less synthetic at 1;
- *unexplained*: what the total loss differs from the sum of these, never spread over them. It holds what was not
  measured and the difference between a median of sums and a sum of medians.

Input and synthetic at 1 are those of one device with as many images as each of N; where only the larger batch of
strong scaling was measured, the N-th part of it. The mirrored strategy is one process, in which the replicas' times
are not seen, so its stragglers count as contention.

Intervals are Student's, with Satterthwaite's degrees of freedom. Repeats differ in their level, by a share of the step
time that is taken to be alike in all runs, as in an analysis of variance: two or three repeats of one run tell too
little of it. The windows, by a bootstrap of blocks, set the least variance of a run. Medians and not means over
windows, as a disturbance in one run is no cause of a loss in another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.analysis.collectives import AllReduce
from mnist_dist.benchmarks.analysis.scaling import Curve, Point, Scaling, is_oversubscribed
from mnist_dist.benchmarks.analysis.scaling_models import gradient_bytes
from mnist_dist.benchmarks.analysis.stragglers import SlowPlace, find_slow_place
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import on_gpus
from mnist_dist.benchmarks.statistics.stats import Estimate, block_length, student_quantile

PartName = Literal["small batches", "input", "communication", "stragglers", "contention", "unexplained"]

NOTABLE_LOSS = 0.02  # Of the ideal throughput.
NOTABLE_GAIN = 0.05  # By which another strategy must be faster to be named.
RESAMPLES = 500
FREE = ("free", "unreduced")  # Runs in which no rank waits for another.


@dataclass(frozen=True)
class Part:
    """One cause: what it adds to each step, in seconds, and what share of the ideal throughput it takes."""

    name: PartName
    step_seconds: Estimate
    share: Estimate


@dataclass(frozen=True)
class Attribution:
    """Where one point of a curve loses throughput.

    Attributes:
        case: the full run.
        step_seconds: of the full run.
        ideal_step_seconds: of one device; in strong scaling the N-th part.
        loss: share of the ideal throughput that is lost: 1 - ideal_step_seconds / step_seconds. That is 1 - E(N), with
            medians for totals.
        parts: the causes that the runs tell apart, and "unexplained" as the last. Their step_seconds add up to
            step_seconds - ideal_step_seconds, their shares to the loss.
        slowest: the rank or host that stands out, if one does.
        missing: what could not be told apart, and why.
        all_reduce_share: share of the throughput that the all-reduce would take if nothing overlapped with it, from the
            collectives measured by themselves; None where they were not.
        hidden_input: share of the throughput by which real input costs more without the all-reduce than with it,
            because it hides behind it; None where input without all-reduce was not measured.
        faster_strategy: another strategy that is faster on the same devices by more than 5 %, and by what factor.
        on_gpus: whether the devices are GPUs.
        oversubscribed: whether the devices share cores.
    """

    case: Case
    scaling: Scaling
    step_seconds: Estimate
    ideal_step_seconds: Estimate
    loss: Estimate
    parts: tuple[Part, ...]
    slowest: SlowPlace | None
    missing: tuple[str, ...]
    all_reduce_share: float | None
    hidden_input: Estimate | None
    faster_strategy: tuple[str, float] | None
    on_gpus: bool
    oversubscribed: bool

    @property
    def is_significant(self) -> bool:
        """Whether the loss is beyond noise and at least 2 %."""
        return self.loss.low > 0 and self.loss.value >= NOTABLE_LOSS

    @property
    def biggest(self) -> Part | None:
        """The largest cause, if it is beyond noise."""
        causes = [part for part in self.parts if part.name != "unexplained"]
        largest = max(causes, key=lambda part: part.share.value, default=None)
        return largest if largest and largest.share.low > 0 else None


def attribute(
    curve: Curve, summaries: Sequence[CaseSummary], all_reduces: Sequence[AllReduce] = (), seed: int = 0
) -> list[Attribution]:
    """Splits the loss of every point on several devices.

    Args:
        curve: with its measured points.
        summaries: all of the study, of which the runs without input or all-reduce are used.
        all_reduces: those that the study measured by themselves.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    points = [_find_runs(curve, point, summaries) for point in curve.points if point.devices > 1]
    return [
        _attribute_point(curve, measured, summaries, all_reduces, rng)
        for measured in points
        if {"full", "full at 1"} <= set(measured.runs)
    ]


@dataclass(frozen=True, eq=False)
class _Measured:
    """The runs that explain one point, by name.

    The names are those of the module's description. "full at 1" and "synthetic at 1" are of the baseline, "full of
    share" and "synthetic of share" of one device with the images of one of N; "unreduced" has real input and no
    all-reduce.
    """

    runs: dict[str, CaseSummary]

    @property
    def full(self) -> CaseSummary:
        return self.runs["full"]

    def step_seconds(self, name: str) -> list[np.ndarray]:
        """Returns the steady step times of a run, float64 [repeats][ranks, windows]; empty where there is none."""
        return self.runs[name].steady_step_seconds() if name in self.runs else []

    def slow_place(self, name: str) -> SlowPlace | None:
        if name not in self.runs:
            return None
        hosts = {record.identity.hosts for record in self.runs[name].records}
        # Ranks that moved between the repeats have no host.
        return find_slow_place(self.step_seconds(name), hosts.pop() if len(hosts) == 1 else None)


def _find_runs(curve: Curve, point: Point, summaries: Sequence[CaseSummary]) -> _Measured:
    case, single = point.summary.case, curve.baseline.case
    share = single.model_copy(update={"global_batch_size": case.global_batch_size // case.devices})
    wanted = {
        "synthetic": case.model_copy(update={"synthetic_input": True}),
        "free": case.model_copy(update={"synthetic_input": True, "all_reduce": False}),
        "unreduced": case.model_copy(update={"all_reduce": False}),
        "synthetic at 1": single.model_copy(update={"synthetic_input": True}),
    }
    if curve.scaling == "strong":
        wanted |= {"full of share": share, "synthetic of share": share.model_copy(update={"synthetic_input": True})}
    by_case = {_identity(summary.case): summary for summary in summaries}
    found = {"full": point.summary, "full at 1": curve.baseline}
    found |= {name: by_case[_identity(each)] for name, each in wanted.items() if _identity(each) in by_case}
    return _Measured({name: each for name, each in found.items() if each.records and not each.unstable})


def _identity(case: Case) -> str:
    """Returns what runs that explain each other share: a run without input or all-reduce never trains to its end."""
    return json.dumps(case.model_dump(mode="json", exclude={"measure_seconds"}), sort_keys=True)


def _attribute_point(
    curve: Curve,
    measured: _Measured,
    summaries: Sequence[CaseSummary],
    all_reduces: Sequence[AllReduce],
    rng: np.random.Generator,
) -> Attribution:
    full, case = measured.full, measured.full.case
    slowest = measured.slow_place("free")
    left_out = slowest.ranks if slowest else ()
    if not slowest and (slow_input := measured.slow_place("unreduced")):
        slowest = replace(slow_input, with_real_input=True)
    runs = {
        name: _summarize_run([_series(times, name in FREE, left_out) for times in measured.step_seconds(name)], rng)
        for name in measured.runs
    }
    ideal = {"full at 1": SLOWEST / (case.devices if curve.scaling == "strong" else 1)}
    total = _add({"full": SLOWEST}, ideal, -1)
    causes, missing = _causes(runs, curve.scaling, case, several_ranks=len(full.records[0].identity.hosts) > 1)
    unexplained = total
    for terms in causes.values():
        unexplained = _add(unexplained, terms, -1)
    alone = _all_reduce_seconds(full, all_reduces)
    return Attribution(
        case=case,
        scaling=curve.scaling,
        step_seconds=_estimate({"full": SLOWEST}, runs),
        ideal_step_seconds=_estimate(ideal, runs),
        loss=_as_loss(_estimate_share(total, runs)),
        parts=tuple(
            Part(name, _estimate(terms, runs), _estimate_share(terms, runs))
            for name, terms in {**causes, "unexplained": unexplained}.items()
        ),
        slowest=slowest,
        missing=tuple(missing),
        all_reduce_share=None if alone is None else alone / float(runs["full"].values[0]),
        hidden_input=_hidden_input(runs),
        faster_strategy=_faster_strategy(full, summaries),
        on_gpus=on_gpus(full.records),
        oversubscribed=is_oversubscribed(full),
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """Three step times of one case, [slowest rank, mean of ranks, difference of both], and how certain they are.

    Attributes:
        values: float64 [3], seconds, means over the repeats of the medians over windows.
        repeats: number of them.
        level_variance: of the logarithm of one repeat's slowest rank, from the differences between repeats.
        pattern: float64 [3, 3], covariance of the values from those differences between repeats that are none of level.
        within: float64 [3, 3], covariance of the values from the differences between windows alone.
        within_freedom: its degrees of freedom.
    """

    values: np.ndarray
    repeats: int
    level_variance: float
    pattern: np.ndarray
    within: np.ndarray
    within_freedom: int


SLOWEST, MEAN, WAIT = np.eye(3)

_Weights = Mapping[str, np.ndarray]  # For each run by its name, float64 [3], by which its three values enter a sum.


def _causes(
    runs: Mapping[str, _Run], scaling: Scaling, case: Case, several_ranks: bool
) -> tuple[dict[PartName, _Weights], list[str]]:
    """Returns the sums that are the causes, as the module describes them, and what cannot be told."""
    causes: dict[PartName, _Weights] = {}
    missing = []
    full, synthetic, scale = "full at 1", "synthetic at 1", 1.0
    if scaling == "strong":
        if {"full of share", "synthetic of share"} <= set(runs):
            causes["small batches"] = {"full of share": SLOWEST, full: -SLOWEST / case.devices}
            full, synthetic = "full of share", "synthetic of share"
        else:
            scale = 1 / case.devices
            missing.append(
                "small batches count as contention, as one device was not measured with "
                f"{case.images_per_device:g} images and these with synthetic input"
            )
    if "synthetic" in runs and synthetic in runs:
        at_n = _add({"full": SLOWEST}, {"synthetic": SLOWEST}, -1)
        causes["input"] = _add(at_n, _add({full: SLOWEST}, {synthetic: SLOWEST}, -1), -scale)
    if "synthetic" in runs and "free" in runs:
        causes["communication"] = {"synthetic": SLOWEST, "free": -SLOWEST}
    if "free" in runs and several_ranks:
        causes["stragglers"] = {"free": WAIT}
    if "free" in runs and synthetic in runs:
        causes["contention"] = {"free": MEAN, synthetic: -scale * SLOWEST}
    missing += _missing(runs, synthetic)
    if not several_ranks:
        missing.append(f"stragglers count as contention, as the devices of {case.strategy} are one process")
    return causes, missing


def _missing(runs: Mapping[str, _Run], synthetic_at_one: str) -> Iterator[str]:
    needed = {
        "synthetic": ("input and communication", "synthetic input"),
        "free": ("communication, stragglers and contention", "synthetic input and without all-reduce"),
        synthetic_at_one: ("input and contention", "synthetic input on one device"),
    }
    for name, (parts, run) in needed.items():
        if name not in runs:
            yield f"{parts} are unexplained, as there is no steady run with {run}"


def _add(terms: _Weights, others: _Weights, factor: float) -> _Weights:
    """Returns terms + factor * others."""
    result = dict(terms)
    for name, weights in others.items():
        result[name] = result.get(name, np.zeros(3)) + factor * weights
    return result


def _estimate(terms: _Weights, runs: Mapping[str, _Run]) -> Estimate:
    return _with_interval(sum(float(weights @ runs[name].values) for name, weights in terms.items()), terms, runs)


def _estimate_share(terms: _Weights, runs: Mapping[str, _Run]) -> Estimate:
    """Returns a sum over the full step; its variance is that of the linear approximation."""
    step = float(runs["full"].values[0])
    share = _estimate(terms, runs).value / step
    slope = {name: weights / step for name, weights in _add(terms, {"full": SLOWEST}, -share).items()}
    return _with_interval(share, slope, runs)


def _as_loss(share: Estimate) -> Estimate:
    """Returns the same share with the interval of the logarithm of the efficiency, which keeps it below 1."""
    efficiency = 1 - share.value
    stretch = math.exp(min((share.high - share.value) / efficiency, 100.0))
    return replace(share, low=1 - efficiency * stretch, high=1 - efficiency / stretch)


def _with_interval(value: float, slope: _Weights, runs: Mapping[str, _Run]) -> Estimate:
    """Adds the t-interval of a sum of the runs' values.

    Each repeat has its own level, of which the variance is pooled over all runs. The variance of a run is no less than
    that from its windows, which with a single repeat is all there is.
    """
    freedom = sum(run.repeats - 1 for run in runs.values())
    pooled = sum((run.repeats - 1) * run.level_variance for run in runs.values()) / max(freedom, 1)
    by_level = total = squares = 0.0
    for name, weights in slope.items():
        run = runs[name]
        level = pooled / run.repeats * float(weights @ run.values) ** 2
        pattern = float(weights @ run.pattern @ weights)
        within = float(weights @ run.within @ weights)
        by_level += level
        total += max(level + pattern, within)
        squares += pattern**2 / max(run.repeats - 1, 1) + (0 if freedom else within**2 / run.within_freedom)
    squares += by_level**2 / max(freedom, 1)
    half = float(student_quantile(0.975, total**2 / squares)) * math.sqrt(total) if squares else 0.0
    return Estimate(value, value - half, value + half, min(runs[name].repeats for name in slope))


def _series(times: np.ndarray, is_free: bool, left_out: Sequence[int]) -> np.ndarray:
    """Returns the step time of the slowest rank, the mean of ranks and their difference, float64 [3, windows].

    Args:
        times: float64 [ranks, windows].
        is_free: whether each rank has its own pace; otherwise ranks differ by the jitter of the windows' edges only,
            which the slowest of each window would add up.
        left_out: ranks that do not count for the mean.
    """
    if is_free:
        slowest, mean = times.max(axis=0), np.delete(times, left_out, axis=0).mean(axis=0)
    else:
        slowest = mean = times[times.sum(axis=1).argmax()]
    return np.stack([slowest, mean, slowest - mean])


def _summarize_run(repeats: Sequence[np.ndarray], rng: np.random.Generator) -> _Run:
    """Reduces the series of all repeats, each float64 [3, windows]."""
    lengths = [max(block_length(row) for row in series[:2]) for series in repeats]
    medians = np.array([np.median(series, axis=1) for series in repeats])
    covariances = [
        np.cov(_resampled_medians(series, length, rng), rowvar=False)
        for series, length in zip(repeats, lengths, strict=True)
    ]
    count, values = len(repeats), medians.mean(axis=0)
    of_one_level = medians / medians[:, :1] * values[0]
    return _Run(
        values=values,
        repeats=count,
        level_variance=float(np.var(np.log(medians[:, 0]), ddof=1)) if count > 1 else 0.0,
        pattern=np.cov(of_one_level, rowvar=False) / count if count > 1 else np.zeros((3, 3)),
        within=np.mean(covariances, axis=0) / count,
        within_freedom=max(
            sum(series.shape[1] // length for series, length in zip(repeats, lengths, strict=True)) - 1, 1
        ),
    )


def _resampled_medians(series: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Returns medians over windows drawn anew in blocks that wrap round the end, float64 [resamples, rows]."""
    windows = series.shape[1]
    starts = rng.integers(windows, size=(RESAMPLES, -(-windows // length)))
    drawn = ((starts[:, :, None] + np.arange(length)) % windows).reshape(RESAMPLES, -1)[:, :windows]
    return np.median(series[:, drawn], axis=2).T


def _hidden_input(runs: Mapping[str, _Run]) -> Estimate | None:
    if not {"synthetic", "free", "unreduced"} <= set(runs):
        return None
    without = _add({"unreduced": SLOWEST}, {"free": SLOWEST}, -1)
    return _estimate_share(_add(without, _add({"full": SLOWEST}, {"synthetic": SLOWEST}, -1), -1), runs)


def _all_reduce_seconds(full: CaseSummary, all_reduces: Sequence[AllReduce]) -> float | None:
    """Returns the seconds of one all-reduce as large as the gradients, from the two nearest measured sizes."""
    case, size = full.case, gradient_bytes(full.records[0].identity.config)
    place = (case.strategy, case.devices, case.hosts)
    messages = [each for each in all_reduces if (each.case.strategy, each.case.devices, each.case.hosts) == place]
    sizes, seconds = [each.size_bytes for each in messages], [each.seconds for each in messages]
    if not sizes or not min(sizes) <= size <= max(sizes):
        return None
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(seconds))))


def _faster_strategy(full: CaseSummary, summaries: Sequence[CaseSummary]) -> tuple[str, float] | None:
    """Returns the fastest other strategy whose throughput lies beyond this one's interval and by more than 5 %."""
    own = full.images_per_second
    factors = {
        each.case.strategy: each.images_per_second.value / own.value
        for each in summaries
        if own
        and each.images_per_second
        and each.images_per_second.low > own.high
        and each.case.model_copy(update={"strategy": full.case.strategy}) == full.case
    }
    strategy, factor = max(factors.items(), key=lambda item: item[1], default=("", 0.0))
    return (strategy, factor) if factor > 1 + NOTABLE_GAIN else None
