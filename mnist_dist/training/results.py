"""What a finished run leaves for people: the model, its test, the pictures."""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Callable, Iterator

import mnist_dist
from mnist_dist.config import Config
from mnist_dist.data.dataset import Arrays
from mnist_dist.errors import one_line
from mnist_dist.files import atomic_path
from mnist_dist.inference.calibration import calibration_images, fit_temperature
from mnist_dist.inference.evaluate import Evaluation, predict, summarize
from mnist_dist.lazy import keras
from mnist_dist.network.model import build_inference_model
from mnist_dist.training.workdir import Workdir
from mnist_dist.training.writers import read_rows


def save_deliverables(
    config: Config, arrays: Arrays, model: keras.Model, folder: Workdir, report: Callable[[str], None]
) -> Evaluation:
    """Calibrates and saves model.keras, tests it on every test image, and draws the plots, or reports why it cannot."""
    images, labels = calibration_images(arrays)
    probabilities, temperature = predict(build_inference_model(config.model, model), images), 1.0
    with _survived("warning    probabilities are not calibrated", report):  # SciPy may be broken.
        temperature = fit_temperature(labels, probabilities)
    inference_model = build_inference_model(config.model, model, temperature)
    with atomic_path(folder.model_file) as file:
        inference_model.save(file)
    probabilities = predict(inference_model, arrays.test_images)
    evaluation = summarize(arrays.test_labels, probabilities)
    with _survived("plots      not drawn", report):  # Matplotlib meets fonts, caches and settings of the user's own.
        from mnist_dist.inference import plots

        plots.save_curves(folder.plots / "curves.png", read_rows(folder.metrics_file))
        plots.save_confusion_matrix(folder.plots / "confusion_matrix.png", evaluation.confusion)
        plots.save_samples(folder.plots / "samples.png", arrays.test_images, arrays.test_labels, probabilities)
    return evaluation


@contextlib.contextmanager
def _survived(what: str, report: Callable[[str], None]) -> Iterator[None]:
    """Reports an error instead of losing a trained model for it."""
    try:
        yield
    except Exception as error:
        report(f"{what} ({type(error).__name__}: {one_line(str(error))}); the run goes on")


def library_versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    # Not by their metadata, in which TensorFlow may have the name of another package, such as tensorflow-cpu.
    modules = {name: importlib.import_module(name) for name in ("tensorflow", "keras", "numpy")}
    libraries = {name: str(getattr(module, "__version__", "unknown")) for name, module in modules.items()}
    return {"mnist_dist": mnist_dist.__version__, "python": platform.python_version(), **libraries}
