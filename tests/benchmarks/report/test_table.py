"""The main table, for the terminal, as Markdown and as CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

import pytest

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.labels import DASH, MISSING
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record, Telemetry
from mnist_dist.benchmarks.report.csv_table import render_csv
from mnist_dist.benchmarks.report.main_table import main_table, main_table_in_parts, render_terminal_table
from mnist_dist.benchmarks.report.table import (
    MISSING_ORDER,
    TERMINAL_WIDTH,
    Cell,
    Column,
    escape_markdown,
    make_table,
    render_markdown,
    render_terminal,
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
from tests.benchmarks.simulation import CASE as SIMULATED
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


@pytest.fixture(scope="module")
def study() -> Analysis:
    return Analysis(make_study(CASES, 3, unstable=[UNSTABLE], failing=[FAILING]))


def find(study: Analysis, case: Case) -> TrainedCase:
    return next(each for each in study.trained if each.case == case)


def cells(study: Analysis, case: Case) -> dict[tuple[str, str], Cell]:
    """The cells of a case by head and unit."""
    table = main_table(study.main_cases)
    index = [each.case for each in study.main_cases].index(case)
    return {(column.head, column.unit): cell for column, cell in zip(table.columns, table.rows[index], strict=True)}


def test_one_row_for_each_case_without_ablations(study: Analysis) -> None:
    assert [(each.case.strategy, each.case.devices) for each in study.main_cases] == [
        ("single", 1),
        ("single", 1),
        ("mirrored", 4),
        ("multiworker", 4),
        ("horovod", 2),
        ("horovod", 8),
    ]
    assert len(study.trained) == 8  # The two ablations are there for who asks.


def test_columns_say_whether_they_mean_a_device_or_all(study: Analysis) -> None:
    found = [(column.group, column.head, column.unit) for column in main_table(study.main_cases).columns]
    assert len(set(found)) == len(found)
    units = {(head, unit) for _, head, unit in found}
    assert {("images/s", "total"), ("images/s", "per device"), ("batch", "images per device")} <= units
    assert {("memory", "MiB, largest rank"), ("devices", "in total"), ("MFU", "% of matmul rate, all devices")} <= units
    assert all(column.unit for column in main_table(study.main_cases).columns if column.numeric)


def test_throughput_in_total_and_per_device(study: Analysis) -> None:
    shown = cells(study, HOROVOD)
    total, each = (float(shown["images/s", unit].order) for unit in ("total", "per device"))
    assert total == pytest.approx(2 * each)
    summary = find(study, HOROVOD).summary
    estimate = summary.images_per_second
    assert estimate
    assert shown["images/s", "total"].text == f"{estimate.value:,.0f}"
    assert shown["images/s", "total"].detail == f"{estimate.low:,.0f}\N{EN DASH}{estimate.high:,.0f}, 3 runs"


@pytest.mark.parametrize(
    ("factors", "detail", "on_terminal"),
    [
        ([1.0, 0.9], "7,200-8,000 lowest-highest, 2 runs", " 7,579 7,200-8,000 "),
        ([1.0, 0.9, 0.6], "4,800-8,000 lowest-highest, 3 runs", " 6,353 4,800-8,000 "),
        ([1.0, 0.99], r"7,4\d\d-8,4\d\d, 2 runs", r" 7,960 ±6\.\d% "),
        ([1.0, 0.8, 0.6, 0.4], r"\d,\d+-\d+,\d+, 4 runs", r" \d,\d+ ±\d+\.\d% "),
    ],
)
def test_few_runs_show_their_range_where_their_interval_would_say_little(
    factors: list[float], detail: str, on_terminal: str
) -> None:
    detail, on_terminal = (text.replace("-", DASH) for text in (detail, on_terminal))
    seconds = [[[0.125 / factor] * 40] for factor in factors]
    case = SIMULATED.model_copy(update={"strategy": "mirrored", "devices": 2})
    study = Analysis([make_record(case, repeat, window_seconds=each) for repeat, each in enumerate(seconds)])
    shown = cells(study, case)
    assert re.fullmatch(detail, shown["images/s", "total"].detail)
    assert bool(shown["images/s", "per device"].detail) == ("lowest" not in detail)
    text = render_terminal_table(study.main_cases)
    assert re.search(on_terminal, text) and (f"show lowest{DASH}highest run instead" in text) == ("lowest" in detail)
    assert any(re.search(detail, render_markdown(table)) for table in main_table_in_parts(study.main_cases))


def test_on_one_device_the_fastest_case_comes_first() -> None:
    settings = ({}, {"runtime.xla": "on"}, {"runtime.precision": "float32"})
    cases = [SIMULATED.model_copy(update={"settings": each}) for each in settings]
    records = [
        make_record(case, repeat, window_seconds=[[seconds] * 40])
        for case, seconds in zip(cases, (0.2, 0.1, 0.15), strict=True)
        for repeat in range(3)
    ]
    shown = [each.case.settings for each in Analysis(records).main_cases]
    assert shown == [settings[number] for number in (1, 2, 0)]


def test_of_one_device_images_per_second_are_told_once() -> None:
    cases = Analysis([make_record(SIMULATED, repeat) for repeat in range(3)]).main_cases
    assert [column.unit for column in main_table(cases).columns if column.head == "images/s"] == ["total"]
    assert render_terminal_table(cases).splitlines()[0].count("images/s") == 1


def test_efficiency_relates_to_the_single_device(study: Analysis) -> None:
    rates = {each.case.case_id: each.summary.images_per_second for each in study.trained}
    single, double = rates[SINGLE.case_id], rates[HOROVOD.case_id]
    assert single and double
    assert cells(study, HOROVOD)["weak", "% of ideal"].order == pytest.approx(double.value / single.value / 2)
    assert cells(study, SINGLE)["weak", "% of ideal"] == Cell("100.0", "", 1.0)
    assert cells(study, FAILING)["weak", "% of ideal"] == Cell()


def test_rows_without_a_throughput_say_why_and_sort_last(study: Analysis) -> None:
    assert cells(study, UNSTABLE)["images/s", "total"] == Cell("unstable", "3 runs", MISSING_ORDER)
    assert cells(study, FAILING)["images/s", "total"] == Cell("failed", "", MISSING_ORDER)
    assert cells(study, FAILING)["images/s", "per device"] == Cell(MISSING, "", MISSING_ORDER)


def test_what_was_skipped_is_not_called_failed_and_says_what_it_would_have_been() -> None:
    asked = {"runtime.precision": "mixed_float16", "runtime.xla": "on"}
    case = SINGLE.model_copy(update={"settings": dict(SINGLE.settings) | asked})
    skipped = make_record(case, status="skipped", reason="the CPU has no float16 arithmetic")
    lines = render_terminal_table(Analysis([*make_study([SINGLE], 2), skipped]).trained).splitlines()
    (line,) = [line for line in lines if "skipped" in line]
    assert "float16, XLA" in line and "(0/0)" not in line
    assert not any("failed" in line for line in lines)


@pytest.mark.parametrize(
    ("kernels", "said"),
    [("fused", "Computed on CPUs by custom kernels."), ("plain", "Computed on CPUs by TensorFlow's layers.")],
)
def test_what_computed_is_said(kernels: str, said: str) -> None:
    measured = [
        record.model_copy(update={"measurements": dict(record.measurements or {}) | {"kernels": kernels}})
        for record in make_study([SINGLE, HOROVOD], 2)
    ]
    case = train("multiworker", 2).model_copy(update={"settings": {}})  # Whose type nobody knows.
    skipped = make_record(case, status="skipped", reason="no second core")
    lines = render_terminal_table(Analysis([*measured, skipped]).trained).splitlines()
    assert said in lines and " type " not in lines[1]


def test_which_cases_use_which_kernels_is_said() -> None:
    by_layers = {"runtime.kernels": "plain"}
    precision = {"runtime.precision": "float32"}
    cases = [train("single", 1, settings=precision | more) for more in ({}, {"runtime.xla": "on"}, by_layers)]
    computed = [{"kernels": "fused"}, {"kernels": "plain", "xla": "on"}, {"kernels": "plain"}]
    records = [
        record.model_copy(update={"measurements": dict(record.measurements or {}) | measured})
        for case, measured in zip(cases, computed, strict=True)
        for record in make_study([case], 2)
    ]
    said = "Computed on CPUs by custom kernels; with XLA and with runtime.kernels=plain, by TensorFlow's layers."
    assert said in render_terminal_table(Analysis(records).trained).splitlines()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_narrow_page_shows_what_tells_cases_apart(devices: int) -> None:
    cases = [train("mirrored", devices), train("mirrored", devices, global_batch_size=1000)]
    columns = {column.head: column.minor for column in main_table(Analysis(make_study(cases, 2)).trained).columns}
    assert columns["batch"] == columns["precision"] == (devices > 1)


def test_accuracy_has_the_range_of_the_seeds(study: Analysis) -> None:
    row = find(study, HOROVOD)
    accuracies = [record.measurements["test_accuracy"] for record in row.summary.records if record.measurements]
    cell = cells(study, HOROVOD)["test accuracy", "%, mean of seeds"]
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
    shown = cells(Analysis(set_accuracies(make_study([SINGLE], 3), accuracies)), SINGLE)
    cell = shown["to 99 %", "s, median"]
    assert (cell.text, cell.detail) == expected


def test_oversubscribed_is_marked(study: Analysis) -> None:
    assert cells(study, OVERSUBSCRIBED)["devices", "in total"].detail == "oversubscribed"
    assert cells(study, HOROVOD)["devices", "in total"] == Cell("2 × 2 cores", "", 2)  # noqa: RUF001


def test_mfu_counts_the_flops_of_all_devices(study: Analysis) -> None:
    by_case = {each.case.case_id: each for each in study.trained}
    for case, rate in ((SINGLE, MATMUL_FLOPS["float32"]), (HOROVOD, 2 * 0.97 * MATMUL_FLOPS["float32"])):
        throughput = by_case[case.case_id].summary.images_per_second
        assert throughput
        assert by_case[case.case_id].mfu == pytest.approx(FLOPS_PER_IMAGE * throughput.value / rate, rel=0.02)


def test_mfu_takes_n_times_one_device_where_n_were_not_multiplied(study: Analysis) -> None:
    throughput = find(study, OVERSUBSCRIBED).summary.images_per_second
    mfu = find(study, OVERSUBSCRIBED).mfu
    assert throughput
    assert mfu == pytest.approx(FLOPS_PER_IMAGE * throughput.value / (8 * MATMUL_FLOPS["float32"]), rel=0.02)


def test_no_mfu_above_one_stands_without_a_word() -> None:
    """Matrix products may have been measured in a busy moment."""
    records = make_study([SINGLE, HOROVOD, matmul(1)], 2)
    slow = [
        record.model_copy(update={"measurements": record.measurements | {"flops_per_second": [1e11] * 10}})
        if record.measurements and record.case.kind == "matmul"
        else record
        for record in records
    ]
    for each, word in ((records, ""), (slow, "matmul rate too low")):
        shown = cells(Analysis(each), HOROVOD)["MFU", "% of matmul rate, all devices"]
        assert (float(shown.text) > 100, shown.detail) == (bool(word), word)


def test_mfu_needs_the_same_precision(study: Analysis) -> None:
    assert find(study, train("single", 1, settings=BFLOAT16)).mfu is None


def test_columns_without_data_are_left_out(study: Analysis) -> None:
    heads = {column.head for column in main_table(study.main_cases).columns}
    assert not heads & {"power", "images/J", "GPU use", "GPU memory", "other settings"}
    assert "trained" in heads  # Some train to the end, some for seconds.
    assert "trained" not in {
        column.head for column in main_table(Analysis(make_study([SINGLE, HOROVOD], 1)).trained).columns
    }


def on_gpu(record: Record) -> Record:
    telemetry = Telemetry(
        source="nvml", seconds=20.0, energy_joules=6000.0, power_watts=300.0, gpu_utilisation_percent=87.0
    )
    gpu = {"device": "GPU, NVIDIA H100", "peak_device_memory_bytes": [2 * 2**30]}
    measured = (record.measurements or {}) | gpu
    return record.model_copy(update={"telemetry": telemetry, "measurements": measured})


def test_gpus() -> None:
    case = train("single", 1, cores_per_device=None)
    shown = cells(Analysis([on_gpu(record) for record in make_study([case], 3)]), case)
    assert shown["devices", "in total"].text == "1 GPU"
    assert shown["power", "W, total"].text == "300.0"
    assert shown["GPU use", "%, mean"].text == "87.0"
    assert shown["GPU memory", "MiB, largest GPU"].text == "2,048"
    throughput = float(shown["images/s", "total"].order)
    assert shown["images/J", "total"].order == pytest.approx(throughput / 300)


def test_one_run_has_no_interval_where_none_is_known() -> None:
    shown = cells(Analysis(make_study([SINGLE], 1)), SINGLE)
    assert shown["first step", "s, with compiling"].detail == ""
    assert shown["images/s", "total"].detail.endswith("1 run")


def test_terminal_table_fits_and_is_plain(study: Analysis) -> None:
    text = render_terminal_table(study.main_cases)
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH
    assert "\x1b" not in text
    for word in ("single", "mirrored", "multiworker", "horovod", "unstable", "failed", "* oversubscribed"):
        assert word in text
    assert re.search(r"^horovod +2×2 .* \d+,\d+ ±\d+\.\d% ", text, re.MULTILINE)  # noqa: RUF001


def test_terminal_table_of_the_quick_suite_has_a_line_for_each_case() -> None:
    text = render_terminal_table(Analysis(make_study([SINGLE, HOROVOD, train("multiworker", 2)], 2)).trained, width=100)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["single", "multiworker", "horovod"]
    assert len(lines) == 7 and max(map(len, lines)) <= 100


def test_terminal_table_in_colour(study: Analysis) -> None:
    assert re.search(r"\x1b\[31m *failed", render_terminal_table(study.main_cases, colour=True))


def test_a_terminal_table_never_loses_a_number() -> None:
    columns = [Column[str]("what it is", lambda text: text, numeric=False)]
    columns += [Column(head, lambda _: "1,234,567") for head in "abcdefghi"]
    assert render_terminal(make_table(columns, ["x" * 40]), 120).count("1,234,567") == 9


def test_columns_that_say_nothing_are_left_out() -> None:
    columns = [
        Column[int]("value", str),
        Column("unknown", lambda _: Cell()),
        Column("alike", lambda _: "yes", telling=True),
        Column("differs", lambda value: "one" if value == 1 else Cell(), telling=True),
    ]
    assert [column.head for column in make_table(columns, [1, 2]).columns] == ["value", "differs"]
    assert [column.head for column in make_table(columns, []).columns] == ["value", "unknown", "alike", "differs"]


def test_all_forms_show_what_qualifies_a_value_and_what_must_not_be_missed() -> None:
    table = make_table([Column[str]("head", lambda text: Cell(text, "3 < 4", style="strong"), unit="ms")], ["x_y"])
    assert render_markdown(table).splitlines()[-1] == r"| **x\_y** (3 &lt; 4) |"
    assert "x_y (3 < 4)" in render_terminal(table)
    assert "\x1b[1mx_y" in render_terminal(table, colour=True)


def test_markdown_tables_are_whole(study: Analysis) -> None:
    tables = list(map(render_markdown, main_table_in_parts(study.main_cases)))
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


def test_csv_holds_all_numbers_in_full(study: Analysis) -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(study.trained))))
    assert len(lines) == len(study.trained)
    for line, each in zip(lines, study.trained, strict=True):
        estimate = each.summary.images_per_second
        assert line["images_per_second"] == (str(estimate.value) if estimate else "")
        assert line["case_id"] == each.case.case_id
        assert json.loads(line["settings"]) == each.case.settings
    horovod = lines[[each.case for each in study.trained].index(HOROVOD)]
    assert horovod["runs"] == "3" and horovod["to_99_percent_runs"] == "3"
    assert [line["synthetic_input"] for line in lines].count("True") == 2


# As OWASP lists them, not as the source does, which could lose one.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_csv_starts_no_formula(start: str) -> None:
    hostile = f"{start}cmd|' /C calc'!A0"
    records = [
        record.model_copy(update={"measurements": (record.measurements or {}) | {"precision": hostile}})
        for record in make_study([SINGLE], 1)
    ]
    (line,) = csv.DictReader(io.StringIO(render_csv(Analysis(records).trained)))
    assert line["precision"]
    assert not any(value.startswith(FORMULA_STARTS) for value in line.values())
