"""The guard passes what is right, and finds each fault that it exists for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_dist.config import OptimizerConfig
from mnist_dist.data.dataset import Shard, make_train_dataset
from mnist_dist.distributed.strategies.single import Single
from mnist_dist.errors import TrainingError
from mnist_dist.network.optimizers import build_optimizer
from mnist_dist.training import guard

NUM_IMAGES, BATCH_SIZE = 23, 5
RATES = np.linspace(0.1, 0.5, 5, dtype=np.float32)


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


# --- Shards ---


def pipeline_of(indices: Sequence[Sequence[int]]) -> Iterator[Any]:
    """Batches of images with these labels, without end."""
    import tensorflow as tf

    images = np.zeros([len(indices), len(indices[0]), 28, 28, 1], np.uint8)
    return iter(tf.data.Dataset.from_tensor_slices((images, np.asarray(indices, np.int32))).repeat())


def test_the_real_pipeline_passes() -> None:
    images, indices = np.zeros([NUM_IMAGES, 28, 28], np.uint8), np.arange(NUM_IMAGES)
    dataset = make_train_dataset(images, indices, batch_size=BATCH_SIZE, seed=3)
    guard.check_shards(Single(), iter(dataset), NUM_IMAGES, BATCH_SIZE)


@pytest.mark.parametrize(
    ("indices", "finding"),
    [
        ([[0, 1], [1, 2]], r"training image 1 came 2 times in one epoch, expected once"),
        ([[0, 1], [0, 1]], r"training image 0 came 2 times in one epoch, expected once"),
        ([[0], [1]], r"the first global batch holds 1 images, expected 2"),
        ([[0, 1, 2], [3, 4, 0]], r"the first global batch holds 3 images, expected 2"),
        ([[0, 1], [2, 9]], r"an epoch showed 3 images, expected 4"),
    ],
)
def test_a_wrong_pipeline_is_found(indices: list[list[int]], finding: str) -> None:
    with pytest.raises(TrainingError, match=f"^guard: {finding}\\.$"):
        guard.check_shards(Single(), pipeline_of(indices), 5, 2)


def test_images_are_counted_on_the_cpu() -> None:
    """By the graph: GPUs have no deterministic kernel for it."""
    places: list[str] = []

    class Audited(Single):
        def run(self, step: Any, batch: Any, **options: Any) -> Any:
            result = step(*batch)
            places.extend(each.device for each in result.graph.get_operations() if "Bincount" in each.type)
            return result

    guard.check_shards(Audited(), pipeline_of([[0, 1], [2, 3]]), 4, 2)
    assert places and all(place.endswith("CPU:0") for place in places), places


def test_replicas_that_see_the_same_images_are_found() -> None:
    class Unsharded(Single):
        """Two replicas of which each reads from the first one's part."""

        shard = Shard(0, 1, 2)

        def all_reduce(self, tensor: Any) -> Any:
            return 2 * tensor

    with pytest.raises(TrainingError, match="training image 0 came 2 times"):
        guard.check_shards(Unsharded(), pipeline_of([[0], [1]]), 5, 2)


# --- Learning rate ---


def an_optimizer(steps: int, loss_scaling: bool = False, skipped: int = 0) -> Any:
    """An optimizer after so many steps, of which some are left out."""
    import keras

    variable = keras.Variable([1.0, 2.0], name="kernel")
    optimizer = build_optimizer(OptimizerConfig(name="sgd"), RATES, loss_scaling=loss_scaling)
    optimizer.build([variable])
    for step in range(steps):
        optimizer.apply([np.array([1.0, np.inf if step < skipped else 2.0], np.float32)], [variable])
    return optimizer


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("loss_scaling", [False, True])
def test_the_scheduled_rate_passes(steps: int, loss_scaling: bool) -> None:
    guard.check_learning_rate(an_optimizer(steps, loss_scaling), RATES, steps)


def test_steps_left_out_by_loss_scaling_pass() -> None:
    guard.check_learning_rate(an_optimizer(4, loss_scaling=True, skipped=2), RATES, 4)


@pytest.mark.parametrize(("taken", "expected"), [(2, 3), (3, 2), (0, 1)])
def test_a_lost_step_is_found(taken: int, expected: int) -> None:
    with pytest.raises(TrainingError, match=f"^guard: the optimizer has taken {taken} steps, expected {expected}\\.$"):
        guard.check_learning_rate(an_optimizer(taken), RATES, expected)


def test_a_step_too_many_is_found_with_loss_scaling() -> None:
    with pytest.raises(TrainingError, match="has taken 3 steps, expected 2"):
        guard.check_learning_rate(an_optimizer(3, loss_scaling=True), RATES, 2)


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_another_rate_is_found(loss_scaling: bool) -> None:
    with pytest.raises(TrainingError, match=r"^guard: the learning rate after step 2 is 0\.3, expected 0\.6\.$"):
        guard.check_learning_rate(an_optimizer(2, loss_scaling), 2 * RATES, 2)


# --- Evaluation ---


def test_evaluated_images() -> None:
    guard.check_evaluated(500, 500)
    for images in (499, 501, 0):
        with pytest.raises(TrainingError, match=f"^guard: an evaluation counted {images} images, expected 500\\.$"):
            guard.check_evaluated(images, 500)


# --- Weights ---


def on_replicas(*copies: list[float]) -> Any:
    """A variable as tf.distribute keeps it, with a copy for each replica of the process."""
    return SimpleNamespace(value=SimpleNamespace(values=tuple(np.array(copy, np.float32) for copy in copies)))


def test_one_replica_equals_itself() -> None:
    import keras

    guard.check_equal_weights([keras.Variable([1.0, 2.0]), keras.Variable([[3.0]])], Single(), 7)


def test_equal_copies_pass() -> None:
    guard.check_equal_weights([on_replicas([1.0, 2.0], [1.0, 2.0]), on_replicas([3.0], [3.0])], Single(), 7)


@pytest.mark.parametrize("other", [[1.0, 2.0000002], [1.0, -2.0], [2.0, 1.0]])
def test_a_copy_that_differs_in_one_bit_is_found(other: list[float]) -> None:
    variables = [on_replicas([3.0], [3.0]), on_replicas([1.0, 2.0], other)]
    with pytest.raises(
        TrainingError, match=r"^guard: the replicas of this process hold different weights after step 7\.$"
    ):
        guard.check_equal_weights(variables, Single(), 7)


class RankTwoOfThree(Single):
    """Sums this rank's numbers with those that the others would send."""

    shard = Shard(2, 1, 3)

    def __init__(self, rank_0: float, rank_1: float) -> None:
        self.others = np.array([[rank_0], [rank_1], [0.0]])

    def all_reduce(self, tensor: Any) -> Any:
        return tensor + self.others


def test_ranks_that_hold_other_weights_are_found() -> None:
    variables = [on_replicas([1.0, 2.0])]

    class Recording(Single):
        sent = 0.0

        def all_reduce(self, tensor: Any) -> Any:
            self.sent = float(tensor[0, 0])
            return tensor

    recording = Recording()
    guard.check_equal_weights(variables, recording, 7)
    mine = recording.sent
    guard.check_equal_weights(variables, RankTwoOfThree(mine, mine), 7)
    with pytest.raises(TrainingError, match=r"^guard: rank 1 holds other weights than rank 0 after step 7\.$"):
        guard.check_equal_weights(variables, RankTwoOfThree(mine, mine + 1), 7)
    with pytest.raises(TrainingError, match="rank 2 holds other weights than rank 0"):
        guard.check_equal_weights([on_replicas([1.0, 3.0])], RankTwoOfThree(mine, mine), 7)
