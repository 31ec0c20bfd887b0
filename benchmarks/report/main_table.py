"""The main table: one row for each case that trains. Every column says whether it is meant per device or in total."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from mnist_dist.benchmarks.analysis.summary import CaseSummary, TimeToAccuracy
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.labels import (
    DASH,
    MISSING,
    TIMES,
    label_count,
    label_devices,
    label_duration,
    label_number,
    label_other_settings,
    label_percent,
    label_range,
    label_three_digits,
    says_little,
)
from mnist_dist.benchmarks.report.table import (
    TERMINAL_WIDTH,
    Cell,
    Column,
    Table,
    estimate_cell,
    make_table,
    number_cell,
    render_terminal,
)
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.errors import counted

TERMINAL_TARGET = 0.99
KERNELS = {"fused": "custom kernels", "plain": "TensorFlow's layers"}  # What computes on a CPU.
# The parts of the table that fit a page; and what the head of a group adds to a column where there are no such heads.
PARTS = {
    "Throughput and accuracy": {"Throughput": "", "Scaling efficiency": "efficiency, ", "Accuracy": ""},
    "Time to accuracy": {"Time to accuracy": "time "},
    "Noise, steps, start and use of the machine": {
        "Noise of images/s": "noise of images/s ",
        "Step time, slowest rank": "step time of the slowest rank, ",
        "Start": "",
        "Use of the machine": "",
    },
}


def main_table(cases: Sequence[TrainedCase]) -> Table:
    """Returns all that is known of each case."""
    return make_table(_columns(cases), cases)


def main_table_in_parts(cases: Sequence[TrainedCase], grouped: bool = False) -> Iterator[Table]:
    """Yields the main table in parts, each with the columns that name the case; `grouped` where groups have heads."""
    for caption, prefixes in PARTS.items():
        columns = [column for column in _columns(cases) if column.group in {"Case", *prefixes}]
        if not grouped:
            columns = [replace(column, head=prefixes.get(column.group, "") + column.head) for column in columns]
        part = make_table(columns, cases, caption, folded=grouped)
        if any(column.group != "Case" for column in part.columns):
            yield part


def render_terminal_table(cases: Sequence[TrainedCase], width: int = TERMINAL_WIDTH, colour: bool = False) -> str:
    """Returns throughput against accuracy, one line for each case where `width` columns suffice."""
    table = make_table(_terminal_columns(cases), cases)
    return "\n".join([render_terminal(table, width, colour), *_terminal_notes(cases)])


def _columns(cases: Sequence[TrainedCase]) -> Iterator[Column[TrainedCase]]:
    group = "Case"
    by_devices = any(each.case.devices > 1 for each in cases)  # Else batch and precision tell cases apart.
    yield Column("strategy", lambda each: each.case.strategy, "", group, numeric=False)
    yield Column("devices", _devices_cell, "in total", group, minor=not by_devices)
    yield Column("batch", _batch_cell, "images per device", group, minor=by_devices)
    yield Column("precision", _precision_cell, "and XLA", group, numeric=False, minor=by_devices)
    yield Column("other settings", lambda each: label_other_settings(each.case), "", group, numeric=False, telling=True)
    yield Column("trained", lambda each: label_duration(each.case), "", group, numeric=False, telling=True, minor=True)
    group = "Throughput"
    yield Column("images/s", _throughput_cell, "total", group)
    if by_devices:
        yield Column("images/s", _per_device_cell, "per device", group, minor=True)
    yield Column("test accuracy", _accuracy_cell, "%, mean of seeds", "Accuracy")
    group = "Scaling efficiency"
    yield Column("weak", lambda each: estimate_cell(each.weak, label_percent), "% of ideal", group)
    yield Column("strong", lambda each: estimate_cell(each.strong, label_percent), "% of ideal", group)
    group = "Time to accuracy"
    for target in sorted({target for each in cases for target in each.summary.time_to_accuracy}):
        yield Column(f"to {100 * target:g} %", partial(_target_cell, target), "s, median", group)
    yield Column("in tracing", _tracing_cell, "s, median", group)
    group = "Noise of images/s"
    yield Column("between runs", _noise_cell("between", _hundredths), "% deviation", group)
    yield Column("within a run", _noise_cell("within", _hundredths), "% deviation", group)
    yield Column("slowest and fastest run", _range_cell, "images/s, total", group)
    yield Column("runs needed", _noise_cell("repeats_needed", label_count), "for ±2 %", group)
    group = "Step time, slowest rank"
    for percentile in ("p50", "p95", "p99"):
        yield Column(percentile, partial(_step_cell, percentile), "ms", group)
    group = "Start"
    yield Column(
        "first step", lambda each: estimate_cell(each.summary.first_step_seconds, _tenth), "s, with compiling", group
    )
    yield Column(
        "start-up", lambda each: estimate_cell(each.summary.startup_seconds, _tenth), "s, until first step", group
    )
    group = "Use of the machine"
    yield Column("memory", lambda each: _mebibytes(each.summary.peak_memory_bytes), "MiB, largest rank", group)
    yield Column("GPU memory", lambda each: _mebibytes(each.summary.peak_gpu_memory_bytes), "MiB, largest GPU", group)
    yield Column("MFU", _mfu_cell, "% of matmul rate, all devices", group)
    yield Column("GPU use", lambda each: number_cell(each.summary.gpu_utilisation_percent, _tenth), "%, mean", group)
    yield Column("power", lambda each: number_cell(each.summary.power_watts, _tenth), "W, total", group)
    yield Column("images/J", lambda each: number_cell(each.summary.images_per_joule, label_count), "total", group)


def _terminal_columns(cases: Sequence[TrainedCase]) -> Iterator[Column[TrainedCase]]:
    yield Column("strategy", lambda each: each.case.strategy, numeric=False)
    unit = "" if any(each.on_gpus for each in cases) else f"{TIMES} cores"
    yield Column("devices", _terminal_devices, unit, numeric=False)
    yield Column("batch", lambda each: _batch_cell(each).text, "/device")
    if len({_terminal_precision(each) for each in cases} - {MISSING}) > 1:  # What was skipped may have none.
        yield Column("type", _terminal_precision, numeric=False)
    yield Column("other settings", lambda each: label_other_settings(each.case), numeric=False, telling=True)
    yield Column("trained", lambda each: label_duration(each.case).replace("the ", ""), numeric=False, telling=True)
    yield Column("images/s", _throughput_with_margin, "total")
    if any(each.case.devices > 1 for each in cases):  # Else it is the total.
        yield Column("images/s", lambda each: _per_device_cell(each).text, "/device")
    yield Column("weak", lambda each: _share_with_margin(each.weak), "eff. %")
    yield Column("strong", lambda each: _share_with_margin(each.strong), "eff. %")
    seeds = f"%, lowest{DASH}highest"
    yield Column(
        "test accuracy", lambda each: f"{_accuracy_cell(each).text} {_seed_range(each.summary)}".rstrip(), seeds
    )
    yield Column(f"to {100 * TERMINAL_TARGET:g} %", _terminal_target, "s (reached)")
    yield Column("runs", lambda each: str(len(each.summary.records)))


def _terminal_devices(each: TrainedCase) -> str:
    text = label_devices(each.case, each.on_gpus).replace(" cores", "").replace(" core", "")
    return text.replace(f" {TIMES} ", TIMES) + ("*" if each.oversubscribed else "")


def _terminal_precision(each: TrainedCase) -> str:
    cell = _precision_cell(each)
    return cell.text.removeprefix("mixed_") + (", XLA" if cell.detail.startswith("XLA on") else "")


def _throughput_with_margin(each: TrainedCase) -> str:
    """The interval as the larger of its halves, in percent; or the lowest and highest run."""
    text, estimate = _throughput_cell(each).text, each.summary.images_per_second
    if says_little(estimate):
        return f"{text} {_range_cell(each).text}"
    if estimate is None or not estimate_cell(estimate, label_count).detail:
        return text
    half = max(estimate.high - estimate.value, estimate.value - estimate.low) / estimate.value
    return f"{text} ±{100 * half:.1f}%" if half < 1 else f"{text} ±>100%"


def _share_with_margin(share: Estimate | None) -> str:
    """The interval as the larger of its halves, in percentage points."""
    cell = estimate_cell(share, label_percent)
    if share is None or not cell.detail:
        return cell.text
    return f"{cell.text} ±{100 * max(share.high - share.value, share.value - share.low):.1f}"


def _terminal_target(each: TrainedCase) -> str:
    found = each.summary.time_to_accuracy.get(TERMINAL_TARGET)
    return f"{_time_to_accuracy(found).text} ({found.reached}/{found.runs})" if found and found.runs else MISSING


def _terminal_notes(cases: Sequence[TrainedCase]) -> Iterator[str]:
    if any(says_little(each.summary.images_per_second) for each in cases):
        yield f"Two or three runs with an interval wider than half of images/s show lowest{DASH}highest run instead."
    if any(each.summary.images_per_second for each in cases):
        several = any(each.summary.case.devices > 1 for each in cases)
        efficiency = " Efficiency compares N devices with N times one device" if several else ""
        measured = [record for each in cases for record in each.summary.records if record.measured]
        in_turns = all(record.took_turns for record in measured)
        paired = " turn by turn, not by the means above" if several and in_turns else ""
        yield f"± is the 95 % interval.{efficiency}{f'{paired}.' if efficiency else ''}"
    computed = {each.summary.measured_setting("kernels") for each in cases if each.summary.records and not each.on_gpus}
    if computed in ({"fused"}, {"plain"}):
        yield f"Computed on CPUs by {KERNELS[computed.pop()]}."
    elif computed == {"fused", "plain"}:
        plain = [each for each in cases if each.summary.measured_setting("kernels") == "plain"]
        ways = {"XLA" if each.summary.measured_setting("xla") == "on" else "runtime.kernels=plain" for each in plain}
        yield f"Computed on CPUs by {KERNELS['fused']}; with {' and with '.join(sorted(ways))}, by {KERNELS['plain']}."
    if any(each.oversubscribed for each in cases):
        yield "* oversubscribed: the devices are assigned more cores than the host has."


def _devices_cell(each: TrainedCase) -> Cell:
    devices, _, hosts = label_devices(each.case, each.on_gpus).partition(" on ")
    details = [f"on {hosts}"] if hosts else []
    details += ["oversubscribed"] if each.oversubscribed else []
    return Cell(devices, ", ".join(details), each.case.devices)


def _batch_cell(each: TrainedCase) -> Cell:
    per_device, total = each.case.images_per_device, each.case.global_batch_size
    return Cell(
        label_number(per_device), f"{label_number(total)} in total" if each.case.devices > 1 else "", per_device
    )


def _precision_cell(each: TrainedCase) -> Cell:
    # Where nothing ran: what was asked for.
    precision, xla = (
        each.summary.measured_setting(name) or str(each.case.settings.get(f"runtime.{name}", ""))
        for name in ("precision", "xla")
    )
    kernels = "" if each.on_gpus else KERNELS.get(each.summary.measured_setting("kernels"), "")
    details = [f"XLA {xla}"] * bool(xla) + [kernels] * bool(kernels)
    return Cell(precision, ", ".join(details), precision) if precision else Cell()


def _throughput_cell(each: TrainedCase) -> Cell:
    summary = each.summary
    runs = counted(len(summary.records), "run")
    if not summary.records:
        reasons = {record.status for record in summary.failures}
        return Cell("failed" if reasons - {"skipped"} else "skipped" if reasons else MISSING)
    if summary.images_per_second is None:
        return Cell("unstable" if summary.unstable else MISSING, runs)
    cell = estimate_cell(summary.images_per_second, label_count)
    few = says_little(summary.images_per_second)
    detail = f"{_range_cell(each).text} lowest{DASH}highest" if few else cell.detail
    return replace(cell, detail=", ".join(filter(None, (detail, runs))))


def _per_device_cell(each: TrainedCase) -> Cell:
    cell = estimate_cell(each.images_per_second_per_device, label_count)
    return replace(cell, detail="") if says_little(each.summary.images_per_second) else cell


def _accuracy_cell(each: TrainedCase) -> Cell:
    accuracy = each.summary.test_accuracy
    if accuracy is None:
        return Cell()
    details = (_seed_range(each.summary), counted(accuracy.repeats, "seed"))
    return Cell(_hundredths(accuracy.value), ", ".join(filter(None, details)), accuracy.value)


def _seed_range(summary: CaseSummary) -> str:
    accuracies = summary.seed_accuracies
    return label_range(min(accuracies), max(accuracies), _hundredths) if len(set(accuracies)) > 1 else ""


def _target_cell(target: float, each: TrainedCase) -> Cell:
    found = each.summary.time_to_accuracy.get(target)
    return _time_to_accuracy(found) if found and found.runs else Cell()


def _time_to_accuracy(found: TimeToAccuracy) -> Cell:
    detail = f"{found.reached} of {found.runs}"
    detail += f", expected {_tenth(found.expected_seconds)}" if found.reached else ""
    return Cell(_tenth(found.median_seconds), detail, found.median_seconds)


def _tracing_cell(each: TrainedCase) -> Cell:
    found = list(each.summary.time_to_accuracy.values())
    return number_cell(found[0].median_tracing_seconds if found else None, _tenth)


def _step_cell(percentile: str, each: TrainedCase) -> Cell:
    seconds = each.summary.step_seconds.get(percentile)
    return number_cell(seconds and 1000 * seconds, label_three_digits)


def _mfu_cell(each: TrainedCase) -> Cell:
    cell = number_cell(each.mfu, label_percent)
    return replace(cell, detail="matmul rate too low") if each.mfu and each.mfu > 1 else cell


def _noise_cell(level: str, form: Callable[[float], str]) -> Callable[[TrainedCase], Cell]:
    return lambda each: number_cell(getattr(each.summary.variance, level, None), form)


def _range_cell(each: TrainedCase) -> Cell:
    """Of several runs with a throughput."""
    rates = [run.series.log_rate for run in each.summary.runs] if each.summary.images_per_second else []
    return Cell(label_range(math.exp(min(rates)), math.exp(max(rates)), label_count)) if len(rates) > 1 else Cell()


def _mebibytes(size: float | None) -> Cell:
    return number_cell(size / 2**20 if size is not None else None, label_count)


def _hundredths(share: float) -> str:
    return f"{100 * share:.2f}"


def _tenth(value: float) -> str:
    return f"{value:,.1f}" if math.isfinite(value) else "∞"
