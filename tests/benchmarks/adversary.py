"""An adversary of the statistics: records of machines that do what no estimator assumes, and what is true of them.

It shares nothing with the estimators nor with the other generators: neither noise of the first order nor logarithms.
A machine has a pace at each moment, throttled in stretches or drifting. Processes have levels of their own, with the
tails of Student's t for three degrees of freedom, or in two clusters. Each step of each rank has its own jitter, single
windows of single ranks stall, and warm-up lasts longer or shorter. Ranks that exchange gradients wait for each other in
every step; prefetched input is made beside both. What is true comes from these constants, and for what waiting costs
from one very long run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, Turns

STEPS = 20  # Of a window.
RUN_SECONDS, CYCLES = 8.0, 40
OTHER_TURNS = 4  # Of further contenders, in each cycle.
THROTTLED_FACTOR, CLUSTER_SHARE, CLUSTER_FACTOR = 1.6, 0.2, 1.3
STALL_SECONDS = 0.1  # On average; exponential.
IMAGES = 128
FULL, RESIDENT, UNREDUCED, NEITHER = "full", "resident", "unreduced", "resident-unreduced"


@dataclass(frozen=True)
class Machine:
    """What disturbs the runs of a study.

    Attributes:
        level: standard deviation of the level of a process group, relative to its mean.
        levels: how the levels are spread; of "clusters", a fifth takes 1.3 times as long.
        rank_level: standard deviation of the level of each rank's process.
        jitter: standard deviation of one step of one rank, relative to its mean; steps are gamma distributed.
        throttled: share of the time in which everything takes 1.6 times as long.
        stretch_seconds: how long that lasts on average.
        stalls: share of the windows of each rank that stall, for 0.1 s on average.
        drift: by how much everything slows down over the whole study.
        warm_up: at most so much of a run, beginning with windows of 1.5 times the usual time.
    """

    level: float = 0.01
    levels: Literal["normal", "t3", "clusters"] = "normal"
    rank_level: float = 0.0
    jitter: float = 0.05
    throttled: float = 0.0
    stretch_seconds: float = 1.0
    stalls: float = 0.0
    drift: float = 0.0
    warm_up: float = 0.05

    def draw_level(self, rng: np.random.Generator) -> float:
        if self.levels == "clusters":
            return (CLUSTER_FACTOR if rng.random() < CLUSTER_SHARE else 1.0) * (1 + self.level * rng.standard_normal())
        draw = rng.standard_t(3) / np.sqrt(3) if self.levels == "t3" else rng.standard_normal()
        return max(1 + self.level * float(draw), 0.5)

    def pass_time(self, nominal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns how long pieces of work take, one after the other, that take `nominal` seconds unthrottled."""
        if not self.throttled:
            return nominal
        calm = self.stretch_seconds * (1 / self.throttled - 1)
        pairs = int(3 * THROTTLED_FACTOR * nominal.sum() / (calm + self.stretch_seconds)) + 20
        lengths = rng.exponential([calm, self.stretch_seconds], (pairs, 2)).ravel()
        if rng.random() < self.throttled:
            lengths[0] = 0.0  # The study begins within a stretch; what is left of that is as long as a whole one.
        pace = np.tile([1.0, 1 / THROTTLED_FACTOR], pairs)
        clock, work = (np.concatenate([[0.0], np.cumsum(each)]) for each in (lengths, lengths * pace))
        return np.diff(np.interp(np.concatenate([[0.0], np.cumsum(nominal)]), work, clock))

    @property
    def mean_pace(self) -> float:
        """Work per second in the long run, of that of a process of level 1 that is never throttled."""
        level = 1 + self.level**2
        if self.levels == "clusters":
            level *= 1 - CLUSTER_SHARE + CLUSTER_SHARE / CLUSTER_FACTOR
        throttled = 1 - self.throttled + self.throttled / THROTTLED_FACTOR
        return level * throttled * (np.log1p(self.drift) / self.drift if self.drift else 1.0)


@dataclass(frozen=True)
class Costs:
    """Seconds of each step: computing, what several devices add to it, the input of one and of several devices.

    Attributes:
        slow_rank: more for rank 1 of several.
        prefetch: input is made beside the rest, so that a step takes as long as whichever takes longer.
    """

    compute: float = 0.010
    contention: float = 0.0
    slow_rank: float = 0.0
    all_reduce: float = 0.0
    input_at_1: float = 0.0
    input_at_n: float = 0.0
    prefetch: bool = False

    def windows(
        self, machine: Machine, devices: int, variant: str, count: int, levels: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the seconds of windows of which nobody disturbs the whole machine, float64 [count, ranks].

        Args:
            levels: float64 [ranks].
        """
        several, shape = devices > 1, 1 / machine.jitter**2
        busy = np.full(devices, self.compute + self.contention * several)
        busy[1:2] += self.slow_rank
        steps = rng.gamma(shape, 1 / shape, (count, devices, STEPS)) * (busy * levels)[:, None]
        stalls = np.where(
            rng.random((count, devices)) < machine.stalls, rng.exponential(STALL_SECONDS, (count, devices)), 0.0
        )
        real = self.input_at_n if several else self.input_at_1
        real *= variant in (FULL, UNREDUCED)
        steps += 0.0 if self.prefetch else real
        if several and variant in (FULL, RESIDENT):
            steps = np.broadcast_to(steps.max(axis=1, keepdims=True) + self.all_reduce, steps.shape)
            stalls = np.broadcast_to(stalls.sum(axis=1, keepdims=True), stalls.shape)
        if self.prefetch:
            steps = np.maximum(steps, real)
        return steps.sum(axis=2) + stalls


def case(devices: int = 1, **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "strategy": "horovod" if devices > 1 else "single",
        "cores_per_device": 1,
        "global_batch_size": IMAGES * devices,
        "measure_seconds": RUN_SECONDS,
        "settings": {"runtime.precision": "float32"},
    }
    return Case(devices=devices, **(fields | changes))


def true_rate(machine: Machine, costs: Costs = Costs(), devices: int = 1, variant: str = FULL) -> float:
    """Returns images per second in the long run, on a day of level 1."""
    return IMAGES * devices * machine.mean_pace / _unhurried_step_seconds(machine, costs, devices, variant)


@functools.cache
def _unhurried_step_seconds(machine: Machine, costs: Costs, devices: int, variant: str) -> float:
    rng = np.random.default_rng(0)
    seconds = costs.windows(machine, devices, variant, 100_000 // devices, np.ones(devices), rng)
    return float(seconds.max(axis=1).mean()) / STEPS


def runs_apart(
    rng: np.random.Generator,
    machine: Machine,
    repeats: int,
    costs: Costs = Costs(),
    devices: int = 1,
    day: float = 1.0,
    seconds: float = RUN_SECONDS,
) -> list[Record]:
    """Returns the records of runs that were measured one after the other, of so many seconds each.

    Args:
        day: the level of the day, by which everything takes longer.
    """
    records = []
    for repeat in range(repeats):
        levels = day * machine.draw_level(rng) * (1 + machine.rank_level * rng.standard_normal(devices))
        expected = int(seconds / (STEPS * costs.compute))
        count = int(1.5 * expected) + 1
        nominal = costs.windows(machine, devices, FULL, count, levels, rng)
        nominal[:expected] *= _warm_up(rng, machine, expected)[:, None]
        nominal *= 1 + machine.drift * (repeat + np.arange(count)[:, None] / count) / repeats
        wall = machine.pass_time(nominal.max(axis=1), rng)
        nominal *= (wall / nominal.max(axis=1))[:, None]
        kept = nominal[: np.searchsorted(np.cumsum(wall), seconds) + 1]
        records.append(_record(case(devices), repeat, devices, kept.T, {}, None))
    return records


def rounds(
    rng: np.random.Generator,
    machine: Machine,
    repeats: int,
    contenders: Sequence[tuple[int, Costs, Sequence[str]]],
    cycles: int = CYCLES,
    day: float = 1.0,
) -> list[Record]:
    """Returns the records of rounds, in whose cycles each variant of each contender has a turn, in an order drawn anew.

    Args:
        contenders: of each its devices, costs and variants.
        day: see `runs_apart`.
    """
    records = []
    turns = [(index, variant) for index, (_, _, variants) in enumerate(contenders) for variant in variants]
    for repeat in range(repeats):
        order = np.argsort(rng.random((cycles, len(turns) + OTHER_TURNS)), axis=1)
        nominal = []
        for devices, costs, variants in contenders:
            levels = day * machine.draw_level(rng) * (1 + machine.rank_level * rng.standard_normal(devices))
            warm = _warm_up(rng, machine, cycles)[:, None]
            nominal += [warm * costs.windows(machine, devices, each, cycles, levels, rng) for each in variants]
        slowest = np.stack(
            [each.max(axis=1) for each in nominal] + [np.full(cycles, STEPS * Costs.compute)] * OTHER_TURNS, axis=1
        )
        slowest *= 1 + machine.drift * (repeat + np.arange(cycles)[:, None] / cycles) / repeats
        in_order = np.take_along_axis(slowest, order, axis=1)
        wall = np.empty_like(slowest)
        np.put_along_axis(wall, order, machine.pass_time(in_order.ravel(), rng).reshape(in_order.shape), axis=1)
        places = np.argsort(order, axis=1)
        taken = Turns(round_id=rng.bytes(16).hex(), contenders=len(contenders) + 1, waiting_cores=0.0, ended="time")
        for index, (devices, _, _) in enumerate(contenders):
            own = [turn for turn, (owner, _) in enumerate(turns) if owner == index]
            seconds = np.stack([nominal[turn] * (wall[:, turn] / nominal[turn].max(axis=1))[:, None] for turn in own])
            when = (places[:, own] + np.arange(cycles)[:, None] * len(places[0])).T.ravel()
            chosen = np.argsort(when)
            numbers = np.tile(np.arange(cycles), len(own))[chosen].tolist()
            names = np.repeat([turns[turn][1] for turn in own], cycles)[chosen].tolist()
            ordered = seconds.reshape(-1, devices)[chosen]
            marks = {"window_cycles": numbers, "window_variants": names}
            records.append(_record(case(devices), repeat, devices, ordered.T, marks, taken))
    return records


def all_reduce_alone(devices: int, costs: Costs) -> Record:
    """Returns the record of an all-reduce that was measured by itself: as long for messages of any size."""
    messages = [
        {"bytes": size, "calls": 1, "seconds": [[max(costs.all_reduce, 1e-6)] * 9] * devices} for size in (10**4, 10**8)
    ]
    template = _template(case(devices, kind="collectives"), devices)
    return template.model_copy(update={"measurements": {"messages": messages}})


def _warm_up(rng: np.random.Generator, machine: Machine, windows: int) -> np.ndarray:
    """Returns by what each window is slower, float64 [windows], at first 1.5 times and then ever less."""
    lasting = int(rng.random() * machine.warm_up * windows)
    return 1 + np.maximum(0.5 * (1 - np.arange(windows) / (lasting + 1)), 0.0) * (np.arange(windows) < lasting)


def _record(
    of: Case, repeat: int, ranks: int, seconds: np.ndarray, marks: Mapping[str, Any], turns: Turns | None
) -> Record:
    """Returns a record of the windows, float64 [ranks, windows], unvalidated, as that costs a millisecond."""
    template = _template(of, ranks)
    windows = {"window_steps": [STEPS] * seconds.shape[1], "window_seconds": seconds.tolist()} | marks
    measurements = (template.measurements or {}) | windows
    return template.model_copy(update={"repeat": repeat, "turns": turns, "measurements": measurements})


@functools.cache
def _template_of(content: str, ranks: int) -> Record:
    nothing = [0.0] * ranks
    return Record.new(
        Case.model_validate_json(content),
        study="adversary",
        suite="adversary",
        repeat=0,
        seed=0,
        status="ok",
        reason=None,
        output_tail=(),
        started_at="2026-01-01T12:00:00+00:00",
        seconds=10.0,
        harness_cpu_seconds=0.0,
        identity={
            "hardware": {
                "architecture": "x86_64",
                "cpu_model": "Adversary",
                "cores": 64,
                "memory_bytes": 2**36,
                "gpus": [],
                "gpu_driver": None,
            },
            "software": {"os": "none"},
            "git": None,
            "hosts": ["n1"] * ranks,
            "job_id": None,
            "launcher": "mnist-dist",
            "environment": {},
            "config": {},
        },
        turns=None,
        telemetry=None,
        measurements={"messages": []}
        if '"collectives"' in content
        else {
            "window_steps": [STEPS],
            "window_seconds": [[1.0]] * ranks,
            "first_step_seconds": nothing,
            "startup_seconds": nothing,
            "peak_memory_bytes": nothing,
            "peak_device_memory_bytes": None,
            "evaluations": [],
            "test_accuracy": None,
            "test_loss": None,
            "flops_per_image": 1,
            "precision": "float32",
            "xla": "off",
            "device": "CPU",
        },
    )


def _template(of: Case, ranks: int) -> Record:
    return _template_of(of.model_dump_json(), ranks)
