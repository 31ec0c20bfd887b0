"""Grants turns to groups of processes that are alive at once: who is ready, and who has the turn.

The other side is `mnist_dist.distributed.turns`. Lines of JSON travel over TCP. A rank's first line says who it is,
with the token of this harness; whoever sends anything else is a stranger, and is sent away.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mnist_dist.distributed.membership import Listener
from mnist_dist.distributed.turns import ADDRESS_VARIABLE, GROUP_VARIABLE, TOKEN_VARIABLE, Turn

LONGEST_LINE_BYTES = 4096
MOST_STRANGERS = 64  # Connections of which nothing has been heard; the oldest makes room for the next.
LOOK_SECONDS = 0.5  # Between two looks at whether a group's processes are still there.


@dataclass(eq=False)
class Group:
    """The ranks that take turns together.

    Attributes:
        ranks: how many there are; 0 until the first has come.
        is_training: whether a training to its end is under way, of which there is only as much as there is.
        signal: the name of a signal that asked one of them to stop.
        seconds: of the last turn, by rank; `steps` are those that it took.
    """

    ranks: int = 0
    lines: dict[int, _Line] = field(default_factory=dict)
    is_training: bool = False
    signal: str | None = None
    seconds: dict[int, float] = field(default_factory=dict)
    steps: int = 0

    @property
    def is_complete(self) -> bool:
        return 0 < self.ranks == len(self.lines)


@dataclass(eq=False)
class _Line:
    """A connection, of a stranger until it has said which group and rank is its own."""

    connection: socket.socket
    group: str | None = None
    rank: int = -1
    unread: bytes = b""


class Harness(Listener):
    """Listens while it is open, at an address of this host at which all ranks reach it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._token = secrets.token_hex(16)
        self._groups: dict[str, Group] = {}
        self._strangers: list[_Line] = []
        super().__init__(host, 0, 512)
        self._address = f"{host}:{self._server.getsockname()[1]}"

    def variables(self, group: str) -> dict[str, str]:
        """Returns what the processes of a group need in their environment to find this harness, which expects them."""
        self._groups.setdefault(group, Group())
        return {ADDRESS_VARIABLE: self._address, GROUP_VARIABLE: group, TOKEN_VARIABLE: self._token}

    def wait_until_ready(self, name: str, timeout_seconds: float, is_alive: Callable[[], bool]) -> Group | None:
        """Returns a group when all of its ranks have come and wait; None if it ended, or the time was up, before."""
        group = self._groups.setdefault(name, Group())
        ready = self._serve(lambda: group.is_complete, timeout_seconds, is_alive)
        return group if ready else None

    def give(
        self, group: Group, turn: Turn, timeout_seconds: float, is_alive: Callable[[], bool] = lambda: True
    ) -> float | None:
        """Gives a group its turn, waits until all ranks have ended it, and returns the slowest one's seconds.

        None if a rank left instead, as at the end of a training that measures nothing more, or did not answer in time.
        """
        group.seconds.clear()
        line = json.dumps(asdict(turn)).encode() + b"\n"
        for each in list(group.lines.values()):
            with contextlib.suppress(OSError):  # It has left, which shows below.
                each.connection.sendall(line)
        self._serve(lambda: not group.is_complete or len(group.seconds) == group.ranks, timeout_seconds, is_alive)
        return max(group.seconds.values()) if len(group.seconds) == group.ranks else None

    def dismiss(self, group: Group) -> None:
        """Tells all ranks of a group that there is no turn any more; their lines stay open while they end."""
        for line in list(group.lines.values()):
            with contextlib.suppress(OSError):  # It has left.
                line.connection.sendall(b"\n")

    def hang_up(self, name: str) -> None:
        """Gives up a group: a rank of it that is still there, beyond the reach of signals, will end itself."""
        for line in list(self._groups[name].lines.values()):
            self._forget(line)

    def _serve(self, is_done: Callable[[], bool], timeout_seconds: float, is_alive: Callable[[], bool]) -> bool:
        """Reads what comes until something is done; returns whether it is."""
        deadline = time.monotonic() + timeout_seconds
        while not is_done():
            for key, _ in self._selector.select(LOOK_SECONDS):
                if key.fileobj is self._server:
                    self._welcome()
                else:
                    self._read(key.data)
            if not is_done() and (time.monotonic() > deadline or not is_alive()):
                return False
        return True

    def _welcome(self) -> None:
        try:
            line = _Line(self._server.accept()[0])
        except OSError:  # It has gone again.
            return
        line.connection.setblocking(False)
        line.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(line.connection, selectors.EVENT_READ, line)
        self._strangers.append(line)
        if len(self._strangers) > MOST_STRANGERS:
            self._forget(self._strangers[0])

    def _read(self, line: _Line) -> None:
        try:
            received = line.connection.recv(LONGEST_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        line.unread += received
        if not received or len(line.unread) > LONGEST_LINE_BYTES:
            self._forget(line)
            return
        *whole, line.unread = line.unread.split(b"\n")
        for text in whole:
            try:
                self._understand(line, json.loads(text))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                self._forget(line)
                return

    def _understand(self, line: _Line, message: dict[str, Any]) -> None:
        """Notes what a rank says; raises what a stranger's words give cause for."""
        if line.group is None:
            if not hmac.compare_digest(str(message["token"]), self._token):
                raise ValueError("not the token of this harness")
            group, rank, ranks = self._groups[message["group"]], int(message["rank"]), int(message["ranks"])
            if not 0 <= rank < ranks or rank in group.lines or group.ranks not in (0, ranks):
                raise ValueError("no such rank")
            line.group, line.rank, group.ranks = message["group"], rank, ranks
            group.lines[rank] = line
            self._strangers.remove(line)
        group = self._groups[line.group]
        group.signal = group.signal or message.get("signal")
        group.is_training = bool(message.get("training", group.is_training))
        if "seconds" in message:
            group.seconds[line.rank], group.steps = float(message["seconds"]), int(message["steps"])

    def _forget(self, line: _Line) -> None:
        if line.connection.fileno() < 0:  # It made room for another, and had something to say in the same moment.
            return
        self._selector.unregister(line.connection)
        line.connection.close()
        if line in self._strangers:
            self._strangers.remove(line)
        if line.group is not None:
            self._groups[line.group].lines.pop(line.rank, None)
