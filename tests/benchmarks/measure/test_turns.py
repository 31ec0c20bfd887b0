"""Who is let in by the harness that grants turns, and how a turn begins and ends."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mnist_dist.benchmarks.measure.turns import Group, Harness
from mnist_dist.distributed.turns import ADDRESS_VARIABLE, TOKEN_VARIABLE, Turn, Turns, join_turns
from mnist_dist.errors import TrainingError


@pytest.fixture
def harness() -> Iterator[Harness]:
    with Harness() as harness:
        yield harness


class Rank(threading.Thread):
    """A rank that says of each turn that its steps took a millisecond each, on rank 1 two."""

    def __init__(self, harness: Harness, rank: int, ranks: int, group: str = "a", turns: int = 1000) -> None:
        super().__init__(daemon=True)
        self.turns = Turns(harness.variables(group), rank, ranks)
        self.taken: list[Turn] = []
        self.most, self.rank = turns, rank
        self.signal: str | None = None
        self.start()

    def run(self) -> None:
        self.turns.is_training = False
        while len(self.taken) < self.most and (turn := self.turns.wait(lambda: self.signal)):
            self.taken.append(turn)
            self.turns.done(turn.steps, turn.steps * 1e-3 * (1 + self.rank))
        self.turns.close()


def ready(harness: Harness, name: str = "a", seconds: float = 20.0) -> Group | None:
    return harness.wait_until_ready(name, seconds, lambda: True)


def connect(harness: Harness) -> socket.socket:
    host, _, port = harness.variables("a")[ADDRESS_VARIABLE].rpartition(":")
    return socket.create_connection((host, int(port)))


def test_a_turn_lasts_until_the_slowest_rank_has_ended_it(harness: Harness) -> None:
    ranks = [Rank(harness, rank, 2) for rank in range(2)]
    group = ready(harness)
    assert group is not None and group.is_complete and not group.is_training
    turns = [Turn(5, 1, "resident", 3), Turn(7)]
    assert [harness.give(group, turn, 20) for turn in turns] == pytest.approx([0.010, 0.014])
    assert group.steps == 7
    harness.dismiss(group)
    for rank in ranks:
        rank.join(20)
        assert rank.taken == turns
        assert rank.turns.waited_seconds > 0


def test_groups_wait_apart(harness: Harness) -> None:
    first, group_a = Rank(harness, 0, 1, "a"), ready(harness, "a")
    second, group_b = Rank(harness, 0, 1, "b"), ready(harness, "b")
    assert group_a and group_b
    for _ in range(3):
        harness.give(group_b, Turn(1), 20)
    assert (len(first.taken), len(second.taken)) == (0, 3)


def test_a_rank_that_leaves_takes_its_group_out(harness: Harness) -> None:
    Rank(harness, 0, 2, turns=1)
    Rank(harness, 1, 2)
    group = ready(harness)
    assert group
    harness.give(group, Turn(1), 20)  # Whether the other one has ended this turn by then is not known.
    assert harness.give(group, Turn(1), 20) is None


def test_a_turn_that_takes_too_long(harness: Harness) -> None:
    with connect(harness) as stuck:
        token = harness.variables("a")[TOKEN_VARIABLE]
        stuck.sendall(json.dumps({"group": "a", "token": token, "rank": 0, "ranks": 1}).encode() + b"\n")
        group = ready(harness)
        assert group and harness.give(group, Turn(1), 0.1) is None
        assert group.is_complete, "it is still there, and does not answer"


def test_processes_that_end_before_they_are_ready(harness: Harness) -> None:
    began = time.monotonic()
    assert harness.wait_until_ready("a", 60, lambda: False) is None
    assert time.monotonic() - began < 30


def test_a_signal_is_told(harness: Harness) -> None:
    rank, other = Rank(harness, 0, 2), Rank(harness, 1, 2)
    group = ready(harness)
    rank.signal = "SIGTERM"
    assert group
    deadline = time.monotonic() + 30
    while not group.signal and time.monotonic() < deadline:
        assert harness.give(group, Turn(1), 20) is not None, "it goes on until the harness ends it on all ranks alike"
        time.sleep(0.2)
    assert group.signal == "SIGTERM"
    harness.dismiss(group)
    for each in (rank, other):
        each.join(20)
    assert rank.taken == other.taken


class TestStrangers:
    """Whatever strangers do, the group is ready as without them."""

    def make_ready(self, harness: Harness) -> None:
        ranks = [Rank(harness, rank, 2) for rank in range(2)]
        group = ready(harness)
        assert group and harness.give(group, Turn(3), 20) is not None
        harness.dismiss(group)
        for rank in ranks:
            rank.join(20)

    @pytest.mark.parametrize(
        "words",
        [
            b"1 2\n",
            b"\xff\xfe\n",
            b"[]\n",
            b'{"group": "a", "rank": 0, "ranks": 2}\n',
            b'{"group": "a", "token": "guess", "rank": 0, "ranks": 2}\n',
            b"x" * 3_000_000,
            b"[" * 4000 + b"\n",
            b"",
        ],
    )
    def test_who_does_not_know_the_token(self, harness: Harness, words: bytes) -> None:
        with connect(harness) as stranger:
            stranger.setblocking(False)
            try:
                stranger.sendall(words)
            except BlockingIOError:
                assert len(words) > 100_000
            self.make_ready(harness)

    def test_many_that_say_nothing(self, harness: Harness) -> None:
        strangers = [connect(harness) for _ in range(100)]
        self.make_ready(harness)
        for stranger in strangers:
            stranger.close()

    def test_many_that_speak_at_once(self, harness: Harness) -> None:
        """Those that have to make room for others have something to say in the same moment."""
        for _ in range(3):
            strangers = [connect(harness) for _ in range(100)]
            for stranger in strangers:
                stranger.sendall(b"{}")
            harness._serve(lambda: False, 0.2, lambda: True)
            strangers += [connect(harness) for _ in range(60)]
            for stranger in strangers:
                with contextlib.suppress(OSError):
                    stranger.sendall(b"1")
            self.make_ready(harness)
            for stranger in strangers:
                stranger.close()

    def test_places_that_do_not_exist(self, harness: Harness) -> None:
        rank = Rank(harness, 0, 2)
        token = harness.variables("a")[TOKEN_VARIABLE]
        first = harness.wait_until_ready("a", 0.5, lambda: True)
        assert first is None and rank.is_alive()
        group = next(iter(harness._groups.values()))
        claims: list[dict[str, object]] = [{"rank": 2}, {"rank": -1}, {"ranks": 3}, {"group": "b"}, {"rank": "x"}]
        with contextlib.ExitStack() as stack:
            for claim in claims:
                greeting = {"group": "a", "token": token, "rank": 1, "ranks": 2, "training": False} | claim
                stack.enter_context(connect(harness)).sendall(json.dumps(greeting).encode() + b"\n")
            assert harness._serve(lambda: group.is_complete, 0.5, lambda: True) is False


def test_without_a_harness_nobody_waits() -> None:
    with join_turns({}, 0, 1) as turns:
        assert turns is None


def test_a_harness_that_is_not_there() -> None:
    with Harness() as harness:
        variables = harness.variables("a")
    with join_turns(variables, 0, 1) as turns, pytest.raises(TrainingError, match="cannot reach the harness at '127"):
        assert turns is not None
        turns.wait()
