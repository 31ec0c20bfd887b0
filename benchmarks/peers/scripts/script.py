"""What the peers' scripts share: arguments, data, the clock, and the one form in which they leave what they measured.

Imports only numpy, as some peers have an environment without TensorFlow and what comes with it.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mnist_dist.distributed.turns import Turn, Turns
from mnist_dist.files import write_json

TARGET_ACCURACY = 0.99  # Beyond it nothing is compared, so a run may end there.


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of what every script understands; `description` is its docstring."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="mnist.npz")
    parser.add_argument("--mode", choices=("throughput", "accuracy"), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets the result of each rank, RANK.json"
    )
    return parser


def load_mnist(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns training images uint8 [n, 28, 28] and labels uint8 [n], then those for the test."""
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script and ends its process at once: taking TensorFlow apart takes seconds, while others wait."""
    main()
    sys.stdout.flush()
    os._exit(0)


class Clock:
    """Times the training loop of a peer, which trains only while it has the turn.

    A turn's steps are a window, which closes when a value of the last of them has reached the host. The first step,
    which may trace and compile, is in no window, and in all times to an accuracy; waiting is in neither.
    """

    def __init__(self, mode: str, rank: int = 0, ranks: int = 1) -> None:
        self.step = 0  # Steps taken.
        self._rank, self._turns = rank, Turns(os.environ, rank, ranks)
        self._turns.is_training = mode == "accuracy"
        self._images = 0
        names = ("window_steps", "window_images", "window_cycles", "window_seconds", "evaluations")
        self._lists: dict[str, list[Any]] = {name: [] for name in names}
        self._first_step_seconds = 0.0
        self._evaluation_seconds = 0.0
        self._start = self._edge = self._step_end = 0.0
        self._first_image = 0  # Of the window.
        self._turn = Turn(0)
        self._first_step = 1  # After which the turn's window begins.

    def start(self) -> None:
        """Marks the moment before the first step."""
        self._start = time.perf_counter()

    def after_step(self, images: int, synchronise: Callable[[], object]) -> bool:
        """Counts a step of `images` images, on all devices; returns whether there is no turn any more.

        Args:
            synchronise: returns when the step has been computed.
        """
        self.step += 1
        self._images += images
        is_over = False
        if self.step == 1:
            synchronise()
            self._first_step_seconds = time.perf_counter() - self._start
            is_over = self._wait()
        elif self.step == self._first_step:
            synchronise()
            self._begin_window()
        elif self.step == self._first_step + self._turn.steps:
            synchronise()
            self._end_window()
            is_over = self._wait()
        self._step_end = time.perf_counter()
        return is_over

    def after_evaluation(self, accuracy: float) -> bool:
        """Notes an accuracy on the whole test set, from 0 to 1; returns whether training may end.

        Evaluating is in the time to an accuracy, and in no window.
        """
        seconds = time.perf_counter() - self._step_end
        self._evaluation_seconds += seconds
        self._edge += seconds
        own_seconds = time.perf_counter() - self._start - self._turns.waited_seconds
        self._lists["evaluations"].append(
            {
                "step": self.step,
                "training_seconds": own_seconds - self._evaluation_seconds,
                "evaluation_seconds": self._evaluation_seconds,
                "split": "test",
                "accuracy": float(accuracy),
            }
        )
        return accuracy >= TARGET_ACCURACY

    def write(self, folder: Path, *, device: str, precision: str, **versions: str) -> None:
        """Leaves this rank's result; `mnist_dist.benchmarks.kinds.peer` says what is in it.

        Args:
            precision: the type of the arithmetic.
            versions: of what the peer is built on, by name.
        """
        result: dict[str, Any] = {
            **self._lists,
            "first_step_seconds": self._first_step_seconds,
            "device": device,
            "precision": precision,
            "versions": {"python": platform.python_version(), "numpy": np.__version__, **versions},
        }
        write_json(folder / f"{self._rank}.json", result)

    def _wait(self) -> bool:
        """Waits for the next turn; returns whether there is none any more."""
        turn = self._turns.wait()
        if turn is None:
            return True
        self._turn, self._first_step = turn, self.step + turn.lead
        self._begin_window()
        return False

    def _begin_window(self) -> None:
        self._edge, self._first_image = time.perf_counter(), self._images

    def _end_window(self) -> None:
        seconds = time.perf_counter() - self._edge
        self._lists["window_steps"].append(self._turn.steps)
        self._lists["window_images"].append(self._images - self._first_image)
        self._lists["window_cycles"].append(self._turn.cycle)
        self._lists["window_seconds"].append(seconds)
        self._turns.done(self._turn.steps, seconds)
