"""A signal asks for a stop; all ranks agree on the step at which they do.

The handler only sets a flag. Saving inside a handler would interrupt a step half done, at another step on each rank.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Preemption:
    """Catches the signals while it is open; `received` names the first one that came."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Preemption:
        self.listen()
        return self

    def listen(self) -> None:
        """Catches the signals, again where a library has caught them since: TensorFlow's workers take SIGTERM."""
        for number in SIGNALS:
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt  # Ctrl-C twice: the user does not want to wait for the checkpoint.
        self.received = self.received or signal.Signals(number).name
