"""Why N devices do not do N times the work of one: the lost step time, split into its causes. Imports no TensorFlow.

Runs of one study tell the causes apart: *full*, training as it is; *synthetic*, with resident instead of real input;
*free*, with synthetic input and without all-reduce, so that no rank waits for another. With the step time of each, all
seconds of its steady windows over all steps, N devices lose against one device to

- *small batches* (strong scaling only): one device's full step with the images that each of N has, less the ideal, the
  N-th part of its step with all of them. Where one device was not measured with so few images, this is in
  the contention;
- *input*: full less synthetic at N, less the same difference at 1;
- *communication*: full less *unreduced* (real input, no all-reduce), which is what taking it away would gain. That is
  exposed communication. It is at most what an all-reduce takes by itself, where that was measured. What is more is
  waiting for ranks that are slow in single steps, which windows of several steps do not show, and counts as stragglers.
  Without a run unreduced it is synthetic at N, less the slowest rank of free;
- *interaction*: what taking away both input and all-reduce gains beyond each alone. Prefetched input that takes as long
  as the rest costs nothing by itself, and nor does the all-reduce beside it; together they do;
- *stragglers*: the slowest rank of free less the mean of its ranks, since every step waits for the slowest. A rank or
  host that stands out as slow is left out of this mean: of two ranks, half its delay would else count as contention;
- *contention* for memory, cores and power: this mean less synthetic at 1;
- *unexplained*: what the total loss differs from the sum of these, never spread over them. It holds what was not
  measured. Of runs that took turns the loss is that of the efficiency, from all cycles of the full runs, and the causes
  are from the cycles that all runs share: what both differ by is unexplained, and noise where its interval holds zero.
  Of others, with all of these runs, it is zero by its definition, which proves nothing.

Input and synthetic at 1 are those of one device with as many images as each of N; where only the larger batch of
strong scaling was measured, the N-th part of it. The mirrored strategy is one process, in which the replicas' times
are not seen, so its stragglers are in contention.

Means and not medians over windows, as every step waits for whichever rank is slow in it: medians would hide ranks that
are slow by chance, and so would not add up to what the efficiency says.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.analysis.in_turns import met_others
from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.analysis.prediction.step_times import gradient_bytes
from mnist_dist.benchmarks.analysis.scaling import Curve, Point, Scaling, is_oversubscribed, rate_ratio
from mnist_dist.benchmarks.analysis.stragglers import SlowPlace, find_slow_place
from mnist_dist.benchmarks.analysis.summary import CaseSummary, untimed
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import on_gpus
from mnist_dist.benchmarks.statistics.contrasts import CycleMeans, Repeat, estimate_means
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.strategies import STRATEGIES

PartName = Literal["small batches", "input", "communication", "interaction", "stragglers", "contention", "unexplained"]

NOTABLE_LOSS = 0.02  # Of the ideal throughput.
NOTABLE_GAIN = 0.05  # By which another strategy must be faster to be named.
ROUNDING = 1e-12
FEWEST_CYCLES = 5  # That all runs share, for contrasts within them.
FREE = ("free", "unreduced")  # Runs in which no rank waits for another.

Weights = Mapping[str, np.ndarray]  # By the name of a run, float64 [runs, 2], of the two clocks of each run.


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
        ideal_step_seconds: of one device; in strong scaling the N-th part.
        loss: share of the ideal throughput that is lost: 1 - ideal_step_seconds / step_seconds, that is 1 - E(N).
        parts: the causes that the runs tell apart, and "unexplained" as the last. Their step_seconds add up to
            step_seconds - ideal_step_seconds, their shares to the loss.
        faster_strategy: another strategy that is faster on the same devices by more than 5 %, and by what factor.
        measured_strategies: the others of which that is known.
    """

    case: Case
    scaling: Scaling
    step_seconds: Estimate
    ideal_step_seconds: Estimate
    loss: Estimate
    parts: tuple[Part, ...]
    slowest: SlowPlace | None
    missing: tuple[str, ...]
    faster_strategy: tuple[str, float] | None
    measured_strategies: frozenset[str]
    on_gpus: bool
    oversubscribed: bool
    disturbed: bool  # Other programs used cores meanwhile, to which part of the loss is due.

    @property
    def is_significant(self) -> bool:
        """Whether the loss is beyond noise and at least 2 %, or a cause, which may be known better, certainly is."""
        certain = any(part.share.low >= NOTABLE_LOSS for part in self.parts if part.name != "unexplained")
        return certain or (self.loss.low > 0 and self.loss.value >= NOTABLE_LOSS)

    @property
    def biggest(self) -> Part | None:
        """The largest cause, if it is beyond noise."""
        causes = [part for part in self.parts if part.name != "unexplained"]
        largest = max(causes, key=lambda part: part.share.value, default=None)
        return largest if largest and largest.share.low > 0 else None


def attribute(
    curve: Curve, summaries: Sequence[CaseSummary], all_reduces: Sequence[AllReduce] = ()
) -> list[Attribution]:
    """Splits the loss of every point on several devices, by all summaries of the study, ablations among them."""
    by_case = {summary.untimed_case: summary for summary in summaries}
    points = [(point, _find_runs(curve, point, by_case)) for point in curve.points if point.devices > 1]
    return [
        _attribute_point(curve, point, runs, by_case, all_reduces)
        for point, runs in points
        if {"full", "full at 1"} <= set(runs)
    ]


def _find_runs(curve: Curve, point: Point, by_case: Mapping[str, CaseSummary]) -> dict[str, CaseSummary]:
    """Returns the runs that explain a point, by name.

    The names are those of the module's description. "full at 1" and "synthetic at 1" are of the baseline, "full of
    share" and "synthetic of share" of one device with the images of one of N; "unreduced" has real input and no
    all-reduce.
    """
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
    found = {name: by_case.get(untimed(each)) for name, each in wanted.items()}
    found |= {"full": point.summary, "full at 1": curve.baseline}
    return {name: each for name, each in found.items() if each and each.runs and not each.unstable}


def _attribute_point(
    curve: Curve,
    point: Point,
    summaries: Mapping[str, CaseSummary],
    by_case: Mapping[str, CaseSummary],
    all_reduces: Sequence[AllReduce],
) -> Attribution:
    full, case = summaries["full"], summaries["full"].case
    slow = _slow_place(summaries.get("free"))
    left_out = slow.ranks if slow else ()
    if not slow and (slow_input := _slow_place(summaries.get("unreduced"))):
        slow = replace(slow_input, with_real_input=True)
    means = _means_in_turns(summaries, left_out) or estimate_means(
        [[_two_clocks(*run.windows, name in FREE, left_out) for run in each.runs] for name, each in summaries.items()]
    )
    units = np.eye(2 * len(summaries)).reshape(-1, len(summaries), 2)
    slowest, mean = (dict(zip(summaries, units[clock::2], strict=True)) for clock in (0, 1))
    ideal = slowest["full at 1"] / (case.devices if curve.scaling == "strong" else 1)
    total = slowest["full"] - ideal
    causes, missing = _causes(slowest, mean, curve.scaling, case, several_ranks=len(full.records[0].identity.hosts) > 1)
    alone = _all_reduce_seconds(full, all_reduces)
    if alone is not None and "communication" in causes:
        _cap_communication(causes, alone, means.contrast(causes["communication"]).value)

    def part(name: PartName, weights: np.ndarray) -> Part:
        return Part(name, means.contrast(weights), means.relative_contrast(weights, slowest["full"]))

    step_seconds, ideal_seconds = means.contrast(slowest["full"]), means.contrast(ideal)
    parts = [part(name, weights) for name, weights in causes.items()]
    if isinstance(means, CycleMeans):
        share, explained = point.efficiency, sum(causes.values(), np.zeros_like(total))
        loss = replace(share, value=1 - share.value, low=1 - share.high, high=1 - share.low)
        ideal_seconds = _times(share, step_seconds.value)
        unexplained = _less(loss, means.relative_contrast(explained, slowest["full"]))
        parts.append(Part("unexplained", _times(unexplained, step_seconds.value), unexplained))
    else:
        loss = _as_loss(means.relative_contrast(total, slowest["full"]))
        left = total - sum(causes.values())
        parts.append(part("unexplained", np.where(np.abs(left) < ROUNDING, 0.0, left)))
    ratios = _ratios_of_strategies(full, by_case, curve.baseline)
    return Attribution(
        case=case,
        scaling=curve.scaling,
        step_seconds=step_seconds,
        ideal_step_seconds=ideal_seconds,
        loss=loss,
        parts=tuple(parts),
        slowest=slow,
        missing=tuple(missing),
        faster_strategy=_fastest(ratios),
        measured_strategies=frozenset(ratios),
        on_gpus=on_gpus(full.records),
        oversubscribed=is_oversubscribed(full),
        disturbed=any(met_others(record) for each in summaries.values() for record in each.records),
    )


def _means_in_turns(summaries: Mapping[str, CaseSummary], left_out: Sequence[int]) -> CycleMeans | None:
    """Returns the step times in the cycles that all runs share; None where they share too few."""
    by_round: dict[str, list[dict[int, np.ndarray]]] = {}
    for name, each in summaries.items():
        for run in each.runs:
            if run.record.turns is not None:
                steps, clocks = _two_clocks(*run.measured_windows, name in FREE, left_out)
                cycles = {int(cycle): run.cycles == cycle for cycle in np.unique(run.cycles)}
                times = {cycle: clocks[:, own].sum(axis=1) / steps[own].sum() for cycle, own in cycles.items()}
                by_round.setdefault(run.record.turns.round_id, []).append(times)
    rounds = []
    for groups in (groups for groups in by_round.values() if len(groups) == len(summaries)):
        common = sorted(set.intersection(*map(set, groups)))
        if len(common) >= FEWEST_CYCLES:
            rounds.append(np.array([[times[cycle] for cycle in common] for times in groups]).transpose(0, 2, 1))
    _, processes = np.unique([each.runs[0].record.case_id for each in summaries.values()], return_inverse=True)
    return CycleMeans(rounds, processes) if rounds else None


def _slow_place(summary: CaseSummary | None) -> SlowPlace | None:
    if summary is None:
        return None
    hosts = {record.identity.hosts for record in summary.records}
    # Ranks that moved between the repeats have no host.
    return find_slow_place([run.step_seconds for run in summary.runs], hosts.pop() if len(hosts) == 1 else None)


def _two_clocks(steps: np.ndarray, seconds: np.ndarray, is_free: bool, left_out: Sequence[int]) -> Repeat:
    """Returns the steps of each window, and the seconds of the slowest rank and of the mean of ranks.

    Args:
        steps, seconds: of a run, [windows] and [ranks, windows].
        is_free: whether each rank has its own pace; otherwise ranks differ by the jitter of the windows' edges only,
            which the slowest of each window would add up.
        left_out: ranks that do not count for the mean.
    """
    if is_free:
        return steps, np.stack([seconds.max(axis=0), np.delete(seconds, left_out, axis=0).mean(axis=0)])
    return steps, np.tile(seconds[seconds.sum(axis=1).argmax()], (2, 1))


def _causes(
    slowest: Weights, mean: Weights, scaling: Scaling, case: Case, several_ranks: bool
) -> tuple[dict[PartName, np.ndarray], list[str]]:
    """Returns the sums that are the causes, as weights of step times, and what cannot be told.

    `slowest` and `mean` select the step time of a run, of its slowest rank or the mean of its ranks.
    """
    causes: dict[PartName, np.ndarray] = {}
    missing = []
    full, synthetic, scale = "full at 1", "synthetic at 1", 1.0
    if scaling == "strong":
        if "full of share" in slowest and "synthetic of share" in slowest:
            causes["small batches"] = slowest["full of share"] - slowest[full] / case.devices
            full, synthetic = "full of share", "synthetic of share"
        else:
            scale = 1 / case.devices
            missing.append(
                f"small batches count as contention, as one device was not measured with {case.images_per_device:g} "
                "images, with real and with synthetic input"
            )
    if "synthetic" in slowest and synthetic in slowest:
        at_one = scale * (slowest[full] - slowest[synthetic])
        causes["input"] = slowest["full"] - slowest["synthetic"] - at_one
    if "synthetic" in slowest and "free" in slowest:
        causes["communication"] = last = slowest["synthetic"] - slowest["free"]
        if "unreduced" in slowest:
            causes["communication"] = slowest["full"] - slowest["unreduced"]
            causes["interaction"] = last - causes["communication"]
        else:
            missing.append("interaction counts as communication, as no run had real input without an all-reduce")
    if "free" in slowest and several_ranks:
        causes["stragglers"] = slowest["free"] - mean["free"]
    if "free" in slowest and synthetic in slowest:
        causes["contention"] = mean["free"] - scale * slowest[synthetic]
    needed = {
        "synthetic": ("input and communication", "synthetic input"),
        "free": ("communication, stragglers and contention", "synthetic input and without all-reduce"),
        synthetic: ("input and contention", "synthetic input on one device"),
    }
    for name, (parts, run) in needed.items():
        if name not in slowest:
            missing.append(f"{parts} are unexplained, as there is no steady run with {run}")
    if not several_ranks:
        missing.append(f"stragglers count as contention, as the devices of {case.strategy} are one process")
    return causes, missing


def _cap_communication(causes: dict[PartName, np.ndarray], alone: float, exposed: float) -> None:
    """Leaves to communication no more seconds than one all-reduce takes by itself; the rest of it is waiting."""
    waited = causes["communication"] * max(1 - alone / exposed, 0.0) if exposed > 0 else 0.0
    causes["communication"] = causes["communication"] - waited
    for name in ("stragglers", "contention"):  # Stragglers are not told apart within one process.
        if name in causes:
            causes[name] = causes[name] + waited
            break


def _times(share: Estimate, seconds: float) -> Estimate:
    return replace(share, value=share.value * seconds, low=share.low * seconds, high=share.high * seconds)


def _less(a: Estimate, b: Estimate) -> Estimate:
    """Returns a - b with the interval of independent estimates; they share cycles, so it is rather too wide."""
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    return Estimate(value, low, value + math.hypot(a.high - a.value, b.value - b.low), min(a.repeats, b.repeats))


def _as_loss(share: Estimate) -> Estimate:
    """Returns the same share with the interval of the logarithm of the efficiency, which keeps it below 1."""
    efficiency = 1 - share.value
    stretch = math.exp(min((share.high - share.value) / efficiency, 100.0))
    return replace(share, low=1 - efficiency * stretch, high=1 - efficiency / stretch)


def _all_reduce_seconds(full: CaseSummary, all_reduces: Iterable[AllReduce]) -> float | None:
    """Returns the seconds of one all-reduce as large as the gradients, from the two nearest measured sizes."""
    case, size = full.case, gradient_bytes(full.records[0].identity.config)
    place = (case.strategy, case.devices, case.hosts)
    messages = [each for each in all_reduces if (each.case.strategy, each.case.devices, each.case.hosts) == place]
    sizes, seconds = [each.size_bytes for each in messages], [each.seconds for each in messages]
    if not sizes or not min(sizes) <= size <= max(sizes):
        return None
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(seconds))))


def _ratios_of_strategies(
    full: CaseSummary, by_case: Mapping[str, CaseSummary], baseline: CaseSummary
) -> dict[str, Estimate]:
    """Returns how many times as fast other strategies are on the same devices."""
    same = [untimed(full.case.model_copy(update={"strategy": strategy})) for strategy in STRATEGIES]
    found = [by_case[identity] for identity in same if identity in by_case]
    return {each.case.strategy: rate_ratio(each, full, baseline) for each in found if each.images_per_second}


def _fastest(ratios: Mapping[str, Estimate]) -> tuple[str, float] | None:
    """Returns the strategy that is faster by most, if it surely is, and by more than 5 %."""
    factors = {strategy: ratio.value for strategy, ratio in ratios.items() if ratio.low > 1}
    strategy, factor = max(factors.items(), key=lambda item: item[1], default=("", 0.0))
    return (strategy, factor) if factor > 1 + NOTABLE_GAIN else None
