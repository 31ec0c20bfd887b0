"""The clock of the peers' scripts, with a harness that grants turns."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.measure.turns import Harness
from mnist_dist.benchmarks.peers.scripts.script import Clock
from mnist_dist.distributed.turns import Turn

Grant = Callable[..., threading.Thread]


@pytest.fixture
def grant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grant]:
    """A function that grants these turns to a peer, with a pause before each, and then says that there is none."""
    with Harness() as harness:
        for name, value in harness.variables("a").items():
            monkeypatch.setenv(name, value)
        seconds: list[float | None] = []

        def give_all(turns: list[Turn], pause: float) -> None:
            group = harness.wait_until_ready("a", 20, lambda: True)
            assert group
            for turn in turns:
                time.sleep(pause)
                seconds.append(harness.give(group, turn, 20))
            harness.dismiss(group)

        def start(*turns: Turn, pause: float = 0.0) -> threading.Thread:
            thread = threading.Thread(target=give_all, args=(list(turns), pause), daemon=True)
            thread.seconds = seconds  # type: ignore[attr-defined]
            thread.start()
            return thread

        yield start


def result(clock: Clock, folder: Path) -> dict[str, Any]:
    clock.write(folder, device="CPU", precision="float32", library="1.0")
    return json.loads((folder / "0.json").read_text())


def test_a_turn_is_a_window_of_its_steps_after_the_lead(grant: Grant, tmp_path: Path) -> None:
    thread, clock, synchronised = grant(Turn(3, 2, cycle=-1), Turn(4, 1, cycle=0)), Clock("throughput"), []
    clock.start()
    ended = [clock.after_step(100 + step, lambda: synchronised.append(clock.step)) for step in range(11)]
    thread.join(20)
    assert ended == [False] * 10 + [True]
    assert synchronised == [1, 3, 6, 7, 11], "after the first step, each lead, and each turn"
    left = result(clock, tmp_path)
    assert (left["window_steps"], left["window_cycles"]) == ([3, 4], [-1, 0])
    assert left["window_images"] == [sum(range(103, 106)), sum(range(107, 111))]
    assert left["versions"]["library"] == "1.0"
    assert left["window_seconds"] == thread.seconds  # type: ignore[attr-defined]


def test_waiting_is_in_no_time(grant: Grant, tmp_path: Path) -> None:
    thread, clock = grant(*[Turn(2)] * 3, pause=0.4), Clock("accuracy")
    began = time.perf_counter()
    clock.start()
    ended = [clock.after_step(1, lambda: time.sleep(0.05)) for _ in range(7)]
    assert clock.after_evaluation(0.99)
    without_pauses = time.perf_counter() - began - 3 * 0.4
    thread.join(20)
    assert ended == [False] * 6 + [True]
    left = result(clock, tmp_path)
    assert left["first_step_seconds"] >= 0.05
    assert all(seconds >= 0.05 for seconds in left["window_seconds"])
    assert sum(left["window_seconds"]) < without_pauses
    assert 0.2 <= left["evaluations"][0]["training_seconds"] < without_pauses + 0.1


def test_an_evaluation_is_in_the_time_to_an_accuracy_and_in_no_window(grant: Grant, tmp_path: Path) -> None:
    thread, clock = grant(Turn(4)), Clock("accuracy")
    began = time.perf_counter()
    clock.start()
    for step in range(1, 6):
        assert clock.after_step(1, lambda: None) == (step == 5)
        if step == 3:
            time.sleep(0.3)
            assert not clock.after_evaluation(0.9899)
    without_evaluation = time.perf_counter() - began - 0.3
    thread.join(20)
    left = result(clock, tmp_path)
    (row,) = left["evaluations"]
    assert (row["step"], row["accuracy"], row["split"]) == (3, 0.9899, "test")
    assert row["evaluation_seconds"] >= 0.3
    assert 0 <= row["training_seconds"] < without_evaluation
    assert left["window_seconds"][0] < without_evaluation


def test_a_harness_that_is_gone_ends_the_turns(grant: Grant) -> None:
    assert "MNIST_DIST_TURNS" in os.environ
    thread, clock = grant(), Clock("throughput")
    clock.start()
    assert clock.after_step(1, lambda: None)
    thread.join(20)
