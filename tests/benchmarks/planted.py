"""Studies simulated step by step, in which the causes of lost efficiency are known.

Ranks that all-reduce wait for the slowest in every step; the others run freely. The noise is that of a busy machine:
each run has its own level, disturbances last for several windows, and now and then a window takes half as long again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mnist_dist.benchmarks.analysis.attribution import Attribution, attribute
from mnist_dist.benchmarks.analysis.limits import measured_all_reduces
from mnist_dist.benchmarks.analysis.scaling import find_curves
from mnist_dist.benchmarks.analysis.summary import CaseSummary, summarize
from mnist_dist.benchmarks.records.case import Case, StrategyName
from mnist_dist.benchmarks.records.record import Record
from tests.benchmarks.factory import make_study

STEP_SECONDS = 10e-3  # Of one device with 128 images, without input.
WINDOWS, STEPS_PER_WINDOW = 40, 20
MILLISECONDS = 1.5  # Of each planted cause, 15 % of a step.


@dataclass(frozen=True)
class Truth:
    """What the steps take, in seconds, and how they vary, as standard deviations of logarithms."""

    fixed_seconds: float = 0.0  # Of a step's compute, that which does not shrink with its images.
    input_at_1: float = 0.0
    input_at_n: float = 0.0
    all_reduce: float = 0.0
    contention: float = 0.0
    slow_ranks: dict[int, float] = field(default_factory=dict)  # Seconds in each step.
    run_deviation: float = 0.01
    window_deviation: float = 0.015
    step_deviation: float = 0.0
    outliers: float = 0.02  # Share of a rank's windows.
    outlier_factor: float = 1.5
    drift: float = 0.0  # Of all runs of a repeat alike.


QUIET: dict[str, Any] = {"run_deviation": 0.0, "window_deviation": 0.0, "outliers": 0.0}


def train(strategy: StrategyName = "horovod", devices: int = 2, images: int = 128, **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "measure_seconds": 8.0,
        "cores_per_device": 1,
        "global_batch_size": images * devices,
        "settings": {"runtime.precision": "float32"},
    }
    return Case(strategy=strategy, devices=devices, **(fields | changes))


def point_cases(strategy: StrategyName = "horovod", devices: int = 2, **changes: Any) -> list[Case]:
    """A point of weak scaling with all that explains it."""
    full, single = train(strategy, devices, **changes), train("single", 1)
    return [full, ablation(full), ablation(full, all_reduce=False), single, ablation(single)]


def ablation(case: Case, **changes: Any) -> Case:
    return case.model_copy(update={"synthetic_input": True} | changes)


def plant(
    cases: Iterable[Case], truth: Truth, seed: int = 0, repeats: int = 3, hosts: Sequence[str] | None = None
) -> list[CaseSummary]:
    """Returns the study that measuring the cases would leave."""
    rng = np.random.default_rng(seed)
    drifts = np.exp(truth.drift * rng.standard_normal(repeats))
    return [
        summarize([_record(case, truth, repeat, drifts[repeat], rng, hosts) for repeat in range(repeats)])
        for case in cases
    ]


def _record(
    case: Case, truth: Truth, repeat: int, drift: float, rng: np.random.Generator, hosts: Sequence[str] | None
) -> Record:
    (record,) = make_study([case], 1)
    if case.kind != "train":
        return record
    ranks = len(record.identity.hosts)
    seconds = drift * _window_seconds(case, truth, ranks, rng)
    measurements = (record.measurements or {}) | {
        "window_steps": [STEPS_PER_WINDOW] * WINDOWS,
        "window_seconds": seconds.tolist(),
    }
    identity = record.identity.model_copy(update={"hosts": tuple(hosts[:ranks])} if hosts else {})
    changes = {"repeat": repeat, "measurements": measurements, "identity": identity}
    return record.model_copy(update=changes)


def _window_seconds(case: Case, truth: Truth, ranks: int, rng: np.random.Generator) -> np.ndarray:
    """Returns float64 [ranks, windows]."""
    several = case.devices > 1
    compute = truth.fixed_seconds + (STEP_SECONDS - truth.fixed_seconds) * case.images_per_device / 128
    mean = np.full(ranks, compute + truth.contention * several)
    for rank, more in truth.slow_ranks.items() if several else ():
        mean[rank] += more
    if not case.synthetic_input:
        mean += truth.input_at_n if several else truth.input_at_1
    noise = np.exp(truth.step_deviation * rng.standard_normal((ranks, WINDOWS, STEPS_PER_WINDOW)))
    noise *= np.exp(truth.window_deviation * _autocorrelated(ranks, rng))[:, :, None]
    noise *= np.where(rng.random((ranks, WINDOWS)) < truth.outliers, truth.outlier_factor, 1.0)[:, :, None]
    steps = mean[:, None, None] * noise * np.exp(truth.run_deviation * rng.standard_normal())
    if case.all_reduce and several:
        steps = np.broadcast_to(steps.max(axis=0) + truth.all_reduce, steps.shape)
    return steps.sum(axis=2)


def _autocorrelated(ranks: int, rng: np.random.Generator, memory: float = 0.6) -> np.ndarray:
    """Returns noise of the first order with the variance 1, float64 [ranks, windows]."""
    noise = rng.standard_normal((ranks, WINDOWS))
    noise[:, 1:] *= np.sqrt(1 - memory**2)
    for window in range(1, WINDOWS):
        noise[:, window] += memory * noise[:, window - 1]
    return noise


CAUSES = {
    "input": Truth(input_at_n=1e-3 * MILLISECONDS),
    "communication": Truth(all_reduce=1e-3 * MILLISECONDS),
    "stragglers": Truth(slow_ranks={1: 1e-3 * MILLISECONDS}),
    "contention": Truth(contention=1e-3 * MILLISECONDS),
}


def find(summaries: list[CaseSummary], scaling: str = "weak") -> Attribution:
    (curve,) = (curve for curve in find_curves(summaries) if curve.scaling == scaling)
    (found,) = attribute(curve, summaries, measured_all_reduces(summaries))
    return found
