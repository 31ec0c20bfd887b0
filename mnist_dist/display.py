"""What a person sees of work that goes on: lines, and on a terminal a bar below them."""

import sys
from typing import Any


class Display:
    """Shows nothing; a context while the work goes on."""

    has_bar = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the terminal as it was."""

    def say(self, line: str) -> None:
        """Shows a line that stays."""

    def show(self, text: str, completed: int | None = None, *, at_once: bool = False) -> None:
        """Changes what the bar says; it is drawn at once, or else when it is drawn next."""


class Lines(Display):
    """For files and pipes."""

    def say(self, line: str) -> None:
        print(line, flush=True)


class Bar(Display):
    """For a terminal: the lines, and below them a bar with a text.

    Args:
        auto_refresh: draw it ten times a second, or else only when told to.
    """

    has_bar = True

    def __init__(self, total: int, text: str = "", *, auto_refresh: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        # Else both would make room for a long text; so the bar alone does.
        count = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1))
        columns = BarColumn(bar_width=20), count, TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, auto_refresh=auto_refresh)
        self._task = self._bar.add_task(text, total=total)

    def __enter__(self) -> Any:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, text: str, completed: int | None = None, *, at_once: bool = False) -> None:
        self._bar.update(self._task, description=text, completed=completed, refresh=at_once)


def make_display(total: int, text: str = "", *, auto_refresh: bool = True) -> Display:
    """Returns a bar on a terminal and plain lines elsewhere."""
    return Bar(total, text, auto_refresh=auto_refresh) if sys.stdout.isatty() else Lines()
