"""Throughput and efficiency on numbers of devices that were not measured, from those that were.

Three models are fitted to the points of a curve: *step times*, the *universal scalability law* (USL) and *Amdahl's
law*; see `scaling_models`. Each is also fitted without the largest measured number of devices, and the one that
foretells that point best is trusted; where too few points are left to try, the one with the fewest parameters to fit.

Intervals hold 95 % of the measurements to come. They are a parametric bootstrap: each draw refits a model to its own
fit plus noise, which is that of the residuals, with the uncertainty that few points leave, and no less than that of
the points themselves. Beyond the largest measured number an interval is no narrower than the error of the held-out
point, in proportion to the number of doublings. Which model is right is not known either: the interval is the envelope
of those of all models that the points do not reject, by an F-test of the residuals against the noise of the points.
Where they reject all, nothing is foretold.

Nothing is foretold beyond four times the largest measured number, nor beyond one host where no run spanned several, as
links between hosts are of another kind: further on it would be extrapolation, for which there is no number.

The largest sensible number of devices is the last to which doubling, from one device on, raises the throughput at
least 1.5-fold, that is by half of the ideal gain, as far as is foretold. Imports no TensorFlow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.limits import AllReduce
from mnist_dist.benchmarks.analysis.prediction.evidence import Evidence
from mnist_dist.benchmarks.analysis.prediction.scaling_models import Floats, ScalingLaw, ScalingLawModel
from mnist_dist.benchmarks.analysis.prediction.step_times import StepTimes, StepTimesModel
from mnist_dist.benchmarks.analysis.scaling import Curve, Point, Scaling, is_oversubscribed
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.record import on_gpus
from mnist_dist.lazy import scipy

Law = ScalingLaw | StepTimes
Model = ScalingLawModel | StepTimesModel

MODELS = ("step times", "Amdahl", "USL")  # By the number of parameters to fit.
POWERS_OF_TWO = tuple(2**exponent for exponent in range(13))
FEWEST_POINTS = 3
DRAWS = 500
FARTHEST = 4  # Times the largest measured number of devices.
REJECTION = 0.02  # The level at which points reject a model.
SMALLEST_MISFIT = 0.02  # Standard deviation of residuals, as a share; a smaller one is no reason to reject a model.
LARGEST_NOISE = 0.5  # Standard deviation of logarithms; more can only come from a draw with one degree of freedom.
WORTHWHILE_GAIN = 1.5


@dataclass(frozen=True)
class Forecast:
    """At one number of devices: images per second of all devices together, efficiency as a share, 95 % intervals."""

    devices: int
    images_per_second: float
    low: float
    high: float
    efficiency: float
    efficiency_low: float
    efficiency_high: float


@dataclass(frozen=True)
class FittedModel:
    """A model fitted to all points of a curve.

    Attributes:
        held_out_error: relative error at the held-out number of devices, of a fit without that point; positive where
            it foretold too much. None where too few points remain for that.
        rejected: whether the points lie farther from its fit than their noise explains.
        worthwhile_devices: the largest sensible number: the lower bound, the best estimate and the upper bound.
    """

    name: str
    law: Law = field(compare=False)
    held_out_error: float | None
    rejected: bool
    forecasts: tuple[Forecast, ...]
    worthwhile_devices: tuple[int, int, int]


@dataclass(frozen=True)
class Prediction:
    """What the models say of one curve.

    Attributes:
        images: per device in weak scaling, of all devices together in strong scaling.
        measured: images per second of all devices together, by number of devices.
        held_out_devices: the largest measured number of devices.
        models: the fitted ones, the trusted one first, with intervals that hold those of all; none where there are too
            few points, or where they reject all.
        refused: why models were not fitted or are rejected, by name.
        notes: what limits the prediction, a sentence each.
    """

    strategy: str
    scaling: Scaling
    images: int
    measured: dict[int, float]
    held_out_devices: int
    models: tuple[FittedModel, ...]
    refused: dict[str, str]
    reason: str
    notes: tuple[str, ...]


def predict(
    curve: Curve,
    summaries: Sequence[CaseSummary],
    all_reduces: Sequence[AllReduce] = (),
    devices: Sequence[int] = POWERS_OF_TWO,
    seed: int = 0,
) -> Prediction:
    """Fits the models to a curve and extrapolates.

    Args:
        summaries: all of the study, of which runs without all-reduce and of one device are used.
        all_reduces: those that the study measured by themselves, which the model of step times needs.
        devices: the numbers of devices to predict; in strong scaling those beyond the global batch are left out.
    """
    points, notes = _usable_points(curve)
    measured = {point.devices: point.throughput.value for point in points}
    images = curve.baseline.case.global_batch_size
    result = Prediction(curve.strategy, curve.scaling, images, measured, max(measured), (), {}, "", tuple(notes))
    if len(measured) < FEWEST_POINTS:
        few = f"measured numbers of devices: {len(measured)}, needed: {FEWEST_POINTS}, such as 1, 2 and 4"
        return replace(result, refused={"all models": few})
    wanted = np.array(sorted({*devices, *measured}), np.float64)
    if curve.scaling == "strong":
        wanted = wanted[wanted <= curve.baseline.case.global_batch_size]
    farthest, why = _farthest(points)
    if beyond := [int(each) for each in wanted if each > farthest]:
        notes.append(f"No prediction from {beyond[0]:,} devices on, as that is extrapolation: {why}.")
    wanted = wanted[wanted <= farthest]
    messages = [each for each in all_reduces if each.case.strategy == curve.strategy and each.case.devices > 1]
    fitted: dict[str, FittedModel] = {}
    refused = {}
    for name in reversed(MODELS):
        evidence = Evidence(curve, points, summaries, messages, np.random.default_rng(seed))
        try:
            fitted[name] = _fit(evidence, name, wanted)
        except ValueError as error:
            refused[name] = str(error)
    kept = [fitted[name] for name in MODELS if name in fitted and not fitted[name].rejected]
    refused |= {name: "the points reject it" for name, each in fitted.items() if each.rejected}
    if not kept:
        bent = f"no model fits the {len(measured)} points within their noise, as where links change at some number"
        return replace(result, refused={"all models": bent})
    models, reason = _by_trust(_with_envelope(kept), result.held_out_devices)
    if "step times" in fitted:
        notes += evidence.limits_of_step_times()
    if len(measured) == FEWEST_POINTS:
        notes.append("Three points fix the three parameters of USL, so they cannot reject it.")
    return replace(result, models=tuple(models), refused=refused, reason=reason, notes=tuple(notes))


def _farthest(points: Sequence[Point]) -> tuple[int, str]:
    """Returns the largest number of devices that can be foretold, and why no larger one."""
    largest, cases = max(point.devices for point in points), [point.summary.case for point in points]
    farthest, why = FARTHEST * largest, f"more than {FARTHEST} times the {largest:,} that were measured"
    records = points[-1].summary.records
    hardware, cores = records[0].identity.hardware, cases[-1].cores_per_device
    on_host = len(hardware.gpus) if on_gpus(records) else hardware.cores // (cores or hardware.cores)
    if all(case.hosts == 1 for case in cases) and max(on_host, largest) < farthest:
        return max(on_host, largest), f"a host has {on_host:,}, and nothing was measured on several hosts"
    return farthest, why


def _with_envelope(models: Sequence[FittedModel]) -> list[FittedModel]:
    """Returns the models with intervals that hold those of all."""
    outermost: dict[str, Any] = {"low": min, "high": max, "efficiency_low": min, "efficiency_high": max}
    rows = [
        {bound: pick(getattr(each, bound) for each in at) for bound, pick in outermost.items()}
        for at in zip(*(model.forecasts for model in models), strict=True)
    ]
    lows, _, highs = zip(*(model.worthwhile_devices for model in models), strict=True)
    return [
        replace(
            model,
            forecasts=tuple(replace(each, **row) for each, row in zip(model.forecasts, rows, strict=True)),
            worthwhile_devices=(min(lows), model.worthwhile_devices[1], max(highs)),
        )
        for model in models
    ]


def _usable_points(curve: Curve) -> tuple[tuple[Point, ...], list[str]]:
    """Returns the points to fit, with a note: devices that share cores are not of the same kind as the others."""
    fitting = tuple(point for point in curve.points if not is_oversubscribed(point.summary))
    if len(fitting) == len(curve.points):
        return fitting, []
    crowded = ", ".join(str(point.devices) for point in curve.points if point not in fitting)
    if len({point.devices for point in fitting}) >= FEWEST_POINTS:
        return fitting, [f"Left out: {crowded} devices, because they share cores."]
    return curve.points, [
        f"{crowded} devices share cores, so this predicts the same machine divided further, not more machines."
    ]


def _fit(evidence: Evidence, name: str, wanted: Floats) -> FittedModel:
    """Fits a model with and without the largest number of devices.

    Raises:
        ValueError: it cannot be fitted.
    """
    held_out_error = _held_out_error(evidence, name)
    model = evidence.model(name)
    law = model.fit(evidence.devices, evidence.images_per_second)
    laws, noise = _draw_laws(evidence, model, law)
    value, low, high = _intervals(evidence, law, laws, noise, wanted, held_out_error)
    worthwhile = _worthwhile_devices(wanted, law, laws)
    first = evidence.curve.points[0]
    ideal = wanted * first.throughput.value / (first.devices * first.efficiency.value)
    columns = [wanted.astype(int), value, low, high, value / ideal, low / ideal, high / ideal]
    forecasts = tuple(Forecast(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
    return FittedModel(name, law, held_out_error, _is_rejected(evidence, law), forecasts, worthwhile)


def _is_rejected(evidence: Evidence, law: Law) -> bool:
    """Whether the residuals are larger than the noise of the points explains: an F-test, as that is an estimate too."""
    residuals = np.log(evidence.images_per_second / law.images_per_second(evidence.devices))
    freedom = len(residuals) - law.free_parameters
    if freedom <= 0:
        return False
    variance = max(evidence.noise_variance, SMALLEST_MISFIT**2)
    ratio = float(residuals @ residuals) / freedom / variance
    return bool(scipy.stats.f.sf(ratio, freedom, evidence.noise_freedom) < REJECTION)


def _held_out_error(evidence: Evidence, name: str) -> float | None:
    largest = int(evidence.devices.max())
    rest = evidence.below(largest)
    try:
        model = rest.model(name)
        if len(rest.points) < model.fewest_points:
            return None
        law = model.fit(rest.devices, rest.images_per_second)
    except ValueError:  # Without this number of devices, too few all-reduces are left.
        return None
    measured = evidence.images_per_second[evidence.devices == largest][0]
    return float(law.images_per_second(np.array([float(largest)]))[0] / measured - 1)


def _draw_laws(evidence: Evidence, model: Model, law: Law) -> tuple[list[Law], Floats]:
    """Refits a model to its own fit plus noise.

    Returns:
        The laws, and the standard deviation of the noise of each, float64 [draws], on the logarithms: that of a draw
        from the scaled inverse chi-square distribution that the residuals leave, or that of the points if larger.
    """
    fitted = law.images_per_second(evidence.devices)
    residuals = np.log(evidence.images_per_second / fitted)
    freedom = len(residuals) - law.free_parameters
    known = evidence.noise_freedom
    variance = evidence.noise_variance * known / evidence.rng.chisquare(known, DRAWS)
    if freedom > 0:
        variance = np.maximum(variance, residuals @ residuals / evidence.rng.chisquare(freedom, DRAWS))
    noise = np.minimum(np.sqrt(variance), LARGEST_NOISE)
    shocks = np.exp(noise[:, None] * evidence.rng.standard_normal((DRAWS, len(residuals))))
    return [model.fit(evidence.devices, fitted * shock, evidence.rng) for shock in shocks], noise


def _intervals(
    evidence: Evidence, law: Law, laws: Sequence[Law], noise: Floats, wanted: Floats, held_out_error: float | None
) -> tuple[Floats, Floats, Floats]:
    """Returns images per second and their bounds, float64 [wanted]."""
    drawn = np.log([each.images_per_second(wanted) for each in laws])
    drawn += noise[:, None] * evidence.rng.standard_normal(drawn.shape)
    value = law.images_per_second(wanted)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5], axis=0))
    if held_out_error is not None:
        measured = np.unique(evidence.devices)
        doublings = np.maximum(np.log2(wanted / measured[-1]), 0) / np.log2(measured[-1] / measured[-2])
        drift = np.exp(abs(math.log1p(held_out_error)) * doublings)
        low, high = np.minimum(low, value / drift), np.maximum(high, value * drift)
    return value, low, high


def _worthwhile_devices(wanted: Floats, law: Law, laws: Sequence[Law]) -> tuple[int, int, int]:
    """Returns the last number that pays, with its bounds, among the powers of two up to the largest foretold."""
    devices = 2.0 ** np.arange(math.floor(math.log2(wanted[-1])) + 1)

    def last_worthwhile(rates: Floats) -> int:
        pays = rates[1:] >= WORTHWHILE_GAIN * rates[:-1]
        return int(devices[len(pays) if pays.all() else pays.argmin()])

    drawn = sorted(last_worthwhile(each.images_per_second(devices)) for each in laws)
    low, high = (drawn[round(share * (len(drawn) - 1))] for share in (0.025, 0.975))
    return low, last_worthwhile(law.images_per_second(devices)), high


def _by_trust(models: Sequence[FittedModel], held_out: int) -> tuple[list[FittedModel], str]:
    """Returns the models, the trusted one first, and the reason; see the module."""
    tested = [model for model in models if model.held_out_error is not None]
    if not tested:
        return list(models), "untested, as holding one point out leaves too few; it has the fewest parameters to fit"
    tested.sort(key=lambda model: abs(model.held_out_error or 0.0))
    errors = ", ".join(f"{100 * (model.held_out_error or 0.0):+.1f} % ({model.name})" for model in tested)
    rest = [model for model in models if model not in tested]
    return tested + rest, f"error at the held-out {held_out} devices: {errors}"
