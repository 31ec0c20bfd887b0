"""Rounds of real processes that take turns, without TensorFlow: what they compute is a sleep of a known length."""

from __future__ import annotations

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
from mnist_dist.benchmarks.measure.rounds import (
    FEWEST_CYCLES,
    Contender,
    Limits,
    Round,
    Stage,
    Standing,
    steps_of_turn,
)
from mnist_dist.errors import UserError
from tests.benchmarks.harness import REPOSITORY

SLEEPER = Path(__file__).with_name("sleeper.py")
FULL = "full"

pytestmark = pytest.mark.slow


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
        contender("base", "0.03"),
        contender("other", "0.06", "--half=resident", variants=(FULL, "resident")),
    ]
    round_ = Round(contenders, limits(6.0))
    standings = round_.run()
    assert {standing.end.status for standing in standings.values() if standing.end} == {"ok"}
    assert ratio(standings, "other") == pytest.approx(0.5, rel=0.1)
    assert ratio(standings, "other", variant="resident") == pytest.approx(1.0, rel=0.1)
    cycles = [sorted(cycle for cycle in standing.rates[FULL] if cycle >= 0) for standing in standings.values()]
    assert cycles[0] == cycles[1] == list(range(len(cycles[0]))) and len(cycles[0]) >= 5
    assert round_.ended == "time"


@pytest.mark.parametrize(
    ("step_seconds", "steps"), [(0.0001, 1000), (0.004, 25), (0.015, 10), (0.05, 6), (0.19, 2), (5.0, 1)]
)
def test_a_turn_is_short_but_has_steps_enough(step_seconds: float, steps: int) -> None:
    assert steps_of_turn(step_seconds) == steps


def test_a_baseline_has_a_turn_more_for_those_compared_with_it(contender) -> None:  # type: ignore[no-untyped-def]
    others = ["one", "two", "three", "four"]
    ratios = [((name, FULL), ("base", FULL)) for name in others]
    contenders = [contender("base", "0.01", variants=(FULL, "resident")), *(contender(name, "0.01") for name in others)]
    standings = Round(contenders, limits(3.0, ratios=ratios)).run()
    steps = {name: sum(standing.done[FULL, cycle][0] for cycle in (0, 1)) for name, standing in standings.items()}
    assert all(1.5 * steps[name] < steps["base"] < 2.5 * steps[name] for name in others), steps
    assert standings["base"].done["resident", 0][0] < 0.7 * standings["base"].done[FULL, 0][0]
    assert ratio(standings, "one") == pytest.approx(1.0, rel=0.2), "rates are of all its turns together"


def test_a_ratio_that_varies_more_has_more_turns(contender, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    halves = {"calm": 0.01, "restless": 0.0145, "wild": 0.1}
    monkeypatch.setattr(Round, "_half_width", lambda self, numerator, denominator: halves[numerator[0]])
    ratios = [((name, FULL), ("base", FULL)) for name in halves]
    standings = Round([contender(name, "0.01") for name in ("base", *halves)], limits(3.0, ratios=ratios)).run()
    steps = {name: standing.done[FULL, 0][0] for name, standing in standings.items()}  # Widths are known before it.
    assert 1.5 < steps["restless"] / steps["calm"] < 2.5 < steps["wild"] / steps["calm"] < 3.5, steps


@pytest.mark.parametrize(
    ("seconds", "cycles", "expected"),
    [
        (10.1, FEWEST_CYCLES, True),
        (9.9, 1000, False),
        (10.1, FEWEST_CYCLES - 1, False),
        (29.9, 1, False),
        (30.1, 1, True),
    ],
)
def test_too_few_cycles_get_twice_as_much_time_more(seconds: float, cycles: int, expected: bool) -> None:
    assert limits(10.0).time_is_up(seconds, cycles) is expected


def test_it_ends_when_enough_is_known(contender) -> None:  # type: ignore[no-untyped-def]
    round_ = Round([contender("base", "0.005"), contender("other", "0.005")], limits(300.0, width=0.5))
    standings = round_.run()
    assert round_.ended == "narrow" and len(standings["base"].rates[FULL]) <= 20


def test_who_waits_uses_no_processor(contender) -> None:  # type: ignore[no-untyped-def]
    standings = Round([contender("base", "0.01"), contender("other", "0.01")], limits(4.0)).run()
    assert all(standing.waiting_cores < 0.05 for standing in standings.values())


def test_who_computes_while_it_waits_is_found(contender) -> None:  # type: ignore[no-untyped-def]
    standings = Round([contender("base", "0.01"), contender("other", "0.01", "--spin")], limits(4.0)).run()
    assert standings["base"].waiting_cores < 0.05 < standings["other"].waiting_cores


def test_what_other_programs_use_is_noted(contender, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """They are planted, as a machine that runs tests may be busy by itself; one contender computes while it waits."""
    round_ = Round([contender("base", "0.01"), contender("other", "0.01", "--spin")], limits(3.0))

    def busy_seconds() -> float:
        own = sum(os.times()[:4]) + sum(each.running.cpu_seconds() for each in round_.standings.values())
        return own + 0.5 * time.monotonic()

    monkeypatch.setattr("mnist_dist.benchmarks.measure.rounds.busy_cpu_seconds", busy_seconds)
    round_.run()
    assert round_.other_cores == pytest.approx(0.5, abs=0.05)


def test_where_the_use_of_the_cores_is_not_told_none_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_dist.benchmarks.measure.rounds.busy_cpu_seconds", lambda: 0.0)
    round_ = Round([], limits(1.0))
    round_.run()
    assert round_.other_cores is None


def test_trainings_take_turns_to_their_end(contender) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.01", "--train=150"), contender("other", "0.01", "--train=60", variants=())]
    standings = Round(contenders, limits(2.0)).run()
    assert all(standing.end and standing.end.status == "ok" for standing in standings.values())
    trained = {cycle for cycle in standings["base"].rates[FULL] if cycle >= 0}
    assert trained >= set(standings["other"].rates[FULL])
    assert len(trained) > len(standings["other"].rates[FULL]), "and is measured on"
    assert (standings["base"].ended, standings["other"].ended) == ("time", "trained")


def test_a_training_that_does_not_end_is_ended(contender) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.01"), contender("endless", "0.01", "--train=1000000")]
    standings = Round(contenders, limits(1.0, timeout_seconds=15.0, ratios=[])).run()
    end = standings["endless"].end
    assert end and (end.status, end.reason) == ("timeout", "not done after 15 s")
    assert standings["base"].end and standings["base"].end.status == "ok"


def test_nothing_is_narrow_where_all_that_is_compared_has_failed(contender) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.01", "--die=after"), contender("other", "0.01")]
    round_ = Round(contenders, limits(4.0, width=0.5))
    standings = round_.run()
    assert round_.ended == "time" and len(standings["other"].rates[FULL]) > FEWEST_CYCLES


def test_what_a_round_is_doing_is_told(contender) -> None:  # type: ignore[no-untyped-def]
    told: list[Stage] = []
    contenders = [contender("base", "0.01", "--train=30"), contender("other", "0.01")]
    Round(contenders, limits(300.0, width=0.5), tell=told.append).run()
    names = list(dict.fromkeys(stage.name for stage in told))
    assert names == ["starting", "started", "training", "warming up", "measuring", "ending"]
    assert [stage.contender for stage in told[:2]] == ["base", "other"]
    measuring = [stage for stage in told if stage.name == "measuring"]
    assert [stage.cycle for stage in measuring] == list(range(len(measuring)))
    assert measuring[0].half_width is None


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--die=before",), "failed", "exit code 7: ValueError: before"),
        (("--die=after",), "failed", "exit code 7: ValueError: after"),
        (("--hang=before",), "timeout", "not ready after 20 s"),
        (("--hang=after",), "timeout", "a turn took longer than 20 s"),
        (("--memory",), "out_of_memory", "exit code 7: MemoryError"),
    ],
)
def test_who_fails_is_taken_out_and_the_others_go_on(contender, arguments, status, said) -> None:  # type: ignore[no-untyped-def]
    contenders = [contender("base", "0.03"), contender("bad", "0.03", *arguments), contender("other", "0.03")]
    standings = Round(contenders, limits(3.0, timeout_seconds=20.0)).run()
    end = standings["bad"].end
    assert end and end.status == status and end.reason and end.reason.startswith(said)
    of_bad = max(standings["bad"].rates.get(FULL, {}), default=-1)
    for name in ("base", "other"):
        end = standings[name].end
        assert end and end.status == "ok", "as they were told that it is over, and not before"
        assert max(standings[name].rates[FULL]) > of_bad


class TestInterruption:
    """Ctrl-C, wherever it comes: nothing is left alive, and what was measured is kept."""

    def interrupt(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def interrupted_at(self, contenders: list[Contender], name: str, contender: str | None = None) -> Round:
        told: list[Stage] = []

        def tell(stage: Stage) -> None:
            if (stage.name, stage.contender) == (name, contender) and (not stage.cycle or stage.cycle == 2):
                told.append(stage)
                if len(told) == (2 if name == "measuring" else 1):
                    threading.Timer(0.3, self.interrupt).start()

        round_ = Round(contenders, limits(600.0), tell=tell)
        standings = round_.run()
        assert isinstance(round_.interruption, KeyboardInterrupt) and round_.ended == "interrupted"
        assert not any(standing.running.is_alive for standing in standings.values())
        return round_

    def test_while_it_measures(self, contender) -> None:  # type: ignore[no-untyped-def]
        contenders = [contender("base", "0.01"), contender("other", "0.01"), contender("done", "0.01", "--die=after")]
        standings = self.interrupted_at(contenders, "measuring").standings
        kept = [standings[name] for name in ("base", "other")]
        assert all(standing.end and standing.end.status == "ok" for standing in kept)
        assert {standing.ended for standing in kept} == {"interrupted"}
        assert all(len(standing.rates[FULL]) >= 2 for standing in kept)
        assert standings["done"].end and standings["done"].end.status == "failed", "what it was before it stays"
        assert standings["done"].ended is None

    def test_again_while_it_stops(self, contender) -> None:  # type: ignore[no-untyped-def]
        """Who has not ended by then is killed; what ended before is kept."""
        contenders = [contender("done", "0.01", "--train=30", variants=()), contender("base", "0.01")]

        def tell(stage: Stage) -> None:
            if stage.name == "stopping" or stage.cycle == 2:
                self.interrupt()

        round_ = Round(contenders, limits(600.0), tell=tell)
        standings = round_.run()
        assert isinstance(round_.interruption, KeyboardInterrupt)
        assert standings["done"].end and (standings["done"].end.status, standings["done"].ended) == ("ok", "trained")
        assert standings["base"].end is None and not standings["base"].running.is_alive

    def test_while_one_starts(self, contender) -> None:  # type: ignore[no-untyped-def]
        contenders = [contender("base", "0.01"), contender("slow", "0.01", "--hang=before"), contender("last", "0.01")]
        standings = self.interrupted_at(contenders, "starting", "slow").standings
        assert set(standings) == {"base", "slow"}
        assert [standing.end for standing in standings.values()] == [None, None], "nothing has come of them"

    def test_while_one_is_being_started(self, contender) -> None:  # type: ignore[no-untyped-def]
        """It comes when the process is there, and before anybody else knows of it."""
        slow = contender("slow", "0.01", "--hang=before")

        def start(variables: Mapping[str, str]) -> Running:
            running = slow.start(variables)
            self.interrupt()
            return running

        round_ = Round([Contender("slow", start)], limits())
        standings = round_.run()
        assert isinstance(round_.interruption, KeyboardInterrupt)
        assert not standings["slow"].running.is_alive and standings["slow"].end is None

    def test_while_they_train(self, contender) -> None:  # type: ignore[no-untyped-def]
        contenders = [contender("base", "0.01", "--train=100000"), contender("other", "0.01", "--train=100000")]
        standings = self.interrupted_at(contenders, "training").standings
        assert [standing.end for standing in standings.values()] == [None, None]


def test_a_full_disk_is_what_ends_a_round(contender) -> None:  # type: ignore[no-untyped-def]
    def start(variables: Mapping[str, str]) -> Running:
        raise UserError("no space left")

    round_ = Round([contender("base", "0.01"), Contender("other", start)], limits())
    standings = round_.run()
    assert isinstance(round_.interruption, UserError)
    assert set(standings) == {"base"} and not standings["base"].running.is_alive
