"""The notebook runs from top to bottom, and what it shows on a web page came from such a run."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import mnist_dist

nbformat = pytest.importorskip("nbformat", reason="the extra `dev` installs it")
REPOSITORY = Path(mnist_dist.__file__).parent.parent
NOTEBOOK = REPOSITORY / "notebooks" / "mnist_cnn.ipynb"


def outputs(notebook: Any) -> dict[str, list[Any]]:
    """Returns the outputs of every code cell by the cell's name."""
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(notebook: Any, cell: str) -> str:
    return "".join(output.text for output in outputs(notebook)[cell] if output.output_type == "stream")


def assert_tells_the_story(notebook: Any) -> None:
    shown = [(cell, output) for cell, of_cell in outputs(notebook).items() for output in of_cell]
    assert not [each for each in shown if each[1].output_type == "error" or each[1].get("name") == "stderr"]
    pictures = [cell for cell, output in shown if "image/png" in output.get("data", {})]
    assert pictures == ["look", "balance", "augment", "curves", "confusion", "samples", "reading"]
    assert "225,034" in str(outputs(notebook)["summary"]), "the number of weights"

    accuracy = re.search(r"^test accuracy (0\.\d{4}) after 2 epochs$", printed(notebook, "result"), re.MULTILINE)
    assert accuracy and float(accuracy[1]) > 0.98
    assert printed(notebook, "evaluation").startswith(f"Accuracy {accuracy[1]} (")
    variants = re.findall(r"^(.+?) +(0\.\d{4}) +\d\.\d{4} +[\d,]+$", printed(notebook, "variants"), re.MULTILINE)
    assert [name for name, _ in variants] == ["defaults (adam)", "dropout", "batch normalisation", "sgd", "rmsprop"]
    assert all(float(share) > 0.95 for _, share in variants)
    read = re.findall(r"(\w+)\.png is read as (\d)", printed(notebook, "reading"))
    assert read == [("two", "2"), ("four", "4"), ("seven", "7")]
    exports = re.findall(r"/export/(\S+): \d+ kB, test accuracy (0\.\d{4})", printed(notebook, "exporting"))
    assert [name for name, _ in exports] == ["model.tflite", "model-int8.tflite"]
    assert all(float(share) == pytest.approx(float(accuracy[1]), abs=0.003) for _, share in exports)


@pytest.mark.thorough
@pytest.mark.slow
def test_it_runs_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient
    from traitlets.config import Config

    kernel = tmp_path / "jupyter" / "kernels" / "this-interpreter"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "The interpreter of the tests",
                "language": "python",
            }
        )
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    folder = tmp_path / "reader"
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    # Through files: of the ports that it would choose, another program can take one before the kernel listens.
    through_files = Config({"KernelManager": {"transport": "ipc", "connection_file": str(tmp_path / "kernel.json")}})
    options = {"timeout": 300, "startup_timeout": 300, "config": through_files, "resources": resources}
    NotebookClient(notebook, kernel_name="this-interpreter", **options).execute()
    assert_tells_the_story(notebook)
    assert [path.name for path in folder.iterdir()] == ["runs"], "it writes into one folder"


def test_what_a_web_page_shows() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert_tells_the_story(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "it was not run from top to bottom"


def test_it_is_small_and_tells_nothing_of_the_machine_that_ran_it() -> None:
    assert NOTEBOOK.stat().st_size < 700_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}, "a version of Python changes with every run"
    assert not [cell.id for cell in notebook.cells if cell.metadata]
    text = "".join(output.get("text", "") for of_cell in outputs(notebook).values() for output in of_cell)
    assert not re.findall(r"(?<![\w.])/\w+/\S*|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", text), "a path or a date"


@pytest.mark.parametrize("content", [[], ["mnist_dist/__init__.py"]])
def test_without_the_package_it_says_what_to_set(
    content: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first cell in a place without the package: neither installed, nor a checkout above, nor a source named."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (source,) = (cell.source for cell in notebook.cells if cell.id == "install")
    for name in content:  # A folder of that name without a setup.cfg is no checkout.
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.delenv("MNIST_DIST_SOURCE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"set MNIST_DIST_SOURCE.*git URL or an archive"):
        exec(re.sub(r"^( +)%pip.*", r"\1raise AssertionError", source, flags=re.MULTILINE), {})  # noqa: S102
