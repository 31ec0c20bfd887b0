from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.measure.study import TimeLeft, choose, open_study, remark, run_study, runs_left
from mnist_dist.benchmarks.measure.suite import PlannedCase, Suite, order_of_runs, plan_cases
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.benchmarks.report.progress import BarProgress, CaseProgress, Progress, clock, render_cases
from tests.benchmarks.factory import make_study as make_records
from tests.benchmarks.factory import train
from tests.benchmarks.harness import (
    MACHINE,
    make_mark,
    make_study,
    marked_processes,
    run,
    start,
    wait_until,
    write_suite,
)

# The first ends with an error at once; so no test of the order needs TensorFlow.
BAD = Case(settings={"data.path": "/nowhere/mnist.npz"}, measure_seconds=1.0, cores_per_device=1)
SUITE = Suite(description="d", minutes=1.0, repeats=2, blocks=[{}])


def planned(*cases: Case, repeats: int = 1, skip_reason: str | None = None) -> list[PlannedCase]:
    return [PlannedCase(case, repeats, skip_reason) for case in cases]


class Notes(Progress):
    """Keeps what would be shown."""

    def __init__(self) -> None:
        super().__init__(0)
        self.lines: list[str] = []
        self.left: list[float] = []

    def end(self, line: str, left_seconds: float) -> None:
        self.lines.append(line)
        self.left.append(left_seconds)


class TestRunsLeft:
    cases = planned(train("single", 1), train("mirrored", 2), repeats=2)

    def left(self, folder: Path, records: list[Record], cases: list[PlannedCase] | None = None) -> Counter[str]:
        store = Store(folder)
        for record in records:
            store.add(record)
        runs = runs_left(cases or self.cases, store.records(), make_study(folder, name="example"), None)
        return Counter(f"{item.case.strategy} {repeat}" for item, repeat in runs)

    def test_all_at_first(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, []) == Counter(["single 0", "single 1", "mirrored 0", "mirrored 1"])

    def test_what_ended_well_is_not_repeated(self, tmp_path: Path) -> None:
        records = make_records([train("single", 1)], 2)
        assert self.left(tmp_path, records[1:]) == Counter(["single 0", "mirrored 0", "mirrored 1"])

    def test_what_failed_is_repeated(self, tmp_path: Path) -> None:
        case = train("single", 1)
        assert self.left(tmp_path, make_records([case], 2, failing=[case]))["single 0"] == 1

    def test_another_study_in_the_folder_does_not_count(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, make_records([train("single", 1)], 2, study="other"))["single 0"] == 1

    def test_what_was_skipped_is_measured_once_that_is_possible(self, tmp_path: Path) -> None:
        case = train("single", 1)
        (skipped,) = (
            record.model_copy(update={"status": "skipped", "reason": "Horovod is not installed", "measurements": None})
            for record in make_records([case], 1)
        )
        still = planned(case, skip_reason="Horovod is not installed")
        assert not self.left(tmp_path, [skipped], still)
        assert self.left(tmp_path, [], planned(case)) == Counter(["single 0"])

    def test_only_some_numbers_of_devices(self, user_error: Callable[..., str]) -> None:
        assert {item.case.devices for item in choose(self.cases, [2, 7])} == {2}
        assert user_error(choose, self.cases, [7]).endswith("expected some of the study's numbers of devices: 1, 2.")


class TestOpening:
    def test_a_folder_holds_one_study(self, tmp_path: Path, user_error: Callable[..., str]) -> None:
        folder = tmp_path / "results"
        arguments = ("quick", SUITE, MACHINE)
        study, store = open_study(folder, *arguments, planned(BAD), resume=False)
        assert (study.name, store.study()["suite"], study.scratch.is_absolute()) == ("results", "quick", True)
        assert "add --resume" in user_error(open_study, folder, *arguments, planned(BAD), resume=False)
        assert open_study(folder, *arguments, planned(BAD), resume=True)[0] == study
        other = planned(train("single", 1))
        assert "name another folder" in user_error(open_study, folder, *arguments, other, resume=True)

    def test_to_resume_what_never_began_is_to_begin(self, tmp_path: Path) -> None:
        open_study(tmp_path / "new", "quick", SUITE, MACHINE, planned(BAD), resume=True)
        assert Store(tmp_path / "new").study()["name"] == "new"


class TestEstimate:
    def test_by_a_rule_of_thumb_until_it_is_known(self) -> None:
        short, long = train("single", 1, measure_seconds=2.0), train("single", 1, measure_seconds=30.0)
        to_the_end = train("single", 1, settings={"training.epochs": 3})
        estimates = [TimeLeft([(planned(case)[0], 0)]).seconds for case in (short, long, to_the_end)]
        assert estimates[1] - estimates[0] == pytest.approx(28)
        assert estimates[2] > estimates[0]

    def test_as_long_as_the_same_case_took(self) -> None:
        case = train("single", 1)
        records = make_records([case], 3)
        known = [record.model_copy(update={"seconds": 3.0 + record.repeat}) for record in records]
        runs = [(item, repeat) for item in planned(case, repeats=2) for repeat in range(2)]
        assert TimeLeft(runs, known).seconds == pytest.approx(8)
        failed = known[0].model_copy(update={"status": "failed", "seconds": 900.0})
        assert TimeLeft(runs, [*known, failed]).seconds == pytest.approx(8), "a time-out says nothing of the next run"

    def test_each_record_corrects_it(self) -> None:
        case, other = planned(train("single", 1), train("mirrored", 2))
        left = TimeLeft([(case, 0), (other, 0), (case, 1), (case, 2)])
        of_other = TimeLeft([(other, 0)]).seconds
        (record,) = make_records([case.case], 1)
        left.end(case, record.model_copy(update={"seconds": 30.0}))
        assert left.seconds == pytest.approx(2 * 30 + of_other)
        left.end(case, record.model_copy(update={"seconds": 50.0}))
        assert left.seconds == pytest.approx(40 + of_other)
        left.end(other, record.model_copy(update={"status": "failed", "case_id": other.case_id}))
        left.end(case, record)
        assert left.seconds == 0

    def test_what_is_skipped_takes_no_time(self) -> None:
        assert TimeLeft([(planned(BAD, skip_reason="no GPU")[0], 0)]).seconds == 0

    @pytest.mark.parametrize(("values", "repeats"), [(2000, 5), (100, 100)])
    def test_ten_thousand_runs_are_planned_at_once(self, values: int, repeats: int, tmp_path: Path) -> None:
        """By processor time, so that a busy machine does not matter; with all that a study asks while it runs."""
        vary = {"model.dense_units": list(range(1, values + 1))}
        content = {"description": "d", "minutes": 1, "repeats": repeats, "strategies": "single", "devices": 1}
        suite = Suite.model_validate(content | {"blocks": [{"vary": vary}]})
        (record,) = make_records([train("single", 1)], 1)
        began = time.process_time()
        cases = plan_cases(suite, MACHINE)
        runs = runs_left(cases, [], make_study(tmp_path), None)
        left = TimeLeft(runs)
        for item, _ in runs:
            assert left.seconds > 0
            left.end(item, record)
        assert (len(runs), left.seconds) == (10_000, 0)
        assert time.process_time() - began < 1.5

    @pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3600, "1:00:00")])
    def test_as_a_clock_shows_it(self, seconds: float, text: str) -> None:
        assert clock(seconds) == text

    def test_the_list_names_cases_reasons_and_total(self) -> None:
        cases = [*planned(BAD, repeats=2), *planned(train("mirrored", 2), skip_reason="no second GPU")]
        cases += planned(train("horovod", 4, cores_per_device=1))
        rows = [(item.case, item.repeats, remark(item, MACHINE)) for item in cases]
        *lines, total = render_cases(rows, False, TimeLeft(order_of_runs(cases, 0)).seconds).splitlines()
        assert [line.split()[0] for line in lines] == [item.case.case_id for item in cases]
        assert "(skipped: no second GPU)" in lines[1]
        assert lines[2].endswith("(oversubscribed: 4 cores on a host of 2)") and "oversubscribed" not in lines[0]
        assert total.startswith("3 cases, 4 runs, about 0:")


def test_a_failing_case_does_not_stop_the_rest(tmp_path: Path) -> None:
    cases = planned(BAD, BAD.model_copy(update={"global_batch_size": 64})) + planned(
        train("mirrored", 2), skip_reason="no second GPU"
    )
    study, store = open_study(tmp_path / "results", "test", SUITE, MACHINE, cases, resume=False)
    notes = Notes()
    records = run_study(study, store, runs_left(cases, [], study, None), CaseProgress(notes))
    assert Counter(record.status for record in records) == Counter(failed=2, skipped=1)
    assert {record.record_id for record in store.records()} == {record.record_id for record in records}
    assert sum("/nowhere/mnist.npz" in line for line in notes.lines) == 2
    assert sum("skipped: no second GPU" in line for line in notes.lines) == 1
    assert notes.left[-1] == 0
    assert len(runs_left(cases, store.records(), study, None)) == 2, (
        "what failed is tried again, what is skipped is not"
    )


def test_the_bar_shows_labels_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with BarProgress(2) as progress:
        progress.begin(0, "single, filters [4, 8] [bold]", 100.0)
        progress.tick()
        progress.end("single [/]: failed: [red]", 5.0)
    shown = capsys.readouterr().out
    assert "filters [4, 8] [bold]" in shown and "1:40 left" in shown
    assert "[1/2] single [/]: failed: [red]" in shown


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, tiny_mnist: Path) -> None:
    """The harness is killed while the second of two runs trains; nothing is lost, and nothing measured again."""
    folder, mark = tmp_path / "results", make_mark()
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, repeats=2)
    arguments = ("run", suite, "--results", folder, "--no-report")
    harness = start(*arguments, mark=mark)
    try:
        assert wait_until(lambda: len(Store(folder).records()) == 1, 60)
        assert wait_until(lambda: len(marked_processes(mark)) > 1, 20), "the second run did not begin"
        harness.send_signal(signal.SIGKILL)
        harness.communicate(timeout=30)
        assert wait_until(lambda: not marked_processes(mark), 5), "the training outlived the harness"
        (first,) = Store(folder).records()
        resumed = run(*arguments, "--resume")
    finally:
        for process in marked_processes(mark):
            os.kill(process, signal.SIGKILL)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("images/s") == 1 and "[1/1]" in resumed.stdout
    records = Store(folder).records()
    assert [record.repeat for record in records] == [0, 1]
    assert first == records[0]
    assert {record.status for record in records} == {"ok"}
    assert {record.study for record in records} == {"results"}
    again = run(*arguments, "--resume")
    assert again.returncode == 0 and "images/s" not in again.stdout


@pytest.mark.slow
def test_the_exit_code_says_that_a_case_failed_and_the_rest_is_measured(tmp_path: Path, tiny_mnist: Path) -> None:
    vary = {"data.path": [str(tiny_mnist), str(tmp_path / "missing.npz")]}
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, block={"vary": vary})
    done = run("run", suite, "--results", tmp_path / "results")
    assert done.returncode == 1
    assert Counter(record.status for record in Store(tmp_path / "results").records()) == Counter(ok=1, failed=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("failed: single") and "missing.npz" in line
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000, "the report comes all the same"
    again = run("run", suite, "--results", tmp_path / "results", "--resume", "--no-report")
    assert again.returncode == 1 and "[1/1]" in again.stdout, "only what failed is tried again"


@pytest.mark.slow
def test_two_harnesses_share_a_folder(tmp_path: Path, tiny_mnist: Path) -> None:
    """As two jobs of a scaling study do, each with its number of devices."""
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, strategies=["mirrored"], devices=[1, 2])
    folder = tmp_path / "results"
    arguments = ("run", suite, "--results", folder, "--resume", "--no-report")
    harnesses = [start(*arguments, "--only", str(devices)) for devices in (1, 2)]
    outcomes = [(*harness.communicate(timeout=240), harness.returncode) for harness in harnesses]
    assert [code for _, _, code in outcomes] == [0, 0], outcomes
    records = Store(folder).records()
    assert sorted(record.case.devices for record in records) == [1, 2]
    assert {record.status for record in records} == {"ok"}
    assert {record.study for record in records} == {"results"}
