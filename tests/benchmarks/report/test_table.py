"""The main table, for the terminal, as Markdown and as CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

import pytest

from mnist_dist.benchmarks.analysis.scaling import find_curves
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, Telemetry
from mnist_dist.benchmarks.report.csv_table import FORMULA_STARTS, render_csv
from mnist_dist.benchmarks.report.labels import MISSING
from mnist_dist.benchmarks.report.rows import Row, build_rows, main_rows
from mnist_dist.benchmarks.report.table import (
    MISSING_ORDER,
    TERMINAL_WIDTH,
    Cell,
    TextTable,
    columns,
    escape_markdown,
    render_markdown_tables,
    render_terminal_table,
    render_terminal_texts,
)
from tests.benchmarks.factory import (
    BFLOAT16,
    FAILING,
    FLOPS_PER_IMAGE,
    MATMUL_FLOPS,
    OVERSUBSCRIBED,
    UNSTABLE,
    ablations,
    make_study,
    matmul,
    train,
)
from tests.benchmarks.simulation import make_record

SINGLE, HOROVOD = train("single", 1), train("horovod", 2)
CASES = [
    HOROVOD,
    *ablations(HOROVOD),
    SINGLE,
    train("single", 1, settings=BFLOAT16),
    OVERSUBSCRIBED,
    UNSTABLE,
    FAILING,
    matmul(1),
    matmul(2),
]


def rows_of(records: Sequence[Record]) -> list[Row]:
    by_case: dict[str, list[Record]] = {}
    for record in records:
        by_case.setdefault(record.case_id, []).append(record)
    summaries = [summarize(of_case) for of_case in by_case.values()]
    return build_rows(summaries, find_curves(summaries))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of(make_study(CASES, 3, unstable=[UNSTABLE], failing=[FAILING]))


def cells(rows: Sequence[Row], case: Case) -> dict[tuple[str, str], Cell]:
    """The cells of a case by head and unit."""
    row = next(row for row in rows if row.case == case)
    return {(column.head, column.unit): column.cell(row) for column in columns(main_rows(rows))}


def test_one_row_for_each_case_without_ablations(rows: list[Row]) -> None:
    assert [(row.case.strategy, row.case.devices) for row in main_rows(rows)] == [
        ("single", 1),
        ("single", 1),
        ("mirrored", 4),
        ("multiworker", 4),
        ("horovod", 2),
        ("horovod", 8),
    ]
    assert len(rows) == 8  # The two ablations are there for who asks.


def test_columns_say_whether_they_mean_a_device_or_all(rows: list[Row]) -> None:
    found = [(column.group, column.head, column.unit) for column in columns(main_rows(rows))]
    assert len(set(found)) == len(found)
    units = {(head, unit) for _, head, unit in found}
    assert {("images/s", "total"), ("images/s", "per device"), ("batch", "images per device")} <= units
    assert {("memory", "MiB, largest rank"), ("devices", "in total"), ("MFU", "% of matmul rate, all devices")} <= units
    assert all(column.unit for column in columns(main_rows(rows)) if column.numeric)


def test_throughput_in_total_and_per_device(rows: list[Row]) -> None:
    shown = cells(rows, HOROVOD)
    total, each = (float(shown["images/s", unit].order) for unit in ("total", "per device"))
    assert total == pytest.approx(2 * each)
    summary = next(row.summary for row in rows if row.case == HOROVOD)
    estimate = summary.images_per_second
    assert estimate
    assert shown["images/s", "total"].text == f"{estimate.value:,.0f}"
    assert shown["images/s", "total"].detail == f"{estimate.low:,.0f}\N{EN DASH}{estimate.high:,.0f}, 3 runs"


def test_efficiency_relates_to_the_single_device(rows: list[Row]) -> None:
    rates = {row.case.case_id: row.summary.images_per_second for row in rows}
    single, double = rates[SINGLE.case_id], rates[HOROVOD.case_id]
    assert single and double
    assert cells(rows, HOROVOD)["weak", "% of ideal"].order == pytest.approx(double.value / single.value / 2)
    assert cells(rows, SINGLE)["weak", "% of ideal"] == Cell("100.0", "", 1.0)
    assert cells(rows, FAILING)["weak", "% of ideal"] == Cell()


def test_rows_without_a_throughput_say_why_and_sort_last(rows: list[Row]) -> None:
    assert cells(rows, UNSTABLE)["images/s", "total"] == Cell("unstable", "3 runs", MISSING_ORDER)
    assert cells(rows, FAILING)["images/s", "total"] == Cell("failed", "", MISSING_ORDER)
    assert cells(rows, FAILING)["images/s", "per device"] == Cell(MISSING, "", MISSING_ORDER)


def test_what_was_skipped_is_not_called_failed_and_says_what_it_would_have_been() -> None:
    asked = {"runtime.precision": "mixed_float16", "runtime.xla": "on"}
    case = SINGLE.model_copy(update={"settings": dict(SINGLE.settings) | asked})
    skipped = make_record(case, status="skipped", reason="the CPU has no float16 arithmetic")
    lines = render_terminal_table(rows_of([*make_study([SINGLE], 2), skipped])).splitlines()
    (line,) = [line for line in lines if "skipped" in line]
    assert "float16, XLA" in line
    assert not any("failed" in line for line in lines)


def test_accuracy_has_the_range_of_the_seeds(rows: list[Row]) -> None:
    row = next(row for row in rows if row.case == HOROVOD)
    accuracies = [record.measurements["test_accuracy"] for record in row.summary.records if record.measurements]
    cell = cells(rows, HOROVOD)["test accuracy", "%, mean of seeds"]
    assert cell.order == pytest.approx(sum(accuracies) / 3)
    assert cell.detail == f"{100 * min(accuracies):.2f}\N{EN DASH}{100 * max(accuracies):.2f}, 3 seeds"


def set_accuracies(records: Iterable[Record], accuracies: Sequence[float]) -> list[Record]:
    changed = []
    for record, accuracy in zip(records, accuracies, strict=True):
        evaluation = {"step": 9, "training_seconds": 10.0, "evaluation_seconds": 2.0, "split": "test", "loss": 0.1}
        measured = (record.measurements or {}) | {"evaluations": [evaluation | {"accuracy": accuracy}]}
        changed.append(record.model_copy(update={"measurements": measured}))
    return changed


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.995, 0.994, 0.996], ("12.0", "3 of 3, expected 12.0")),
        ([0.995, 0.994, 0.98], ("12.0", "2 of 3, expected 18.0")),
        ([0.995, 0.98, 0.98], ("∞", "1 of 3, expected 36.0")),
        ([0.98, 0.98, 0.98], ("∞", "0 of 3")),
    ],
)
def test_seeds_that_miss_the_accuracy_count(accuracies: list[float], expected: tuple[str, str]) -> None:
    shown = cells(rows_of(set_accuracies(make_study([SINGLE], 3), accuracies)), SINGLE)
    cell = shown["to 99 %", "s, median"]
    assert (cell.text, cell.detail) == expected


def test_oversubscribed_is_marked(rows: list[Row]) -> None:
    assert cells(rows, OVERSUBSCRIBED)["devices", "in total"].detail == "oversubscribed"
    assert cells(rows, HOROVOD)["devices", "in total"] == Cell("2 × 2 cores", "", 2)  # noqa: RUF001


def test_mfu_counts_the_flops_of_all_devices(rows: list[Row]) -> None:
    by_case = {row.case.case_id: row for row in rows}
    for case, rate in ((SINGLE, MATMUL_FLOPS["float32"]), (HOROVOD, 2 * 0.97 * MATMUL_FLOPS["float32"])):
        throughput = by_case[case.case_id].summary.images_per_second
        assert throughput
        assert by_case[case.case_id].mfu == pytest.approx(FLOPS_PER_IMAGE * throughput.value / rate, rel=0.02)


def test_mfu_takes_n_times_one_device_where_n_were_not_multiplied(rows: list[Row]) -> None:
    throughput = next(row.summary.images_per_second for row in rows if row.case == OVERSUBSCRIBED)
    mfu = next(row.mfu for row in rows if row.case == OVERSUBSCRIBED)
    assert throughput
    assert mfu == pytest.approx(FLOPS_PER_IMAGE * throughput.value / (8 * MATMUL_FLOPS["float32"]), rel=0.02)


def test_mfu_needs_the_same_precision(rows: list[Row]) -> None:
    assert next(row.mfu for row in rows if row.case.settings == BFLOAT16) is None


def test_columns_without_data_are_left_out(rows: list[Row]) -> None:
    heads = {column.head for column in columns(main_rows(rows))}
    assert not heads & {"power", "images/J", "GPU use", "GPU memory", "other settings"}
    assert "trained" in heads  # Some train to the end, some for seconds.
    assert "trained" not in {column.head for column in columns(rows_of(make_study([SINGLE, HOROVOD], 1)))}


def on_gpu(record: Record) -> Record:
    telemetry = Telemetry(
        source="nvml", seconds=20.0, energy_joules=6000.0, power_watts=300.0, gpu_utilisation_percent=87.0
    )
    gpu = {"device": "GPU, NVIDIA H100", "peak_device_memory_bytes": [2 * 2**30]}
    measured = (record.measurements or {}) | gpu
    return record.model_copy(update={"telemetry": telemetry, "measurements": measured})


def test_gpus() -> None:
    case = train("single", 1, cores_per_device=None)
    shown = cells(rows_of([on_gpu(record) for record in make_study([case], 3)]), case)
    assert shown["devices", "in total"].text == "1 GPU"
    assert shown["power", "W, total"].text == "300.0"
    assert shown["GPU use", "%, mean"].text == "87.0"
    assert shown["GPU memory", "MiB, largest GPU"].text == "2,048"
    throughput = float(shown["images/s", "total"].order)
    assert shown["images/J", "total"].order == pytest.approx(throughput / 300)


def test_one_run_has_no_interval_where_none_is_known() -> None:
    shown = cells(rows_of(make_study([SINGLE], 1)), SINGLE)
    assert shown["first step", "s, with compiling"].detail == ""
    assert shown["images/s", "total"].detail.endswith("1 run")


def test_terminal_table_fits_and_is_plain(rows: list[Row]) -> None:
    text = render_terminal_table(main_rows(rows))
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH
    assert "\x1b" not in text
    for word in ("single", "mirrored", "multiworker", "horovod", "unstable", "failed", "* oversubscribed"):
        assert word in text
    assert re.search(r"^horovod +2×2 .* \d+,\d+ ±\d+\.\d% ", text, re.MULTILINE)  # noqa: RUF001


def test_terminal_table_of_the_quick_suite_has_a_line_for_each_case() -> None:
    text = render_terminal_table(rows_of(make_study([SINGLE, HOROVOD, train("multiworker", 2)], 2)), width=100)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["single", "multiworker", "horovod"]
    assert len(lines) == 7 and max(map(len, lines)) <= 100


def test_terminal_table_in_colour(rows: list[Row]) -> None:
    assert re.search(r"\x1b\[31m *failed", render_terminal_table(main_rows(rows), colour=True))


def test_a_terminal_table_never_loses_a_number() -> None:
    heads, numeric = ["what it is", *"abcdefghi"], [False, *[True] * 9]
    table = TextTable("", heads, [["x" * 40, *["1,234,567"] * 9]], numeric)
    assert render_terminal_texts(table, 120).count("1,234,567") == 9


def test_markdown_tables_are_whole(rows: list[Row]) -> None:
    tables = [part for part in render_markdown_tables(main_rows(rows)).split("\n\n") if part.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        lines = table.splitlines()
        assert len(lines) == 2 + 6
        assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("*a* _b_ `c` ~d~", r"\*a\* \_b\_ \`c\` \~d\~"),
        ("two\nlines", "two lines"),
        ("&lt;", "&amp;lt;"),
        ("a\\|b", r"a\\\|b"),
    ],
)
def test_markdown_is_escaped(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


def test_csv_holds_all_numbers_in_full(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(rows))))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        estimate = row.summary.images_per_second
        assert line["images_per_second"] == (str(estimate.value) if estimate else "")
        assert line["case_id"] == row.case.case_id
        assert json.loads(line["settings"]) == row.case.settings
    horovod = lines[[row.case for row in rows].index(HOROVOD)]
    assert horovod["runs"] == "3" and horovod["to_99_percent_runs"] == "3"
    assert [line["synthetic_input"] for line in lines].count("True") == 2


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_csv_starts_no_formula(start: str) -> None:
    hostile = f"{start}cmd|' /C calc'!A0"
    records = [
        record.model_copy(update={"measurements": (record.measurements or {}) | {"precision": hostile}})
        for record in make_study([SINGLE], 1)
    ]
    (line,) = csv.DictReader(io.StringIO(render_csv(rows_of(records))))
    assert line["precision"]
    assert not any(value.startswith(FORMULA_STARTS) for value in line.values())
