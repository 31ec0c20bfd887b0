import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mnist_dist.training.writers import JsonLines, TensorBoard, Writer, open_console, read_rows


def train_row(step: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 40,
        "loss": 0.25,
        "accuracy": 0.9375,
        "learning_rate": 0.001,
        "images_per_second": 1000.0,
    }


def evaluate_row(step: int) -> dict[str, Any]:
    return {
        "kind": "evaluate",
        "split": "holdout",
        "step": step,
        "epoch": step / 40,
        "loss": 0.125,
        "accuracy": 0.9912,
        "images": 500,
    }


# --- JSON lines ---


def test_rows_are_on_the_disk_at_once_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    writer = JsonLines(file, resume_step=0)
    assert read_rows(file) == []
    rows = [train_row(10), evaluate_row(10), train_row(20)]
    for count, row in enumerate(rows, start=1):
        writer.write(row)
        assert read_rows(file) == rows[:count]
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    writer = JsonLines(file, resume_step=0)
    for step in (10, 20, 30):
        writer.write(train_row(step))
    again = JsonLines(file, resume_step=20)
    assert read_rows(file) == [train_row(10), train_row(20)]
    again.write(train_row(25))
    assert read_rows(file) == [train_row(10), train_row(20), train_row(25)]


def test_a_new_run_starts_with_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    JsonLines(file, resume_step=0).write(train_row(10))
    JsonLines(file, resume_step=0)
    assert file.read_text() == ""


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    whole = json.dumps(train_row(10)) + "\n"
    file.write_bytes(whole.encode() + b'[1]\n{"kind": "train"}\n\xff\n' + whole[:30].encode())
    assert read_rows(file) == [train_row(10)]
    JsonLines(file, resume_step=10).write(train_row(20))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 20]


def test_a_file_that_is_deleted_under_a_run(tmp_path: Path, user_error: Callable[..., str]) -> None:
    writer = JsonLines(tmp_path / "metrics.jsonl", resume_step=0)
    writer.write(train_row(10))
    (tmp_path / "metrics.jsonl").unlink()
    assert "metrics.jsonl': No such file or directory" in user_error(writer.write, train_row(20))


def test_no_rows_yet(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_metrics_that_cannot_be_read_or_written(tmp_path: Path, user_error: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "metrics.jsonl"):
        assert user_error(read_rows, path).startswith(f"workdir: cannot read '{path}'")
        assert str(path) in user_error(JsonLines, path, 0)


def test_a_full_disk(
    tf: ModuleType, small_disk: Path, fill: Callable[[Path], None], user_error: Callable[..., str]
) -> None:
    """It ends a run that can no longer note its metrics, but not for TensorBoard's copy of them."""
    said: list[str] = []
    rows, tensorboard = JsonLines(small_disk / "metrics.jsonl", 0), TensorBoard(small_disk, 0, said.append)
    for writer in (rows, tensorboard):
        writer.write(train_row(1))
    fill(small_disk)

    def write_many(writer: Writer) -> None:
        for step in range(2, 1000):  # The last block of a file has some room left.
            writer.write(train_row(step))

    write_many(tensorboard)
    assert len(said) == 1 and said[0].startswith("TensorBoard logging stopped: workdir: cannot write")
    for line in (user_error(write_many, rows), said[0]):
        assert f"cannot write '{small_disk}" in line and "No space left on device" in line


# --- TensorBoard ---


def test_tensorboard_shows_each_measured_value_at_its_step(tf: ModuleType, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    writer = TensorBoard(tmp_path / "tensorboard", 0, print)
    for row in (train_row(10), evaluate_row(10), train_row(20)):
        writer.write(row)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert scalars == {
        "train/loss": [(10, 0.25), (20, 0.25)],
        "train/accuracy": [(10, 0.9375), (20, 0.9375)],
        "train/learning_rate": [(10, pytest.approx(0.001)), (20, pytest.approx(0.001))],
        "train/images_per_second": [(10, 1000.0), (20, 1000.0)],
        "evaluate/loss": [(10, 0.125)],
        "evaluate/accuracy": [(10, pytest.approx(0.9912))],
    }


def test_tensorboard_has_no_step_twice_after_a_kill(tf: ModuleType, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TensorBoard(tmp_path, 0, print)
    for step in (10, 20, 30):
        killed.write(train_row(step))
    (file,) = tmp_path.iterdir()
    with file.open("ab") as torn:
        torn.write(file.read_bytes()[:30])
    TensorBoard(tmp_path, 20, print).write(train_row(25))
    assert len(list(tmp_path.iterdir())) == 2
    TensorBoard(tmp_path, 25, print).write(train_row(30))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("train/loss")] == [10, 20, 25, 30]


def test_a_file_in_the_place_of_the_folder(tf: ModuleType, tmp_path: Path, user_error: Callable[..., str]) -> None:
    (tmp_path / "tensorboard").touch()
    line = user_error(TensorBoard, tmp_path / "tensorboard", 0, print)
    assert line.startswith(f"workdir: cannot write '{tmp_path / 'tensorboard'}': Not a directory;")


# --- Console ---


def test_lines_for_files_and_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    with open_console(total_steps=1000, batch_size=128) as console:
        console.say("Hello [bold]")
        console.write(train_row(10))
        console.advance(20, 0.5)
        console.write(train_row(20))
        console.write(evaluate_row(20))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "Hello [bold]",
        "step    10/1000  epoch 0.25  accuracy 93.75 %  loss 0.2500",
        "step    20/1000  epoch 0.50  accuracy 93.75 %  loss 0.2500  256 images/s  8:10 left",
        "step    20/1000  epoch 0.50  holdout accuracy 99.12 %  loss 0.1250",
    ]


@pytest.mark.parametrize(
    ("steps_left", "shown"), [(0, "0:00"), (9, "0:09"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_the_time_that_is_left(steps_left: float, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open_console(total_steps=100, batch_size=1) as console:
        console.advance(99, steps_left)
        console.write(train_row(99))
    assert capsys.readouterr().out.endswith(f"  {shown} left\n" if steps_left else "0.2500  \n")


def test_a_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real pseudo-terminal: values in the bar, sentences and evaluations as lines above it."""
    reader, writer = os.openpty()
    shown = io.BytesIO()

    def read() -> None:
        try:
            while content := os.read(reader, 4096):
                shown.write(content)
        except OSError:  # What Linux says when the other end is closed.
            pass

    thread = threading.Thread(target=read)
    thread.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(writer, "w") as terminal:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", terminal)
            with open_console(total_steps=1000, batch_size=128) as console:
                console.say("Hello [bold]")
                console.advance(20, 0.5)
                console.write(train_row(20))
                console.write(evaluate_row(20))
        terminal.flush()
    thread.join(10)
    os.close(reader)
    text = shown.getvalue().decode()
    assert "Hello [bold]\r\n" in text
    assert "holdout accuracy 99.12 %  loss 0.1250\r\n" in text
    last = text.rpartition("20/1000")[2]
    assert "loss 0.2500" in last and "256 images/s" in last and "8:10 left" in last
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor stays hidden"
