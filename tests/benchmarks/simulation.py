"""Simulated benchmarks: runs whose true rate and noise, between runs and between windows, are known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from scipy import signal

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.stats import Series

CASE = Case(global_batch_size=100, cores_per_device=1, measure_seconds=5)
WINDOW_SECONDS = 0.12
START = datetime(2026, 1, 1, tzinfo=timezone.utc)

IDENTITY: dict[str, Any] = {
    "hardware": {
        "architecture": "x86_64",
        "cpu_model": "Example CPU",
        "cores": 2,
        "memory_bytes": 8 * 2**30,
        "gpus": [],
        "gpu_driver": None,
    },
    "software": {"python": "3.12.1", "tensorflow": "2.21.0", "mnist_dist": "1.0.0", "horovod": "0.28.1"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "hosts": ["n1"],
    "job_id": None,
    "launcher": "mnist-dist",
    "environment": {},
    "config": {"seed": 0, "training": {"epochs": 3}},
}


def correlated_noise(
    rng: np.random.Generator, windows: int, deviation: float, memory: float, rows: int = 1
) -> np.ndarray:
    """Returns stationary normal noise of the first order, float64 [rows, windows]."""
    shocks = rng.standard_normal((rows, windows + 100)) * deviation * np.sqrt(1 - memory**2)
    return signal.lfilter([1.0], [1.0, -memory], shocks)[:, 100:]


def outliers(rng: np.random.Generator, windows: int, share: float = 0.03) -> np.ndarray:
    """Returns what isolated windows, 1.2 to 2.2 times as slow, add to log step times, float64 [windows]."""
    return (rng.random(windows) < share) * rng.uniform(0.2, 0.8, windows)


def throttled(rng: np.random.Generator, windows: int, share: float, stretch: float) -> np.ndarray:
    """Returns in which windows a clock is throttled, bool [windows]: at random, for `stretch` windows on average."""
    slow = np.empty(windows, bool)
    slow[0] = rng.random() < share
    for window, chance in enumerate(rng.random(windows - 1), start=1):
        changes = chance < (1.0 if slow[window - 1] else share / (1 - share)) / stretch
        slow[window] = slow[window - 1] != changes
    return slow


def make_series(
    rng: np.random.Generator,
    repeats: int,
    between: float = 0.02,
    within: float = 0.03,
    memory: float = 0.4,
    windows: int = 40,
    slower: float = 1.0,
) -> list[Series]:
    """Returns repeats of 1,000 units of work in each window of WINDOW_SECONDS, times `slower`."""
    times = correlated_noise(rng, windows, within, memory, repeats) + between * rng.standard_normal((repeats, 1))
    return [Series(np.full(windows, 1000.0), slower * WINDOW_SECONDS * np.exp(row)) for row in times]


def true_rate(between: float = 0.02, within: float = 0.03) -> float:
    """Returns work over seconds in the long run: the mean of exp(x) is exp(half the variance of x)."""
    return 1000 / WINDOW_SECONDS / float(np.exp((between**2 + within**2) / 2))


def make_record(
    case: Case = CASE,
    repeat: int = 0,
    *,
    window_seconds: Sequence[Sequence[float]] = ((WINDOW_SECONDS,) * 40,),
    window_steps: Sequence[int] | None = None,
    identity: dict[str, Any] | None = None,
    measurements: dict[str, Any] | None = None,
    minute: int | None = None,
    **fields: Any,
) -> Record:
    """Returns a record that follows the schema.

    Args:
        identity: replaces parts of IDENTITY; of its mappings, entries.
        measurements: replaces parts of a training's, or all of them for a case of another kind.
        minute: at which it started, from START on.
    """
    ranks = len(window_seconds)
    training = {
        "window_steps": list(window_steps or [10] * len(window_seconds[0])),
        "window_seconds": [list(map(float, row)) for row in window_seconds],
        "first_step_seconds": [2.0] * ranks,
        "startup_seconds": [5.0] * ranks,
        "peak_memory_bytes": [1e9] * ranks,
        "peak_device_memory_bytes": None,
        "evaluations": [],
        "test_accuracy": None,
        "test_loss": None,
        "flops_per_image": 1_000_000,
        "precision": "float32",
        "xla": "off",
        "device": "CPU",
    }
    if case.kind == "input":
        training = {name: training[name] for name in ("window_steps", "window_seconds")}
    measured = measurements if case.kind in ("matmul", "collectives") else training | (measurements or {})
    ok = fields.get("status", "ok") == "ok"
    changed = {
        name: value | (identity or {})[name] if isinstance(value, dict) else (identity or {})[name]
        for name, value in IDENTITY.items()
        if name in (identity or {})
    }
    content: dict[str, Any] = {
        "study": "study",
        "suite": "suite",
        "repeat": repeat,
        "seed": repeat,
        "status": "ok",
        "reason": None,
        "output_tail": (),
        "started_at": (START + timedelta(minutes=repeat if minute is None else minute)).isoformat(),
        "seconds": 20.0,
        "harness_cpu_seconds": 0.1,
        "identity": IDENTITY | {"hosts": ["n1"] * ranks} | changed,
        "turns": None,
        "telemetry": None,
        "measurements": measured if ok else None,
    }
    return Record.new(case, **(content | fields))


def make_runs(
    rng: np.random.Generator,
    repeats: int = 5,
    case: Case = CASE,
    *,
    between: float | Sequence[float] = 0.02,
    within: float = 0.03,
    outlier_share: float = 0.02,
    slower: float = 1.0,
    first_minute: int = 0,
    **fields: Any,
) -> list[Record]:
    """Returns repeats of one case, a minute after one another, with warm-up and isolated slow windows.

    Args:
        between: standard deviation of the runs' log times, or these times themselves.
        outlier_share: of windows that are slow for no reason of their own.
        slower: factor on all times.
    """
    windows = 45
    runs = between * rng.standard_normal(repeats) if isinstance(between, float) else np.asarray(between)
    times = correlated_noise(rng, windows, within, 0.4, repeats) + runs[:, None]
    times[:, :3] += [0.5, 0.3, 0.2]
    seconds = slower * WINDOW_SECONDS * np.exp(times + [outliers(rng, windows, outlier_share) for _ in range(repeats)])
    return [
        make_record(case, repeat, window_seconds=[row], minute=first_minute + repeat, **fields)
        for repeat, row in enumerate(seconds)
    ]
