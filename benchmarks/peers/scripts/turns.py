"""A peer's side of taking turns with others on the same devices; it needs nothing but the standard library.

Where MNIST_DIST_TURNS names a harness, each rank says who it is, and then, again and again, waits for a line that says
how many steps to take, takes them, and says how long they took. `mnist_dist.distributed.turns` has more to say on it.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any


class Turns:
    """One rank's line to the harness; `is_training` if it trains to an end, or else until there is no turn any more."""

    def __init__(self, rank: int, ranks: int, is_training: bool) -> None:
        host, _, port = os.environ["MNIST_DIST_TURNS"].rpartition(":")
        self._connection = socket.create_connection((host, int(port)))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._connection.makefile()
        group, token = (os.environ[f"MNIST_DIST_TURNS_{name}"] for name in ("GROUP", "TOKEN"))
        self._say(group=group, token=token, rank=rank, ranks=ranks, training=is_training)

    def wait(self) -> dict[str, Any] | None:
        """Returns the next turn: `steps` to time, after a `lead` of others, and its `cycle`; None if there is none."""
        try:
            line = self._lines.readline()
        except ConnectionError:
            line = ""
        return json.loads(line) if line else None

    def done(self, steps: int, seconds: float) -> None:
        """Ends a turn in which so many steps took so long."""
        self._say(steps=steps, seconds=seconds)

    def _say(self, **message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")
