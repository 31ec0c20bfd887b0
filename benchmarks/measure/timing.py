"""Times what is too short for a clock: repeated until it fills a window, equally often on all ranks."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.turns import Turns

WINDOW_SECONDS = 0.1


@dataclass(frozen=True)
class Timing:
    """One window on this rank: so many repetitions, and the cycle of the turn in which they were done."""

    cycle: int
    count: int
    seconds: float


def take_timings(
    runs: Mapping[str, Callable[[int], Any]], strategy: Strategy, turns: Turns | None, seconds: float
) -> dict[str, list[Timing]]:
    """Times each of several things, again and again, and returns what came of each, by name.

    Args:
        runs: each repeats its thing so many times.
        turns: as a harness grants them, of which each names a thing; None: one after the other.
        seconds: without turns, for how long each is timed.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for run in runs.values():
        run(1)  # Traces and compiles.
    if turns is None:
        for name, run in runs.items():
            count = calibrate(run, strategy)
            # Until the fastest rank has had enough.
            while float(all_gather(strategy, [sum(each.seconds for each in timings[name])]).min()) < seconds:
                taken = seconds_of(functools.partial(run, count))
                timings[name].append(Timing(len(timings[name]), count, taken))
        return timings
    turns.is_training = False
    while turn := turns.wait():
        run = runs[turn.variant]
        if turn.lead:
            run(turn.lead)
        taken = seconds_of(functools.partial(run, turn.steps))
        if turn.cycle >= 0:
            timings[turn.variant].append(Timing(turn.cycle, turn.steps, taken))
        turns.done(turn.steps, taken)
    return timings


def calibrate(run: Callable[[int], Any], strategy: Strategy, wanted_seconds: float = WINDOW_SECONDS) -> int:
    """Returns how many repetitions take so long, the same on all ranks."""
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
