"""Where rows of metrics go: JSON lines, TensorBoard, and the reader's terminal.

A row is a flat dictionary: `kind` ("train" or "evaluate"), `step`, `epoch`, and measured values.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from mnist_dist.command import clock
from mnist_dist.errors import UserError
from mnist_dist.files import atomic_path, atomic_write, cannot_write

Row = dict[str, Any]


class Writer(Protocol):
    def write(self, row: Row) -> None: ...


class JsonLines:
    """Appends each row as a line, after dropping what a killed run wrote behind the step it resumes from."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        rows = [row for row in read_rows(path) if row["step"] <= resume_step]
        with atomic_write(path) as file:
            file.writelines(_line(row).encode() for row in rows)
        try:
            self._file = path.open("a")
        except OSError as error:
            raise cannot_write(path, error) from error

    def write(self, row: Row) -> None:
        try:
            self._file.write(_line(row))
            self._file.flush()
            self.path.stat()  # A file that was deleted takes everything, for nobody.
        except OSError as error:
            raise cannot_write(self.path, error) from error


class TensorBoard:
    """Writes each measured value as a scalar `kind/name` at its step, as long as that can be done.

    Args:
        resume_step: what a killed run wrote behind it is dropped.
        report: is told, once, that it cannot: metrics.jsonl holds the same, so a run does not end for it.

    Raises:
        UserError: it cannot be done from the beginning.
    """

    def __init__(self, folder: Path, resume_step: int, report: Callable[[str], None]) -> None:
        import tensorflow as tf

        self._tf = tf
        self._folder = folder
        self._report = report
        self._is_broken = False
        with self._user_errors():
            for file in sorted(folder.glob("events.*")):
                self._drop_behind(file, resume_step)
            self._writer = tf.summary.create_file_writer(str(folder))

    def write(self, row: Row) -> None:
        if self._is_broken:
            return
        try:
            with self._user_errors(), self._writer.as_default(step=row["step"]):
                for name, value in row.items():
                    if isinstance(value, float) and name != "epoch":
                        self._tf.summary.scalar(f"{row['kind']}/{name}", value)
                self._writer.flush()
        except UserError as error:
            self._is_broken = True
            self._report(f"TensorBoard has no more values: {error}")

    def _drop_behind(self, file: Path, step: int) -> None:
        """Drops the events of later steps from a file, and a last one that was cut off by a kill."""
        events = []
        with contextlib.suppress(self._tf.errors.DataLossError):
            for event in self._tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                if self._tf.compat.v1.Event.FromString(event).step <= step:
                    events.append(event)
        with atomic_path(file) as temporary, self._tf.io.TFRecordWriter(str(temporary)) as writer:
            for event in events:
                writer.write(event)

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except self._tf.errors.OpError as error:
            reason = re.sub(r"{{.*?}} |\[Op:.*", "", error.message.splitlines()[0])  # The names of operations.
            raise cannot_write(self._folder, OSError(reason.strip())) from None


class Console:
    """The reader's view of a training run: one line per row, for files and pipes."""

    def __init__(self, total_steps: int, batch_size: int) -> None:
        self.total_steps = total_steps
        self.batch_size = batch_size
        self._step_seconds = 0.0

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the terminal as it was."""

    def write(self, row: Row) -> None:
        """Shows a row of metrics."""
        parts = [f"step {row['step']:>5}/{self.total_steps}", f"epoch {row['epoch']:.2f}"]
        if row["kind"] == "evaluate":
            parts.append(f"{row['split']} accuracy {100 * row['accuracy']:.2f} %  loss {row['loss']:.4f}")
        else:
            parts.append(f"accuracy {100 * row['accuracy']:.2f} %  loss {row['loss']:.4f}")
            parts.append(self._pace(row["step"]))
        self.say("  ".join(parts))

    def say(self, line: str) -> None:
        """Shows a sentence."""
        print(line, flush=True)

    def advance(self, step: int, step_seconds: float) -> None:
        """Learns that `step` was reached and how long the latest steps took, each."""
        self._step_seconds = step_seconds

    def _pace(self, step: int) -> str:
        if not self._step_seconds:
            return ""
        left = clock((self.total_steps - step) * self._step_seconds)
        return f"{self.batch_size / self._step_seconds:,.0f} images/s  {left} left"


class BarConsole(Console):
    """A progress bar that carries the latest values, for a terminal; evaluations stay as lines above it."""

    def __init__(self, total_steps: int, batch_size: int) -> None:
        super().__init__(total_steps, batch_size)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[values]}{task.fields[pace]}")
        )
        self._task = self._bar.add_task("training", total=total_steps, values="", pace="compiling the first step")

    def __enter__(self) -> BarConsole:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def write(self, row: Row) -> None:
        if row["kind"] == "evaluate":
            super().write(row)
        else:
            values = f"loss {row['loss']:.4f}  accuracy {100 * row['accuracy']:.2f} %  "
            self._bar.update(self._task, values=values)

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int, step_seconds: float) -> None:
        super().advance(step, step_seconds)
        self._bar.update(self._task, completed=step, pace=self._pace(step))


class SilentConsole(Console):
    """Of a rank that is not the chief: what the chief says holds for all."""

    def say(self, line: str) -> None:
        pass


def make_console(total_steps: int, batch_size: int, is_chief: bool = True) -> Console:
    """Returns a progress bar on a terminal and plain lines elsewhere."""
    if not is_chief:
        return SilentConsole(total_steps, batch_size)
    return (BarConsole if sys.stdout.isatty() else Console)(total_steps, batch_size)


def read_rows(path: Path) -> list[Row]:
    """Reads the intact rows of a metrics file; a last line cut off by a kill is left out.

    Raises:
        UserError: the file exists but cannot be read.
    """
    rows = []
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"workdir: cannot read '{path}' ({error.strerror}); name another folder with --workdir."
        ) from None
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
