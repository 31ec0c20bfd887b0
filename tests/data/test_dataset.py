import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mnist_dist
from mnist_dist.config import DataConfig
from mnist_dist.data import dataset
from mnist_dist.data.dataset import (
    MNIST_SHA256,
    Arrays,
    Shard,
    doubts,
    load_arrays,
    make_eval_dataset,
    make_synthetic_dataset,
    make_train_dataset,
    num_eval_steps,
    shift_images,
)

PACKAGE = Path(mnist_dist.__file__).parent
README = (PACKAGE / "data" / "README.md").read_text()


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


# --- The embedded data ---


def named(arrays: Arrays) -> dict[str, np.ndarray]:
    return {
        "x_train": arrays.train_images,
        "y_train": arrays.train_labels,
        "x_test": arrays.test_images,
        "y_test": arrays.test_labels,
    }


def test_the_embedded_arrays_are_those_of_the_readme(arrays: Arrays) -> None:
    rows = re.findall(r"^\| (\w+) \| (\([\d, ]+\)) \| uint8 \| (\w{16}) \|$", README, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(named(arrays))
    for name, shape, sha256 in rows:
        array = named(arrays)[name]
        assert array.dtype == np.uint8 and str(array.shape) == shape
        assert hashlib.sha256(array.tobytes()).hexdigest().startswith(sha256), name
    assert len(arrays.holdout_images) == len(arrays.holdout_labels) == 0
    assert MNIST_SHA256 in README


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda content: content[:5_000_000] + bytes([content[5_000_000] ^ 1]) + content[5_000_001:],
            "is damaged: sha",
        ),
        (lambda content: content[:-1], "is damaged: sha"),
        (None, "is missing (No such file or directory); reinstall mnist_dist."),
    ],
    ids=["one bit", "truncated", "missing"],
)
def test_a_damaged_embedded_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes] | None, line: str) -> None:
    copy = shutil.copytree(PACKAGE, tmp_path / "mnist_dist", ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "data" / "mnist.npz"
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    script = (
        "from mnist_dist.config import DataConfig\n"
        "from mnist_dist.data.dataset import load_arrays\n"
        "try: load_arrays(DataConfig())\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UserError data: the embedded mnist.npz") and line in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_images_held_out_are_the_last_and_not_trained_on(arrays: Arrays) -> None:
    split = load_arrays(DataConfig(holdout_images=5000))
    assert len(split.train_images) == len(split.train_labels) == 55_000
    assert np.array_equal(np.concatenate([split.train_images, split.holdout_images]), arrays.train_images)
    assert np.array_equal(np.concatenate([split.train_labels, split.holdout_labels]), arrays.train_labels)
    assert np.array_equal(split.test_images, arrays.test_images)


def test_something_must_be_left_to_train_on(tiny_mnist: Path, user_error: Callable[..., str]) -> None:
    assert len(load_arrays(DataConfig(path=str(tiny_mnist), holdout_images=1999)).train_images) == 1
    line = user_error(load_arrays, DataConfig(path=str(tiny_mnist), holdout_images=2000))
    assert line == "data.holdout_images: received 2000, expected fewer than the 2000 training images."


# --- Own files ---


@pytest.fixture(scope="module")
def small(arrays: Arrays) -> dict[str, np.ndarray]:
    """60 training and 20 test images."""
    return {name: array[: 60 if "train" in name else 20] for name, array in named(arrays).items()}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def write_npz(file: Path, members: Mapping[str, np.ndarray | bytes | None]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return file


def write_idx(folder: Path, arrays: dict[str, np.ndarray], dot: str = "-", suffix: str = "") -> Path:
    for name, array in arrays.items():
        part = "train" if "train" in name else "t10k"
        kind = "images" if name.startswith("x") else "labels"
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        file = folder / f"{part}-{kind}{dot}idx{array.ndim}-ubyte{suffix}"
        file.write_bytes(gzip.compress(content, 1) if suffix else content)
    return folder


def assert_loads(path: Path, expected: dict[str, np.ndarray]) -> None:
    for name, array in named(load_arrays(DataConfig(path=str(path)))).items():
        assert array.dtype == np.uint8 and np.array_equal(array, expected[name]), name


def test_own_npz(tmp_path: Path, small: dict[str, np.ndarray]) -> None:
    labels = {"y_train": small["y_train"].astype(np.int64), "y_test": small["y_test"].astype(">i2")}
    order = {"x_train": np.asfortranarray(small["x_train"])}
    assert_loads(write_npz(tmp_path / "own.npz", small | labels | order | {"more": b"ignored"}), small)


def changed(small: dict[str, np.ndarray], change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return {name: change(array) if name.startswith("x") else array for name, array in small.items()}


def test_pixels_that_are_not_from_0_to_255_are_refused(
    tmp_path: Path, small: dict[str, np.ndarray], user_error: Callable[..., str]
) -> None:
    for change, reach in (
        (lambda x: (x / 255).astype(np.uint8), "0 to 1"),
        (lambda x: (x > 127).astype(np.uint8), "0 to 1"),
        (lambda x: x // 16, "0 to 15"),
        (lambda x: x * 0 + 200, "200 to 200"),
    ):
        file = write_npz(tmp_path / "own.npz", changed(small, change))
        line = user_error(load_arrays, DataConfig(path=str(file)))
        assert line.startswith(f"data.path: x_train in '{file}' ranges from {reach}, expected 0 to 255;")


def test_what_can_hardly_be_meant_is_said(tmp_path: Path, small: dict[str, np.ndarray]) -> None:
    def said(content: dict[str, np.ndarray]) -> list[str]:
        return [*doubts(load_arrays(DataConfig(path=str(write_npz(tmp_path / "own.npz", content)))))]

    assert said(small) == []
    dark = said(changed(small, lambda x: 255 - x))
    assert [line.partition(" (")[0] for line in dark] == ["x_train is dark on light", "x_test is dark on light"]
    assert said(small | {"y_train": small["y_train"] % 8}) == [
        "no training image shows 8, 9, so the model can never predict that"
    ]


@pytest.mark.parametrize(("dot", "suffix"), [("-", ""), ("-", ".gz"), (".", ""), (".", ".gz")])
def test_own_idx_folder(tmp_path: Path, small: dict[str, np.ndarray], dot: str, suffix: str) -> None:
    assert_loads(write_idx(tmp_path, small, dot, suffix), small)


def test_the_home_folder_is_understood(
    tmp_path: Path, small: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz(tmp_path / "own.npz", small)
    assert_loads(Path("~/own.npz"), small)


BAD_MEMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"y_test": None}, "it holds x_train, y_train, x_test, not y_test"),
    "float images": ({"x_train": np.zeros([60, 28, 28])}, "x_train in '{}' is float64 [60, 28, 28], expected uint8 [n"),
    "flat images": ({"x_test": np.zeros([20, 784], np.uint8)}, "x_test in '{}' is uint8 [20, 784], expected uint8 [n,"),
    "no images": ({"x_train": np.zeros([0, 28, 28], np.uint8)}, "x_train in '{}' is uint8 [0, 28, 28], expected uint8"),
    "scalar images": ({"x_train": np.uint8(3)}, "x_train in '{}' is uint8 [], expected uint8 [n, 28, 28]."),
    "scalar labels": ({"y_train": np.uint8(3)}, "y_train in '{}' is uint8 [], expected integers [60]."),
    "fewer labels": ({"y_train": np.zeros([59], np.uint8)}, "y_train in '{}' is uint8 [59], expected integers [60]."),
    "one-hot labels": (
        {"y_test": np.zeros([20, 10], int)},
        "y_test in '{}' is int64 [20, 10], expected integers [20].",
    ),
    "float labels": ({"y_test": np.zeros([20])}, "y_test in '{}' is float64 [20], expected integers [20]."),
    "label 10": ({"y_train": np.arange(60) % 11}, "y_train in '{}' has labels from 0 to 10, expected 0 to 9."),
    "label -1": ({"y_train": np.arange(60) % 3 - 1}, "y_train in '{}' has labels from -1 to 1, expected 0 to 9."),
    "pickled objects": (
        {"y_train": np.array([{}] * 60, object)},
        "Object arrays cannot be loaded when allow_pickle=Fa",
    ),
    "not an array": ({"x_train": b"hello, world"}, "its x_train is not an array"),
    "shape of petabytes": ({"x_train": npy_header((10**15, 28, 28))}, "cannot read '{}'"),
    "negative shape": ({"x_train": npy_header((-1, 28, 28))}, "cannot read '{}'"),
    "shape without bytes": ({"x_train": npy_header((60, 28, 28))}, "cannot read '{}'"),
    "broken header": ({"x_train": b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((  "}, "cannot read '{}'"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_npz_with_a_bad_member(
    tmp_path: Path, small: dict[str, np.ndarray], case: str, user_error: Callable[..., str]
) -> None:
    members, part = BAD_MEMBERS[case]
    file = write_npz(tmp_path / "bad.npz", small | members)
    line = user_error(load_arrays, DataConfig(path=str(file)))
    assert line.startswith("data.path: ") and part.format(file) in line


def with_entry_byte(content: bytes, offset: int, value: int) -> bytes:
    """Changes a byte in the archive's first directory entry: 8 holds the flags, 10 the compression method."""
    at = content.index(b"PK\x01\x02") + offset
    return content[:at] + bytes([value]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:2000] + bytes([content[2000] ^ 16]) + content[2001:],
        lambda content: npy(np.array([{}], object)),
        lambda content: with_entry_byte(content, 8, 1),
        lambda content: with_entry_byte(content, 10, 99),
    ],
    ids=["empty", "text", "half", "short by one", "one bit", "pickle", "marked encrypted", "unknown compression"],
)
def test_damaged_npz(
    tmp_path: Path, small: dict[str, np.ndarray], damage: Callable[[bytes], bytes], user_error: Callable[..., str]
) -> None:
    file = write_npz(tmp_path / "bad.npz", small)
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    line = user_error(load_arrays, DataConfig(path=str(file)))
    assert line.startswith(f"data.path: cannot read '{file}' (")
    assert line.endswith("expected an intact mnist.npz or idx(.gz) files.")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda content: b"", "is not an idx file of unsigned bytes"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "is not an idx file of unsigned bytes"),
        (lambda content: content[:10], "cannot read"),
        (lambda content: content[:-1], "says shape (60,) but holds 59 bytes"),
        (lambda content: content + b"\x00", "says shape (60,) but holds 61 bytes"),
        (lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:], "says shape (4294967295,) but holds 60"),
        (lambda content: content[:-1] + b"\x0a", "y_train in '{}' has labels from 0 to 10"),
    ],
    ids=["empty", "floats", "header only", "short by one", "long by one", "huge shape", "label 10"],
)
def test_bad_idx(
    tmp_path: Path,
    small: dict[str, np.ndarray],
    suffix: str,
    damage: Callable[[bytes], bytes],
    part: str,
    user_error: Callable[..., str],
) -> None:
    write_idx(tmp_path, small, suffix=suffix)
    file = tmp_path / f"train-labels-idx1-ubyte{suffix}"
    content = damage(gzip.decompress(file.read_bytes()) if suffix else file.read_bytes())
    file.write_bytes(gzip.compress(content) if suffix else content)
    assert part.format(tmp_path) in user_error(load_arrays, DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: content[:40] + b"\x00" * 9 + content[49:]]
)
def test_damaged_gzip(
    tmp_path: Path, small: dict[str, np.ndarray], damage: Callable[[bytes], bytes], user_error: Callable[..., str]
) -> None:
    write_idx(tmp_path, small, suffix=".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    assert "cannot read" in user_error(load_arrays, DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("no/such/file.npz", "data.path: 'no/such/file.npz' does not exist; expected an mnist.npz or a folder of idx"),
        ("/dev/zero", "data.path: '/dev/zero' does not exist"),
        ("~nobody-of-that-name/mnist.npz", "data.path: cannot read '~nobody-of-that-name/mnist.npz'"),
        ("x" * 256, "File name too long"),
    ],
)
def test_paths_without_a_file(path: str, part: str, user_error: Callable[..., str]) -> None:
    assert part in user_error(load_arrays, DataConfig(path=path))


def test_a_folder_without_idx_files(
    tmp_path: Path, small: dict[str, np.ndarray], user_error: Callable[..., str]
) -> None:
    write_idx(tmp_path, {name: small[name] for name in ("x_train", "x_test", "y_test")})
    line = user_error(load_arrays, DataConfig(path=str(tmp_path)))
    assert line == f"data.path: '{tmp_path}' has no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz."


@pytest.mark.parametrize("kind", ["npz", "idx.gz"])
def test_a_small_file_that_unpacks_to_a_huge_one_is_not_unpacked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    monkeypatch.setattr(dataset, "MAX_DATA_BYTES", 1_000_000)
    bomb = {
        "x_train": np.zeros([20_000, 28, 28], np.uint8),
        "y_train": np.zeros(20_000, np.uint8),
        "x_test": np.zeros([1, 28, 28], np.uint8),
        "y_test": np.zeros(1, np.uint8),
    }
    path = write_npz(tmp_path / "bomb.npz", dict(bomb)) if kind == "npz" else write_idx(tmp_path, bomb, suffix=".gz")
    del bomb
    tracemalloc.start()
    line = user_error(load_arrays, DataConfig(path=str(path)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "more than the 1000000" in line and " unpacks to " in line
    assert peak_bytes < 4_000_000


def test_synthetic_data_has_the_shape_of_mnist(arrays: Arrays) -> None:
    synthetic = load_arrays(DataConfig(kind="synthetic"))
    for name, array in named(synthetic).items():
        assert array.shape == named(arrays)[name].shape and array.dtype == np.uint8
    assert (synthetic.train_images.min(), synthetic.train_images.max()) == (0, 255)
    assert set(synthetic.train_labels.tolist()) == set(range(10))
    assert np.array_equal(load_arrays(DataConfig(kind="synthetic")).test_images, synthetic.test_images)


# --- Training batches ---

IMAGES, BATCH_SIZE = 100, 24
STEPS_PER_EPOCH = IMAGES // BATCH_SIZE


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that carry their own number in their first two pixels, with its last digit as label."""
    images = np.zeros([count, 28, 28], np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return images, (np.arange(count) % 10).astype(np.uint8)


def numbers(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 1, 0].astype(int)


def first_numbers(count: int, **options: Any) -> np.ndarray:
    """The image numbers of the first elements of a training pipeline: int [count, images per element]."""
    pipeline = make_train_dataset(*numbered(IMAGES), **({"batch_size": BATCH_SIZE, "seed": 5} | options))
    batches = []
    for images, labels in pipeline.take(count).as_numpy_iterator():
        assert images.dtype == np.uint8 and images.shape[1:] == (28, 28, 1)
        assert labels.dtype == np.int32
        assert np.array_equal(labels, numbers(images) % 10), "images and labels do not belong together"
        batches.append(numbers(images))
    return np.stack(batches)


@pytest.fixture(scope="module")
def single() -> np.ndarray:
    """Three epochs on one replica: int [12, 24]."""
    return first_numbers(3 * STEPS_PER_EPOCH)


def test_an_epoch_shows_each_image_at_most_once(single: np.ndarray) -> None:
    left_out = []
    for epoch in single.reshape(3, -1):
        assert epoch.size == STEPS_PER_EPOCH * BATCH_SIZE == len(set(epoch.tolist()))
        left_out.append(set(range(IMAGES)) - set(epoch.tolist()))
    assert left_out[0] != left_out[1], "always the same images would never be trained on"


def test_epochs_are_shuffled_differently_and_reproducibly(single: np.ndarray) -> None:
    epochs = single.reshape(3, -1)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(epochs[first] == epochs[second]) < 0.1
    assert np.mean(epochs[0] == np.sort(epochs[0])) < 0.1
    assert np.array_equal(first_numbers(len(single)), single)
    assert np.mean(first_numbers(len(single), seed=6) == single) < 0.1


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 8])
def test_each_replica_gets_its_slice_of_the_global_batch(single: np.ndarray, replicas: int) -> None:
    steps = STEPS_PER_EPOCH + 2
    shares = [first_numbers(steps, shard=Shard(replica, 1, replicas)) for replica in range(replicas)]
    assert all(share.shape == (steps, BATCH_SIZE // replicas) for share in shares)
    assert np.array_equal(np.concatenate(shares, axis=1), single[:steps])


@pytest.mark.parametrize(("first", "local"), [(0, 3), (3, 1), (1, 2), (0, 4)])
def test_a_process_with_several_replicas_gets_all_their_parts(single: np.ndarray, first: int, local: int) -> None:
    steps = STEPS_PER_EPOCH + 1
    mine = first_numbers(steps, shard=Shard(first, local, 4)).reshape(steps, local, -1)
    assert np.array_equal(mine, single[:steps].reshape(steps, 4, -1)[:, first : first + local])


@pytest.mark.parametrize("start", [1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH])
def test_a_resumed_run_goes_on_with_the_next_batch(single: np.ndarray, start: int) -> None:
    assert np.array_equal(first_numbers(3, start_step=start), single[start : start + 3])
    two = first_numbers(2, start_step=start, shard=Shard(1, 2, 3)).reshape(2, 2, -1)
    assert np.array_equal(two, single[start : start + 2].reshape(2, 3, -1)[:, 1:])


def test_the_batch_may_be_the_whole_training_set() -> None:
    epochs = first_numbers(2, batch_size=IMAGES)
    assert np.array_equal(np.sort(epochs), [range(IMAGES)] * 2) and not np.array_equal(*epochs)


# --- Augmentation ---


def shifted(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The reference: content moves down and to the right, black comes in."""
    height, width = image.shape
    rolled = np.roll(image, (rows, columns), (0, 1))
    rolled[: max(rows, 0)] = rolled[height + min(rows, 0) :] = 0
    rolled[:, : max(columns, 0)] = rolled[:, width + min(columns, 0) :] = 0
    return rolled


def test_shifting_moves_every_pixel_and_fills_with_black(arrays: Arrays) -> None:
    shifts = [(rows, columns) for rows in range(-8, 9) for columns in range(-8, 9)]
    images = np.random.default_rng(0).integers(1, 256, [len(shifts), 28, 28], np.uint8)
    images[0] = arrays.train_images[0]
    result = shift_images(images[..., np.newaxis], np.array(shifts, np.int32)).numpy()
    assert result.dtype == np.uint8 and result.shape == (len(shifts), 28, 28, 1)
    for image, (rows, columns), moved in zip(images, shifts, result[..., 0], strict=True):
        assert np.array_equal(moved, shifted(image, rows, columns)), (rows, columns)


def batches_of_points(steps: int, **options: Any) -> Iterator[np.ndarray]:
    """Batches of images with one point each, in the middle; its brightness is the image's number from 1 on."""
    images = np.zeros([64, 28, 28], np.uint8)
    images[:, 14, 14] = np.arange(1, 65)
    options = {"batch_size": 32, "seed": 3, "shift_pixels": 2} | options
    pipeline = make_train_dataset(images, np.zeros(64, np.uint8), **options)
    for batch, _ in pipeline.take(steps).as_numpy_iterator():
        yield batch[..., 0]


def test_images_are_shifted_within_bounds_and_differently_each_time() -> None:
    seen: dict[int, set[tuple[int, int]]] = {}
    for batch in batches_of_points(40):  # 20 epochs
        for image in batch:
            ((row, column),) = np.argwhere(image)
            seen.setdefault(int(image[row, column]), set()).add((int(row) - 14, int(column) - 14))
    combinations = {(rows, columns) for rows in range(-2, 3) for columns in range(-2, 3)}
    assert set.union(*seen.values()) == combinations
    assert len(seen) == 64 and min(len(shifts) for shifts in seen.values()) > 8


@pytest.mark.slow
def test_shifts_do_not_depend_on_the_number_of_replicas_or_on_resuming() -> None:
    whole = np.stack(list(batches_of_points(4)))
    ranks = [np.stack(list(batches_of_points(4, shard=Shard(rank, 1, 4)))) for rank in range(4)]
    assert np.array_equal(np.concatenate(ranks, axis=1), whole)
    local = np.stack(list(batches_of_points(4, shard=Shard(0, 2, 2))))
    assert np.array_equal(local, whole)
    assert np.array_equal(np.stack(list(batches_of_points(3, start_step=1))), whole[1:])
    assert not np.array_equal(np.stack(list(batches_of_points(4, seed=4))), whole)


def test_without_augmentation_images_stay_as_they_are() -> None:
    for batch in batches_of_points(2, shift_pixels=0):
        assert np.all(batch[:, 14, 14] > 0)


# --- Evaluation and synthetic batches ---


@pytest.mark.parametrize("replicas", [1, 3, 7, 16])
@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (10, 100), (7, 7), (7, 1), (10_000, 1000), (10_000, 999)])
def test_evaluation_counts_each_image_once(count: int, batch_size: int, replicas: int) -> None:
    pipeline = make_eval_dataset(*numbered(count), batch_size=batch_size, shard=Shard(0, replicas, replicas))
    counted: list[int] = []
    elements = 0
    shapes = set()
    for images, labels, weights in pipeline.as_numpy_iterator():
        elements += 1
        shapes.add((images.shape, labels.shape, weights.shape))
        assert (images.dtype, labels.dtype, weights.dtype) == (np.uint8, np.int32, np.float32)
        assert np.array_equal(labels, numbers(images) % 10)
        assert set(weights.tolist()) <= {0.0, 1.0}
        counted += numbers(images)[weights == 1].tolist()
    assert sorted(counted) == list(range(count))
    assert elements == num_eval_steps(count, batch_size, replicas)
    rows = -(-min(batch_size, count) // replicas) * replicas
    assert shapes == {((rows, 28, 28, 1), (rows,), (rows,))}, "another shape would be compiled anew"


def test_evaluation_is_split_between_processes() -> None:
    counted = []
    for shard in (Shard(0, 1, 3), Shard(1, 2, 3)):
        batches = list(make_eval_dataset(*numbered(10), batch_size=4, shard=shard).as_numpy_iterator())
        assert len(batches) == num_eval_steps(10, 4, 3)
        counted += [number for images, _, weights in batches for number in numbers(images)[weights == 1]]
    assert sorted(counted) == list(range(10))


@pytest.mark.parametrize(
    ("count", "batch_size", "replicas", "steps"),
    [(10_000, 1000, 1, 10), (10_000, 999, 1, 11), (10, 100, 1, 1), (10, 4, 3, 2), (7, 1, 16, 1), (1, 1, 1, 1)],
)
def test_number_of_evaluation_steps(count: int, batch_size: int, replicas: int, steps: int) -> None:
    assert num_eval_steps(count, batch_size, replicas) == steps


def test_synthetic_batches_repeat() -> None:
    images, labels = numbered(100)
    pipeline = make_synthetic_dataset(images, labels, batch_size=24, shard=Shard(2, 1, 4))
    batches = list(pipeline.take(5).as_numpy_iterator())
    for batch, batch_labels in batches:
        assert batch.shape == (6, 28, 28, 1) and batch.dtype == np.uint8
        assert batch_labels.shape == (6,) and batch_labels.dtype == np.int32
        assert np.array_equal(numbers(batch), numbers(batches[0][0]))
