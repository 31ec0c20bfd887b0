"""Whether all strategies train to equal weights, which is whether they add up the right gradients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mnist_dist.doctor import ABSENT, BROKEN, OK, Finding
from mnist_dist.strategies import BASELINE, STRATEGIES, beside_the_baseline, missing_packages
from mnist_dist.training.checkpoint import Checkpoints

# Of the distance between the weights of two trainings to their length. They add up float32 in another order, and each
# step multiplies what comes of it.
TOLERANCE = 1e-3


def training_commands(folder: Path, devices: int, steps: int) -> Iterator[tuple[str, list[str]]]:
    """Yields a name and a command for one device, and then for each strategy; no command where its package is missing.

    All train the same batches in float32, without TF32 and by plain momentum, which magnifies no rounding error.
    """
    counts = sorted({1, devices})
    batch = devices * -(-128 // devices)
    settings = ["runtime.tf32=false", "logging.tensorboard=false"]
    for strategy, count in [(BASELINE, 1), *((name, count) for name in beside_the_baseline() for count in counts)]:
        name = f"{strategy} {count}"
        flags = ["--strategy", strategy, "--devices", str(count), "--steps", str(steps), "--batch-size", str(batch)]
        flags += ["--precision", "float32", "--optimizer", "sgd", "--learning-rate", "0.02"]
        flags += [flag for setting in settings for flag in ("--set", setting)]
        command = [sys.executable, "-m", "mnist_dist", "train", *flags, "--workdir", str(folder / name)]
        yield name, [] if STRATEGIES[strategy].package in missing_packages() else command


def compare_weights(folder: Path, name: str) -> Finding:
    """Compares the weights of a training with those of one device alone; both are in a folder, by their names."""
    weights, expected = _weights(folder / name), _weights(folder / f"{BASELINE} 1")
    if weights is None or expected is None:
        return Finding(name, ABSENT, "not installed" if expected is not None else "nothing to compare with")
    distance = float(np.linalg.norm(weights - expected) / np.linalg.norm(expected))
    detail = f"relative distance {distance:.1e} of the weights from those of one device, expected at most {TOLERANCE:g}"
    return Finding(name, OK if distance <= TOLERANCE else BROKEN, detail)


def _weights(workdir: Path) -> np.ndarray | None:
    """Returns all weights of a training in one row, float64, or None where there was none."""
    loaded = Checkpoints(workdir / "checkpoints", 1, report=print).load_latest()
    if loaded is None:
        return None
    arrays = loaded[0]
    return np.concatenate(
        [arrays[name].ravel() for name in sorted(arrays) if name.startswith("model/")], dtype=np.float64
    )
