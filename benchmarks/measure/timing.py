"""Times what is too short for a clock: repeated as often as a turn has steps, equally often on all ranks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mnist_dist.distributed.turns import Turns


@dataclass(frozen=True)
class Timing:
    """One window on this rank: so many repetitions, and the cycle of the turn in which they were done."""

    cycle: int
    count: int
    seconds: float


def take_timings(runs: Mapping[str, Callable[[int], Any]], turns: Turns) -> dict[str, list[Timing]]:
    """Times each of several things, again and again, and returns what came of each, by name.

    The variant of each turn that a harness grants names a thing.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for run in runs.values():
        run(1)  # Traces and compiles.
    turns.is_training = False
    while turn := turns.wait():
        run = runs[turn.variant]
        if turn.lead:
            run(turn.lead)
        began = time.perf_counter()
        run(turn.steps)
        taken = time.perf_counter() - began
        if turn.cycle >= 0:
            timings[turn.variant].append(Timing(turn.cycle, turn.steps, taken))
        turns.done(turn.steps, taken)
    return timings
