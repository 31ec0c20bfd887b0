"""MNIST as verified arrays, and the tf.data pipelines over them.

Arrays are loaded whole (47 MB) and batches are gathered from them by index, so a pipeline spends its time on
whole batches instead of single images. Which image stands where depends on the seed, the epoch and the step alone,
never on the number of replicas: replica r takes the r-th slice of every global batch. That is what makes runs on
different numbers of devices comparable and resumable.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.config import IMAGE_SIZE, DataConfig
from mnist_dist.errors import UserError, one_line
from mnist_dist.lazy import tf

NUM_CLASSES = 10
IMAGES_AT_ONCE = 2048  # That the training pipeline gathers in one go, as waking its threads for each batch costs more.
MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"
MIN_CONTRAST = 64  # Of all images together: what has less was divided by 255, say, and cast to whole numbers.
MAX_DATA_BYTES = 2**31  # Decoded; 45 times MNIST, and what a training process can hold beside its copies.
_SYNTHETIC_TRAIN_IMAGES, _SYNTHETIC_TEST_IMAGES = 60_000, 10_000
_ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")
_IDX_STEMS = {
    "x_train": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "y_train": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "x_test": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "y_test": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [n, 28, 28], 0 to 255, light digit on black; labels uint8 [n], 0 to 9.

    The held-out images are the last of the training images and not among `train_images`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    holdout_images: np.ndarray
    holdout_labels: np.ndarray


@dataclass(frozen=True)
class Shard:
    """The replicas of this process: `local_replicas` from `first_replica` on, of `num_replicas` in total."""

    first_replica: int = 0
    local_replicas: int = 1
    num_replicas: int = 1

    def slice_of(self, batch_size: int) -> slice:
        """Returns where this process' part lies in a global batch, a multiple of the number of replicas."""
        share = batch_size // self.num_replicas
        return slice(self.first_replica * share, (self.first_replica + self.local_replicas) * share)


def load_arrays(config: DataConfig) -> Arrays:
    """Loads and checks the data that the configuration names.

    Raises:
        UserError: the file is missing, damaged or not MNIST-shaped, or nothing is left to train on.
    """
    arrays = _synthetic_arrays() if config.kind == "synthetic" else _load_files(config.path)
    x_train, y_train, x_test, y_test = (arrays[name] for name in _ARRAY_NAMES)
    kept = len(x_train) - config.holdout_images
    if kept < 1:
        raise UserError(
            f"data.holdout_images: received {config.holdout_images}, expected fewer than the {len(x_train)} "
            "training images."
        )
    return Arrays(x_train[:kept], y_train[:kept], x_test, y_test, x_train[kept:], y_train[kept:])


def doubts(arrays: Arrays) -> Iterator[str]:
    """Says of data that can be trained on what can hardly be meant, a line each."""
    for name, images in (("x_train", arrays.train_images), ("x_test", arrays.test_images)):
        if (mean := images.mean()) > 127:  # MNIST's is 33.
            yield f"{name} is dark on light (mean {mean:.0f} of 255), `predict` shows models light on dark: invert it"
    if missing := sorted(set(range(NUM_CLASSES)) - set(arrays.train_labels.tolist())):
        yield f"no training image shows {', '.join(map(str, missing))}, so the model can never predict that"


def make_train_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: Shard = Shard(),
    shift_pixels: int = 0,
    resident: bool = False,
) -> tf.data.Dataset:
    """Builds the endless training pipeline of one process, from `start_step` on.

    Each epoch is a fresh permutation seeded by (seed, epoch); the images that do not fill a last global batch are
    left out of that epoch.

    Args:
        images: uint8 [n, 28, 28].
        labels: uint8 [n].
        batch_size: global; a multiple of `shard.num_replicas` and at most n.
        start_step: steps already trained, so that a resumed run continues with the next image.
        shift_pixels: each image is shifted by up to this many pixels in both directions, the same in every run.
        resident: the images live on the devices already; see `Resident`.

    Returns:
        Elements (images uint8 [b, 28, 28, 1], labels int32 [b]), where b is this process' part of a global batch:
        the parts of its replicas, one after the other. With `resident` (indices int64 [b], any shifts int64 [b, 2]).
    """
    steps_per_epoch = len(images) // batch_size
    start_epoch, steps_to_skip = divmod(start_step, steps_per_epoch)
    mine = shard.slice_of(batch_size)
    if not resident:
        all_images, all_labels = tf.constant(images[..., np.newaxis]), tf.constant(labels.astype(np.int32))

    @tf.autograph.experimental.do_not_convert
    def batches_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed=tf.stack([seed, epoch]))
        indices = tf.reshape(order[: steps_per_epoch * batch_size], [steps_per_epoch, batch_size])[:, mine]
        steps = tf.cast(epoch, tf.int32) * steps_per_epoch + tf.range(steps_per_epoch)
        return tf.data.Dataset.from_tensor_slices((indices, steps))

    @tf.autograph.experimental.do_not_convert
    def gather(indices: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        shifts = None
        if shift_pixels:
            shifts = tf.map_fn(lambda step: _shifts(shift_pixels, batch_size, seed, step)[mine], steps)
        if resident:  # As int64, because TensorFlow keeps int32 on the host.
            return tuple(tf.cast(each, tf.int64) for each in (indices, shifts) if each is not None)
        images = tf.gather(all_images, indices)  # [steps, b, 28, 28, 1]
        if shift_pixels:
            shifted = shift_images(tf.reshape(images, [-1, *images.shape[2:]]), tf.reshape(shifts, [-1, 2]))
            images = tf.reshape(shifted, images.shape)
        return images, tf.gather(all_labels, indices)

    @tf.autograph.experimental.do_not_convert
    def one_by_one(*steps: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(steps)

    return _untuned(
        tf.data.Dataset.range(start_epoch, np.iinfo(np.int64).max)
        .flat_map(batches_of_epoch)
        .skip(steps_to_skip)
        .batch(max(1, IMAGES_AT_ONCE // (mine.stop - mine.start)), drop_remainder=True)  # Of an endless series.
        .map(gather, num_parallel_calls=2, deterministic=True)
        .prefetch(1)
        .flat_map(one_by_one)
    )


def make_synthetic_dataset(
    images: np.ndarray, labels: np.ndarray, *, batch_size: int, shard: Shard = Shard(), resident: bool = False
) -> tf.data.Dataset:
    """Repeats this process' part of one resident batch: training without the cost of input, for measurements."""
    mine = shard.slice_of(batch_size)
    batch: tuple[np.ndarray, ...] = (images[mine, ..., np.newaxis], labels[mine].astype(np.int32))
    if resident:
        batch = (np.arange(mine.start, mine.stop),)
    return _untuned(tf.data.Dataset.from_tensors(batch).repeat())


def make_eval_dataset(
    images: np.ndarray, labels: np.ndarray, *, batch_size: int, shard: Shard = Shard()
) -> tf.data.Dataset:
    """Builds the evaluation pipeline: every image exactly once over all replicas, in batches of one shape.

    Rows that only fill up the last batch carry the weight 0.

    Returns:
        Elements (images uint8 [b, 28, 28, 1], labels int32 [b], weights float32 [b]), where b is this process' part
        of the batch, the part of each replica being rounded up; `num_eval_steps` of them.
    """
    share = -(-min(batch_size, len(images)) // shard.num_replicas)
    steps = num_eval_steps(len(images), batch_size, shard.num_replicas)
    indices: np.ndarray = np.full(steps * share * shard.num_replicas, -1, np.int32)
    indices[: len(images)] = np.arange(len(images))
    mine = indices.reshape(steps, -1)[:, shard.slice_of(share * shard.num_replicas)]
    resident_images = tf.constant(images[..., np.newaxis])
    resident_labels = tf.constant(labels.astype(np.int32))

    @tf.autograph.experimental.do_not_convert
    def gather(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rows = tf.maximum(index, 0)
        return tf.gather(resident_images, rows), tf.gather(resident_labels, rows), tf.cast(index >= 0, tf.float32)

    dataset = tf.data.Dataset.from_tensor_slices(mine).map(gather, num_parallel_calls=2, deterministic=True)
    return _untuned(dataset.prefetch(2))


def num_eval_steps(num_images: int, batch_size: int, num_replicas: int) -> int:
    """Returns how many steps `make_eval_dataset` lasts, equal on all replicas."""
    share = -(-min(batch_size, num_images) // num_replicas)
    return -(-num_images // (share * num_replicas))


def shift_images(images: tf.Tensor, shifts: tf.Tensor) -> tf.Tensor:
    """Shifts each image [b, h, w, 1] by its (rows, columns) int32 [b, 2], filling with black."""
    rows, columns = tf.cast(shifts[:, 0], tf.float32), tf.cast(shifts[:, 1], tf.float32)
    one, zero = tf.ones_like(rows), tf.zeros_like(rows)
    # The transform maps output to input coordinates, so content moves by the negative of its offset.
    transforms = tf.stack([one, zero, -columns, zero, one, -rows, zero, zero], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Switches tf.data's tuning off: nothing is left to it, and its thread holds a released iterator for seconds."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _shifts(shift_pixels: int, batch_size: int, seed: int, step: tf.Tensor) -> tf.Tensor:
    """Draws the shifts of a global batch, int32 [batch_size, 2], from seed and step alone."""
    return tf.random.stateless_uniform(
        [batch_size, 2],
        seed=tf.stack([~seed, step]),  # Other than the shuffle's, which takes (seed, epoch).
        minval=-shift_pixels,
        maxval=shift_pixels + 1,
        dtype=tf.int32,
    )


def _synthetic_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", _SYNTHETIC_TRAIN_IMAGES), ("test", _SYNTHETIC_TEST_IMAGES)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        arrays[f"y_{part}"] = random.integers(0, NUM_CLASSES, count, np.uint8)
    return arrays


def _load_files(path: str | None) -> dict[str, np.ndarray]:
    if not path:
        return _load_embedded()
    try:
        source = Path(path).expanduser()
        if source.is_dir():
            arrays = {name: _read_idx(_find_idx(source, name)) for name in _ARRAY_NAMES}
        elif source.is_file():
            arrays = _read_npz(source)
        else:
            raise UserError(f"data.path: '{path}' does not exist; expected an mnist.npz or a folder of idx(.gz) files.")
    except UserError:
        raise
    except Exception as error:  # A damaged archive makes zipfile, gzip and numpy raise nearly anything.
        reason = one_line(str(error), 200) or type(error).__name__
        raise UserError(
            f"data.path: cannot read '{path}' ({reason}); expected an intact mnist.npz or idx(.gz) files."
        ) from None
    return {name: _check_array(path, name, arrays) for name in _ARRAY_NAMES}


def _load_embedded() -> dict[str, np.ndarray]:
    with resources.as_file(resources.files("mnist_dist") / "data" / "mnist.npz") as file:
        try:
            found = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(
                f"data: the embedded mnist.npz is missing ({error.strerror}); reinstall mnist_dist."
            ) from None
        if found != MNIST_SHA256:
            raise UserError(
                f"data: the embedded mnist.npz is damaged: sha256 {found[:16]}…, expected {MNIST_SHA256[:16]}…; "
                "reinstall mnist_dist or name a good copy with --set data.path=FILE."
            )
        return _read_npz(file)


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_DATA_BYTES:
        raise ValueError(f"it unpacks to {size} bytes, more than the {MAX_DATA_BYTES} allowed")
    with np.load(file, allow_pickle=False) as archive:
        missing = [name for name in _ARRAY_NAMES if name not in archive.files]
        if missing:
            raise ValueError(f"it holds {', '.join(archive.files) or 'nothing'}, not {', '.join(missing)}")
        arrays = {name: archive[name] for name in _ARRAY_NAMES}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"its {name} is not an array")
    return arrays


def _find_idx(folder: Path, name: str) -> Path:
    candidates = [folder / f"{stem}{suffix}" for stem in _IDX_STEMS[name] for suffix in ("", ".gz")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"data.path: '{folder}' has no {candidates[0].name} or {candidates[1].name}.")


def _read_idx(file: Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes: magic 0x0000080n, n big-endian uint32 sizes, the bytes."""
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as stream:
        content = stream.read(MAX_DATA_BYTES + 1)
    if len(content) > MAX_DATA_BYTES:
        raise ValueError(f"{file.name} unpacks to more than the {MAX_DATA_BYTES} bytes allowed")
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file.name} is not an idx file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if len(shape) != content[3] or len(content) - start != int(np.prod(shape, dtype=object)):
        raise ValueError(f"{file.name} says shape {shape} but holds {len(content) - start} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check_array(path: str, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    array = arrays[name]
    where = f"data.path: {name} in '{path}'"
    if name.startswith("x"):
        if array.dtype != np.uint8 or array.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE) or len(array) == 0:
            raise UserError(f"{where} is {array.dtype} {list(array.shape)}, expected uint8 [n, 28, 28].")
        low, high = int(array.min()), int(array.max())
        if high - low < MIN_CONTRAST:
            raise UserError(f"{where} ranges from {low} to {high}, expected 0 to 255; was it divided, or is it empty?")
        return array
    images = arrays[f"x{name[1:]}"]
    if array.dtype.kind not in "iu" or array.shape != images.shape[:1]:
        raise UserError(f"{where} is {array.dtype} {list(array.shape)}, expected integers [{len(images)}].")
    if array.min() < 0 or array.max() >= NUM_CLASSES:
        raise UserError(f"{where} has labels from {array.min()} to {array.max()}, expected 0 to 9.")
    return array.astype(np.uint8)
