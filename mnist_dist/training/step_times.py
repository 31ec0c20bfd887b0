"""How long the training steps took, on every rank: the raw numbers behind each throughput.

A *window* is what one call of the compiled loop trains; it lasts from the synchronised edge before it (the metrics
of the last step have reached the host) to its own. Evaluations and checkpoints between two windows are in neither.
"""

import contextlib
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.distributed.strategies.interface import Strategy, all_gather
from mnist_dist.distributed.turns import Turn
from mnist_dist.lazy import tf


@dataclass
class StepClock:
    """Measures the windows of this rank. The first step, which traces and compiles, is apart."""

    startup_seconds: float = 0.0  # From the start of the process to the first step.
    first_step_seconds: float = 0.0
    window_steps: list[int] = field(default_factory=list)
    window_seconds: list[float] = field(default_factory=list)
    window_cycles: list[int] = field(default_factory=list)  # Of the turns in which they were trained, if by turns.
    window_variants: list[str] = field(default_factory=list)
    turn: Turn | None = None  # Which this rank has, where it takes turns with others.
    began: float = field(default_factory=time.perf_counter)  # When this process' part in the run did.
    _turn_start: int = 0
    _edge: float = 0.0
    _paused: float = 0.0

    def start(self) -> None:
        """Marks the edge before the first step."""
        self.startup_seconds = seconds_since_process_start()
        self._edge = time.perf_counter()

    def stop_window(self, steps: int) -> float:
        """Marks an edge, after `steps` steps; returns the seconds since the edge before, less the pauses."""
        now = time.perf_counter()
        seconds = now - self._edge - self._paused
        self._edge, self._paused = now, 0.0
        if self.first_step_seconds == 0.0:
            self.first_step_seconds = seconds
        else:
            self.window_steps.append(steps)
            self.window_seconds.append(seconds)
            if self.turn is not None:
                self.window_cycles.append(self.turn.cycle)
                self.window_variants.append(self.turn.variant)
        return seconds

    def end_turn(self) -> tuple[int, float]:
        """Returns steps and seconds of the windows since the last turn ended."""
        start, self._turn_start = self._turn_start, len(self.window_seconds)
        return sum(self.window_steps[start:]), sum(self.window_seconds[start:])

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is not training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    @property
    def measured_seconds(self) -> float:
        return sum(self.window_seconds)


def gather_step_times(clock: StepClock, strategy: Strategy, hosts: Sequence[str]) -> dict[str, Any]:
    """Collects the windows of all ranks, which all call this.

    Returns:
        Content of step_times.json: `hosts` [ranks], `window_steps` [windows], `window_seconds` [ranks][windows], and,
        each [ranks], `startup_seconds`, `first_step_seconds`, `peak_memory_bytes` of the process and
        `peak_device_memory_bytes` of its GPU (None without one). Of a run in turns also `window_cycles` and
        `window_variants`, each [windows].
    """
    device_bytes = peak_device_memory_bytes()
    own = [clock.startup_seconds, clock.first_step_seconds, peak_memory_bytes(), device_bytes or 0]
    of_ranks = all_gather(strategy, [*own, *clock.window_seconds])
    startup, first_step, memory, device_memory = of_ranks[:, : len(own)].T.tolist()
    by_turns = {"window_cycles": clock.window_cycles, "window_variants": clock.window_variants}
    return {
        "hosts": list(hosts),
        "window_steps": clock.window_steps,
        "window_seconds": of_ranks[:, len(own) :].tolist(),
        **(by_turns if clock.window_cycles else {}),
        "startup_seconds": startup,
        "first_step_seconds": first_step,
        "peak_memory_bytes": memory,
        "peak_device_memory_bytes": None if device_bytes is None else device_memory,
    }


def seconds_since_process_start() -> float:
    """Returns the age of this process, to 0.01 s."""
    start_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def peak_memory_bytes() -> int:
    """Returns the largest resident set that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_device_memory_bytes() -> int | None:
    """Returns the most memory that TensorFlow has used on this process' GPUs, together; None without a GPU."""
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus:
        return None
    return int(np.sum([tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus]))
