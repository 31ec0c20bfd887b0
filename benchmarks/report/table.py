"""The main table: one row for each case that trains, as cells of text, for the terminal and as Markdown.

Every column says whether it is meant per device
or in total.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mnist_dist.benchmarks.analysis.summary import CaseSummary, TimeToAccuracy
from mnist_dist.benchmarks.report.labels import (
    DASH,
    MISSING,
    TIMES,
    label_devices,
    label_duration,
    label_number,
    label_other_settings,
    label_range,
    label_three_digits,
)
from mnist_dist.benchmarks.report.rows import Row, measured_setting, seed_accuracies
from mnist_dist.benchmarks.statistics.stats import Estimate

MISSING_ORDER = math.inf  # Sorts behind every number.
TERMINAL_WIDTH = 120
WRAPPED_WIDTH = 8  # To which text may be wrapped, numbers never.
TERMINAL_TARGET = 0.99
TERMINAL_STYLES = {MISSING: "dim", "skipped": "dim", "unstable": "yellow", "failed": "red"}
# What the head of a group adds to a column, where there are no such heads.
MARKDOWN_PREFIXES = {
    "Noise of images/s": "noise of images/s ",
    "Step time, slowest rank": "step time of the slowest rank, ",
    "Scaling efficiency": "efficiency, ",
    "Time to accuracy": "time ",
}


@dataclass(frozen=True)
class Cell:
    """What a table shows: a value, below it what qualifies it, and by what it sorts (a number or text)."""

    text: str = MISSING
    detail: str = ""
    order: float | str = MISSING_ORDER


@dataclass(frozen=True)
class Column:
    group: str
    head: str
    unit: str
    cell: Callable[[Row], Cell]
    numeric: bool = True


@dataclass(frozen=True)
class TextTable:
    """Texts, the first of each row naming it.

    Attributes:
        numeric: which columns stand on the right.
        folded: whether it is shown on demand only.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    folded: bool = False


def columns(rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of the main table that have anything to show, or, of settings, to tell apart."""
    candidates = [*_case_columns(), *_result_columns(), *_target_columns(rows), *_resource_columns()]
    return [each for each in candidates if _says_something(each, rows)]


def _says_something(column: Column, rows: Sequence[Row]) -> bool:
    texts = {column.cell(row).text for row in rows}
    return len(texts) > 1 if column.head in ("other settings", "trained") else bool(texts - {MISSING})


def _case_columns() -> Iterator[Column]:
    group = "Case"
    yield Column(group, "strategy", "", lambda row: _text(row.case.strategy), numeric=False)
    yield Column(group, "devices", "in total", _devices_cell)
    yield Column(group, "batch", "images per device", _batch_cell)
    yield Column(group, "precision", "and XLA", _precision_cell, numeric=False)
    yield Column(group, "other settings", "", lambda row: _text(label_other_settings(row.case)), numeric=False)
    yield Column(group, "trained", "", lambda row: _text(label_duration(row.case)), numeric=False)


def _result_columns() -> Iterator[Column]:
    group = "Throughput"
    yield Column(group, "images/s", "total", _throughput_cell)
    yield Column(group, "images/s", "per device", lambda row: _estimate(row.images_per_second_per_device, _count))
    group = "Scaling efficiency"
    yield Column(group, "weak", "% of ideal", lambda row: _estimate(row.weak, _percent))
    yield Column(group, "strong", "% of ideal", lambda row: _estimate(row.strong, _percent))
    yield Column("Accuracy", "test accuracy", "%, mean of seeds", _accuracy_cell)


def _target_columns(rows: Sequence[Row]) -> Iterator[Column]:
    for target in sorted({target for row in rows for target in row.summary.time_to_accuracy}):
        yield Column("Time to accuracy", f"to {100 * target:g} %", "s, median", _target_cell(target))
    yield Column("Time to accuracy", "of it tracing", "s, median", _tracing_cell)


def _resource_columns() -> Iterator[Column]:
    group = "Noise of images/s"
    yield Column(group, "between runs", "% deviation", lambda row: _noise_cell(row, "between"))
    yield Column(group, "within a run", "% deviation", lambda row: _noise_cell(row, "within"))
    yield Column(group, "runs needed", "for ±2 %", _runs_needed_cell)
    group = "Step time, slowest rank"
    for percentile in ("p50", "p95", "p99"):
        yield Column(group, percentile, "ms", _step_cell(percentile))
    group = "Start"
    yield Column(
        group, "first step", "s, with compiling", lambda row: _estimate(row.summary.first_step_seconds, _tenth)
    )
    yield Column(group, "start-up", "s, until first step", lambda row: _estimate(row.summary.startup_seconds, _tenth))
    group = "Use of the machine"
    yield Column(group, "memory", "MiB, largest rank", lambda row: _mebibytes(row.summary.peak_memory_bytes))
    yield Column(group, "GPU memory", "MiB, largest GPU", lambda row: _mebibytes(row.peak_gpu_memory_bytes))
    yield Column(group, "MFU", "% of matmul rate, all devices", lambda row: _number(row.mfu, _percent))
    yield Column(group, "GPU use", "%, mean", lambda row: _number(row.gpu_utilisation_percent, _tenth))
    yield Column(group, "power", "W, total", lambda row: _number(row.power_watts, _tenth))
    yield Column(group, "images/J", "total", lambda row: _number(row.summary.images_per_joule, _count))


def render_terminal_table(rows: Sequence[Row], width: int = TERMINAL_WIDTH, colour: bool = False) -> str:
    """Returns throughput against accuracy, one line for each case where `width` columns suffice.

    Args:
        colour: whether to add the terminal's codes for bold, dim and colours.
    """
    shown = [column for column in _terminal_columns(rows) if _says_something(column, rows)]
    heads = [f"{column.head}\n{column.unit}" for column in shown]
    texts = [[cell.text for cell in _cells(row, shown)] for row in rows]
    table = TextTable("", heads, texts, [column.numeric for column in shown])
    return "\n".join([render_terminal_texts(table, width, colour), *_terminal_notes(rows)])


def render_terminal_texts(table: TextTable, width: int = TERMINAL_WIDTH, colour: bool = False) -> str:
    """Returns a table; see `render_terminal_table`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    gap = 1 if len(table.heads) <= 10 else 0  # One more comes from the box.
    drawn = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    widths = []
    for index, (head, right) in enumerate(zip(table.heads, table.numeric, strict=True)):
        name, _, unit = head.partition("\n")
        title = Text(name, style="bold").append(f"\n{unit}" if unit else "", style="not bold dim")
        widths.append(_least_width([cells[index] for cells in table.rows], right))
        most = max(widths[-1], WRAPPED_WIDTH) if len(table.heads) > 10 and not right else None
        drawn.add_column(
            title, justify="right" if right else "left", overflow="fold", min_width=widths[-1], max_width=most
        )
    for cells in table.rows:
        drawn.add_row(*(Text(text, style=TERMINAL_STYLES.get(text, "")) for text in cells))
    console = Console(
        file=io.StringIO(),
        width=max(width, sum(widths) + len(widths) * (gap + 1)),  # Rather too wide than without a column.
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    with console.capture() as capture:
        if table.caption:
            console.print(Text(table.caption, style="bold"))
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _least_width(texts: Sequence[str], is_numeric: bool) -> int:
    longest = max(map(len, texts), default=0)
    longest_word = max((len(word) for text in texts for word in text.split()), default=0)
    return longest if is_numeric else max(longest_word, min(longest, WRAPPED_WIDTH))


def _terminal_columns(rows: Sequence[Row]) -> Iterator[Column]:
    yield Column("", "strategy", "", lambda row: _text(row.case.strategy), numeric=False)
    unit = "" if any(row.on_gpus for row in rows) else f"{TIMES} cores"
    yield Column("", "devices", unit, _terminal_devices, numeric=False)
    yield Column("", "batch", "/device", lambda row: Cell(_batch_cell(row).text))
    if len({_terminal_precision(row).text for row in rows} - {MISSING}) > 1:
        yield Column("", "type", "", _terminal_precision, numeric=False)
    yield Column("", "other settings", "", lambda row: _text(label_other_settings(row.case)), numeric=False)
    yield Column("", "trained", "", lambda row: Cell(label_duration(row.case).replace("the ", "")), numeric=False)
    yield Column("", "images/s", "total", _throughput_with_margin)
    yield Column("", "images/s", "/device", lambda row: _estimate(row.images_per_second_per_device, _count))
    yield Column("", "weak", "eff. %", lambda row: _estimate(row.weak, _percent))
    yield Column("", "strong", "eff. %", lambda row: _estimate(row.strong, _percent))
    yield Column("", "test accuracy", f"%, lowest{DASH}highest", _accuracy_with_range)
    yield Column("", f"to {100 * TERMINAL_TARGET:g} %", "s (reached)", _terminal_target)
    yield Column("", "runs", "", lambda row: Cell(str(len(row.summary.records))))


def _terminal_devices(row: Row) -> Cell:
    text = label_devices(row.case, row.on_gpus).replace(" cores", "").replace(" core", "").replace(f" {TIMES} ", TIMES)
    return Cell(text + ("*" if row.oversubscribed else ""))


def _throughput_with_margin(row: Row) -> Cell:
    """The interval as the larger of its halves, in percent."""
    text, estimate = _throughput_cell(row).text, row.summary.images_per_second
    if estimate is None or not _interval(estimate, _count):
        return Cell(text)
    half = max(estimate.high - estimate.value, estimate.value - estimate.low) / estimate.value
    return Cell(f"{text} ±{100 * half:.1f}%" if half < 1 else f"{text} ±>100%")


def _accuracy_with_range(row: Row) -> Cell:
    cell = _accuracy_cell(row)
    return Cell(f"{cell.text} {_seed_range(row.summary)}".rstrip()) if cell.detail else cell


def _terminal_target(row: Row) -> Cell:
    found = row.summary.time_to_accuracy.get(TERMINAL_TARGET)
    return Cell(f"{_time_to_accuracy(found).text} ({found.reached}/{found.runs})") if found else Cell()


def _terminal_notes(rows: Sequence[Row]) -> Iterator[str]:
    if any(row.summary.images_per_second for row in rows):
        yield "± is the 95 % interval; efficiency is that of N devices against N times one."
    if any(row.oversubscribed for row in rows):
        yield "* oversubscribed: the devices were promised more cores than the host has."


def render_markdown_tables(rows: Sequence[Row]) -> str:
    """Returns the main table, cut into parts that fit a page, each with the columns that name the case."""
    shown = columns(rows)
    names = [column for column in shown if column.group == "Case"]
    parts = [
        ("Throughput and accuracy", {"Throughput", "Scaling efficiency", "Accuracy"}),
        ("Time to accuracy", {"Time to accuracy"}),
        (
            "Noise, steps, start and use of the machine",
            {"Noise of images/s", "Step time, slowest rank", "Start", "Use of the machine"},
        ),
    ]
    texts = []
    for title, groups in parts:
        chosen = [column for column in shown if column.group in groups]
        if chosen:
            texts.append(f"### {title}\n\n{_markdown_table(rows, names + chosen)}")
    return "\n\n".join(texts)


def _markdown_table(rows: Sequence[Row], shown: Sequence[Column]) -> str:
    heads = [
        MARKDOWN_PREFIXES.get(column.group, "") + column.head + (f" ({column.unit})" if column.unit else "")
        for column in shown
    ]
    bodies = [
        [f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in _cells(row, shown)] for row in rows
    ]
    return render_markdown_table(heads, bodies, [column.numeric for column in shown])


def render_markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Returns a table of escaped texts; columns of numbers stand on the right."""
    lines = [list(heads), ["---:" if right else "---" for right in numeric]]
    body = [[escape_markdown(text) for text in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines + body)


def escape_markdown(text: str) -> str:
    """Returns one line that shows any text as it is, with no markup or HTML of its own."""
    line = " ".join(text.split())
    for mark in "\\`*_[]|~":
        line = line.replace(mark, "\\" + mark)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cells(row: Row, shown: Sequence[Column]) -> list[Cell]:
    return [column.cell(row) for column in shown]


def _text(text: str) -> Cell:
    return Cell(text, order=text) if text else Cell()


def _number(value: float | None, form: Callable[[float], str]) -> Cell:
    return Cell() if value is None or math.isnan(value) else Cell(form(value), order=value)


def _estimate(estimate: Estimate | None, form: Callable[[float], str]) -> Cell:
    if estimate is None:
        return Cell()
    return Cell(form(estimate.value), _interval(estimate, form), estimate.value)


def _interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    return "" if estimate.low == estimate.high else label_range(estimate.low, estimate.high, form)


def _devices_cell(row: Row) -> Cell:
    devices, _, hosts = label_devices(row.case, row.on_gpus).partition(" on ")
    details = [f"on {hosts}"] if hosts else []
    details += ["oversubscribed"] if row.oversubscribed else []
    return Cell(devices, ", ".join(details), row.case.devices)


def _batch_cell(row: Row) -> Cell:
    per_device, total = row.case.images_per_device, row.case.global_batch_size
    return Cell(label_number(per_device), f"{label_number(total)} in total", per_device)


def _precision_cell(row: Row) -> Cell:
    # Where nothing ran: what was asked for.
    precision, xla = (
        measured_setting(row.summary, name) or str(row.case.settings.get(f"runtime.{name}", ""))
        for name in ("precision", "xla")
    )
    return Cell(precision, f"XLA {xla}" if xla else "", precision) if precision else Cell()


def _terminal_precision(row: Row) -> Cell:
    cell = _precision_cell(row)
    return Cell(cell.text.removeprefix("mixed_") + (", XLA" if cell.detail == "XLA on" else ""))


def _throughput_cell(row: Row) -> Cell:
    summary = row.summary
    runs = f"{len(summary.records)} run{'s' if len(summary.records) != 1 else ''}"
    if not summary.records:
        reasons = {record.status for record in summary.failures}
        return Cell("failed" if reasons - {"skipped"} else "skipped" if reasons else MISSING)
    if summary.images_per_second is None:
        return Cell("unstable" if summary.unstable else MISSING, runs)
    cell = _estimate(summary.images_per_second, _count)
    return Cell(cell.text, ", ".join(filter(None, (cell.detail, runs))), cell.order)


def _accuracy_cell(row: Row) -> Cell:
    accuracy = row.summary.test_accuracy
    if accuracy is None:
        return Cell()
    seeds = f"{accuracy.seeds} seed{'s' if accuracy.seeds != 1 else ''}"
    detail = ", ".join(filter(None, (_seed_range(row.summary), seeds)))
    return Cell(f"{100 * accuracy.mean:.2f}", detail, accuracy.mean)


def _seed_range(summary: CaseSummary) -> str:
    accuracies = seed_accuracies(summary)
    if len(accuracies) == 1:
        return ""
    return label_range(min(accuracies), max(accuracies), lambda share: f"{100 * share:.2f}")


def _target_cell(target: float) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        found = row.summary.time_to_accuracy.get(target)
        return _time_to_accuracy(found) if found else Cell()

    return cell


def _time_to_accuracy(found: TimeToAccuracy) -> Cell:
    detail = f"{found.reached} of {found.runs}"
    detail += f", expected {_tenth(found.expected_seconds)}" if found.reached else ""
    return Cell(_tenth(found.median_seconds), detail, found.median_seconds)


def _tracing_cell(row: Row) -> Cell:
    found = list(row.summary.time_to_accuracy.values())
    return _number(found[0].median_tracing_seconds if found else None, _tenth)


def _step_cell(percentile: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        steps = row.summary.step_seconds
        return _number(1000 * getattr(steps, percentile) if steps else None, label_three_digits)

    return cell


def _noise_cell(row: Row, level: str) -> Cell:
    variance = row.summary.variance
    return _number(getattr(variance, level) if variance else None, lambda share: f"{100 * share:.2f}")


def _runs_needed_cell(row: Row) -> Cell:
    variance = row.summary.variance
    return _number(variance.repeats_needed if variance else None, _count)


def _mebibytes(size: float | None) -> Cell:
    return _number(size / 2**20 if size is not None else None, _count)


def _count(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _tenth(seconds: float) -> str:
    return f"{seconds:,.1f}" if math.isfinite(seconds) else "∞"
