"""The parts of the report below the main table, as text and tables that Markdown and HTML share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from mnist_dist.benchmarks.analysis.attribution import Attribution, PartName
from mnist_dist.benchmarks.analysis.prediction import POWERS_OF_TWO, Prediction
from mnist_dist.benchmarks.records.kinds import KINDS, kind
from mnist_dist.benchmarks.report.explanation import explain
from mnist_dist.benchmarks.report.findings import Findings
from mnist_dist.benchmarks.report.labels import (
    MISSING,
    label_count,
    label_number,
    label_point,
    label_range,
    label_three_digits,
)
from mnist_dist.benchmarks.report.table import TextTable
from mnist_dist.benchmarks.statistics.stats import Estimate


@dataclass(frozen=True)
class Section:
    """A part of the report; `on_terminal`: the terminal shows its tables below the main one."""

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[TextTable] = ()
    pictures: Sequence[str] = ()
    on_terminal: bool = False


def build_sections(findings: Findings) -> list[Section]:
    """Returns those parts for which the study has data."""
    parts: list[Iterable[Section]] = [
        _scaling(findings),
        [prediction_section(findings.predictions)] if findings.predictions else [],
        *(_of_kind(name, findings) for name in KINDS),
    ]
    return [section for part in parts for section in part]


def _of_kind(name: str, findings: Findings) -> Iterable[Section]:
    return kind(name).sections([each for each in findings.summaries if each.case.kind == name], findings)


def _scaling(findings: Findings) -> Iterator[Section]:
    if findings.curves:
        yield Section("scaling", "Scaling", pictures=("throughput", "efficiency"))
    if findings.attributions:
        yield Section(
            "losses",
            "Where the time goes",
            points=_explanations(findings.attributions),
            tables=[_loss_table(findings.attributions)],
            pictures=("losses", "step_times"),
        )


def _explanations(attributions: Sequence[Attribution]) -> list[str]:
    """A paragraph for each point whose causes were told apart, and one for all others."""
    explained = [each for each in attributions if len(each.parts) > 1]
    others = [f"{_point_name(each)} ({100 * each.loss.value:.0f} %)" for each in attributions if len(each.parts) <= 1]
    rest = f"Lost to causes that were not told apart, for want of steady ablation runs: {'; '.join(others)}."
    return [*map(explain, explained), *([rest] if others else [])]


def _point_name(each: Attribution) -> str:
    return f"{label_point(each.case)}, {each.scaling}"


def _loss_table(attributions: Sequence[Attribution]) -> TextTable:
    present = {part.name for each in attributions for part in each.parts}
    names = [name for name in get_args(PartName) if name in present]
    rows = []
    for each in attributions:
        parts = {part.name: part for part in each.parts}
        times = (label_three_digits(1000 * estimate.value) for estimate in (each.ideal_step_seconds, each.step_seconds))
        shares = (_share(parts[name].share) if name in parts else MISSING for name in names)
        rows.append((_point_name(each), *times, _share(each.loss), *shares))
    heads = ("case", "ideal step, ms", "step, ms", "lost, % of ideal throughput", *(f"{name}, %" for name in names))
    caption = "Losses at each number of devices: share of the ideal throughput, and 95 % interval"
    return TextTable(caption, heads, rows, (False, *[True] * (len(heads) - 1)))


def _share(estimate: Estimate) -> str:
    value, low, high = (_percent(bound) for bound in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})" if math.isfinite(estimate.low) and math.isfinite(estimate.high) else value


def prediction_section(predictions: Sequence[Prediction]) -> Section:
    predicted = [each for each in predictions if each.models]
    return Section(
        "prediction",
        "Prediction",
        points=[*map(_describe_prediction, predicted), *_describe_refused(predictions)],
        tables=([_prediction_overview(predicted)] if predicted else []) + [_forecast_table(each) for each in predicted],
        pictures=("prediction",),
    )


def _describe_prediction(each: Prediction) -> str:
    refused = [f"Not fitted: {name} ({reason})." for name, reason in each.refused.items()]
    return " ".join([f"{_name(each)}: trusted is {each.models[0].name}; {each.reason}.", *refused, *each.notes])


def _describe_refused(predictions: Iterable[Prediction]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for each in predictions:
        if not each.models:
            by_reason.setdefault("; ".join(each.refused.values()), []).append(_name(each))
    for reason, names in by_reason.items():
        yield f"Not predicted: {'; '.join(names)}: {reason}."


def _prediction_overview(predictions: Sequence[Prediction]) -> TextTable:
    rows = []
    for each in predictions:
        model = each.models[0]
        low, sensible, high = model.worthwhile_devices
        beyond = [forecast for forecast in model.forecasts if forecast.devices > each.held_out_devices][:2]
        error = "not tested" if model.held_out_error is None else f"{100 * model.held_out_error:+.1f} %"
        forecasts = [f"{label_count(next_.images_per_second)} on {next_.devices:,}" for next_ in beyond]
        tested = f"{error} at {each.held_out_devices}"
        two = [*forecasts, MISSING, MISSING][:2]
        rows.append((_name(each), model.name, tested, *two, f"{_count(sensible)} ({_count(low)} to {_count(high)})"))
    further = ("predicted images/s, total", "and further", "largest sensible number of devices")
    heads = ("curve", "model", "error at the held-out devices", *further)
    return TextTable("Predictions", heads, rows, (False, False, True, True, True, True))


def _forecast_table(each: Prediction) -> TextTable:
    """The trusted model with its intervals, and for comparison what the others say."""
    model, *others = each.models
    rows = [
        (
            f"{forecast.devices:,}",
            label_count(each.measured[forecast.devices]) if forecast.devices in each.measured else MISSING,
            label_count(forecast.images_per_second),
            label_range(forecast.low, forecast.high, label_count),
            _percent(forecast.efficiency),
            label_range(forecast.efficiency_low, forecast.efficiency_high, _percent),
            *(label_count(other.images_per_second) for other in of_others),
        )
        for forecast, *of_others in zip(*(fitted.forecasts for fitted in each.models), strict=True)
    ]
    heads: tuple[str, ...] = ("devices", "measured images/s, total", "predicted images/s, total", "95 % interval")
    caption = f"{_name(each)}, by {model.name}, at each number of devices"
    heads += ("efficiency, %", "95 % interval", *(f"by {other.name}" for other in others))
    return TextTable(caption, heads, rows, [True] * len(heads), folded=True)


def _name(each: Prediction) -> str:
    images = f"{label_number(each.images)} images {'per device' if each.scaling == 'weak' else 'in total'}"
    return f"{each.strategy}, {each.scaling} scaling, {images}"


def _count(devices: int) -> str:
    return f"{devices:,}" + (" or more" if devices == POWERS_OF_TWO[-1] else "")


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"  # Adding zero takes the sign from -0.0.
