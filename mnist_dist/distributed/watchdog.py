"""Ends a rank that waits too long or for a harness that is gone, and tells the launcher what each rank is doing.

A rank whose partner is missing or stuck waits inside TensorFlow, where no Python exception reaches it. A thread
beside it watches the clock; once a second it also writes the current phase to the launcher, so that the launcher can
name the rank that is to blame and not one that waits for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from mnist_dist.distributed.cluster import Cluster
from mnist_dist.errors import say_now

EXIT_LOST_RANKS = 3  # Of a rank that ends because of another one.
HEARTBEAT_VARIABLE = "MNIST_DIST_HEARTBEAT_FD"
LOST_SECONDS = 30.0  # For a rank to end by itself once the other end of its line has hung up.
_PERIOD_SECONDS = 1.0


class Watchdog:
    """Watches one process while it is open.

    Args:
        cluster: of several processes; one on its own waits for nobody and is not watched.
        timeout_seconds: how long one phase may last.
    """

    def __init__(self, cluster: Cluster, timeout_seconds: float) -> None:
        self.rank = cluster.rank
        self.timeout_seconds = timeout_seconds
        self._phase = "starting"
        self._since = time.monotonic()
        self._stopped = threading.Event()
        heartbeat = os.environ.get(HEARTBEAT_VARIABLE)
        self._launcher = int(heartbeat) if heartbeat else None
        if cluster.size > 1:
            # TensorFlow holds Python's lock while it joins the other processes: only C can end a wait there.
            faulthandler.dump_traceback_later(timeout_seconds + 2 * _PERIOD_SECONDS, exit=True)
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *error: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._stopped.set()

    def enter(self, phase: str, timeout_seconds: float | None = None) -> None:
        """Begins a new phase, such as "step 120", and its time-out."""
        faulthandler.cancel_dump_traceback_later()
        self._since = time.monotonic()
        self._phase = phase
        if timeout_seconds is not None:
            self.timeout_seconds = timeout_seconds

    @contextlib.contextmanager
    def without_limit(self, phase: str) -> Iterator[None]:
        """Is a phase that may last as long as it will."""
        limit = self.timeout_seconds
        self.enter(phase, float("inf"))
        try:
            yield
        finally:
            self.enter(f"after {phase}", limit)

    def watch_line(self, line: socket.socket, other_end: str) -> None:
        """Ends this process if the other end hangs up, and this one is still there `LOST_SECONDS` later."""
        poll = select.poll()
        poll.register(line, select.POLLRDHUP)  # It tells of the end even where nobody reads what came before.

        def watch() -> None:
            poll.poll()
            if not self._stopped.wait(LOST_SECONDS):
                _end_rank(
                    f"rank {self.rank} lost {other_end}, which hung up, and had not ended {LOST_SECONDS:g} s later; "
                    f"it was in the phase '{self._phase}'."
                )

        threading.Thread(target=watch, daemon=True, name="watchdog of a line").start()

    def _watch(self) -> None:
        while not self._stopped.wait(_PERIOD_SECONDS):
            if self._launcher is not None:
                with contextlib.suppress(OSError):  # The launcher is gone; its death signal follows.
                    os.write(self._launcher, f"{self._phase}\n".encode())
            waited = time.monotonic() - self._since
            if waited > self.timeout_seconds:
                _end_rank(
                    f"rank {self.rank} waited {waited:.0f} s in the phase '{self._phase}', "
                    f"expected at most {self.timeout_seconds:g} s; another rank is missing or stuck."
                )


def _end_rank(reason: str) -> NoReturn:
    """Ends this process at once, as its main thread sits in a collective that never returns."""
    say_now(f"error: {reason}")
    os._exit(EXIT_LOST_RANKS)
