"""What happens between training steps. Each action is called after its period and after the last step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.errors import TrainingError
from mnist_dist.lazy import keras, tf
from mnist_dist.training import guard
from mnist_dist.training.checkpoint import Checkpoints, read_variables
from mnist_dist.training.plan import PROFILED_STEPS
from mnist_dist.training.steps import EvalSteps
from mnist_dist.training.writers import Writer


@dataclass
class Window:
    """Sums over the steps since the last row of metrics."""

    steps: int = 0
    timed_steps: int = 0  # Without a session's first step, which traces and compiles.
    timed_seconds: float = 0.0
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0


@dataclass
class Progress:
    """How far a run is; saved with each checkpoint, so that a resumed run goes on in the middle of everything."""

    step: int = 0
    training_seconds: float = 0.0  # In training steps, their compilation included, over all sessions.
    timed_steps: int = 0  # Without each session's first step, which traces and compiles.
    timed_seconds: float = 0.0
    first_step_seconds: float = 0.0  # Of the latest session.
    evaluation_seconds: float = 0.0  # In evaluations, over all sessions.
    wall_seconds: float = 0.0  # Of earlier sessions, from start to checkpoint.
    precision: str = ""  # With which the run began.
    window: Window = field(default_factory=Window)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Progress:
        return cls(**(content | {"window": Window(**content["window"])}))

    def advance(self, metrics: np.ndarray, seconds: float, first_of_session: bool) -> None:
        """Adds steps: float32 [steps, 2] with loss and accuracy of each, and the seconds they took together."""
        steps = len(metrics)
        self.step += steps
        self.training_seconds += seconds
        if first_of_session:
            self.first_step_seconds = seconds
        else:
            for timed in (self, self.window):
                timed.timed_steps += steps
                timed.timed_seconds += seconds
        self.window.steps += steps
        loss, accuracy = metrics.sum(axis=0, dtype=np.float64)
        self.window.loss_sum += loss
        self.window.accuracy_sum += accuracy


def diverged(what: str, value: float) -> TrainingError:
    return TrainingError(
        f"training: {what} is {value}, expected a finite number; lower --learning-rate, or train with "
        "--precision float32."
    )


def images_per_second(steps: int, seconds: float, batch_size: int) -> float:
    """Returns images over seconds, all replicas together; 0 when nothing was timed."""
    return steps * batch_size / seconds if seconds else 0.0


class Action(Protocol):
    """Something due every `period` steps."""

    period: int

    def __call__(self, progress: Progress) -> None: ...


@dataclass
class LogMetrics:
    """Writes a row with the means over the steps since the last one."""

    period: int
    writers: Sequence[Writer]
    learning_rates: np.ndarray
    batch_size: int
    steps_per_epoch: int

    def __call__(self, progress: Progress) -> None:
        window, progress.window = progress.window, Window()
        row = {
            "kind": "train",
            "step": progress.step,
            "epoch": progress.step / self.steps_per_epoch,
            "loss": window.loss_sum / window.steps,
            "accuracy": window.accuracy_sum / window.steps,
            "learning_rate": float(self.learning_rates[progress.step - 1]),
            "images_per_second": images_per_second(window.timed_steps, window.timed_seconds, self.batch_size),
        }
        for writer in self.writers:
            writer.write(row)


@dataclass
class Evaluate:
    """Evaluates on one split and writes a row."""

    period: int
    split: str
    eval_steps: EvalSteps
    make_batches: Callable[[], tf.data.Iterator]
    num_steps: int
    num_images: int
    writers: Sequence[Writer]
    steps_per_epoch: int

    def __call__(self, progress: Progress) -> None:
        started = time.perf_counter()
        loss_sum, correct, images = self.eval_steps(self.make_batches(), self.num_steps).numpy().tolist()
        progress.evaluation_seconds += time.perf_counter() - started
        guard.check_evaluated(int(images), self.num_images)
        if not np.isfinite(loss_sum):
            raise diverged(f"the {self.split} loss after step {progress.step}", loss_sum)
        row = {
            "kind": "evaluate",
            "split": self.split,
            "step": progress.step,
            "epoch": progress.step / self.steps_per_epoch,
            "loss": loss_sum / images,
            "accuracy": correct / images,
            "images": int(images),
            "training_seconds": progress.training_seconds,
            "evaluation_seconds": progress.evaluation_seconds,
        }
        for writer in self.writers:
            writer.write(row)


@dataclass
class SaveCheckpoint:
    """Saves all variables and the progress; only keeps the beat where another rank does the saving."""

    period: int
    checkpoints: Checkpoints | None
    variables: dict[str, keras.Variable]
    precision: str
    wall_seconds: Callable[[], float]

    def __call__(self, progress: Progress) -> None:
        if self.checkpoints is not None:
            note = asdict(progress) | {"precision": self.precision, "wall_seconds": self.wall_seconds()}
            self.checkpoints.save(progress.step, read_variables(self.variables), note)


@dataclass
class Guard:
    """Checks that all replicas hold equal weights and take the scheduled learning rate."""

    period: int
    model: keras.Model
    optimizer: keras.Optimizer
    learning_rates: np.ndarray
    strategy: Strategy

    def __call__(self, progress: Progress) -> None:
        guard.check_learning_rate(self.optimizer, self.learning_rates, progress.step)
        guard.check_equal_weights(self.model.trainable_variables, self.strategy, progress.step)


def is_due(action: Action, step: int, total_steps: int) -> bool:
    return step == total_steps or step % action.period == 0


def steps_until_due(actions: Sequence[Action], step: int, total_steps: int) -> int:
    """Returns after how many steps the first action is due; at least one."""
    return min(total_steps - step, *(action.period - step % action.period for action in actions))


@dataclass
class Profile:
    """Lets TensorFlow's profiler record the steps between the first and the second time that it is due.

    By then everything is compiled. The trace lies where TensorBoard looks for it. Ranks without a folder leave none,
    but stop between the same steps.
    """

    folder: Path | None
    say: Callable[[str], None]
    period: int = PROFILED_STEPS // 2
    times_called: int = 0

    def __call__(self, progress: Progress) -> None:
        self.times_called += 1
        if self.folder is None:
            return
        if self.times_called == 1:
            tf.profiler.experimental.start(str(self.folder))
        elif self.times_called == 2:
            tf.profiler.experimental.stop()
            self.say(f"profiled the steps before step {progress.step}: tensorboard --logdir {self.folder}")
