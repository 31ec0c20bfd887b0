import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mnist_dist
from mnist_dist.config import ModelConfig, OptimizerConfig
from mnist_dist.network.model import build_model
from mnist_dist.network.optimizers import build_optimizer
from mnist_dist.training.checkpoint import Checkpoints, assign_variables, read_variables, variables_by_name

REPOSITORY = Path(mnist_dist.__file__).parent.parent


def fail(line: str) -> None:
    raise AssertionError(f"a damaged checkpoint was reported: {line}")


def some_arrays(step: int) -> dict[str, np.ndarray]:
    return {
        "model/conv_1/kernel": np.full([3, 3, 1, 8], step / 3, np.float32),
        "model/conv_1/bias": np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45], np.float32),
        "model/dropout/seed_generator/seed": np.array([2**32 - 1, 0], np.uint32),
        "optimizer/iteration": np.array(step, np.int64),
    }


def bits(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    progress = {"step": 12, "training_seconds": 0.1 + 0.2, "window": {"steps": 3, "loss_sum": 1e-300}}
    file = Checkpoints(tmp_path / "new", keep=3, report=fail).save(12, some_arrays(12), progress)
    assert file == tmp_path / "new" / "step-00000012.npz"
    loaded = Checkpoints(tmp_path / "new", keep=3, report=fail).load_latest()
    assert loaded is not None
    assert bits(loaded[0]) == bits(some_arrays(12))
    assert loaded[1] == progress


@pytest.mark.parametrize("make_folder", [True, False])
def test_there_may_be_none(tmp_path: Path, make_folder: bool) -> None:
    folder = tmp_path / "checkpoints"
    if make_folder:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    assert Checkpoints(folder, keep=1, report=fail).load_latest() is None
    assert folder.exists() == make_folder


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep, report=fail)
    (tmp_path / "notes.txt").write_text("mine")
    steps = [9, 10, 99, 100, 1_000_000]
    for step in steps:
        checkpoints.save(step, some_arrays(step), {"step": step})
    expected = [f"step-{step:08d}.npz" for step in steps[-keep:]]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*expected, "notes.txt"])
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded[1] == {"step": 1_000_000}


def test_damaged_ones_of_later_steps_do_not_take_the_place_of_what_is_saved(tmp_path: Path) -> None:
    for step in (900, 1000):
        (tmp_path / f"step-{step:08d}.npz").write_bytes(b"damaged")
    reported: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=1, report=reported.append)
    for step in (10, 20):
        checkpoints.save(step, some_arrays(step), {"step": step})
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded[1] == {"step": 20}
    assert len(reported) == 2 and not (tmp_path / "step-00000010.npz").exists()


def test_newest_means_the_highest_step_not_the_latest_file(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 5, report=fail)
    for step in (20, 10):
        checkpoints.save(step, some_arrays(step), {"step": step})
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded[1] == {"step": 20}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 5, report=fail)
    for seconds in (1.0, 2.0):
        checkpoints.save(10, some_arrays(10), {"seconds": seconds})
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded[1] == {"seconds": 2.0}
    assert len(list(tmp_path.iterdir())) == 1


# --- Damage ---


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "short by one": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "one bit of an array": lambda content: content.replace(b"\x80\x01\0\0\0", b"\x80\x03\0\0\0"),
    "text": lambda content: b"hello\nworld",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_reported_and_an_earlier_one_used(tmp_path: Path, damage: str) -> None:
    reported: list[str] = []
    checkpoints = Checkpoints(tmp_path, 5, reported.append)
    for step in (10, 20, 30):
        checkpoints.save(step, some_arrays(step), {"step": step})
    for step in (30, 20):
        file = tmp_path / f"step-{step:08d}.npz"
        content = DAMAGES[damage](file.read_bytes())
        assert content != file.read_bytes()
        file.write_bytes(content)
    loaded = checkpoints.load_latest()
    assert loaded is not None and bits(loaded[0]) == bits(some_arrays(10)) and loaded[1] == {"step": 10}
    for line, step in zip(reported, (30, 20), strict=True):
        assert line.startswith(f"checkpoint '{tmp_path}/step-{step:08d}.npz' is damaged (")
        assert line.endswith("); trying the one before it.") and "\n" not in line


def test_none_is_left_when_all_are_damaged(tmp_path: Path) -> None:
    reported: list[str] = []
    checkpoints = Checkpoints(tmp_path, 5, reported.append)
    checkpoints.save(10, some_arrays(10), {}).write_bytes(b"")
    assert checkpoints.load_latest() is None
    assert len(reported) == 1


def test_no_flipped_bit_changes_what_is_loaded(tmp_path: Path) -> None:
    reported: list[str] = []
    checkpoints = Checkpoints(tmp_path, 1, reported.append)
    arrays = {"model/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "optimizer/iteration": np.array(5)}
    file = checkpoints.save(7, arrays, {"step": 7})
    content = file.read_bytes()
    directory = content.index(b"PK\x01\x02")  # Not covered by the checksums of the members.
    positions = [*range(0, 8 * directory, 37), *range(8 * directory, 8 * len(content), 3)]
    for position in positions:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        loaded = checkpoints.load_latest()
        if loaded is not None:  # A date, for example.
            assert bits(loaded[0]) == bits(arrays) and loaded[1] == {"step": 7}, f"bit {position}"
    assert len(reported) > len(positions) / 2


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "step-00000001.npz"
    np.savez(file, **{"progress.json": np.array([{"step": 1}], object)}, allow_pickle=True)
    reported: list[str] = []
    assert Checkpoints(tmp_path, 1, reported.append).load_latest() is None
    assert "allow_pickle=False" in reported[0]


SAVE_FOREVER = """
import itertools, pathlib, sys
import numpy as np
from mnist_dist.training.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), 2, print)
for step in itertools.count(int(sys.argv[2])):
    checkpoints.save(step, {"weights": np.full(500_000, step, np.float32)}, {"step": step})
"""


@pytest.mark.slow
def test_killing_the_writer_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2, report=fail)
    step = 0
    for milliseconds in (0, 3, 6):  # A save takes a few, so that some of the kills are in the middle of one.
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(step + 1)]
        writer = subprocess.Popen(command, cwd=REPOSITORY)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not any(
                int(file.stem[5:]) >= step + 5 for file in tmp_path.glob("step-*.npz")
            ):
                time.sleep(0.001)
            time.sleep(milliseconds / 1000)
        finally:
            writer.kill()
            assert writer.wait() == -signal.SIGKILL
        loaded = checkpoints.load_latest()
        assert loaded is not None
        arrays, progress = loaded
        assert progress["step"] >= step + 5
        step = progress["step"]
        assert arrays["weights"].shape == (500_000,) and np.all(arrays["weights"] == step)
    checkpoints.save(step + 1, {"weights": np.zeros(1)}, {"step": step + 1})
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded[1]["step"] == step + 1


def test_a_full_disk_keeps_the_earlier_checkpoints(
    small_disk: Path, fill: Callable[[Path], None], user_error: Callable[..., str]
) -> None:
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=1, report=fail)
    checkpoints.save(1, some_arrays(1), {"step": 1})
    fill(small_disk)
    line = user_error(checkpoints.save, 2, some_arrays(2), {"step": 2})
    assert "No space left on device" in line and "step-00000002.npz" in line
    assert [file.name for file in (small_disk / "checkpoints").iterdir()] == ["step-00000001.npz"]
    loaded = checkpoints.load_latest()
    assert loaded is not None and bits(loaded[0]) == bits(some_arrays(1))


# --- Variables of a real model ---


def small_model(name: Any = "adam", dense_units: int = 5, loss_scaling: bool = False) -> tuple[Any, Any]:
    config = ModelConfig(filters=(2, 3), dense_units=dense_units, batch_norm=True, dropout=0.5)
    model = build_model(config)
    optimizer = build_optimizer(OptimizerConfig(name=name), np.ones(3, np.float32), loss_scaling=loss_scaling)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def train_a_step(tf: ModuleType, model: Any, optimizer: Any) -> None:
    with tf.GradientTape() as tape:
        # Not constant images: normalised over the batch they would be zeros, and pass no gradient but rounding errors.
        pixels = np.random.default_rng(0).uniform(0, 255, [2, 28, 28, 1]).astype(np.float32)
        loss = tf.reduce_sum(model(pixels, training=True) ** 2)
        if hasattr(optimizer, "scale_loss"):
            loss = optimizer.scale_loss(loss)
    optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]), model.trainable_variables)


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_everything_that_training_changes_is_restored(tf: ModuleType, tmp_path: Path, loss_scaling: bool) -> None:
    model, optimizer = small_model(loss_scaling=loss_scaling)
    variables = variables_by_name(model, optimizer)
    fresh = bits(read_variables(variables))
    for _ in range(2):
        train_a_step(tf, model, optimizer)
    trained = read_variables(variables)
    changed = {name for name, value in bits(trained).items() if value != fresh[name]}
    for part in ("model/conv_1/kernel", "model/norm_1/moving_mean", "seed_generator", "momentum", "iteration"):
        assert any(part in name for name in changed), f"{part} is not among the variables"
    Checkpoints(tmp_path, 1, fail).save(2, trained, {})
    train_a_step(tf, model, optimizer)
    after_three = bits(read_variables(variables))

    model, optimizer = small_model(loss_scaling=loss_scaling)
    variables = variables_by_name(model, optimizer)
    loaded = Checkpoints(tmp_path, 1, fail).load_latest()
    assert loaded is not None
    assign_variables(variables, loaded[0])
    assert bits(read_variables(variables)) == bits(trained)
    train_a_step(tf, model, optimizer)
    assert bits(read_variables(variables)) == after_three, "a restored run goes on differently"


def test_arrays_are_copies(tf: ModuleType) -> None:
    model, optimizer = small_model()
    variables = variables_by_name(model, optimizer)
    arrays = read_variables(variables)
    before = bits(arrays)
    train_a_step(tf, model, optimizer)
    assert bits(arrays) == before


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"name": "sgd"}, "optimizer/"),
        ({"dense_units": 6}, "model/dense/kernel"),
        ({"loss_scaling": True}, "loss_scale"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    tf: ModuleType, other: dict[str, Any], named: str, user_error: Callable[..., str]
) -> None:
    variables = variables_by_name(*small_model())
    before = bits(read_variables(variables))
    arrays = read_variables(variables_by_name(*small_model(**other)))
    arrays = {name: array + np.ones([], array.dtype) for name, array in arrays.items()}
    line = user_error(assign_variables, variables, arrays)
    assert line.startswith("--resume: the checkpoint does not fit this run: '") and named in line
    assert bits(read_variables(variables)) == before, "a part of it was assigned"
