"""What the models are fitted to, drawn from the summaries of a study."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.analysis.prediction.scaling_models import Floats, ScalingLawModel, fit_nonnegative
from mnist_dist.benchmarks.analysis.prediction.step_times import Links, StepTimesModel, gradient_bytes
from mnist_dist.benchmarks.analysis.scaling import Curve, Point
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.statistics.stats import Estimate, student_quantile

LINK_DRAWS = 100


@dataclass(frozen=True)
class Evidence:
    """What was measured of one curve.

    Attributes:
        messages: the all-reduces of its strategy on several devices.
        link_draws: how many samples of the all-reduces to fit the links to, for their uncertainty.
    """

    curve: Curve
    points: Sequence[Point]
    summaries: Sequence[CaseSummary]
    messages: Sequence[AllReduce]
    rng: np.random.Generator
    link_draws: int = LINK_DRAWS

    @property
    def devices(self) -> Floats:
        return np.array([point.devices for point in self.points], np.float64)

    @property
    def images_per_second(self) -> Floats:
        return np.array([point.throughput.value for point in self.points])

    @property
    def noise_variance(self) -> float:
        """The variance of the logarithm of a throughput, as the points know it of themselves."""
        return float(np.mean([_deviation(point.throughput) ** 2 for point in self.points]))

    @property
    def noise_freedom(self) -> int:
        return max(sum(point.throughput.repeats - 1 for point in self.points), 1)

    def below(self, devices: int) -> Evidence:
        """Returns what was measured on fewer devices and nothing else, for a fit without its uncertainty."""
        points = [point for point in self.points if point.devices < devices]
        summaries = [summary for summary in self.summaries if summary.case.devices < devices]
        messages = [each for each in self.messages if each.case.devices < devices]
        return replace(self, points=points, summaries=summaries, messages=messages, link_draws=0)

    def model(self, name: str) -> ScalingLawModel | StepTimesModel:
        """Prepares a model for fitting; a ValueError says which all-reduces it needs that were not measured."""
        if name != "step times":
            return ScalingLawModel(has_coherency=name == "USL")
        strategy, baseline = self.curve.strategy, self.curve.baseline.case
        if not self.messages:
            raise ValueError(f"no all-reduce of {strategy} was measured, as the suite scaling does")
        per_host = _devices_per_host([point.summary.case for point in self.points], self.messages)
        links = Links.fit(self.messages, per_host)
        if (per_host > 1 and not links.within_host) or (per_host < math.inf and not links.between_hosts):
            which = "between hosts" if links.within_host else "within a host"
            raise ValueError(f"no all-reduce of {strategy} {which} was measured")
        draws = []
        for _ in range(self.link_draws):
            with contextlib.suppress(ValueError):  # A sample does not always suffice.
                draws.append(Links.fit(self.messages, per_host, self.rng))
        return StepTimesModel(
            links,
            (links, *draws),
            gradient_bytes(self.points[-1].summary.records[0].identity.config),
            self._relative_times(),
            images_of_one=baseline.global_batch_size,
            is_strong=self.curve.scaling == "strong",
            fixed_share=self._fixed_share(),
        )

    def _relative_times(self) -> Floats:
        """Returns step times, float64 [windows], of ranks that waited for nobody, relative to the mean of their run."""
        free = [
            summary
            for summary in self._of_same_setup()
            if summary.case.strategy == self.curve.strategy and not summary.case.all_reduce and not summary.unstable
        ]
        times = [
            (steps / steps.mean()).ravel()
            for summary in (free or [self.curve.baseline])
            for run in summary.runs
            if (steps := run.step_seconds).size
        ]
        return np.concatenate(times) if times else np.ones(1)

    def _fixed_share(self) -> float:
        """Returns what share of the step of one device did not shrink with its images; 0 for a single batch."""
        singles = self._singles()
        if self.curve.scaling == "weak" or len(singles) < 2:
            return 0.0
        images = np.array(list(singles), np.float64)
        seconds = images / np.array(list(singles.values()))
        fixed, per_image = fit_nonnegative(np.column_stack([np.ones_like(images), images]), seconds)
        return float(fixed / (fixed + per_image * self.curve.baseline.case.global_batch_size))

    def _singles(self) -> dict[int, float]:
        """Returns the throughputs of one device, by its batch."""
        return {
            summary.case.global_batch_size: summary.images_per_second.value
            for summary in self._of_same_setup()
            if summary.case.is_baseline and summary.images_per_second
        }

    def _of_same_setup(self) -> list[CaseSummary]:
        baseline = self.curve.baseline.case
        setup = baseline.settings, baseline.cores_per_device
        return [each for each in self.summaries if (each.case.settings, each.case.cores_per_device) == setup]

    def limits_of_step_times(self) -> list[str]:
        """Returns what their model takes for granted because it was not measured, a sentence each."""
        notes = []
        if _devices_per_host([], self.messages) == math.inf:
            notes.append(
                "All measured links lie within one host; the step-time model assumes as fast ones between hosts."
            )
        if self.curve.scaling == "strong" and len(self._singles()) < 2:
            notes.append(
                "One device was measured with one batch; the step-time model assumes that compute scales with images."
            )
        return notes


def _devices_per_host(cases: Sequence[Case], messages: Sequence[AllReduce]) -> float:
    """Returns up to how many devices share a host, which shows where there were several hosts."""
    several = [case for case in (*cases, *(each.case for each in messages)) if case.hosts > 1]
    return max((case.devices / case.hosts for case in several), default=math.inf)


def _deviation(throughput: Estimate) -> float:
    """Returns the standard deviation of the logarithm that is behind a 95 % t-interval; 0 where there is none."""
    if math.isnan(throughput.low) or throughput.low <= 0:
        return 0.0
    quantile = student_quantile(0.975, throughput.repeats - 1) if throughput.repeats > 1 else 1.96
    return math.log(throughput.high / throughput.low) / (2 * quantile)
