"""Simulated rounds: contenders that take turns on a machine whose pace changes, for all of them alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from tests.benchmarks.simulation import make_record

TURN_SECONDS = 0.2
FULL = "full"


@dataclass(frozen=True)
class Machine:
    """How the pace of everything changes.

    Attributes:
        drift: standard deviation of the logarithm of the pace from one cycle to the next.
        throttled: share of the time in which everything takes 1.6 times as long, in stretches of some turns.
        own: standard deviation of the logarithm of one turn's seconds, of each contender for itself.
        stalls: share of turns in which a contender alone takes half as long again.
        slowdown: by how much the logarithm of everything's time grows from the first cycle to the last.
    """

    drift: float = 0.05
    throttled: float = 0.2
    own: float = 0.02
    stalls: float = 0.02
    slowdown: float = 0.0


def make_round(
    rng: np.random.Generator,
    contenders: Sequence[tuple[Case, Mapping[str, Sequence[float]], dict[str, Any]]],
    cycles: int = 40,
    machine: Machine = Machine(),
    repeat: int = 0,
    deviation: float = 0.0,
) -> list[Record]:
    """Returns the records of one round.

    Args:
        contenders: of each its case, the seconds of a step of each variant on every rank while nobody throttles, and
            further fields of its record.
        deviation: standard deviation of the logarithm of the time that a process takes for everything.
    """
    pace, slow, levels = 0.0, False, [np.exp(deviation * rng.standard_normal()) for _ in contenders]
    windows: list[list[tuple[int, str, int, np.ndarray]]] = [[] for _ in contenders]
    for cycle in range(cycles):
        pace = 0.9 * pace + machine.drift * rng.standard_normal()
        turns = [(index, variant) for index, (_, steps, _) in enumerate(contenders) for variant in steps]
        for index, variant in rng.permutation(np.array(turns, object)):
            slow = rng.random() < (0.9 if slow else 0.1 * machine.throttled / max(1 - machine.throttled, 1e-9))
            seconds = np.asarray(contenders[index][1][variant], float) * levels[index]
            steps = max(round(TURN_SECONDS / seconds.max()), 1)
            trend = machine.slowdown * cycle / cycles
            factor = np.exp(trend + pace + machine.own * rng.standard_normal()) * (1.6 if slow else 1.0)
            factor *= 1.5 if rng.random() < machine.stalls else 1.0
            windows[index].append((cycle, variant, steps, steps * factor * seconds))
    round_id = rng.bytes(16).hex()
    turns_taken = {"round_id": round_id, "contenders": len(contenders), "waiting_cores": 0.01, "ended": "time"}
    records = []
    for (case, _, fields), taken in zip(contenders, windows, strict=True):
        numbers, variants, steps, seconds = zip(*taken, strict=True)
        measured = {"window_cycles": list(numbers), "window_variants": list(variants)}
        records.append(
            make_record(
                case,
                repeat,
                window_steps=list(map(int, steps)),
                window_seconds=np.array(seconds).T.tolist(),
                measurements=measured | fields.pop("measurements", {}),
                turns=turns_taken,
                **fields,
            )
        )
    return records
