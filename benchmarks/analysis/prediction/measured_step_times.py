"""What the model of step times is made of, drawn from the summaries of a study."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.analysis.prediction.scaling_models import Floats, fit_nonnegative
from mnist_dist.benchmarks.analysis.prediction.step_times import Links, StepTimesModel, gradient_bytes
from mnist_dist.benchmarks.analysis.scaling import Curve, Point
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.strategies import BASELINE


def make_step_times_model(
    curve: Curve,
    points: Sequence[Point],
    summaries: Sequence[CaseSummary],
    messages: Sequence[AllReduce],
    rng: np.random.Generator,
    link_draws: int,
) -> StepTimesModel:
    """Prepares the model for fitting.

    Args:
        points: of the curve, those to be fitted.
        messages: the all-reduces of its strategy on several devices.
        link_draws: how many samples of the all-reduces to fit the links to, for their uncertainty.

    Raises:
        ValueError: the all-reduces that it needs were not measured.
    """
    if not messages:
        raise ValueError(f"no all-reduce of {curve.strategy} was measured, as the suite scaling does")
    per_host = _devices_per_host([point.summary.case for point in points] + [each.case for each in messages])
    links = Links.fit(messages, per_host)
    if (per_host > 1 and not links.within_host) or (per_host < math.inf and not links.between_hosts):
        which = "between hosts" if links.within_host else "within a host"
        raise ValueError(f"no all-reduce of {curve.strategy} {which} was measured")
    baseline = curve.baseline.case
    return StepTimesModel(
        links,
        (links, *_draw_links(messages, per_host, rng, link_draws)),
        gradient_bytes(points[-1].summary.records[0].identity.config),
        _relative_times(curve, summaries),
        images_of_one=baseline.global_batch_size,
        is_strong=curve.scaling == "strong",
        fixed_share=_fixed_share(curve, summaries),
    )


def _draw_links(
    messages: Sequence[AllReduce], per_host: float, rng: np.random.Generator, draws: int
) -> Iterator[Links]:
    """Fits the links to samples of their messages, as far as a sample suffices."""
    of_links = [[each for each in messages if (each.case.hosts > 1) == which] for which in (False, True)]
    for _ in range(draws):
        drawn = [link[index] for link in of_links for index in rng.integers(max(len(link), 1), size=len(link))]
        with contextlib.suppress(ValueError):
            yield Links.fit(drawn, per_host)


def _devices_per_host(cases: Sequence[Case]) -> float:
    """Returns up to how many devices share a host, which shows where there were several hosts."""
    return max((case.devices / case.hosts for case in cases if case.hosts > 1), default=math.inf)


def _relative_times(curve: Curve, summaries: Sequence[CaseSummary]) -> Floats:
    """Returns step times, float64 [windows], of ranks that waited for nobody, relative to the mean of their run."""
    free = [
        summary
        for summary in summaries
        if summary.case.strategy == curve.strategy
        and not summary.case.all_reduce
        and not summary.unstable
        and _same_setup(summary.case, curve)
    ]
    times = [
        (steps / steps.mean()).ravel()
        for summary in (free or [curve.baseline])
        for run in summary.runs
        if (steps := run.step_seconds).size
    ]
    return np.concatenate(times) if times else np.ones(1)


def _fixed_share(curve: Curve, summaries: Sequence[CaseSummary]) -> float:
    """Returns what share of the step of one device did not shrink with its images; 0 where one batch was measured."""
    singles = _singles(curve, summaries)
    if curve.scaling == "weak" or len(singles) < 2:
        return 0.0
    images = np.array(list(singles), np.float64)
    seconds = images / np.array(list(singles.values()))
    fixed, per_image = fit_nonnegative(np.column_stack([np.ones_like(images), images]), seconds)
    return float(fixed / (fixed + per_image * curve.baseline.case.global_batch_size))


def _singles(curve: Curve, summaries: Sequence[CaseSummary]) -> dict[int, float]:
    """Returns the throughputs of one device, by its batch."""
    return {
        summary.case.global_batch_size: summary.images_per_second.value
        for summary in summaries
        if summary.case.strategy == BASELINE
        and summary.case.kind == "train"
        and not summary.case.is_ablation
        and summary.images_per_second
        and _same_setup(summary.case, curve)
    }


def _same_setup(case: Case, curve: Curve) -> bool:
    baseline = curve.baseline.case
    return (case.settings, case.cores_per_device) == (baseline.settings, baseline.cores_per_device)


def limits_of_step_times(curve: Curve, summaries: Sequence[CaseSummary], messages: Sequence[AllReduce]) -> list[str]:
    """Returns what the model takes for granted because it was not measured, a sentence each."""
    notes = []
    if _devices_per_host([each.case for each in messages]) == math.inf:
        notes.append("All measured links lie within one host; step times take further devices to be joined as fast.")
    if curve.scaling == "strong" and len(_singles(curve, summaries)) < 2:
        notes.append("One device was measured with one batch; step times take compute to shrink with its images.")
    return notes
