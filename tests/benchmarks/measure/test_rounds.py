"""Rounds of real processes that take turns, without TensorFlow: what they compute is a sleep of a known length."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.benchmarks.measure.process import Running
from mnist_dist.benchmarks.measure.rounds import Contender, Limits, Round, Standing
from tests.benchmarks.harness import REPOSITORY

SLEEPER = Path(__file__).with_name("sleeper.py")
FULL = "full"


@pytest.fixture
def contender(tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(name: str, *arguments: str, variants: tuple[str, ...] = (FULL,)) -> Contender:
        def start(variables: Mapping[str, str]) -> Running:
            command = [sys.executable, str(SLEEPER), *arguments]
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
            return Running(command, REPOSITORY, environment, os.sched_getaffinity(0), tmp_path / f"{name}.log")

        return Contender(name, start, variants)

    return make


def ratio(standings: Mapping[str, Standing], name: str, base: str = "base", variant: str = FULL) -> float:
    """The median ratio of rates within a cycle."""
    rates, of_base = standings[name].rates[variant], standings[base].rates[FULL]
    return float(np.median([rates[cycle] / of_base[cycle] for cycle in rates.keys() & of_base.keys() if cycle >= 0]))


def limits(seconds: float = 3.0, width: float = 0.0, **fields: object) -> Limits:
    ratios = [(("other", FULL), ("base", FULL))]
    return Limits(**({"seconds": seconds, "width": width, "ratios": ratios, "timeout_seconds": 30.0} | fields))


def test_ratios_within_cycles(contender) -> None:  # type: ignore[no-untyped-def]
    contenders = [
        contender("base", "0.010"),
        contender("other", "0.020", "--half=resident", variants=(FULL, "resident")),
    ]
    round_ = Round(contenders, limits(6.0))
    standings = round_.run()
    assert {standing.end.status for standing in standings.values() if standing.end} == {"ok"}
    assert ratio(standings, "other") == pytest.approx(0.5, rel=0.1)
    assert ratio(standings, "other", variant="resident") == pytest.approx(1.0, rel=0.1)
    cycles = [sorted(cycle for cycle in standing.rates[FULL] if cycle >= 0) for standing in standings.values()]
    assert cycles[0] == cycles[1] == list(range(len(cycles[0]))) and len(cycles[0]) >= 5
    assert not round_.narrow_enough


def test_it_ends_when_enough_is_known(contender) -> None:  # type: ignore[no-untyped-def]
    round_ = Round([contender("base", "0.005"), contender("other", "0.005")], limits(300.0, width=0.5))
    standings = round_.run()
    assert round_.narrow_enough and len(standings["base"].rates[FULL]) <= 20


def test_who_waits_uses_no_processor(contender) -> None:  # type: ignore[no-untyped-def]
    standings = Round([contender("base", "0.01"), contender("other", "0.01")], limits(4.0)).run()
    assert all(standing.waiting_cores < 0.05 for standing in standings.values())


def test_who_computes_while_it_waits_is_found(contender) -> None:  # type: ignore[no-untyped-def]
    standings = Round([contender("base", "0.01"), contender("other", "0.01", "--spin")], limits(4.0)).run()
    assert standings["base"].waiting_cores < 0.05 < 0.15 < standings["other"].waiting_cores


def test_trainings_take_turns_to_their_end(contender) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.01", "--train=150"), contender("other", "0.01", "--train=60", variants=())]
    standings = Round(contenders, limits(2.0)).run()
    assert all(standing.end and standing.end.status == "ok" for standing in standings.values())
    trained = {cycle for cycle in standings["base"].rates[FULL] if cycle >= 0}
    assert trained >= set(standings["other"].rates[FULL])
    assert len(trained) > len(standings["other"].rates[FULL]), "and is measured on"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--die=before",), "failed", "exit code 7: ValueError: before"),
        (("--die=after",), "failed", "exit code 7: ValueError: after"),
        (("--hang=before",), "timeout", "not ready after 5 s"),
        (("--hang=after",), "timeout", "a turn took longer than 5 s"),
        (("--memory",), "out_of_memory", "exit code 7: MemoryError"),
    ],
)
def test_who_fails_is_taken_out_and_the_others_go_on(contender, arguments, status, said) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.01"), contender("bad", "0.01", *arguments), contender("other", "0.01")]
    standings = Round(contenders, limits(3.0, timeout_seconds=5.0)).run()
    end = standings["bad"].end
    assert end and end.status == status and end.reason and end.reason.startswith(said)
    assert ratio(standings, "other") == pytest.approx(1.0, rel=0.2)


def test_an_interruption_ends_the_round_with_what_was_measured(contender) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.01"), contender("other", "0.01"), contender("last", "0.01", "--train=100000")]
    contenders = contenders[:2]
    round_ = Round(contenders, limits(600.0))
    threading.Timer(6.0, functools.partial(os.kill, os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    standings = round_.run()
    assert time.monotonic() - began < 30
    assert isinstance(round_.interruption, KeyboardInterrupt)
    assert all(standing.end and standing.end.status == "ok" for standing in standings.values())
    assert not any(standing.running.is_alive for standing in standings.values())


def test_a_training_that_is_interrupted_is_ended(contender) -> None:  # type: ignore[no-untyped-def]
    round_ = Round([contender("base", "0.01", "--train=100000")], limits(600.0))
    threading.Timer(4.0, functools.partial(os.kill, os.getpid(), signal.SIGINT)).start()
    standings = round_.run()
    assert round_.interruption and not standings["base"].running.is_alive
