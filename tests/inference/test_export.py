"""Exported files are run for real, on real images, and compared with the model they came from."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.data.dataset import Arrays
from mnist_dist.inference import export as exports
from mnist_dist.inference.evaluate import predict
from mnist_dist.inference.export import Exported, Format, export, render

pytestmark = pytest.mark.slow  # It trains models.

FORMATS: tuple[Format, ...] = ("savedmodel", "tflite", "tflite-int8")
TRAIN_IMAGES = 12_000
TEST_IMAGES = 1010  # Not a multiple of the batch size.


@pytest.fixture(scope="module")
def arrays(arrays: Arrays) -> Arrays:
    return dataclasses.replace(
        arrays,
        train_images=arrays.train_images[:TRAIN_IMAGES],
        train_labels=arrays.train_labels[:TRAIN_IMAGES],
        test_images=arrays.test_images[:TEST_IMAGES],
        test_labels=arrays.test_labels[:TEST_IMAGES],
    )


def untrained_model(activation: Any = "relu") -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, activation=activation),
            layers.Dense(10),
            layers.Softmax(),
        ]
    )


@pytest.fixture(scope="module")
def model(arrays: Arrays) -> Any:
    trained = untrained_model()
    trained.compile("adam", "sparse_categorical_crossentropy")
    trained.fit(arrays.train_images[..., np.newaxis], arrays.train_labels, batch_size=50, epochs=3, verbose=0)
    return trained


@pytest.fixture(scope="module")
def probabilities(model: Any, arrays: Arrays) -> np.ndarray:
    return predict(model, arrays.test_images)


@pytest.fixture(scope="module")
def exported(model: Any, arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("run") / "made" / "on demand"
    return {name: export(model, arrays, folder, name) for name in FORMATS}


def interpreter(path: Path) -> Any:
    import tensorflow as tf

    with pytest.warns(UserWarning, match=r"tf\.lite\.Interpreter is deprecated"):
        return tf.lite.Interpreter(str(path), num_threads=1)


def run_tflite(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Runs the file with the low-level calls, as a device would."""
    runtime = interpreter(path)
    (taken,), (given,) = runtime.get_input_details(), runtime.get_output_details()
    runtime.resize_tensor_input(taken["index"], pixels.shape)
    runtime.allocate_tensors()
    runtime.set_tensor(taken["index"], pixels)  # Raises if the type is not the file's own.
    runtime.invoke()
    return runtime.get_tensor(given["index"])


def test_model_has_learnt_something(probabilities: np.ndarray, arrays: Arrays) -> None:
    assert np.mean(probabilities.argmax(axis=1) == arrays.test_labels) > 0.9  # Else agreement would mean little.


@pytest.mark.parametrize(("name", "tolerance"), [("savedmodel", 0.002), ("tflite", 0.002), ("tflite-int8", 0.01)])
def test_accuracy_is_that_of_the_model(
    exported: dict[str, Exported], probabilities: np.ndarray, arrays: Arrays, name: str, tolerance: float
) -> None:
    accuracy = np.mean(probabilities.argmax(axis=1) == arrays.test_labels)
    assert exported[name].accuracy == pytest.approx(accuracy, abs=tolerance)
    assert exported[name].images == TEST_IMAGES


def test_names_and_sizes(exported: dict[str, Exported]) -> None:
    assert [result.path.name for result in exported.values()] == ["saved_model", "model.tflite", "model-int8.tflite"]
    folder = exported["tflite"].path.parent
    assert len(list(folder.iterdir())) == 3  # No temporary files are left.
    assert exported["tflite"].bytes == exported["tflite"].path.stat().st_size
    parameters = 17_578 * 4
    assert parameters < exported["savedmodel"].bytes < 2 * parameters + 60_000
    assert exported["tflite-int8"].bytes < exported["tflite"].bytes / 2


def test_others_may_read_the_export(exported: dict[str, Exported]) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in exported["tflite"].path.parent.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044 & ~umask


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(("signature", "dtype"), [("serving_default", np.float32), ("uint8", np.uint8)])
def test_saved_model_takes_raw_pixels(
    exported: dict[str, Exported],
    probabilities: np.ndarray,
    arrays: Arrays,
    signature: str,
    dtype: type,
    batch: int,
) -> None:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(exported["savedmodel"].path))
    pixels = tf.constant(arrays.test_images[:batch, ..., np.newaxis].astype(dtype))
    given = loaded.signatures[signature](pixels=pixels)["probabilities"].numpy()
    np.testing.assert_allclose(given, probabilities[:batch], atol=1e-5)


def test_saved_model_holds_each_weight_once(exported: dict[str, Exported], model: Any) -> None:
    import tensorflow as tf

    stored = tf.train.list_variables(str(exported["savedmodel"].path / "variables" / "variables"))
    assert sum(int(np.prod(shape)) for _, shape in stored if shape) == model.count_params()


def test_tflite_takes_raw_pixels(exported: dict[str, Exported], probabilities: np.ndarray, arrays: Arrays) -> None:
    given = run_tflite(exported["tflite"].path, arrays.test_images[:100, ..., np.newaxis])
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, probabilities[:100], atol=1e-4)


def test_int8_takes_raw_pixels(exported: dict[str, Exported], probabilities: np.ndarray, arrays: Arrays) -> None:
    given = run_tflite(exported["tflite-int8"].path, arrays.test_images[..., np.newaxis])
    assert given.dtype == np.uint8
    assert np.mean(given.argmax(axis=1) == arrays.test_labels) == exported["tflite-int8"].accuracy
    assert np.abs(given / 256 - probabilities).mean() < 0.01


def test_int8_computes_with_integers_only(exported: dict[str, Exported]) -> None:
    types = {detail["dtype"] for detail in interpreter(exported["tflite-int8"].path).get_tensor_details()}
    assert np.int8 in types
    assert types <= {np.int8, np.uint8, np.int32}


def test_bytes_are_pixels_even_if_training_images_are_dim(model: Any, arrays: Arrays, tmp_path: Path) -> None:
    dim = dataclasses.replace(arrays, train_images=arrays.train_images // 2 + 10)
    result = export(model, dim, tmp_path, "tflite-int8")
    (taken,) = interpreter(result.path).get_input_details()
    assert taken["quantization"] == (1.0, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_an_earlier_export_is_replaced(model: Any, arrays: Arrays, tmp_path: Path, name: Format) -> None:
    before = export(untrained_model(), arrays, tmp_path, name)
    after = export(model, arrays, tmp_path, name)
    assert after.path == before.path
    assert after.accuracy > before.accuracy + 0.5
    assert list(tmp_path.iterdir()) == [after.path]


def test_an_earlier_export_survives_a_model_that_needs_floats(
    model: Any, arrays: Arrays, tmp_path: Path, user_error: Callable[..., str]
) -> None:
    import keras

    earlier = export(model, arrays, tmp_path, "tflite-int8").path
    content = earlier.read_bytes()
    # TensorFlow Lite has no sine of integers, and without a word leaves it in floating point.
    line = user_error(export, untrained_model(activation=keras.ops.sin), arrays, tmp_path, "tflite-int8")
    assert "in floating point, expected integers only" in line
    assert list(tmp_path.iterdir()) == [earlier]
    assert earlier.read_bytes() == content


def test_an_earlier_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "saved_model"
    path.mkdir()
    (path / "saved_model.pb").write_text("earlier")
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(OSError, match="exist"):
        exports._replace(path, new=_VanishingFolder(new), aside=tmp_path / "aside")
    assert (path / "saved_model.pb").read_text() == "earlier"


class _VanishingFolder(type(Path())):  # type: ignore[misc]
    """A folder that is gone when it is to be renamed."""

    def rename(self, target: Any) -> Any:
        raise FileNotFoundError(2, "does not exist", str(self))


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_another_kind_is_left_alone(
    model: Any, arrays: Arrays, tmp_path: Path, user_error: Callable[..., str], name: Format
) -> None:
    precious = tmp_path / exports.FILE_NAMES[name] / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("three years")
    line = user_error(export, model, arrays, tmp_path, name)
    assert line.startswith(f"--output: '{precious.parent}' is a folder and no earlier export")
    assert precious.read_text() == "three years"
    assert list(tmp_path.iterdir()) == [precious.parent]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_in_the_way_of_the_folder(
    model: Any, arrays: Arrays, tmp_path: Path, user_error: Callable[..., str], name: Format
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = user_error(export, model, arrays, tmp_path / "file", name)
    assert line.startswith(f"--output: cannot write '{tmp_path}/file/") and "a broken link is in the way;" in line


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_the_earlier_export(
    model: Any,
    arrays: Arrays,
    small_disk: Path,
    fill: Callable[[Path], None],
    user_error: Callable[..., str],
    name: Format,
) -> None:
    earlier = export(untrained_model(), arrays, small_disk, name)
    fill(small_disk)
    line = user_error(export, model, arrays, small_disk, name)
    assert line.startswith(f"--output: cannot write '{earlier.path}': No space left on device; free some space")
    assert {path.name for path in small_disk.iterdir()} == {earlier.path.name, "filling"}
    (small_disk / "filling").unlink()
    files = (file for file in (earlier.path, *earlier.path.rglob("*")) if file.is_file())
    assert sum(file.stat().st_size for file in files) == earlier.bytes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORMATS)
def test_the_terminal_stays_clean(
    model: Any, arrays: Arrays, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: Format
) -> None:
    export(model, arrays, tmp_path, name)
    assert capfd.readouterr() == ("", "")


def test_what_is_not_noise_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), exports._without_noise():
        os.write(2, b"I0000 00:00:1 reader.cc:83] Reading\nE0000 00:00:1 x.cc:1] Broken\nfully_quantize: 0\nAbort\n")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "E0000 00:00:1 x.cc:1] Broken\nAbort\n"


@pytest.mark.parametrize(
    ("exported_bytes", "size"), [(231_400, "231 kB"), (999_400, "999 kB"), (1_867_666, "1.9 MB"), (999_700, "1.0 MB")]
)
def test_line_for_the_user(exported_bytes: int, size: str) -> None:
    line = render(Exported(Path("run/model-int8.tflite"), exported_bytes, 0.99214, 10_000))
    expected = "test accuracy 0.9921 on 10,000 images (measured by running the file)"
    assert line == f"run/model-int8.tflite: {size}, {expected}"
