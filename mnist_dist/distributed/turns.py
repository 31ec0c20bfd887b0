"""Takes turns with other process groups on the same devices, as a harness of benchmarks grants them.

Groups that compute in turns of a fraction of a second meet the same machine, whatever else it does, so that their
ratio is known far better than the pace of either. Every rank listens on a socket of its own: a group that waits sits
in no collective and uses neither CPU nor GPU.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnist_dist.errors import TrainingError

if TYPE_CHECKING:
    from mnist_dist.distributed.watchdog import Watchdog

ADDRESS_VARIABLE = "MNIST_DIST_TURNS"  # HOST:PORT.
GROUP_VARIABLE = "MNIST_DIST_TURNS_GROUP"
TOKEN_VARIABLE = "MNIST_DIST_TURNS_TOKEN"  # noqa: S105 - the name of a variable.
# Of processes that take turns together without knowing of one another, in place of their own.
RANK_VARIABLE, RANKS_VARIABLE = "MNIST_DIST_TURNS_RANK", "MNIST_DIST_TURNS_RANKS"
FULL = "full"
POLL_SECONDS = 1.0  # Between two looks at whether a signal has come.


@dataclass(frozen=True)
class Turn:
    """What a group may do now.

    Attributes:
        steps: to take and to time.
        lead: steps to take before them without timing, as the first after a wait find cold caches.
        variant: of the training step; see `training.variants`.
        cycle: in which every group has one turn of each of its variants; -1 before measuring begins.
    """

    steps: int
    lead: int = 0
    variant: str = FULL
    cycle: int = -1


class Turns:
    """One rank's line to the harness; it opens with the first `wait`, which says that the rank is ready.

    Args:
        watchdog: lets the waits last, and ends this process if it does not end with the harness.

    Attributes:
        waited_seconds: between turns, in total.
        is_training: whether the turns belong to a training that has an end, or else to a measurement without one.
    """

    def __init__(self, environment: Mapping[str, str], rank: int, ranks: int, watchdog: Watchdog | None = None) -> None:
        self.waited_seconds = 0.0
        self.is_training = True
        self._address = environment[ADDRESS_VARIABLE]
        self._greeting = {
            "group": environment.get(GROUP_VARIABLE, ""),
            "token": environment.get(TOKEN_VARIABLE, ""),
            "rank": int(environment.get(RANK_VARIABLE, rank)),
            "ranks": int(environment.get(RANKS_VARIABLE, ranks)),
        }
        self._watchdog = watchdog
        self._connection: socket.socket | None = None
        self._unread = b""

    def wait(self, signalled: Callable[[], str | None] = lambda: None) -> Turn | None:
        """Waits for the next turn; None when there is none any more, or when a signal came.

        Args:
            signalled: returns the name of a signal that asks this rank to stop, once one has come; the harness then
                ends all ranks of the group after the same turn.
        """
        began = time.perf_counter()
        if self._connection is None:
            self._connection = connect(self._address)
            if self._watchdog:
                self._watchdog.watch_line(self._connection, f"the harness at '{self._address}'")
            self._send(self._connection, self._greeting | {"training": self.is_training})
        told, line = False, None
        try:
            with self._watchdog.without_limit("waiting for its turn") if self._watchdog else contextlib.nullcontext():
                while line is None:
                    if not told and (name := signalled()):
                        self._send(self._connection, {"signal": name})
                        told = True
                    line = self._next_line(self._connection)
        finally:
            self.waited_seconds += time.perf_counter() - began
        return Turn(**json.loads(line)) if line else None

    def done(self, steps: int, seconds: float) -> None:
        """Ends the turn, in which so many steps took so long; nothing, before the first."""
        if self._connection is not None:
            self._send(self._connection, {"steps": steps, "seconds": seconds, "training": self.is_training})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # The harness is gone, which the next wait finds.
            connection.sendall(json.dumps(message).encode() + b"\n")

    def _next_line(self, connection: socket.socket) -> bytes | None:
        """Returns the next line, b"" at the end of all turns or of the harness, None if none came for a second."""
        while b"\n" not in self._unread:
            if not select.select([connection], [], [], POLL_SECONDS)[0]:
                return None
            try:
                received = connection.recv(4096)
            except ConnectionError:
                received = b""
            if not received:
                return b""
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def connect(address: str) -> socket.socket:
    """Connects to a harness, or raises TrainingError where nobody listens."""
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=30)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{ADDRESS_VARIABLE}: cannot reach the harness at '{address}' ({error}); unset it to train without turns."
        ) from None
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextlib.contextmanager
def join_turns(
    environment: Mapping[str, str], rank: int, ranks: int, watchdog: Watchdog | None = None
) -> Iterator[Turns | None]:
    """Yields this rank's line to the harness that the environment names, or None where nobody grants turns."""
    if ADDRESS_VARIABLE not in environment:
        yield None
        return
    turns = Turns(environment, rank, ranks, watchdog)
    try:
        yield turns
    finally:
        turns.close()
