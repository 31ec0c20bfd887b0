"""The parts of the report below the main table, as text and tables that Markdown and the page share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from mnist_dist.benchmarks.analysis.attribution import Attribution, PartName
from mnist_dist.benchmarks.analysis.collectives import AllReduce
from mnist_dist.benchmarks.analysis.matmul import MatmulRate
from mnist_dist.benchmarks.analysis.prediction import POWERS_OF_TWO, FittedModel, Forecast, Prediction
from mnist_dist.benchmarks.analysis.study import Analysis, InputRate
from mnist_dist.benchmarks.report.explanation import explain
from mnist_dist.benchmarks.report.labels import (
    MISSING,
    label_bytes,
    label_case,
    label_count,
    label_devices,
    label_number,
    label_part,
    label_percent,
    label_point,
    label_range,
    label_three_digits,
)
from mnist_dist.benchmarks.report.table import Cell, Column, Table, estimate_cell, make_table


@dataclass(frozen=True)
class Section:
    """One part: its points, its tables, and the names of its pictures."""

    name: str
    title: str
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()


def build_sections(analysis: Analysis) -> list[Section]:
    """Returns those parts for which the study has data."""
    parts: list[Iterable[Section]] = [
        _scaling(analysis),
        [prediction_section(analysis.predictions)] if analysis.predictions else [],
        _all_reduces(analysis.all_reduces),
        _matmuls(analysis.matmul_rates),
        _input(analysis),
    ]
    return [section for part in parts for section in part]


def _scaling(analysis: Analysis) -> Iterator[Section]:
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


def _explanations(attributions: Sequence[Attribution]) -> list[str]:
    """A paragraph for each point whose causes were told apart, and one for all others."""
    explained = [each for each in attributions if len(each.parts) > 1]
    others = [f"{_point_name(each)} ({100 * each.loss.value:.0f} %)" for each in attributions if len(each.parts) <= 1]
    rest = f"Lost to causes that were not told apart, for want of steady ablation runs: {'; '.join(others)}."
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
    return " ".join([f"{_curve(each)}: trusted is {each.models[0].name}; {each.reason}.", *refused, *each.notes])


def _describe_refused(predictions: Iterable[Prediction]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for each in predictions:
        if not each.models:
            by_reason.setdefault("; ".join(each.refused.values()), []).append(_curve(each))
    for reason, names in by_reason.items():
        yield f"Not predicted: {'; '.join(names)}: {reason}."


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
        f"{devices:,}" + (" or more" if devices == POWERS_OF_TWO[-1] else "")
        for devices in each.models[0].paying_devices
    )
    return Cell(sensible, f"{low} to {high}")


def _forecast_table(each: Prediction) -> Table:
    """The trusted model with its intervals, and for comparison what the others say."""
    model, *others = each.models
    columns: list[Column[Forecast]] = [
        Column("devices", lambda at: f"{at.devices:,}"),
        Column("measured images/s", lambda at: _known(each.measured.get(at.devices)), "total"),
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


def _known(rate: float | None) -> str:
    return MISSING if rate is None else label_count(rate)


def _curve(each: Prediction) -> str:
    images = f"{label_number(each.images)} images {'per device' if each.scaling == 'weak' else 'in total'}"
    return f"{each.strategy}, {each.scaling} scaling, {images}"


def _all_reduces(measured: Sequence[AllReduce]) -> Iterator[Section]:
    small = [each for each in measured if each.is_latency]
    large = [each for each in measured if not each.is_latency]
    message: list[Column[AllReduce]] = [
        Column("strategy", lambda each: each.case.strategy, numeric=False),
        Column("devices", lambda each: label_devices(each.case), numeric=False),
        Column("message", lambda each: label_bytes(each.size_bytes), "of each rank"),
    ]
    latency: list[Column[AllReduce]] = [
        Column("latency", lambda each: f"{1e6 * each.seconds:,.0f}", "µs"),
        Column("5th to 95th percentile", lambda each: label_range(1e6 * each.low, 1e6 * each.high, label_count), "µs"),
    ]
    bandwidth: list[Column[AllReduce]] = [
        Column("time", lambda each: label_three_digits(1e3 * each.seconds), "ms"),
        Column(
            "5th to 95th percentile",
            lambda each: label_range(1e3 * each.low, 1e3 * each.high, label_three_digits),
            "ms",
        ),
        Column("algbw", lambda each: label_three_digits(each.algorithm_bandwidth / 1e9), "GB/s per rank"),
        Column("busbw", lambda each: label_three_digits(each.bus_bandwidth / 1e9), "GB/s per rank"),
    ]
    tables = [make_table(message + latency, small, "Latency of small messages, slowest rank")] if small else []
    tables += [make_table(message + bandwidth, large, "Bandwidth of large messages, slowest rank")] if large else []
    if tables:
        yield Section("collectives", "All-reduce", tables=tables, pictures=("all_reduce",))


def _matmuls(rates: Sequence[MatmulRate]) -> Iterator[Section]:
    columns: list[Column[MatmulRate]] = [
        Column("type", lambda each: each.dtype, numeric=False),
        Column("devices", lambda each: label_devices(each.case), numeric=False),
        Column("n", lambda each: f"{each.size:,}", "of an n x n matrix"),
        Column("TFLOP/s", lambda each: label_three_digits(each.value / 1e12), "total"),
        Column(
            "5th to 95th percentile",
            lambda each: label_range(each.low / 1e12, each.high / 1e12, label_three_digits),
            "TFLOP/s",
        ),
    ]
    if rates:
        table = make_table(columns, rates, "Measured rate of matrix products, to which MFU relates")
        yield Section("matmul", "Matrix products", tables=[table])


def _input(analysis: Analysis) -> Iterator[Section]:
    common = analysis.common_settings
    columns: list[Column[InputRate]] = [
        Column("pipeline", lambda each: label_case(each.summary.case, without=common), numeric=False),
        Column("images/s", _input_cell, "total, 95 % interval"),
        Column("multiple", lambda each: f"{each.multiple:.1f}" if each.multiple else MISSING, "of what training takes"),
        Column(
            "that training",
            lambda each: label_case(each.training.case, without=common) if each.training else MISSING,
            "the fastest",
            numeric=False,
        ),
    ]
    if analysis.input_rates:
        table = make_table(columns, analysis.input_rates, "The input pipeline without training")
        yield Section("input", "Input pipeline", tables=[table])


def _input_cell(each: InputRate) -> Cell:
    rate = each.summary.images_per_second
    return estimate_cell(rate, label_count) if rate else Cell("unstable")
