import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_dist.errors import TrainingError
from mnist_dist.training.actions import (
    Action,
    Evaluate,
    LogMetrics,
    Progress,
    SaveCheckpoint,
    images_per_second,
    is_due,
    steps_until_due,
)
from mnist_dist.training.checkpoint import Checkpoints

RATES = np.linspace(0.1, 1.0, 10, dtype=np.float32)


@dataclass
class Every:
    """An action that only has a period."""

    period: int
    called: list[int] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        self.called.append(progress.step)


@dataclass
class Rows:
    """A writer that keeps the rows."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


# --- Progress ---


def test_steps_and_seconds_add_up() -> None:
    progress = Progress()
    progress.advance(np.array([[2.0, 0.25]], np.float32), seconds=5.0, first_of_session=True)
    assert (progress.step, progress.training_seconds, progress.first_step_seconds) == (1, 5.0, 5.0)
    assert (progress.timed_steps, progress.timed_seconds) == (0, 0.0), "the first step compiles"
    progress.advance(np.array([[1.0, 0.5], [0.5, 0.75]], np.float32), seconds=0.5, first_of_session=False)
    assert (progress.step, progress.training_seconds, progress.first_step_seconds) == (3, 5.5, 5.0)
    assert (progress.timed_steps, progress.timed_seconds) == (2, 0.5)
    window = progress.window
    assert (window.steps, window.loss_sum, window.accuracy_sum) == (3, 3.5, 1.5)
    assert (window.timed_steps, window.timed_seconds) == (2, 0.5)


def test_long_sums_stay_exact() -> None:
    progress = Progress()
    progress.advance(np.full([100_000, 2], 0.1, np.float32), seconds=1.0, first_of_session=False)
    assert progress.window.loss_sum == pytest.approx(100_000 * float(np.float32(0.1)), rel=1e-12)


def test_progress_survives_being_saved() -> None:
    progress = Progress(wall_seconds=7.5)
    progress.advance(np.array([[2.0, 0.25]], np.float32), seconds=5.0, first_of_session=True)
    progress.advance(np.array([[1.1, 0.5]], np.float32), seconds=0.1, first_of_session=False)
    again = Progress.from_dict(json.loads(json.dumps(asdict(progress))))
    assert again == progress and again.window.loss_sum == progress.window.loss_sum


@pytest.mark.parametrize(("steps", "seconds", "rate"), [(10, 2.0, 640.0), (0, 0.0, 0.0), (1, 0.5, 256.0)])
def test_images_over_seconds(steps: int, seconds: float, rate: float) -> None:
    assert images_per_second(steps, seconds, batch_size=128) == rate


# --- When ---


@pytest.mark.parametrize(
    ("step", "total_steps", "due"),
    [(1, 10, False), (3, 10, True), (4, 10, False), (6, 10, True), (10, 10, True), (2, 2, True)],
)
def test_due_after_each_period_and_after_the_last_step(step: int, total_steps: int, due: bool) -> None:
    assert is_due(Every(3), step, total_steps) == due


@pytest.mark.parametrize(
    ("periods", "step", "total_steps", "steps"),
    [
        ([5], 0, 100, 5),
        ([5], 4, 100, 1),
        ([5], 5, 100, 5),
        ([5, 3], 0, 100, 3),
        ([5, 3], 3, 100, 2),
        ([5, 3], 14, 100, 1),
        ([50], 98, 100, 2),
        ([1000], 0, 7, 7),
    ],
)
def test_steps_until_the_first_action(periods: list[int], step: int, total_steps: int, steps: int) -> None:
    assert steps_until_due([Every(period) for period in periods], step, total_steps) == steps


def test_walking_from_action_to_action_misses_none() -> None:
    actions: list[Action] = [Every(7), Every(5), Every(20)]
    progress, total_steps = Progress(), 43
    while progress.step < total_steps:
        progress.step += steps_until_due(actions, progress.step, total_steps)
        for action in actions:
            if is_due(action, progress.step, total_steps):
                action(progress)
    called = [action.called for action in actions if isinstance(action, Every)]
    assert called == [[7, 14, 21, 28, 35, 42, 43], [5, 10, 15, 20, 25, 30, 35, 40, 43], [20, 40, 43]]


# --- Log ---


def test_a_row_holds_the_means_since_the_last_row() -> None:
    first, second = Rows(), Rows()
    log = LogMetrics(2, [first, second], RATES, batch_size=128, steps_per_epoch=4)
    progress = Progress()
    progress.advance(np.array([[2.0, 0.25]], np.float32), seconds=9.0, first_of_session=True)
    progress.advance(np.array([[1.0, 0.75]], np.float32), seconds=0.5, first_of_session=False)
    log(progress)
    progress.advance(np.array([[0.5, 1.0]], np.float32), seconds=0.25, first_of_session=False)
    log(progress)
    assert (
        first.rows
        == second.rows
        == [
            {
                "kind": "train",
                "step": 2,
                "epoch": 0.5,
                "loss": 1.5,
                "accuracy": 0.5,
                "learning_rate": float(RATES[1]),
                "images_per_second": 256.0,
            },
            {
                "kind": "train",
                "step": 3,
                "epoch": 0.75,
                "loss": 0.5,
                "accuracy": 1.0,
                "learning_rate": float(RATES[2]),
                "images_per_second": 512.0,
            },
        ]
    )
    json.dumps(first.rows)


def test_a_window_with_the_first_step_only_has_no_throughput() -> None:
    rows = Rows()
    progress = Progress()
    progress.advance(np.array([[2.0, 0.25]], np.float32), seconds=9.0, first_of_session=True)
    LogMetrics(1, [rows], RATES, batch_size=128, steps_per_epoch=4)(progress)
    assert rows.rows[0]["images_per_second"] == 0.0


# --- Evaluate ---


def evaluate(tf: ModuleType, sums: list[float], writer: Rows, num_images: int) -> Evaluate:
    """An action whose steps check what they are given and return the sums."""

    def eval_steps(batches: Iterator[Any], count: int) -> Any:
        assert list(batches) == ["batch 1", "batch 2"] and count == 2
        return tf.constant(sums)

    return Evaluate(
        period=10,
        split="holdout",
        eval_steps=eval_steps,
        make_batches=lambda: iter(["batch 1", "batch 2"]),
        num_steps=2,
        num_images=num_images,
        writers=[writer],
        steps_per_epoch=4,
    )


def test_an_evaluation_is_a_row_of_means(tf: ModuleType) -> None:
    rows = Rows()
    action = evaluate(tf, [50.0, 150.0, 200.0], rows, num_images=200)
    progress = Progress(step=2, training_seconds=3.0)
    action(progress)
    first_seconds = progress.evaluation_seconds
    progress.step = 4
    action(progress)  # Again from the first batch on.
    json.dumps(rows.rows)
    seconds = [row.pop("evaluation_seconds") for row in rows.rows]
    assert 0 < first_seconds == seconds[0] < seconds[1] == progress.evaluation_seconds
    expected = {"kind": "evaluate", "split": "holdout", "loss": 0.25, "accuracy": 0.75, "images": 200}
    expected["training_seconds"] = 3.0
    assert rows.rows == [expected | {"step": 2, "epoch": 0.5}, expected | {"step": 4, "epoch": 1.0}]


def test_an_evaluation_that_missed_images_is_not_reported(tf: ModuleType) -> None:
    rows = Rows()
    with pytest.raises(TrainingError, match="199 images, expected 200"):
        evaluate(tf, [50.0, 150.0, 199.0], rows, num_images=200)(Progress(step=2))
    assert rows.rows == []


# --- Save ---


def test_a_checkpoint_holds_variables_and_progress(tf: ModuleType, tmp_path: Path) -> None:
    import keras

    variable = keras.Variable([1.0, 2.0], name="kernel")
    checkpoints = Checkpoints(tmp_path, 3, report=print)
    save = SaveCheckpoint(5, checkpoints, {"model/kernel": variable}, "float32", wall_seconds=lambda: 12.5)
    progress = Progress()
    progress.advance(np.array([[2.0, 0.25]], np.float32), seconds=9.0, first_of_session=True)
    save(progress)
    loaded = checkpoints.load_latest()
    assert loaded is not None
    arrays, note = loaded
    assert arrays["model/kernel"].tolist() == [1.0, 2.0]
    assert progress.wall_seconds == 0.0
    progress.wall_seconds, progress.precision = 12.5, "float32"
    assert Progress.from_dict(note) == progress
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001.npz"]


def test_only_one_rank_saves(tmp_path: Path) -> None:
    SaveCheckpoint(5, None, {}, "float32", wall_seconds=lambda: 1.0)(Progress(step=5))
    assert list(tmp_path.iterdir()) == []
