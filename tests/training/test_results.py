import dataclasses
import importlib.metadata
import platform
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import mnist_dist
from mnist_dist.config import load_config
from mnist_dist.data.dataset import Arrays
from mnist_dist.inference.evaluate import predict
from mnist_dist.network.model import build_model, load_model
from mnist_dist.training.results import library_versions, save_deliverables
from mnist_dist.training.workdir import Workdir, record_config
from mnist_dist.training.writers import JsonLines

PNG = b"\x89PNG\r\n\x1a\n"


def test_versions_are_those_installed(tf: ModuleType) -> None:
    versions = library_versions()
    assert versions.pop("mnist_dist") == mnist_dist.__version__
    assert versions.pop("python") == platform.python_version()
    assert versions == {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}


def test_a_tensorflow_from_another_package_costs_no_result(
    tf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as tensorflow-cpu: the modules are there, but no metadata of their name."""
    with monkeypatch.context() as patch:
        patch.setattr("sys.path", [str(tmp_path)])
        versions = library_versions()
    assert versions == library_versions() and versions["tensorflow"] == tf.__version__


@pytest.mark.slow
def test_the_saved_model_is_the_one_that_was_tested(
    tf: ModuleType, tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("default", {"model.filters": [3, 4], "model.dense_units": 6, "model.batch_norm": True})
    few = dataclasses.replace(
        arrays,
        train_images=arrays.train_images[:500],
        train_labels=arrays.train_labels[:500],
        test_images=arrays.test_images[:50],
        test_labels=arrays.test_labels[:50],
    )
    trained = build_model(config.model, precision="mixed_bfloat16", seed=4)
    trained(arrays.train_images[:100, ..., np.newaxis], training=True)  # Moves the statistics of the normalisation.
    folder = Workdir(tmp_path)
    folder.plots.write_text("no folder")
    record_config(folder, config)
    row = {"kind": "train", "step": 1, "epoch": 0.1, "loss": 2.3, "accuracy": 0.1, "learning_rate": 0.01}
    JsonLines(folder.metrics_file, 0).write(row)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy", None)  # Its import fails.
        save_deliverables(config, few, trained, folder, said.append)
    assert load_model(tmp_path), "what is broken in the end cost the run its model"
    uncalibrated = "warning    probabilities are not calibrated (ModuleNotFoundError: "
    assert said.pop(0).startswith(uncalibrated)
    assert said == [
        f"plots      not drawn (UserError: workdir: cannot write '{folder.plots / 'curves.png'}': a file or a broken "
        "link is in the way; free some space or name another folder with --workdir.); the run goes on"
    ]
    folder.plots.unlink()
    evaluation = save_deliverables(config, few, trained, folder, said.append)
    assert len(said) == 1
    saved = load_model(tmp_path)
    probabilities = predict(saved, few.test_images)
    assert evaluation.accuracy == np.mean(probabilities.argmax(axis=1) == few.test_labels)
    assert evaluation.support.sum() == 50
    assert {layer.compute_dtype for layer in saved.layers} == {"float32"}
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert all(np.array_equal(*pair) for pair in zip(saved.get_weights(), trained.get_weights(), strict=True))
    plots = sorted(folder.plots.iterdir())
    assert [plot.name for plot in plots] == ["confusion_matrix.png", "curves.png", "samples.png"]
    assert all(plot.read_bytes().startswith(PNG) for plot in plots)
