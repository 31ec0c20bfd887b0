"""Times what is too short for a clock: repeated until it fills a window, equally often on all ranks."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from mnist_dist.distributed.strategies.interface import Strategy, all_gather

WINDOW_SECONDS = 0.1


def calibrate(run: Callable[[int], Any], strategy: Strategy, wanted_seconds: float = WINDOW_SECONDS) -> int:
    """Returns how many repetitions take so long, the same on all ranks."""
    run(1)  # Traces and compiles.
    count = 1
    while True:
        seconds = float(all_gather(strategy, [seconds_of(functools.partial(run, count))]).max())
        if seconds >= wanted_seconds:
            return count
        count = max(2 * count, min(int(1.2 * count * wanted_seconds / seconds), 100 * count))


def seconds_of(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
