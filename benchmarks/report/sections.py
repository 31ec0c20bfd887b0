"""The parts of the report below the main table, as text and tables that Markdown and the page share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from mnist_dist.benchmarks.analysis.attribution import Attribution, PartName
from mnist_dist.benchmarks.analysis.prediction.predict import FittedModel, Forecast, Prediction
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.labels import (
    MISSING,
    label_count,
    label_number,
    label_part,
    label_percent,
    label_point,
    label_range,
    label_three_digits,
)
from mnist_dist.benchmarks.records.kinds import KINDS, kind
from mnist_dist.benchmarks.report.explanation import explain
from mnist_dist.benchmarks.report.table import Cell, Column, Table, estimate_cell, make_table
from mnist_dist.benchmarks.statistics.grouping import group_by


@dataclass(frozen=True)
class Section:
    """One part."""

    name: str
    title: str
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()  # By name.
    on_terminal: bool = False  # Whether the terminal shows its tables below the main one.


def build_sections(analysis: Analysis) -> Iterator[Section]:
    """Yields those parts for which the study has data."""
    if analysis.curves:
        yield Section("scaling", "Scaling", pictures=("throughput", "efficiency"))
    if analysis.attributions:
        yield Section(
            "losses",
            "Where the time goes",
            points=_explanations(analysis.attributions),
            tables=[_loss_table(analysis.attributions)],
            pictures=("losses", "step_times"),
        )
    if analysis.predictions:
        yield prediction_section(analysis.predictions, len(analysis.curves))
    for name in KINDS:
        yield from kind(name).sections([each for each in analysis.summaries if each.case.kind == name], analysis)


def _explanations(attributions: Sequence[Attribution]) -> list[str]:
    """A paragraph for each point whose causes were told apart, and one for all others."""
    explained = [each for each in attributions if len(each.parts) > 1]
    others = [f"{_point_name(each)} ({100 * each.loss.value:.0f} %)" for each in attributions if len(each.parts) <= 1]
    rest = f"Losses without known causes, because steady ablation runs are missing: {'; '.join(others)}."
    return [*map(explain, explained), *([rest] if others else [])]


def _point_name(each: Attribution) -> str:
    return f"{label_point(each.case)}, {each.scaling}"


def _loss_table(attributions: Sequence[Attribution]) -> Table:
    columns: list[Column[Attribution]] = [
        Column("case", _point_name, numeric=False),
        Column("ideal step", lambda each: label_three_digits(1000 * each.ideal_step_seconds.value), "ms"),
        Column("step", lambda each: label_three_digits(1000 * each.step_seconds.value), "ms"),
        Column("lost", lambda each: estimate_cell(each.loss, label_percent), "% of ideal throughput"),
        *map(_part_column, get_args(PartName)),
    ]
    caption = "Losses at each number of devices: share of the ideal throughput, and 95 % interval"
    return make_table(columns, attributions, caption)


def _part_column(name: PartName) -> Column[Attribution]:
    def cell(each: Attribution) -> Cell:
        share = next((part.share for part in each.parts if part.name == name), None)
        return estimate_cell(share, label_percent)

    return Column(label_part(name), cell, "%")


def prediction_section(predictions: Sequence[Prediction], curves: int = 0) -> Section:
    """Returns what is foretold, of the fastest of so many curves."""
    folded = [f"Of {curves:,} curves, the {len(predictions)} fastest are predicted."] * (len(predictions) < curves)
    predicted = [each for each in predictions if each.models]
    return Section(
        "prediction",
        "Prediction",
        points=[*map(_describe_prediction, predicted), *_describe_refused(predictions), *folded],
        tables=([_prediction_overview(predicted)] if predicted else []) + [_forecast_table(each) for each in predicted],
        pictures=("prediction",),
    )


def _describe_prediction(each: Prediction) -> str:
    refused = [f"Not fitted: {name} ({reason})." for name, reason in each.refused.items()]
    return " ".join([f"{_curve(each)}: {each.models[0].name} is trusted; {each.reason}.", *refused, *each.notes])


def _describe_refused(predictions: Iterable[Prediction]) -> Iterator[str]:
    refused = [each for each in predictions if not each.models]
    for reason, of_reason in group_by(refused, lambda each: "; ".join(each.refused.values())).items():
        yield f"Not predicted: {'; '.join(map(_curve, of_reason))}: {reason}."


def _prediction_overview(predictions: Sequence[Prediction]) -> Table:
    columns: list[Column[Prediction]] = [
        Column("curve", _curve, numeric=False),
        Column("model", lambda each: each.models[0].name, numeric=False),
        Column("error", _held_out_error, "at the held-out devices"),
        Column("predicted images/s", lambda each: _beyond(each, 0), "total"),
        Column("and further", lambda each: _beyond(each, 1), "total"),
        Column("devices", _sensible_devices, "largest sensible number"),
    ]
    return make_table(columns, predictions, "Predictions")


def _held_out_error(each: Prediction) -> str:
    error = each.models[0].held_out_error
    return f"{'not tested' if error is None else f'{100 * error:+.1f} %'} at {each.held_out_devices}"


def _beyond(each: Prediction, index: int) -> str:
    beyond = [forecast for forecast in each.models[0].forecasts if forecast.devices > each.held_out_devices]
    shown = [f"{label_count(forecast.images_per_second)} on {forecast.devices:,}" for forecast in beyond]
    return [*shown, MISSING, MISSING][index]


def _sensible_devices(each: Prediction) -> Cell:
    low, sensible, high = (
        f"{devices:,}" + (" or more" if 2 * devices > each.models[0].forecasts[-1].devices else "")
        for devices in each.models[0].worthwhile_devices
    )
    return Cell(sensible, f"{low} to {high}")


def _forecast_table(each: Prediction) -> Table:
    """The trusted model with its intervals, and for comparison what the others say."""
    model, *others = each.models
    measured = {devices: label_count(rate) for devices, rate in each.measured.items()}
    columns: list[Column[Forecast]] = [
        Column("devices", lambda at: f"{at.devices:,}"),
        Column("measured images/s", lambda at: measured.get(at.devices, MISSING), "total"),
        Column("predicted images/s", lambda at: label_count(at.images_per_second), "total"),
        Column("95 % interval", lambda at: label_range(at.low, at.high, label_count)),
        Column("efficiency", lambda at: label_percent(at.efficiency), "%"),
        Column("95 % interval", lambda at: label_range(at.efficiency_low, at.efficiency_high, label_percent), "%"),
        *map(_model_column, others),
    ]
    caption = f"{_curve(each)}, by {model.name}, at each number of devices"
    return make_table(columns, model.forecasts, caption, folded=True)


def _model_column(model: FittedModel) -> Column[Forecast]:
    rates = {forecast.devices: forecast.images_per_second for forecast in model.forecasts}
    return Column(f"by {model.name}", lambda at: label_count(rates[at.devices]), "total")


def _curve(each: Prediction) -> str:
    images = f"{label_number(each.images)} images {'per device' if each.scaling == 'weak' else 'in total'}"
    return f"{each.strategy}, {each.scaling} scaling, {images}"
