"""Signals: those that ask for a stop, on which all ranks agree, and those that end a process, cleaned up.

Where ranks train, the handler only sets a flag. Saving inside a handler would interrupt a step half done, at another
step on each rank.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NoReturn

from mnist_dist.errors import say_now

# SIGHUP comes when a terminal is closed or its connection lost.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # The last is Slurm's warning before a job's time is over.


def catchable(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Returns those of some signals that may be caught here.

    That is none outside the main thread, as in a web service: Python does not allow it, and who started the thread has
    to stop it. And not SIGHUP where `nohup` has asked to ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


def tell_of_stop() -> None:
    """Answers Ctrl-C at once, as a checkpoint may take seconds."""
    say_now("stopping after the current steps, with a checkpoint; Ctrl-C again stops without one")


class Preemption:
    """Catches the signals while it is open, where it can.

    Args:
        tells: whether it answers Ctrl-C, as one rank of a run does.

    Attributes:
        received: the name of the first that came to this process.
        agreed: of one that came to any rank, once all know; this one may not have got it, or not yet.
    """

    def __init__(self, tells: bool = False) -> None:
        self.received: str | None = None
        self.agreed: str | None = None
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


@contextlib.contextmanager
def ending_cleanly(remark: str = "") -> Iterator[None]:
    """Lets a signal end this process by SystemExit, so that everything is cleaned up on the way.

    Args:
        remark: what to say besides, such as that nothing is lost.
    """

    def leave(number: int, _: FrameType | None) -> NoReturn:
        for other in ENDING:  # The next would interrupt that.
            signal.signal(other, signal.SIG_IGN)
        say_now(f"ended by {signal.Signals(number).name}{'; ' * bool(remark)}{remark}")
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in catchable(ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # Else one has come, and a second must not end the interpreter while it exits.
            if signal.getsignal(number) is leave:
                signal.signal(number, handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Lets signals wait: who is interrupted before a process is noted, or a record is kept, would leave or lose it.

    A mask would not do: the kernel gives a signal to any thread that does not block it, and Python has it handled by
    the main thread all the same.
    """
    came: list[int] = []
    held = catchable([signal.SIGINT, *ENDING])
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in held}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])
