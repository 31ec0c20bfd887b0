"""How far a study is and how long it will still take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """One line for each case that ends, with the number of cases and the time left."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._number = 0
        self._left_seconds = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the terminal as it was."""

    def begin(self, number: int, label: str, left_seconds: float) -> None:
        """Learns which case begins, and how long it and all after it will take."""
        self._number, self._left_seconds = number, left_seconds

    def tick(self) -> None:
        """Is called about once a second while a case runs."""

    def end(self, line: str, left_seconds: float) -> None:
        """Shows what came of the case, and how long those after it will take."""
        print(f"[{self._number + 1}/{self.total}] {line}; {clock(left_seconds)} left", flush=True)


class BarProgress(Progress):
    """The lines, and below them a bar with the case that runs and the time left."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        text = TextColumn("{task.fields[left]} left  {task.fields[label]}", markup=False)
        self._bar = Bar(BarColumn(bar_width=20), MofNCompleteColumn(), text, auto_refresh=False)
        self._task = self._bar.add_task("study", total=total, label="", left="")
        self._began = 0.0

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, number: int, label: str, left_seconds: float) -> None:
        super().begin(number, label, left_seconds)
        self._began = time.monotonic()
        self._bar.update(self._task, completed=number, label=label, left=clock(left_seconds), refresh=True)

    def tick(self) -> None:
        left = max(self._left_seconds - (time.monotonic() - self._began), 0.0)
        self._bar.update(self._task, left=clock(left), refresh=True)

    def end(self, line: str, left_seconds: float) -> None:
        text = f"[{self._number + 1}/{self.total}] {line}"
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


def make_progress(total: int) -> Progress:
    return (BarProgress if sys.stdout.isatty() else Progress)(total)


def clock(seconds: float) -> str:
    """Returns, for example, `4:05` or `1:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
