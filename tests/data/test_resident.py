"""Resident images against the pipeline that gathers them on the host: the same, bit for bit and in the same order."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from mnist_dist.data.dataset import Arrays, Shard, make_synthetic_dataset, make_train_dataset, shift_images
from mnist_dist.data.resident import Resident

IMAGES, BATCH_SIZE = 100, 24


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


@pytest.mark.parametrize("shift_pixels", [0, 3])
@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2, 4)])
def test_a_step_sees_what_the_pipeline_would_deliver(arrays: Arrays, shard: Shard, shift_pixels: int) -> None:
    images, labels = arrays.train_images[:IMAGES], arrays.train_labels[:IMAGES]
    options = {"batch_size": BATCH_SIZE, "seed": 5, "start_step": 3, "shard": shard, "shift_pixels": shift_pixels}
    delivered = make_train_dataset(images, labels, **options).take(6)  # Into the third epoch.
    told = make_train_dataset(images, labels, **options, resident=True)
    resident = Resident(images, labels, [None] * shard.local_replicas)
    for (expected_images, expected_labels), batch in zip(delivered, told, strict=False):
        assert sum(each.numpy().nbytes for each in batch) <= 24 * BATCH_SIZE, "more than indices and shifts"
        taken = [resident.take(replica, *batch) for replica in range(shard.local_replicas)]
        assert all(part.dtype == np.uint8 for part, _ in taken)
        assert np.array_equal(np.concatenate([part for part, _ in taken]), expected_images)
        assert np.array_equal(np.concatenate([part for _, part in taken]), expected_labels)


def test_every_shift_is_that_of_the_pipeline() -> None:
    shifts = np.array([(rows, columns) for rows in range(-8, 9) for columns in range(-8, 9)])
    images = np.random.default_rng(0).integers(1, 256, [len(shifts), 28, 28], np.uint8)
    resident = Resident(images, np.zeros(len(images), np.uint8), [None])
    taken, _ = resident.take(0, np.arange(len(images)), shifts)
    assert np.array_equal(taken, shift_images(images[..., np.newaxis], shifts.astype(np.int32)))


def test_a_synthetic_batch_is_told_by_its_indices(arrays: Arrays) -> None:
    shard, images, labels = Shard(2, 1, 4), arrays.train_images[:IMAGES], arrays.train_labels[:IMAGES]
    (expected, _), (batch,) = (
        next(iter(make_synthetic_dataset(images, labels, batch_size=BATCH_SIZE, shard=shard, resident=resident)))
        for resident in (False, True)
    )
    taken, _ = Resident(images, labels, [None]).take(0, batch)
    assert np.array_equal(taken, expected)
