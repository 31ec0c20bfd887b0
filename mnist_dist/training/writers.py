"""Where rows of metrics go: JSON lines, TensorBoard, and the reader's terminal.

A row is a flat dictionary: `kind` ("train" or "evaluate"), `step`, `epoch`, and measured values.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from mnist_dist.command import clock
from mnist_dist.display import Display, make_display
from mnist_dist.errors import UserError
from mnist_dist.files import atomic_path, atomic_write, cannot_write
from mnist_dist.lazy import tf

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
                        tf.summary.scalar(f"{row['kind']}/{name}", value)
                self._writer.flush()
        except UserError as error:
            self._is_broken = True
            self._report(f"TensorBoard logging stopped: {error}")

    def _drop_behind(self, file: Path, step: int) -> None:
        """Drops the events of later steps from a file, and a last one that was cut off by a kill."""
        events = []
        with contextlib.suppress(tf.errors.DataLossError):
            for event in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                if tf.compat.v1.Event.FromString(event).step <= step:
                    events.append(event)
        with atomic_path(file) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
            for event in events:
                writer.write(event)

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            reason = re.sub(r"{{.*?}} |\[Op:.*", "", error.message.splitlines()[0])  # The names of operations.
            raise cannot_write(self._folder, OSError(reason.strip())) from None


class Console:
    """The view of who reads along: a line for each row, or, of training, its values in the bar if there is one."""

    def __init__(self, display: Display, total_steps: int, batch_size: int) -> None:
        self.say = display.say
        self._display, self._total_steps, self._batch_size = display, total_steps, batch_size
        self._values = ""
        self._step_seconds = 0.0

    def write(self, row: Row) -> None:
        """Shows a row of metrics."""
        step, accuracy, loss = row["step"], f"accuracy {100 * row['accuracy']:.2f} %", f"loss {row['loss']:.4f}"
        where = f"step {step:>5}/{self._total_steps}  epoch {row['epoch']:.2f}"
        if row["kind"] == "evaluate":
            self.say(f"{where}  {row['split']} {accuracy}  {loss}")
        elif self._display.has_bar:
            self._values = f"{loss}  {accuracy}  "
            self._display.show(self._values + self._pace(step))
        else:
            self.say(f"{where}  {accuracy}  {loss}  {self._pace(step)}")

    def advance(self, step: int, step_seconds: float) -> None:
        """Learns that `step` was reached and how long the latest steps took, each."""
        self._step_seconds = step_seconds
        self._display.show(self._values + self._pace(step), step)

    def _pace(self, step: int) -> str:
        if not self._step_seconds:
            return ""
        left = clock((self._total_steps - step) * self._step_seconds)
        return f"{self._batch_size / self._step_seconds:,.0f} images/s  {left} left"


@contextlib.contextmanager
def open_console(total_steps: int, batch_size: int, is_chief: bool = True) -> Iterator[Console]:
    """Yields the console of a rank; that of the chief is the one to be seen, as what it says holds for all."""
    with make_display(total_steps, "compiling the first step") if is_chief else Display() as display:
        yield Console(display, total_steps, batch_size)


def read_rows(path: Path) -> list[Row]:
    """Reads the intact rows of a metrics file, a line cut off by a kill left out; raises UserError where it cannot."""
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
