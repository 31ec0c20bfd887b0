"""The report's pictures: what they show, and that they can be read."""

import contextlib
import io
import itertools
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox
from PIL import Image

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.figures import accuracy, all_reduces, drawing, losses, scaling, step_times
from mnist_dist.benchmarks.report.figures.draw import draw_all
from mnist_dist.benchmarks.report.figures.drawing import (
    COLOURS,
    INK,
    ON_DARK,
    PAPER,
    Label,
    Picture,
    make_picture,
    new_figure,
    place_labels,
)
from mnist_dist.benchmarks.statistics.stats import Estimate
from tests.benchmarks.factory import SLOW_RANK, ablations, collectives, make_study, strong, train, whole_study
from tests.benchmarks.report.test_write import in_rounds

pytestmark = pytest.mark.slow

SINGLE, HOROVOD = train("single", 1), train("horovod", 2)


@pytest.fixture(scope="module")
def study() -> Analysis:
    return Analysis(whole_study())


@pytest.fixture(scope="module")
def drawn_study(study: Analysis) -> dict[str, tuple[Picture, Figure]]:
    """All pictures of the whole study and what they were made of, by name."""
    with keep_figures() as kept, warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = draw_all(study)
    return {picture.name: (picture, figure) for picture, figure in zip(pictures, kept, strict=True)}


@pytest.fixture
def drawn() -> Iterator[list[Figure]]:
    """The figures of a test, as they are drawn."""
    with keep_figures() as kept:
        yield kept


@contextlib.contextmanager
def keep_figures() -> Iterator[list[Figure]]:
    kept: list[Figure] = []

    def keep(figure: Figure, *texts: str, **occurs: bool) -> Picture:
        kept.append(figure)
        return make_picture(figure, *texts, **occurs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "make_picture", keep)
        yield kept


@pytest.fixture(scope="module")
def pictures(drawn_study: dict[str, tuple[Picture, Figure]]) -> dict[str, Picture]:
    return {name: picture for name, (picture, _) in drawn_study.items()}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


NAMES = (
    "throughput_accuracy",
    "time_to_accuracy",
    "throughput",
    "efficiency",
    "losses",
    "step_times",
    "prediction",
    "all_reduce",
)


def test_all_pictures(pictures: dict[str, Picture]) -> None:
    assert tuple(pictures) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files(pictures: dict[str, Picture], name: str) -> None:
    picture = pictures[name]
    image = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))
    assert image.std() > 5, "blank"
    assert image.shape[1] / image.shape[0] == pytest.approx(picture.width / picture.height, rel=0.01)
    assert len(picture.png) < 200_000 and len(picture.svg) < 150_000
    assert len(picture.alternative) > 40 and picture.title and picture.caption


@pytest.mark.parametrize("name", NAMES)
def test_svg_is_self_contained_and_follows_dark_mode(pictures: dict[str, Picture], name: str) -> None:
    svg = pictures[name].svg
    links = [
        value
        for element in ElementTree.fromstring(svg).iter()  # noqa: S314
        for key, value in element.attrib.items()
        if key.endswith("href")
    ]
    assert all(link.startswith("#") for link in links)
    assert "prefers-color-scheme:dark" in svg
    body = svg[svg.index("</style>") :]
    assert f"fill: {PAPER}" not in body and INK not in body, "a colour that does not follow the page"
    assert "#000000" not in body, "text that dark pages swallow"


@pytest.mark.parametrize("name", NAMES)
def test_text_stays_within_the_picture(drawn_study: dict[str, tuple[Picture, Figure]], name: str) -> None:
    figure = drawn_study[name][1]
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.02 and box.x1 <= width + 0.02 and box.y0 >= -0.02 and box.y1 <= height + 0.02


def contrast(one: str, other: str) -> float:
    """https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio"""

    def luminance(colour: str) -> float:
        values = np.array([int(colour[index : index + 2], 16) for index in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [INK, *COLOURS.values()])
def test_text_can_be_read_on_light_and_dark_pages(colour: str) -> None:
    assert contrast(colour, PAPER) >= 4.5
    assert contrast(ON_DARK[colour], ON_DARK[PAPER]) >= 4.5


def test_curves_are_drawn_at_their_values(study: Analysis, drawn: list[Figure]) -> None:
    scaling.draw_throughput(study.curves)
    weak = drawn[0].axes[0]
    curve = next(curve for curve in study.curves if (curve.scaling, curve.strategy) == ("weak", "multiworker"))
    expected = [(point.devices, point.throughput.value) for point in curve.points]
    lines = [np.transpose(np.asarray(line.get_data(), np.float64)) for line in weak.lines]
    assert any(len(line) == len(expected) and np.allclose(line, expected) for line in lines)
    single = curve.baseline.images_per_second
    assert single
    assert any(np.allclose(line, [(1, single.value), (8, 8 * single.value)]) for line in lines if len(line) == 2)


def test_no_interval_is_cut_off(study: Analysis, drawn: list[Figure]) -> None:
    """Of single runs on a noisy machine, they are wider than what devices differ by."""

    def widened(estimate: Estimate) -> Estimate:
        return replace(estimate, low=0.7 * estimate.value, high=1.3 * estimate.value)

    curves = [
        replace(
            curve,
            points=[
                replace(each, throughput=widened(each.throughput), efficiency=widened(each.efficiency))
                for each in curve.points
            ],
        )
        for curve in study.curves
    ]
    scaling.draw_throughput(curves)
    scaling.draw_efficiency(curves)
    for axes in (axes for figure in drawn for axes in figure.axes):
        ends = [end for bars in axes.collections for segment in bars.get_segments() for _, end in segment]
        low, high = axes.get_ylim()
        assert ends and low < min(ends) and max(ends) < high


def test_the_strategies_are_named_beside_their_lines(pictures: dict[str, Picture]) -> None:
    for name in ("throughput", "efficiency"):
        assert {"mirrored", "multiworker", "horovod"} <= set(texts(pictures[name].svg))
    assert {"single × 1, float32", "multiworker × 8"} <= set(texts(pictures["throughput_accuracy"].svg))  # noqa: RUF001


def test_captions_explain_what_is_drawn_alone() -> None:
    first = {("single", 1): 0.010, ("mirrored", 2): 0.0105}
    one = scaling.draw_throughput(Analysis(in_rounds(first)).curves)
    assert one and one.caption == "Dashed: ideal, N times one device. Bars: 95 % intervals."
    gone_on = Analysis(in_rounds(first, {("single", 1): 0.015, ("horovod", 4): 0.0157}))
    two, efficiency = scaling.draw_throughput(gone_on.curves), scaling.draw_efficiency(gone_on.curves)
    apart = "Not all were measured at the same time: compare their efficiency, not their images/s."
    assert two and two.caption.endswith(f" Dotted lines lead to names. {apart}")
    assert efficiency and apart not in efficiency.caption


def test_what_cannot_be_told_apart_is_left_out_and_counted() -> None:
    """A study of many settings: the fastest are drawn, with their names inside the picture, and the caption says so."""
    settings = [{"runtime.precision": "float32", "optimizer.learning_rate": 0.001 * n} for n in range(1, 20)]
    cases = [train(name, n, settings=each) for each in settings for name, n in (("single", 1), ("horovod", 2))]
    many = Analysis(make_study(cases, repeats=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [accuracy.draw_accuracy(many.main_cases), scaling.draw_throughput(many.curves)]
    captions = [picture.caption for picture in pictures if picture]
    assert [caption.rpartition(" Only the ")[2] for caption in captions] == [
        "18 fastest cases of 38.",
        "12 fastest curves of weak scaling of 19.",
    ]
    named = [text for text in texts(pictures[1].svg) if text.startswith("horovod")] if pictures[1] else []
    assert len(set(named)) == 12 and all("learning_rate=0.0" in name for name in named)


def test_losses_end_where_they_add_up_to(study: Analysis, drawn: list[Figure]) -> None:
    losses.draw_losses(study.attributions)
    (axes,) = [each for each in drawn[0].axes if each.get_title(loc="left").startswith("horovod")]
    *parts, total = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert len(parts) >= 4
    assert sum(bar.get_width() for bar in parts) == pytest.approx(total.get_width())
    for one, other in itertools.pairwise(parts):
        assert other.get_x() == pytest.approx(one.get_x() + one.get_width())


def test_the_slow_rank_shows(drawn: list[Figure]) -> None:
    quadruple = train("horovod", 4)
    step_times.draw_step_times(Analysis(make_study([SINGLE, quadruple, *ablations(quadruple)], 3)).summaries)
    free = next(line for line in drawn[0].axes[0].lines if line.get_label() == "without all-reduce")
    medians = np.asarray(free.get_ydata(), np.float64)
    assert medians.argmax() == SLOW_RANK
    assert medians[SLOW_RANK] > 1.04 * np.delete(medians, SLOW_RANK).max()


def test_many_ranks_become_a_band(drawn: list[Figure]) -> None:
    many = train("horovod", 40, cores_per_device=None)
    step_times.draw_step_times(Analysis(make_study([many], 1)).summaries)
    (axes,) = drawn[0].axes
    assert len(axes.collections) == 1 and len(axes.lines) == 1
    assert len(axes.lines[0].get_xdata()) == 40  # type: ignore[arg-type]


def test_bandwidths_are_drawn_in_gigabytes(drawn: list[Figure]) -> None:
    measured = Analysis(make_study([collectives("horovod", 4)], 3)).all_reduces
    all_reduces.draw_all_reduces(measured)
    line = drawn[0].axes[1].lines[0]
    assert list(line.get_ydata()) == pytest.approx(  # type: ignore[arg-type]
        [each.bus_bandwidth / 1e9 for each in measured if not each.is_latency]
    )


@pytest.mark.parametrize("records", [make_study([SINGLE], 1), make_study([SINGLE, strong("mirrored", 2)], 2)])
def test_pictures_without_data_are_left_out(records: list[Record]) -> None:
    names = {picture.name for picture in draw_all(Analysis(records))}
    assert names == {"throughput_accuracy", "time_to_accuracy"}


def test_rates_are_drawn_where_nothing_trains_to_an_accuracy(drawn: list[Figure]) -> None:
    cases = [train("single", 1, global_batch_size=size, measure_seconds=5.0) for size in (200, 800, 400)]
    (picture,) = [each for each in draw_all(Analysis(make_study(cases, 3))) if each.name == "rates"]
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == ["200 images", "400 images", "800 images"]
    assert f"Throughput of 3 cases. The fastest is {names[0]} with " in picture.alternative


def test_one_run_without_intervals_is_drawn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_all(Analysis(make_study([SINGLE, *ablations(SINGLE), HOROVOD, *ablations(HOROVOD)], 1)))
    assert {"throughput", "efficiency", "losses", "step_times"} <= {picture.name for picture in drawn}


def test_an_interval_that_says_little_crosses_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows lowest and highest run instead."""
    levels = []
    draw = drawing.draw_point

    def draw_and_note(*arguments: Any) -> None:
        levels.append(arguments[-1])
        draw(*arguments)

    monkeypatch.setattr(drawing, "draw_point", draw_and_note)
    shown = []
    for case, repeats in zip(Analysis(make_study([SINGLE, train("mirrored", 1)], 2)).main_cases, (2, 4), strict=True):
        assert case.summary.images_per_second
        rate = replace(case.summary.images_per_second, low=1.0, repeats=repeats)
        shown.append(replace(case, summary=replace(case.summary, images_per_second=rate)))
    assert accuracy.draw_accuracy(shown)
    assert [level is None for level in levels] == [True, False]


def test_targets_that_no_seed_reaches_are_named() -> None:
    """The factory's runs reach 99.3 % late."""
    record = make_study([SINGLE], 1)[0]
    measured = dict(record.measurements or {})
    measured["evaluations"] = [each for each in measured["evaluations"] if each["accuracy"] < 0.99]
    assert measured["evaluations"][-1]["accuracy"] > 0.98
    short = record.model_copy(update={"measurements": measured})
    pictures = {picture.name: picture for picture in draw_all(Analysis([short]))}
    assert "99, 99.3 never" in texts(pictures["time_to_accuracy"].svg)


def test_no_accuracy_above_all_is_shown() -> None:
    record = make_study([SINGLE], 1)[0]
    perfect = record.model_copy(update={"measurements": {**(record.measurements or {}), "test_accuracy": 0.9999}})
    pictures = {picture.name: picture for picture in draw_all(Analysis([perfect]))}
    ticks = [float(text) for text in texts(pictures["throughput_accuracy"].svg) if re.fullmatch(r"[\d.]+", text)]
    assert len(ticks) > 1 and max(ticks) <= 100


def test_settings_are_no_formulas() -> None:
    cases = [
        train("single", 1, settings={"runtime.precision": "float32", "data.path": path})
        for path in ("$HOME/$x^{", "<svg>&\x07")
    ]
    pictures = {picture.name: picture for picture in draw_all(Analysis(make_study(cases, 2)))}
    assert any("$HOME/$x^{" in text for text in texts(pictures["time_to_accuracy"].svg))
    assert any("<svg>&?" in text for text in texts(pictures["time_to_accuracy"].svg))


def test_equal_studies_give_equal_pictures(pictures: dict[str, Picture], study: Analysis) -> None:
    again = scaling.draw_efficiency(study.curves)
    assert again and again.svg == pictures["efficiency"].svg


@pytest.mark.parametrize("points", [[(1, 1), (1, 1.01), (1, 1.02)], [(1, 1), (1.01, 1), (5, 1), (5.1, 1.01)]])
def test_labels_do_not_cover_each_other(points: Sequence[tuple[float, float]]) -> None:
    figure, (axes,) = new_figure()
    axes.plot(*zip(*points, strict=True), "o")
    axes.set_xlim(0, 6)
    axes.set_ylim(0, 2)
    place_labels(axes, [Label(x, y, f"strategy {index}", INK) for index, (x, y) in enumerate(points)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_labels_keep_clear_of_bars() -> None:
    figure, (axes,) = new_figure()
    axes.set_xlim(0, 6)
    axes.set_ylim(0, 2)
    bars = [((0.5, 1.0), (1.5, 1.0)), ((1.0, 1.02), (4.0, 1.02)), ((2.7, 0.8), (2.7, 1.5))]
    place_labels(axes, [Label(1, 1, "a strategy", INK), Label(2.5, 1.02, "another", INK)], bars)
    figure.draw_without_rendering()
    drawn = [Bbox(axes.transData.transform(ends)) for ends in bars]
    assert not any(text.get_window_extent().overlaps(bar) for text in axes.texts for bar in drawn)


def test_a_label_stands_to_the_left_of_a_point_that_has_another_to_its_right() -> None:
    figure, (axes,) = new_figure()
    axes.set_xlim(0, 6)
    axes.set_ylim(0, 2)
    place_labels(
        axes, [Label(x, y, "a strategy", INK) for x, y in ((3, 1), (3.3, 1), (3, 1.5), (0.1, 0.5), (0.4, 0.5))]
    )
    figure.draw_without_rendering()
    points = axes.transData.transform([text.xy for text in axes.texts])
    stands_left = [text.get_window_extent().x1 < x for text, (x, _) in zip(axes.texts, points, strict=True)]
    assert stands_left == [True, False, False, False, False], "to the left where there is room, and only if it must be"
