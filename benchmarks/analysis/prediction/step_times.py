"""The model of step times: step(N) = compute + max(0, all-reduce(N) - overlap) + stragglers(N).

The all-reduce is a ring, 2 (N - 1) a + 2 (N - 1) / N S b seconds for S bytes (Patarasuk and Yuan, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", JPDC 69, 2009). Stragglers are the expected maximum of N draws from
measured step times, less their mean. A negative overlap stands for what the other terms leave out, such as contention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.analysis.prediction.scaling_models import Floats, fit_nonnegative
from mnist_dist.config import IMAGE_SIZE, parse_config
from mnist_dist.lazy import scipy

FEWEST_MESSAGES = 3
DIGITS = 10


@dataclass(frozen=True)
class Ring:
    """A ring all-reduce of S bytes: 2 (N - 1) latency + 2 (N - 1) / N S seconds_per_byte."""

    latency_seconds: float
    seconds_per_byte: float

    def seconds(self, devices: Floats, size: Floats | float) -> Floats:
        others = 2 * (devices - 1)
        return others * self.latency_seconds + others / devices * size * self.seconds_per_byte


def fit_ring(messages: Sequence[AllReduce]) -> Ring:
    """Fits latency and seconds per byte to the logarithms of the seconds, outliers weighted down.

    A ValueError tells of fewer than three messages, or of all of one size.
    """
    devices, size, seconds = np.array([(each.case.devices, each.size_bytes, each.seconds) for each in messages]).T
    if len(messages) < FEWEST_MESSAGES or np.ptp(size) == 0:
        raise ValueError(f"{len(messages)} all-reduces of {len(set(size))} sizes are too few to fit a ring")
    others = 2 * (devices - 1)
    columns = np.column_stack([others, others / devices * size])
    latency, seconds_per_byte = fit_nonnegative(columns, seconds, robust=True).tolist()
    return Ring(latency, seconds_per_byte)


@dataclass(frozen=True)
class Links:
    """The ring within a host, which up to `devices_per_host` devices use, and the one between hosts."""

    within_host: Ring | None
    between_hosts: Ring | None
    devices_per_host: float = math.inf

    @classmethod
    def fit(
        cls,
        messages: Sequence[AllReduce],
        devices_per_host: float = math.inf,
        rng: np.random.Generator | None = None,
    ) -> Links:
        """Fits the rings that were measured; see `fit_ring`. With `rng`, to a sample of the messages of each."""
        of_rings = [[each for each in messages if (each.case.hosts > 1) == which] for which in (False, True)]
        if rng is not None:
            of_rings = [[each[place] for place in rng.integers(max(len(each), 1), size=len(each))] for each in of_rings]
        within, between = of_rings
        return cls(fit_ring(within) if within else None, fit_ring(between) if between else None, devices_per_host)

    def seconds(self, devices: Floats, size: float) -> Floats:
        """Returns nan where the ring that would be used was not measured."""
        of_rings = [
            ring.seconds(devices, size) if ring else np.full(len(devices), np.nan)
            for ring in (self.within_host, self.between_hosts)
        ]
        return np.where(devices <= self.devices_per_host, *of_rings)


@dataclass(frozen=True)
class StepTimesModel:
    """What a step on N devices is made of, as far as it was measured apart from the throughput.

    Attributes:
        links: as fitted to all measured all-reduces.
        drawn_links: as fitted to samples of them, for the uncertainty.
        gradient_bytes: that each device contributes to the all-reduce of a step.
        relative_times: float64 [windows], step times of ranks that wait for nobody, relative to their mean.
        images_of_one: images in a step of one device.
        is_strong: N devices share these images, else each takes as many.
        fixed_share: of the step of one device, what does not shrink with its images.
    """

    links: Links
    drawn_links: tuple[Links, ...]
    gradient_bytes: int
    relative_times: Floats
    images_of_one: int
    is_strong: bool
    fixed_share: float = 0.0
    fewest_points: ClassVar[int] = 2  # As many as it has parameters to fit.

    def fit(self, devices: Floats, images_per_second: Floats, rng: np.random.Generator | None = None) -> StepTimes:
        """Fits the logarithms of throughputs, float64 [points], the first on one device.

        Compute is the step of the first point; the overlap is fitted to the others.

        Args:
            rng: draw the links anew from their uncertainty.

        Raises:
            ValueError: an all-reduce that takes part in a point was not measured.
        """
        links = self.links if rng is None else self.drawn_links[rng.integers(len(self.drawn_links))]
        seconds = self.images_per_step(devices) / images_per_second
        law = StepTimes(self, links, float(seconds[0]), 0.0)
        busy = law.compute_seconds * self.relative_busy(devices[1:])
        all_reduce = links.seconds(devices[1:], self.gradient_bytes)
        overlaps = busy + all_reduce - seconds[1:]
        if not np.isfinite(overlaps).all():
            raise ValueError("no all-reduce was measured on the links that its devices use")

        def misfit(overlap: float) -> float:
            return float(np.sum(np.log((busy + np.maximum(0.0, all_reduce - overlap)) / seconds[1:]) ** 2))

        if np.ptp(overlaps) == 0:
            return replace(law, overlap_seconds=float(overlaps[0]))
        found = scipy.optimize.minimize_scalar(misfit, bounds=(overlaps.min(), overlaps.max()), method="bounded")
        return replace(law, overlap_seconds=float(found.x))

    def images_per_step(self, devices: Floats) -> Floats:
        return np.full(len(devices), float(self.images_of_one)) if self.is_strong else self.images_of_one * devices

    def relative_busy(self, devices: Floats) -> Floats:
        """Returns the time for compute and stragglers, relative to the step of one device."""
        share = 1 / devices if self.is_strong else np.ones_like(devices)
        compute = self.fixed_share + (1 - self.fixed_share) * share
        return compute * (1 + expected_excess(self.relative_times, devices))


@dataclass(frozen=True)
class StepTimes:
    """step(N) = compute + max(0, all-reduce(N) - overlap) + stragglers(N)."""

    model: StepTimesModel
    links: Links
    compute_seconds: float  # Of one device.
    overlap_seconds: float
    free_parameters: ClassVar[int] = 2

    def images_per_second(self, devices: Floats) -> Floats:
        return self.model.images_per_step(devices) / self.step_seconds(devices)

    def step_seconds(self, devices: Floats) -> Floats:
        exposed = np.maximum(0.0, self.links.seconds(devices, self.model.gradient_bytes) - self.overlap_seconds)
        # One device has nobody to exchange anything with.
        return self.compute_seconds * self.model.relative_busy(devices) + np.where(devices > 1, exposed, 0.0)


def expected_excess(times: Floats, draws: Floats) -> Floats:
    """Returns the expected maximum of n draws from a sample, less the sample's mean, for each n of `draws`.

    Up to a quarter of the sample's size it is that of the empirical distribution. Beyond, where the few largest
    values would decide alone, it grows with log(n) as in Gumbel's limit, at the pace of the last four-fold growth.

    Args:
        times: float64 [sample].
        draws: float64 [numbers], each at least 1.
    """
    ordered, count = np.sort(times), len(times)
    ranks = np.arange(count + 1) / count

    def within_sample(numbers: Floats) -> Floats:
        return np.diff(ranks ** numbers[:, None], axis=1) @ ordered - ordered.mean()

    largest = max(count / 4, 1.0)
    before, at_largest = within_sample(np.array([max(largest / 4, 1.0), largest]))
    pace = (at_largest - before) / math.log(4)
    return within_sample(np.minimum(draws, largest)) + pace * np.log(np.maximum(draws / largest, 1.0))


def gradient_bytes(config: Mapping[str, Any]) -> int:
    """Returns how many bytes each device contributes to the all-reduce of one step."""
    model = parse_config({"model": config.get("model", {})}).model
    edge, channels, parameters = IMAGE_SIZE, 1, 0
    for filters, window in zip(model.filters, model.kernel_sizes, strict=True):
        # A bias, or the scale and offset of batch normalisation.
        parameters += (window * window * channels + (2 if model.batch_norm else 1)) * filters
        edge, channels = (edge - window + 1) // 2, filters
    parameters += (edge * edge * channels + 1) * model.dense_units + (model.dense_units + 1) * DIGITS
    compressed = config.get("optimizer", {}).get("gradient_compression") == "float16"
    return parameters * (2 if compressed else 4)
