"""Trainings as users start them: whether all strategies come to equal weights, and how long steps take."""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.doctor import BROKEN, OK, Finding
from mnist_dist.strategies import BASELINE, STRATEGIES, beside_the_baseline, missing_packages
from mnist_dist.training.checkpoint import Checkpoints
from mnist_dist.training.workdir import Workdir

Trainings = Mapping[str, Mapping[str, Any]]  # By name: settings by dotted key.

# Of the distance between the weights of two trainings to their length. Kernels that add up in another order make it
# 0.002 in 200 steps, and the loss of half of each batch 0.2 (docs/gpu.md).
TOLERANCE = 0.05
# Exact products, and plain momentum: Adam magnifies the rounding of gradients near zero.
EQUAL = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.02,
    "runtime.precision": "float32",
    "runtime.tf32": False,
}
STEP_BATCHES = (128, 2048, 16384)
STEP_VARIANTS: Trainings = {
    "plain": {"runtime.xla": "off"},
    "XLA": {"runtime.xla": "on"},
    "XLA, images sent": {"runtime.xla": "on", "data.resident": "off"},
}


def command(workdir: Path, settings: Mapping[str, Any]) -> list[str]:
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={json.dumps(value)}")]
    return [sys.executable, "-m", "mnist_dist", "train", *flags, "--workdir", str(workdir)]


def of_strategies(devices: int, steps: int = 200) -> Trainings:
    """Returns one device alone, and then each strategy that is installed, on one device and on all."""
    batch = devices * -(-128 // devices)
    places = [(BASELINE, 1), *itertools.product(beside_the_baseline(), sorted({1, devices}))]
    return {
        f"{name} {count}": {
            **EQUAL,
            **{"runtime.strategy": name, "runtime.devices": count, "training.batch_size": batch},
            **{"training.steps": steps, "logging.tensorboard": False},
        }
        for name, count in places
        if STRATEGIES[name].package not in missing_packages()
    }


def compare_weights(folder: Path, name: str) -> Finding:
    """Compares the weights of a training in its folder with those of one device in the folder beside it."""
    weights, expected = _weights(folder / name), _weights(folder / f"{BASELINE} 1")
    distance = float(np.linalg.norm(weights - expected) / np.linalg.norm(expected))
    detail = f"relative distance {distance:.1e} of the weights from those of one device, expected at most {TOLERANCE:g}"
    return Finding(name, OK if distance <= TOLERANCE else BROKEN, detail)


def of_step_times(batches: Sequence[int] = STEP_BATCHES, seconds: float = 2.0) -> Trainings:
    measuring = {"training.measure_seconds": seconds, "training.epochs": 1000, "logging.tensorboard": False}
    return {
        f"batch {batch} {name}": {**measuring, "training.batch_size": batch, **variant}
        for batch, (name, variant) in itertools.product(batches, STEP_VARIANTS.items())
    }


def tell_step_time(folder: Path, name: str) -> Finding:
    times = json.loads(Workdir(folder / name).step_times_file.read_text())
    steps, seconds = sum(times["window_steps"]), sum(times["window_seconds"][0])
    first = times["first_step_seconds"][0]
    return Finding(
        name,
        OK,
        f"{1e3 * seconds / steps:.3g} ms per step over {steps} steps; the first, with compiling, {first:.1f} s",
    )


def _weights(workdir: Path) -> np.ndarray:
    """Returns all weights of a training in one row, float64, or nothing where it left none, which equals nothing."""
    arrays, _ = Checkpoints(workdir / "checkpoints", 1, report=print).load_latest() or ({}, {})
    rows = [arrays[name].ravel() for name in sorted(arrays) if name.startswith("model/")]
    return np.concatenate(rows, dtype=np.float64) if rows else np.array(np.nan)
