"""What the peers' scripts share: arguments, data, the clock, and the one form in which they leave what they measured.

Needs only numpy, as some peers have an environment without TensorFlow and what comes with it.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.files import write_json

WINDOW_STEPS = 10
TARGET_ACCURACY = 0.99  # Beyond it nothing is compared, so a run may end there.


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of what every script understands; `description` is its docstring."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="mnist.npz")
    parser.add_argument("--mode", choices=("throughput", "accuracy"), required=True)
    parser.add_argument(
        "--seconds", type=float, required=True, help="throughput: to measure for; accuracy: after which to give up"
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="gets the result, JSON")
    return parser


def load_mnist(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns training images uint8 [n, 28, 28] and labels uint8 [n], then those for the test."""
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


class Clock:
    """Times the training loop of a peer.

    To measure throughput, it closes a window after every few steps, when a value of the last of them has reached the
    host. To measure the time to an accuracy, it looks only at evaluations, all on the test set. The first step, which
    may trace and compile, is in no window, and in all times to an accuracy.

    Attributes:
        step: steps taken.
    """

    def __init__(self, mode: str, seconds: float) -> None:
        self.step = 0
        self._mode, self._limit = mode, seconds
        self._images = 0
        self._window_images: list[int] = []
        self._window_seconds: list[float] = []
        self._evaluations: list[dict[str, float]] = []
        self._first_step_seconds = 0.0
        self._start = self._edge = 0.0
        self._images_at_edge = 0

    def start(self) -> None:
        """Marks the moment before the first step."""
        self._start = time.perf_counter()

    def after_step(self, images: int, synchronise: Callable[[], object]) -> bool:
        """Counts a step of `images` images, on all devices; returns whether enough has been measured.

        Args:
            synchronise: returns when the step has been computed.
        """
        self.step += 1
        self._images += images
        if self.step == 1:
            synchronise()
            self._edge = time.perf_counter()
            self._first_step_seconds = self._edge - self._start
            self._images_at_edge = self._images
        elif self._mode == "throughput" and self.step % WINDOW_STEPS == 1:
            synchronise()
            now = time.perf_counter()
            self._window_images.append(self._images - self._images_at_edge)
            self._window_seconds.append(now - self._edge)
            self._edge, self._images_at_edge = now, self._images
        return self._mode == "throughput" and sum(self._window_seconds) >= self._limit

    def after_evaluation(self, accuracy: float) -> bool:
        """Notes an accuracy on the whole test set, from 0 to 1; returns whether training may end."""
        seconds = time.perf_counter() - self._start
        self._evaluations.append({"step": self.step, "seconds": seconds, "accuracy": float(accuracy)})
        return accuracy >= TARGET_ACCURACY or seconds >= self._limit

    def write(self, file: Path, *, device: str, precision: str, **versions: str) -> None:
        """Leaves the result; mnist_dist.benchmarks.peers.runs.Measured says what is in it.

        Args:
            precision: the type of the arithmetic.
            versions: of what the peer is built on, by name.
        """
        result: dict[str, Any] = {
            "window_work": self._window_images,
            "window_seconds": [self._window_seconds],
            "first_step_seconds": self._first_step_seconds,
            "images_trained": self._images,
            "evaluations": self._evaluations,
            "device": device,
            "precision": precision,
            "versions": {"python": platform.python_version(), "numpy": np.__version__, **versions},
        }
        write_json(file, result)
