"""What the report says, and the files that it leaves."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from mnist_dist.benchmarks.analysis.attribution import Part
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Gpu, GpuTelemetry, Hardware, Record, Telemetry, Turns
from mnist_dist.benchmarks.report.findings import Findings, collect_findings
from mnist_dist.benchmarks.report.sections import build_sections
from mnist_dist.benchmarks.report.write import (
    Report,
    render_predictions,
    render_report,
    render_terminal_text,
    write_report,
)
from mnist_dist.benchmarks.statistics.stats import Estimate
from mnist_dist.distributed.turns import FULL
from tests.benchmarks import planted
from tests.benchmarks.factory import (
    FAILING,
    OVERSUBSCRIBED,
    SLOW_RANK,
    ablations,
    collectives,
    input_case,
    make_study,
    matmul,
    strong,
    train,
    whole_study,
)
from tests.benchmarks.rounds import Machine, make_round

SINGLE, HOROVOD = train("single", 1), train("horovod", 2)
HOSTILE = "<script>alert(1)</script> </pre> ``` | [x](javascript:alert(1)) \x1b[31m"


def find(records: list[Record], *warnings: str) -> Findings:
    """Of records that took turns with something, unless they say that they did with nothing."""
    rounds = [Turns(round_id=each.record_id, contenders=2, waiting_cores=0.0, ended="time") for each in records]
    pairs = zip(records, rounds, strict=True)
    taken = [each.model_copy(update={"turns": each.turns or turns}) for each, turns in pairs]
    return collect_findings(Analysis(taken), warnings)


def terminal_text(records: list[Record]) -> str:
    analysis = Analysis(records)
    return render_terminal_text(analysis, collect_findings(analysis), build_sections(analysis))


def caveats(records: list[Record], *warnings: str) -> list[str]:
    return [caveat.text for caveat in find(records, *warnings).caveats]


def on(records: list[Record], **identity: Any) -> list[Record]:
    """The same records from elsewhere."""
    return [record.model_copy(update={"identity": record.identity.model_copy(update=identity)}) for record in records]


@pytest.fixture(scope="module")
def study() -> list[Record]:
    return make_study([SINGLE, HOROVOD], 3)


def test_a_faultless_study_has_no_warnings(study: list[Record]) -> None:
    assert caveats(study) == []


def test_short_runs_apart_are_told_of_in_one_line_whatever_they_met(study: list[Record]) -> None:
    (found,) = collect_findings(Analysis(study)).caveats
    assert found.text.startswith("Intervals of runs of ") and "64 % of simulated studies" in found.text
    assert "measure in turns, or for 60 s a run. Affected: single, 1" in found.text and "; horovod, 2" in found.text
    assert "! Intervals of runs of " in terminal_text(study)
    alone = Turns(round_id="0" * 32, contenders=1, waiting_cores=0.0, ended="time")
    assert caveats([each.model_copy(update={"turns": alone}) for each in study])  # Nothing came in between.


def test_warnings_of_the_caller_stand_first(study: list[Record]) -> None:
    assert caveats([*study[:3], *on(study[3:], git=None)], "Two files could not be read.")[0].startswith("Two files")


def hardware(**changes: Any) -> Hardware:
    fields = make_study([SINGLE], 1)[0].identity.hardware.model_dump()
    return Hardware(**(fields | changes))


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ({"hardware": hardware(cpu_model="Another CPU")}, "Different hardware is mixed"),
        ({"hardware": hardware(gpus=(Gpu(name="NVIDIA H100", memory_bytes=80 * 2**30),))}, "Different hardware"),
        ({"software": {"tensorflow": "2.20.0"}}, "Different versions of software are mixed"),
        ({"git": None}, "Different commits are mixed: 0123456789ab, unknown"),
    ],
)
def test_mixed_identities_are_named(study: list[Record], identity: dict[str, Any], expected: str) -> None:
    found = caveats([*study[:3], *on(study[3:], **identity)])
    assert len(found) == 1 and found[0].startswith(expected)


def test_gpus_that_were_held_down_are_named(study: list[Record]) -> None:
    gpus = (
        GpuTelemetry(
            uuid="GPU-a", sm_clock_mhz=900, temperature_celsius=88, throttled_by=("temperature",), ecc_errors=0
        ),
        GpuTelemetry(uuid="GPU-b", sm_clock_mhz=1900, temperature_celsius=60, throttled_by=(), ecc_errors=1),
    )
    measured: Any = {"energy_joules": None, "power_watts": None, "gpu_utilisation_percent": None}
    telemetry = Telemetry(source="nvml", seconds=1.0, gpus=gpus, **measured)
    found = caveats([*study[:-1], study[-1].model_copy(update={"telemetry": telemetry})])
    case = found[0].partition(" in ")[2]
    assert found == [
        f"GPU GPU-a was throttled by temperature in {case}",
        f"GPU GPU-b had uncorrected ECC errors in {case}",
    ]
    assert "horovod" in case


def test_uncommitted_changes_show_beside_the_commit() -> None:
    findings = find(make_study([SINGLE, HOROVOD], 3, git={"commit": "ab" * 20, "dirty": True}))
    assert dict(findings.facts)["Commit"] == "abababababab with uncommitted changes"
    assert [caveat.text for caveat in findings.caveats] == [
        "Measured with uncommitted changes: the commit alone does not reproduce these numbers."
    ]


def test_several_studies_are_named(study: list[Record]) -> None:
    other = make_study([SINGLE], 1, study="another", seed=1)
    assert caveats([*study, *other])[0] == "Records of 2 studies are mixed: another, example."


def test_failures_have_their_reason_and_the_end_of_their_output() -> None:
    findings = find(make_study([SINGLE, HOROVOD], 3, failing=[HOROVOD]))
    failed, timed_out = findings.caveats
    assert failed.text.startswith("horovod, 2 × 2 cores")  # noqa: RUF001
    assert failed.text.endswith("2 of 3 runs failed: exit code 1: InternalError: collective timed out.")
    assert failed.details[0].startswith("Traceback")
    assert timed_out.text.endswith("1 of 3 runs timed out: no result after 300 s.")
    assert dict(findings.facts)["Measured"].startswith("2 cases in 6 runs (3 measured, 1 timed out, 2 failed)")


def test_one_case_is_no_cases() -> None:
    assert dict(find(make_study([SINGLE], 1)).facts)["Measured"] == "1 case in 1 run (1 measured), 0 min together"
    assert "1 of 1 run failed: " in find(make_study([SINGLE], 1, failing=[SINGLE])).caveats[0].text


def test_the_largest_loss_is_the_largest_also_where_its_cause_is_not_known(study: list[Record]) -> None:
    known = planted.find(planted.plant(planted.point_cases(), planted.CAUSES["communication"]))
    loss = Estimate(0.3, 0.25, 0.35, 3)
    unknown = replace(known, loss=loss, parts=(Part("unexplained", loss, loss),))
    for attributions, said in (
        ([known], "points to"),
        ([known, unknown], "30 %, with no certain cause"),
        ([unknown], ""),
    ):
        analysis = Analysis(study)
        analysis.__dict__["attributions"] = attributions
        sentences = [each for each in collect_findings(analysis).result if each.startswith("The largest loss")]
        assert [said in each for each in sentences] == [True] * bool(said)


def test_skipped_cases_say_why() -> None:
    skipped = [
        record.model_copy(update={"status": "skipped", "reason": "Horovod is not installed"})
        for record in make_study([HOROVOD], 1, failing=[HOROVOD])
    ]
    found = caveats([*make_study([SINGLE], 3), *skipped])
    assert len(found) == 1
    assert found[0].startswith("Not measured: horovod") and found[0].endswith(": Horovod is not installed.")


def test_unstable_cases_are_named() -> None:
    found = caveats(make_study([SINGLE, HOROVOD], 3, unstable=[HOROVOD]))
    assert any(text.startswith("Unstable, so without a throughput: horovod, 2") for text in found)


def test_equal_reasons_with_other_numbers_are_one_line() -> None:
    """As on a machine so busy that no case got enough time."""
    found = caveats(make_study([SINGLE, HOROVOD], 3, unstable=[SINGLE, HOROVOD]))
    (line,) = (text for text in found if text.startswith("Unstable"))
    assert re.search(r": single.*; horovod.*: at worst 3 of 3 repeats did not settle: .* by \+\d", line), line


@pytest.mark.parametrize(("repeats", "expected"), [(1, "one run"), (2, "one or two runs"), (3, None)])
def test_fewer_than_three_runs_are_named(repeats: int, expected: str | None) -> None:
    found = caveats(make_study([SINGLE, HOROVOD], repeats))
    assert all("hardly cover run-to-run variation" in text for text in found)
    assert bool(found) == bool(expected)
    assert expected is None or found[0].startswith(f"2 cases of {expected} each: ")


@pytest.mark.parametrize(("cores", "contenders", "is_named"), [(0.2, 2, True), (0.04, 2, False), (0.2, 1, False)])
def test_who_computes_while_others_have_the_turn_is_named(cores: float, contenders: int, is_named: bool) -> None:
    turns = {"round_id": "0" * 32, "contenders": contenders, "ended": "time"}
    records = [
        Record.model_validate(
            record.to_json() | {"turns": turns | {"waiting_cores": cores if record.case == HOROVOD else 0.0}}
        )
        for record in make_study([SINGLE, HOROVOD], 3)
    ]
    found = [text for text in caveats(records) if text.startswith("Disturbed rounds: ")]
    assert bool(found) == is_named
    assert not found or ("horovod" in found[0] and "single" not in found[0])


def busy(records: list[Record], rounds: int, cores: float) -> list[Record]:
    """The same records, whose first rounds, one for each repeat, were measured while others used so many cores."""
    return [
        each.model_copy(
            update={
                "turns": Turns(
                    round_id=f"{each.repeat:032x}",
                    contenders=2,
                    waiting_cores=0.0,
                    other_cores=cores if each.repeat < rounds else 0.01,
                    ended="time",
                )
            }
        )
        for each in records
    ]


def test_a_busy_machine_is_told_of_first() -> None:
    study = make_study([SINGLE, HOROVOD], 3)
    assert not [text for text in find(busy(study, 3, 0.15)).result if "busy" in text]
    assert (
        find(busy(study, 2, 1.24))
        .result[0]
        .startswith("The machine was busy: in 2 of 3 rounds, at worst other programs used 1.2 of 8 cores.")
    )
    assert (
        find(busy(make_study([SINGLE, HOROVOD], 1), 1, 1.24))
        .result[0]
        .startswith("The machine was busy: other programs used 1.2 of 8 cores.")
    )


def test_no_cause_is_told_where_other_programs_used_the_machine() -> None:
    study = planted.plant(planted.point_cases(), planted.CAUSES["communication"])
    records = [record for summary in study for record in summary.records]
    calm, restless = (find(busy(records, rounds, 1.5)).result for rounds in (0, 99))
    assert "; try " in calm[-1] and restless[-1].endswith(" %; for its cause, measure again on an idle machine.")
    sections = [list(build_sections(Analysis(busy(records, rounds, 1.5)))) for rounds in (0, 99)]
    calm_text, restless_text = (
        " ".join(point for section in each if section.name == "losses" for point in section.points) for each in sections
    )
    assert "To counter exposed communication, try" in calm_text
    assert "so no causes are given: measure again." in restless_text and "points to" not in restless_text


def test_a_study_with_hardly_a_rate_says_that_the_fastest_is_not_known() -> None:
    cases = [train("single", 1, settings={"runtime.precision": name}) for name in ("float32", "mixed_float16", "auto")]
    first, *others = make_study(cases, 1)
    records = [first]
    for record in others:
        short = {"window_steps": record.measured["window_steps"][:7]}
        short["window_seconds"] = [rank[:7] for rank in record.measured["window_seconds"]]
        records.append(record.model_copy(update={"measurements": record.measured | short}))
    assert find(records).result[0] == "The fastest case is unknown: 1 of 3 cases has a rate; see the warnings."


def test_what_precision_batch_and_xla_make_of_the_fastest_is_said() -> None:
    """Rates are of the same windows, by the images in a step: what is asked is which cases are put side by side."""
    records = []
    for precision, images, xla, kernels in (
        ("mixed_bfloat16", 800, "off", "fused"),
        ("mixed_bfloat16", 400, "off", "fused"),
        ("float32", 800, "off", "fused"),
        ("float32", 400, "off", "plain"),
        ("float32", 400, "on", "plain"),
    ):
        settings = {"runtime.precision": precision, "runtime.xla": xla, "runtime.kernels": kernels}
        case = train("single", 1, settings=settings, global_batch_size=images, measure_seconds=5.0)
        slower = {"mixed_bfloat16": 1.0, "float32": 2.0}[precision] * {"off": 1.0, "on": 4.0}[xla]
        computed = {"precision": precision, "xla": xla, "kernels": kernels}
        computed |= {"window_steps": [100] * 20, "window_seconds": [[slower] * 20]}
        (record,) = make_study([case], 1)
        records.append(record.model_copy(update={"measurements": record.measured | computed}))
    fastest, changed, by_xla, *_ = find(records).result
    assert fastest.startswith("Fastest is 800 images, ")
    assert changed.startswith("With one thing changed, it is ") and changed.count(" times as fast with ") == 2
    assert "0.5 times as fast with 400 images" in changed and "0.5 times as fast with float32" in changed
    assert by_xla == "XLA makes the same kernels 0.25 times as fast in float32 with 400 images."
    other = records[1].case.model_copy(update={"settings": records[1].case.settings | {"optimizer.name": "sgd"}})
    result = find([records[0], records[1].model_copy(update={"case": other}), *records[2:]]).result
    assert not any("With one thing changed" in text for text in result), "the optimizer is another thing"


def test_rounds_in_which_the_machine_was_slow_are_told_of_once() -> None:
    """Five rounds, of which two were slower by half for all cases."""
    cases = [SINGLE, train("mirrored", 2), HOROVOD]
    study = busy(make_study(cases, 5), 0, 0.0)
    slow = []
    for record in study:
        pace = 1.5 if record.repeat < 2 else 1.0
        seconds = [[pace * each for each in rank] for rank in record.measured["window_seconds"]]
        slow.append(record.model_copy(update={"measurements": record.measured | {"window_seconds": seconds}}))
    (found,) = [text for text in caveats(slow) if "slow" in text]
    assert found.startswith("The machine was slow in 2 of 5 rounds, for single, ") and "mirrored" in found
    (alone,) = [text for text in caveats([each for each in slow if each.case == SINGLE]) if "cluster" in text]
    assert alone.startswith("Runs fall into two clusters: single, ") and "2 of 5 at " in alone
    assert not [text for text in caveats([each for each in slow if each.repeat in (1, 2, 3)]) if "slow" in text]


def test_efficiencies_have_their_margin() -> None:
    text = terminal_text(make_study([SINGLE, train("mirrored", 2), HOROVOD], 3))
    rows = [line for line in text.splitlines() if line.startswith(("single", "mirrored", "horovod"))]
    assert [bool(re.search(r" \d+\.\d ±\d+\.\d ", row)) for row in rows] == [False, True, True]


def test_oversubscribed_cases_are_named() -> None:
    (found,) = caveats(make_study([SINGLE, OVERSUBSCRIBED], 3))
    assert found.startswith("Oversubscribed") and "horovod, 8 × 2 cores" in found  # noqa: RUF001


def test_a_missing_baseline_is_named() -> None:
    (found,) = caveats(make_study([HOROVOD], 3))
    assert found.startswith("No scaling efficiency for horovod, 2")


def test_facts_of_the_machine(study: list[Record]) -> None:
    facts = dict(find(study).facts)
    assert facts["Hardware"] == "8 cores of Example CPU @ 2.50GHz, x86_64, 32 GiB, no GPU"
    assert facts["Started"] == "2026-01-01 12:00 UTC, the last run at 2026-01-03 12:00 UTC"
    assert facts["Software"].startswith("Debian GNU/Linux 12, kernel 6.1.0, python 3.11.7")
    assert find(study).origin == f"{facts['Hardware']}; started {facts['Started']}; mnist_dist 1.0.0, tensorflow 2.21.0"
    gpus = (Gpu(name="NVIDIA H100", memory_bytes=80 * 2**30),) * 4
    with_gpus = on(study, hardware=hardware(gpus=gpus, gpu_driver="570.1"))
    assert dict(find(with_gpus).facts)["Hardware"].endswith("4 × NVIDIA H100 (80 GiB), driver 570.1")  # noqa: RUF001


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (collectives("horovod", 2), r"horovod +2 × 2 cores +64 MiB"),  # noqa: RUF001
        (matmul(1), r"float32 +1 × 2 cores +2,048 +0\.9"),  # noqa: RUF001
        (input_case(), r"single, 1 × 2 cores, 128 images per device, precision float32 +1\d\d,\d\d\d"),  # noqa: RUF001
    ],
    ids=["collectives", "matmul", "input"],
)
def test_studies_without_training_print_their_tables(case: Case, expected: str) -> None:
    assert re.search(expected, terminal_text(make_study([case], 3)))


def test_bandwidth_is_that_of_the_ring() -> None:
    large = Analysis(make_study([collectives("horovod", 4)], 3)).all_reduces[-1]
    assert large.bus_bandwidth == pytest.approx(1.5 * large.algorithm_bandwidth)
    assert large.bus_bandwidth == pytest.approx(1.6e9, rel=0.1)


def test_predictions_need_a_curve(user_error: Callable[..., str]) -> None:
    assert "run the suite scaling" in user_error(render_predictions, make_study([SINGLE], 1))


def test_predictions_of_every_curve() -> None:
    records = make_study([SINGLE, HOROVOD, train("horovod", 4)], 3)
    text = render_predictions(records)
    assert "a host has 4, and nothing was measured" in " ".join(text.split())
    assert "horovod, weak scaling, 128 images per device: " in text
    assert "|" not in text


def test_too_few_points_for_a_prediction() -> None:
    text = " ".join(render_predictions(make_study([SINGLE, HOROVOD], 3)).split())
    assert text.startswith("- Not predicted: horovod, weak scaling, 128 images per device: measured numbers of")


def test_the_reason_of_a_lost_share_is_said() -> None:
    quadruple = train("horovod", 4)
    records = make_study([SINGLE, *ablations(SINGLE), quadruple, *ablations(quadruple), strong("mirrored", 2)], 3)
    losses = next(section for section in build_sections(Analysis(records)) if section.name == "losses")
    assert len(losses.points) == 1
    assert f"rank {SLOW_RANK} on host node1" in losses.points[0]
    assert losses.tables[0].rows[0][0].text == "horovod × 4, weak"  # noqa: RUF001


def hostile_study() -> list[Record]:
    settings = {"runtime.precision": "float32", "data.path": HOSTILE}
    cases = [train("single", 1, settings=settings), train("horovod", 2, settings=settings)]
    records = make_study(cases, 3, study=HOSTILE, suite=HOSTILE, failing=[cases[1]], hosts=[HOSTILE])
    reason = HOSTILE.replace("\x1b", "")
    return [
        record.model_copy(update={"reason": reason, "output_tail": (HOSTILE, reason)}) if record.reason else record
        for record in records
    ]


def test_text_from_records_is_inert_on_the_terminal() -> None:
    text = terminal_text(hostile_study())
    assert "\x1b" not in text
    assert "<script>alert(1)</script>" in text


def test_text_from_records_is_inert_in_markdown() -> None:
    analysis = Analysis(hostile_study())
    text = render_report("report.md.j2", analysis, collect_findings(analysis), list(build_sections(analysis)), [])
    assert "\x1b" not in text
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in page and 'href="javascript' not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert page.count("<pre>") == page.count("</pre>") == 2
    assert "<h2>How to read this</h2>" in page  # Nothing before it swallowed the rest.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("study")
    return folder, write_report(folder, whole_study(2), ["A file could not be read."])


@pytest.mark.slow
def test_files(written: tuple[Path, Report]) -> None:
    folder, report = written
    assert report.html == folder / "report.html"
    figures = {"throughput_accuracy", "time_to_accuracy", "throughput", "efficiency", "losses", "step_times"}
    figures |= {"prediction", "all_reduce"}
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.csv", "report.html", "figures"}
    assert {path.stem for path in (folder / "figures").iterdir()} == figures
    assert report.html.stat().st_size < 1_000_000
    assert len(list(csv.DictReader((folder / "report.csv").open(newline="")))) > 20


@pytest.mark.slow
def test_markdown_has_every_part(written: tuple[Path, Report]) -> None:
    folder, _ = written
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render((folder / "report.md").read_text())
    origin = "<p>8 cores of Example CPU @ 2.50GHz, x86_64, 32 GiB, no GPU; started 2026-01-01 12:00 UTC, .* UTC; .*</p>"
    assert re.search(rf"</h1>\n{origin}\n<p>Fastest is ", page)
    assert re.search(rf"</h1>\n{origin}\n<ul", (folder / "report.html").read_text())
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Results",
        "Warnings",
        "Scaling",
        "Where the time goes",
        "Prediction",
        "All-reduce",
        "Matrix products",
        "Input pipeline",
        "How to read this",
        "What was measured, when and where",
    ]
    assert page.count("<table>") >= 8
    pictures = re.findall('<img src="(.*?)" alt="(.+?)"', page)
    assert len(pictures) == 8
    assert all((folder / source).is_file() for source, _ in pictures)


@pytest.mark.slow
def test_terminal_text(written: tuple[Path, Report]) -> None:
    _, report = written
    lines = report.terminal_text.splitlines()
    assert "! A file could not be read." in lines
    assert max(map(len, lines)) <= 120
    for strategy in ("single", "mirrored", "multiworker", "horovod"):
        assert any(re.match(rf"{strategy} +\d.*\d\d\.\d\d", line) for line in lines)  # With its accuracy.


@pytest.mark.slow
def test_an_older_report_survives_a_full_disk(
    small_disk: Path, fill: Callable[[Path], None], study: list[Record], user_error: Callable[..., str]
) -> None:
    older = small_disk / "report.html"
    older.write_text("older")
    fill(small_disk)
    assert "No space left" in user_error(write_report, small_disk, study)
    assert older.read_text() == "older"
    assert {path.name for path in small_disk.rglob("*") if path.is_file()} == {"report.html", "filling"}


def test_nothing_to_report(tmp_path: Path, user_error: Callable[..., str]) -> None:
    assert "no records" in user_error(write_report, tmp_path / "empty", [])
    assert not (tmp_path / "empty").exists()


@pytest.mark.slow
def test_heavy_libraries_wait_until_they_are_needed() -> None:
    heavy = "{'tensorflow', 'matplotlib', 'jinja2', 'scipy', 'ruptures', 'rich'}"
    command = f"import sys, mnist_dist.benchmarks.report.write; print({heavy} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_failing_baseline_leaves_a_report(study: list[Record]) -> None:
    records = make_study([SINGLE, FAILING], 2, failing=[SINGLE, FAILING])
    analysis = Analysis(records)
    assert analysis.curves == () and len(analysis.main_cases) == 2
    assert "failed" in terminal_text(records)


def test_no_winner_is_named_while_a_rival_has_no_rate() -> None:
    cases = [SINGLE, HOROVOD, train("mirrored", 1)]
    first, *_ = find(make_study(cases, 3, unstable=[HOROVOD])).result
    assert first.startswith("The fastest case is unknown: 1 training that may be as fast has no rate yet")
    first, *_ = find(make_study(cases, 3, unstable=[SINGLE])).result
    assert first.startswith("Fastest is "), "one device is no rival of two"


def test_of_cases_that_are_all_as_fast_none_is_the_slowest() -> None:
    found = find(make_study([train("mirrored", 1), train("horovod", 1)], 1))
    assert "equally fast within noise" in found.result[0] and "slowest" not in found.result[0]


def in_rounds(*rounds: dict[tuple[str, int], float]) -> list[Record]:
    """Of each round the seconds of a step of each strategy on so many devices of one core, without levels."""
    rng, calm, records = np.random.default_rng(0), Machine(drift=0.01, throttled=0.0), []
    for steps in rounds:
        contenders = [(train(*key, cores_per_device=1), {FULL: [each]}, {}) for key, each in steps.items()]
        records += make_round(rng, contenders, 100, calm)
    return records


def test_cases_of_two_sessions_are_ranked_by_the_baseline_that_both_have() -> None:
    first = {("single", 1): 0.010, ("mirrored", 1): 0.0105, ("mirrored", 2): 0.0105}
    fastest, apart, *_ = find(in_rounds(first, {("single", 1): 0.015, ("horovod", 2): 0.0157})).result
    assert "; equally fast within noise: " in fastest and ", 2 times the slowest (mirrored, 1 " in fastest
    assert "mirrored, 2 " in fastest and "horovod, 2 " in fastest
    assert apart.startswith("Not measured beside the fastest: ") and "Compare their efficiency" in apart
    fastest, apart, *_ = find(in_rounds(first, {("single", 1): 0.015, ("horovod", 2): 0.013})).result
    assert fastest.startswith("Fastest is horovod, ") and "within noise" not in fastest
    assert "mirrored, 1 " in apart and "mirrored, 2 " in apart and "to single, " in apart
    assert not any("Not measured beside" in text for text in find(in_rounds(first, first)).result)
    advised = Analysis(in_rounds(first, {("single", 1): 0.015, ("multiworker", 2): 0.0162})).attributions
    assert [each.faster_strategy for each in advised] == [None, None], "only the machine was slower"


def test_levels_of_processes_and_of_runs_apart_are_noise_to_a_winner() -> None:
    assert "equally fast within noise" in find(in_rounds({("single", 1): 0.010, ("mirrored", 1): 0.0102})).result[0]
    runs = make_study([SINGLE, train("horovod", 1)], 1)
    slower = [[1.08 * each for each in row] for row in runs[1].measured["window_seconds"]]
    runs[1] = runs[1].model_copy(update={"measurements": runs[1].measured | {"window_seconds": slower}})
    assert "equally fast within noise" in find(runs).result[0]


def test_where_few_runs_differ_much_the_slower_may_be_as_fast() -> None:
    runs = [*make_study([SINGLE, train("mirrored", 1)], 2), *make_study([train("horovod", 1)], 2)]
    slow = [[3 * each for each in row] for row in runs[-1].measured["window_seconds"]]
    runs[-1] = runs[-1].model_copy(update={"measurements": runs[-1].measured | {"window_seconds": slow}})
    first = find(runs).result[0]
    assert "times the slowest" not in first and "horovod" in first.partition("within noise")[2]


def test_where_nothing_was_trained_there_are_no_results(tmp_path: Path) -> None:
    case = collectives("horovod", 2).model_copy(update={"cores_per_device": None})
    gpus = (Gpu(name="NVIDIA H100", memory_bytes=80 * 2**30),) * 2
    machine = hardware(gpus=gpus, gpu_driver="570.1", memory_bytes=1007 * 2**30)
    html = write_report(tmp_path, on(make_study([case], 3), hardware=machine)).html.read_text()
    markdown = (tmp_path / "report.md").read_text()
    assert 'id="results"' not in html and "## Results" not in markdown
    assert "2 GPUs" in markdown and "all cores" not in markdown
    assert "1,007 GiB" in markdown and "busbw" in markdown and "MFU" not in markdown + html
