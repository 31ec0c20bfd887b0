"""Every picture is a whole PNG, drawn without pyplot or warnings, and changes with what it shows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_dist.errors import UserError
from mnist_dist.inference import plots

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error")]


def train_entry(step: int, **changes: Any) -> dict[str, Any]:
    entry = {"kind": "train", "step": step, "epoch": step / 100, "loss": 2 / step, "accuracy": 1 - 0.5 / step}
    return {**entry, "learning_rate": 1e-3, "images_per_second": 5000.0, **changes}


def evaluation_entry(step: int, **changes: Any) -> dict[str, Any]:
    entry = {"kind": "evaluate", "step": step, "epoch": step / 100, "split": "test", "loss": 0.1, "accuracy": 0.97}
    return {**entry, **changes}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def colourfulness(path: Path) -> np.ndarray:
    """Distance from grey, 0 to 255, by pixel."""
    picture = pixels(path)
    return picture.max(axis=-1) - picture.min(axis=-1)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([], id="nothing logged"),
        pytest.param([train_entry(1)], id="one point, no evaluation"),
        pytest.param([evaluation_entry(1)], id="only one evaluation"),
        pytest.param([train_entry(step) for step in range(1, 400)], id="many points"),
        pytest.param([train_entry(1, accuracy=1.0), train_entry(2, accuracy=1.0)], id="no errors at all"),
        pytest.param([train_entry(1), train_entry(2, loss=float("nan"))], id="diverged"),
        pytest.param([train_entry(1), train_entry(2, loss=1e-9)], id="many decades"),
        pytest.param([train_entry(1), evaluation_entry(1, split="holdout"), evaluation_entry(1)], id="both splits"),
    ],
)
def test_curves_of_any_history(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    plots.save_curves(tmp_path / "curves.png", history)
    assert pixels(tmp_path / "curves.png").std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def curves(folder: Path, history: list[dict[str, Any]]) -> bytes:
    path = folder / "curves.png"
    plots.save_curves(path, history)
    return path.read_bytes()


def test_curves_take_the_later_of_repeated_steps_and_ignore_other_kinds(tmp_path: Path) -> None:
    once = [train_entry(1), train_entry(2), train_entry(3), evaluation_entry(3)]
    resumed = [train_entry(1), train_entry(2, loss=5.0), train_entry(3), {"kind": "resume", "step": 1}, *once[1:]]
    assert curves(tmp_path, resumed) == curves(tmp_path, once)


@pytest.mark.parametrize(("last", "drawn"), [(104, False), (124, False), (125, True), (150, True)])
def test_a_last_entry_of_few_steps_is_not_drawn(tmp_path: Path, last: int, drawn: bool) -> None:
    usual, noisy = (
        [train_entry(50), train_entry(100), train_entry(last, loss=loss, accuracy=0.5)] for loss in (0.01, 3.0)
    )
    assert (curves(tmp_path, usual) != curves(tmp_path, noisy)) == drawn


def test_curves_tell_the_splits_apart(tmp_path: Path) -> None:
    test, holdout = ([train_entry(1), evaluation_entry(1, split=split)] for split in ("test", "holdout"))
    assert curves(tmp_path, test) != curves(tmp_path, holdout)


@pytest.mark.parametrize(
    ("train", "evaluations", "title"),
    [
        ([], {}, "Nothing was logged"),
        ([train_entry(50)], {}, "Training for 0.5 epochs"),
        ([train_entry(50)], {"holdout": [evaluation_entry(100)]}, "Accuracy 97.00 % on the holdout images after 1 epo"),
        (
            [],
            {"holdout": [evaluation_entry(1)], "test": [evaluation_entry(1), evaluation_entry(250, accuracy=0.99126)]},
            "Accuracy 99.13 % on the test images after 2.5 epochs",
        ),
    ],
)
def test_title_of_the_curves(train: list[Any], evaluations: dict[str, list[Any]], title: str) -> None:
    assert plots._curves_title(train, {"test": [], "holdout": [], **evaluations}).startswith(title)


@pytest.mark.parametrize(
    ("values", "points", "averages"),
    [
        ([1, 2, 3], 1, [1, 2, 3]),
        ([8, 4, 3, 2, 10, 6], 3, [8, 4, 3, 5, 6, 6]),
        ([7], 5, [7]),
        ([], 3, []),
    ],
)
def test_moving_average(values: list[float], points: int, averages: list[float]) -> None:
    assert plots._moving_average(values, points) == averages


def test_confusion_matrix_colours_only_mistakes(tmp_path: Path) -> None:
    right = np.diag(np.full(10, 1000))
    plots.save_confusion_matrix(tmp_path / "right.png", right)
    assert colourfulness(tmp_path / "right.png").max() == 0

    wrong = right.copy()
    wrong[9, 0] = 1  # Beside 1000 correct ones it must still stand out; row 9 is at the bottom, column 0 at the left.
    plots.save_confusion_matrix(tmp_path / "wrong.png", wrong)
    matrix = colourfulness(tmp_path / "wrong.png")[:, :1000]  # Without the colour bar.
    y, x = np.nonzero(matrix > 50)
    assert len(y) > 2000
    assert np.median(y) > 0.8 * len(matrix)
    assert np.median(x) < 200
    cell = pixels(tmp_path / "wrong.png")[y.min() + 5 : y.max() - 5, x.min() + 5 : x.max() - 5]
    assert (cell > 240).all(axis=-1).any()  # Its count, in white.


@pytest.mark.parametrize("count", [0, 1, 99_999])
def test_confusion_matrix_of_any_size(tmp_path: Path, count: int) -> None:
    confusion = np.full((10, 10), count)
    confusion[0, 0] = 5
    plots.save_confusion_matrix(tmp_path / "matrix.png", confusion)
    assert pixels(tmp_path / "matrix.png").std() > 10


@pytest.mark.parametrize("wrong", [0, 1, 11, 60])
def test_samples_show_mistakes_in_orange(tmp_path: Path, wrong: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (100, 28, 28)).astype(np.uint8)
    labels = generator.permutation(np.arange(100) % 10).astype(np.uint8)
    probabilities = np.full((100, 10), 0.05)
    predicted = np.where(np.arange(100) < 100 - wrong, labels, (labels + 1) % 10)
    probabilities[np.arange(100), predicted] = 0.55
    plots.save_samples(tmp_path / "samples.png", images, labels, probabilities)
    picture = pixels(tmp_path / "samples.png")
    orange = (picture[..., 0] > 190) & (picture[..., 1] < 120) & (picture[..., 2] < 60)
    assert orange.any() == (wrong > 0)
    grey_rows = (np.ptp(picture, axis=-1) == 0) & (picture[..., 0] > 100) & (picture[..., 0] < 150)
    assert grey_rows.any()  # The images themselves.


@pytest.mark.parametrize(
    ("shown", "wrong", "title"),
    [
        (0, 0, "No mistakes in 10,000 images"),
        (1, 1, "The only mistake in 10,000 images"),
        (7, 7, "All 7 mistakes in 10,000 images"),
        (20, 1234, "The 20 most confident of 1,234 mistakes in 10,000 images"),
    ],
)
def test_title_of_the_mistakes(shown: int, wrong: int, title: str) -> None:
    assert plots._mistakes_title(shown, wrong, 10_000) == title


def test_most_confident_mistakes_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[plots.Sample]] = []
    draw = plots._draw_samples

    def draw_and_note(area: Any, samples: list[plots.Sample]) -> None:
        drawn.append(samples)
        draw(area, samples)

    monkeypatch.setattr(plots, "_draw_samples", draw_and_note)
    labels = np.array([0, 0, 1, 1])
    probabilities = np.zeros((4, 10))
    probabilities[[0, 1, 2, 3], [0, 5, 6, 7]] = 0.9, 0.6, 0.8, 0.7
    plots.save_samples(tmp_path / "samples.png", np.zeros((4, 28, 28), np.uint8), labels, probabilities)
    first, mistakes = drawn
    assert [(sample.true, sample.predicted) for sample in first] == [(0, 0), (1, 6)]
    assert [(sample.true, sample.predicted, sample.confidence) for sample in mistakes] == [
        (1, 6, 0.8),
        (1, 7, 0.7),
        (0, 5, 0.6),
    ]


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write") as error:
        plots.save_curves(tmp_path / "file" / "curves.png", [])
    assert "\n" not in str(error.value)


def test_pyplot_stays_out(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mnist_dist.inference import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.save_curves(Path(sys.argv[1]), []); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "curves.png")], check=True)
