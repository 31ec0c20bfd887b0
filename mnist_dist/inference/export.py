"""Exported models: written whole or not at all, then tested by running what was written.

Every format takes raw `pixels` [batch, 28, 28, 1] in batches of any size and returns `probabilities` [batch, 10]:

- savedmodel: two signatures, `serving_default` for float32 pixels and `uint8`; probabilities float32.
- tflite: uint8 pixels, float32 probabilities.
- tflite-int8: integers only, for devices without floating point: uint8 pixels, uint8 probabilities in 1/256.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mnist_dist.data.dataset import Arrays
from mnist_dist.errors import UserError
from mnist_dist.files import reason_of
from mnist_dist.lazy import keras, tf

Format = Literal["savedmodel", "tflite", "tflite-int8"]
FILE_NAMES = {"savedmodel": "saved_model", "tflite": "model.tflite", "tflite-int8": "model-int8.tflite"}
CALIBRATION_IMAGES = 300
TEST_BATCH_SIZE = 1000
NOISE = re.compile(rb"[IW]\d{4} |INFO: |WARNING: |fully_quantize: ")

Classifier = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """An exported file or folder, its size in bytes, and the accuracy (0..1) it has on so many test images."""

    path: Path
    bytes: int
    accuracy: float
    images: int


def export(model: "keras.Model", arrays: Arrays, destination_folder: Path, format: Format) -> Exported:
    """Exports `model` below `destination_folder` and measures the accuracy of the export on all test images.

    An earlier export of the same name stays as it is until the new one is complete.

    Args:
        model: takes pixels float32 [batch, 28, 28, 1], 0 to 255, and returns probabilities float32 [batch, 10].
        arrays: some training images calibrate `tflite-int8`; the test images measure the accuracy.

    Raises:
        UserError: the folder cannot be written, something else has the name of the export, or the model does not
            compute with integers alone (`tflite-int8`).
    """
    path = Path(destination_folder) / FILE_NAMES[format]
    with _without_noise():
        with _workspace(path) as workspace:
            new = workspace / path.name
            if format == "savedmodel":
                _save_model(model, new)
            else:
                _save_model(model, workspace / "source")
                calibration = arrays.train_images if format == "tflite-int8" else None
                new.write_bytes(_convert(workspace / "source", calibration))
            _replace(path, new, aside=workspace / "replaced")
        classify = _load_saved_model(path) if format == "savedmodel" else _load_tflite(path)
        accuracy = _accuracy(classify, arrays.test_images, arrays.test_labels)
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    return Exported(path, size, accuracy, len(arrays.test_images))


def render(exported: Exported) -> str:
    """Returns one line with the path, the size and the measured accuracy."""
    kilobytes = round(exported.bytes / 1000)
    size = f"{kilobytes} kB" if kilobytes < 1000 else f"{kilobytes / 1000:.1f} MB"
    return (
        f"{exported.path}: {size}, test accuracy {exported.accuracy:.4f} on {exported.images:,} images "
        "(measured by running the file)"
    )


@contextlib.contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """Makes a temporary folder beside `path`, so that what is made there only needs renaming."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            yield Path(folder)
    except OSError as error:
        raise _cannot_write(path, reason_of(error)) from error
    except tf.errors.OpError as error:  # Its message: `{{node}} path; No space left on device [Op:SaveV2]`.
        raise _cannot_write(path, error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error


def _cannot_write(path: Path, reason: str) -> UserError:
    return UserError(
        f"--output: cannot write '{path}': {' '.join(reason.split())}; free some space or name another folder with "
        "--output."
    )


def _replace(path: Path, new: Path, aside: Path) -> None:
    """Renames `new` to `path`; a folder that is in the way first goes to `aside`, as it cannot be renamed onto."""
    if path.is_dir():
        if not (new.is_dir() and (path / "saved_model.pb").exists()):
            raise UserError(
                f"--output: '{path}' is a folder and no earlier export, expected a free name or an export to replace; "
                "move it away or name another folder with --output."
            )
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise


def _save_model(model: "keras.Model", folder: Path) -> None:
    @tf.function(autograph=False)
    def classify(pixels: Any) -> dict[str, Any]:
        return {"probabilities": model(pixels, training=False)}

    def signature(dtype: Any) -> Any:
        return classify.get_concrete_function(tf.TensorSpec([None, 28, 28, 1], dtype, name="pixels"))

    # Saving the Keras model would add its optimizer's state, and keras.export.ExportArchive stores each weight twice.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    signatures = {"serving_default": signature(tf.float32), "uint8": signature(tf.uint8)}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _convert(saved_model: Path, calibration_images: np.ndarray | None) -> bytes:
    """Returns a TensorFlow Lite file, quantised to integers if there are images uint8 [n, 28, 28] to calibrate it."""
    # Not from the model's concrete function: of a Keras 3 model that converts, silently, without the weights.
    signature = "uint8" if calibration_images is None else "serving_default"
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[signature])
    if calibration_images is None:
        return converter.convert()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: _calibration_batches(calibration_images)
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    content = converter.convert()
    _require_integers(content)
    return content


def _calibration_batches(images: np.ndarray) -> Iterator[list[np.ndarray]]:
    spread = np.linspace(0, len(images) - 1, CALIBRATION_IMAGES).astype(int)  # Own data may be sorted by digit.
    chosen = images[spread].astype(np.float32)
    chosen[0, 0, :2] = 0, 255  # Only if the input's range is 0 to 255 does a byte mean a pixel.
    for image in chosen:
        yield [image[np.newaxis, ..., np.newaxis]]


def _require_integers(content: bytes) -> None:
    tensors = _interpreter(model_content=content).get_tensor_details()
    floats = [tensor["name"] for tensor in tensors if np.issubdtype(tensor["dtype"], np.floating)]
    if floats:
        raise UserError(
            f"--format: tflite-int8 left '{floats[0]}' ({len(floats)} of {len(tensors)} tensors) in floating point, "
            "expected integers only; this model needs --format tflite."
        )


def _interpreter(**source: Any) -> Any:
    return tf.lite.Interpreter(num_threads=len(os.sched_getaffinity(0)), **source)


def _load_saved_model(path: Path) -> Classifier:
    loaded = tf.saved_model.load(str(path))  # Held by the function below: without it the weights are gone.
    return lambda pixels: loaded.signatures["uint8"](pixels=tf.constant(pixels))["probabilities"].numpy()


def _load_tflite(path: Path) -> Classifier:
    runner = _interpreter(model_path=str(path)).get_signature_runner()
    return lambda pixels: runner(pixels=pixels)["probabilities"]


def _accuracy(classify: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    starts = range(0, len(images), TEST_BATCH_SIZE)
    batches = [classify(images[start : start + TEST_BATCH_SIZE, ..., np.newaxis]) for start in starts]
    return float(np.mean(np.concatenate(batches).argmax(axis=1) == labels))


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Drops notices that TensorFlow Lite writes at every conversion; whatever else it writes is shown at the end.

    Its C++ code writes to file descriptor 2, past `sys.stderr` and any log level.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated")
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            os.write(2, b"".join(line for line in written if not NOISE.match(line)))
