"""A signal asks for a stop; all ranks agree on the step at which they do.

The handler only sets a flag. Saving inside a handler would interrupt a step half done, at another step on each rank.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType

# SIGHUP comes when a terminal is closed or its connection lost.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


def catchable(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Returns those of some signals that may be caught here.

    That is none outside the main thread, as in a web service: Python does not allow it, and who started the thread has
    to stop it. And not SIGHUP where `nohup` has asked to ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


def tell_of_stop() -> None:
    """Answers Ctrl-C at once, as a checkpoint may take seconds; not by print, which the signal may have interrupted."""
    with contextlib.suppress(OSError):
        os.write(
            2, b"mnist-dist: stopping after the current steps, with a checkpoint; Ctrl-C again stops without one\n"
        )


class Preemption:
    """Catches the signals while it is open, where it can; `received` names the first one that came.

    Args:
        tells: whether it answers Ctrl-C, as one rank of a run does.
    """

    def __init__(self, tells: bool = False) -> None:
        self.received: str | None = None
        self._tells = tells
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Preemption:
        self.listen()
        return self

    def listen(self) -> None:
        """Catches the signals, again where a library has caught them since: TensorFlow's workers take SIGTERM."""
        for number in catchable(SIGNALS):
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt  # Ctrl-C twice: the user does not want to wait for the checkpoint.
        if number == signal.SIGINT and self._tells:
            tell_of_stop()
        self.received = self.received or signal.Signals(number).name
