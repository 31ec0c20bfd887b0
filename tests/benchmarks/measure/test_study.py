from __future__ import annotations

import os
import shlex
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.measure.progress import RoundProgress, going_on, render_cases
from mnist_dist.benchmarks.measure.rounds import Stage
from mnist_dist.benchmarks.measure.runner import Run
from mnist_dist.benchmarks.measure.study import (
    VARIANT_SECONDS,
    choose,
    command_again,
    compared,
    estimate_seconds,
    most_processes,
    open_study,
    plan_rounds,
    results_folder,
    run_rounds,
)
from mnist_dist.benchmarks.measure.suite import PlannedCase, Suite, plan_cases
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.command import clock
from mnist_dist.display import Bar, Display
from tests.benchmarks.factory import make_study as make_records
from tests.benchmarks.factory import train
from tests.benchmarks.harness import (
    MACHINE,
    make_mark,
    make_study,
    marked_processes,
    plan_case,
    run,
    start,
    wait_until,
    write_suite,
)
from tests.benchmarks.simulation import make_record

# It ends with an error at once; so no test of the order needs TensorFlow.
BAD = Case(settings={"data.path": "/nowhere/mnist.npz"}, measure_seconds=1.0, cores_per_device=1)
SUITE = Suite(description="d", minutes=1.0, repeats=2, blocks=[{}])


def planned(*cases: Case, repeats: int = 1, skip_reason: str | None = None) -> list[PlannedCase]:
    return [plan_case(case, repeats=repeats, skip_reason=skip_reason) for case in cases]


class Notes(Display):
    """Keeps what would be shown."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self.lines = list(lines)

    def say(self, line: str) -> None:
        self.lines.append(line)

    @property
    def told(self) -> list[str]:
        """What was said of the stages of rounds."""
        return [line.strip() for line in self.lines if line.startswith("  ")]


class TestRounds:
    """Which cases are alive at once, and which are left."""

    cases = planned(train("single", 1), train("mirrored", 2), repeats=2)

    def left(self, folder: Path, records: list[Record], cases: list[PlannedCase] | None = None) -> list[list[str]]:
        store = Store(folder)
        for record in records:
            store.add(record)
        rounds = plan_rounds([(make_study(folder, name="example"), store)], cases or self.cases, store.records())
        return [[f"{run.case.strategy} {run.repeat}" for run in runs] for runs in rounds]

    def test_all_at_first(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, []) == [["single 0", "mirrored 0"], ["single 1", "mirrored 1"]]

    def test_what_ended_well_is_not_repeated(self, tmp_path: Path) -> None:
        records = make_records([case.case for case in self.cases], 2)
        assert self.left(tmp_path, [record for record in records if record.repeat == 1]) == [["single 0", "mirrored 0"]]

    def test_what_is_left_meets_its_baseline_again(self, tmp_path: Path) -> None:
        """A ratio within a cycle takes both sides."""
        measured = [plan_case(train(strategy, 1, measure_seconds=1.0)) for strategy in ("single", "mirrored")]
        records = make_records([measured[0].case], 1)
        assert self.left(tmp_path, records, measured) == [["single 0", "mirrored 0"]]
        assert self.left(tmp_path, make_records([measured[1].case], 1), measured) == []

    def test_what_failed_is_repeated(self, tmp_path: Path) -> None:
        case = train("mirrored", 2)
        records = make_records([train("single", 1), case], 2, failing=[case])
        assert self.left(tmp_path, records) == [["mirrored 0"], ["mirrored 1"]]

    def test_what_was_interrupted_is_repeated(self, tmp_path: Path) -> None:
        turns = {"round_id": "0" * 32, "contenders": 2, "waiting_cores": 0.0, "ended": "interrupted"}
        records = [
            Record.model_validate(record.to_json() | {"turns": turns | {"ended": ended}})
            for record, ended in zip(make_records([train("single", 1)], 2), ("interrupted", "time"), strict=True)
        ]
        assert self.left(tmp_path, records, self.cases[:1]) == [["single 0"]]

    def test_another_study_in_the_folder_does_not_count(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, make_records([train("single", 1)], 2, study="other"))[0][0] == "single 0"

    def test_what_was_skipped_is_measured_once_that_is_possible(self, tmp_path: Path) -> None:
        case = train("single", 1)
        (skipped,) = (
            record.model_copy(update={"status": "skipped", "reason": "Horovod is not installed", "measurements": None})
            for record in make_records([case], 1)
        )
        still = planned(case, skip_reason="Horovod is not installed")
        assert not self.left(tmp_path, [skipped], still)
        assert self.left(tmp_path, [], planned(case)) == [["single 0"]]

    def test_only_some_numbers_of_devices(self, user_error: Callable[..., str]) -> None:
        assert {item.case.devices for item in choose(self.cases, [2, 7])} == {2}
        assert user_error(choose, self.cases, [7]).endswith("expected some of the study's numbers of devices: 1, 2.")

    def parts(self, folder: Path, cases: list[PlannedCase], processes: int, sides: int = 1) -> list[list[str]]:
        studies = [(make_study(folder, name=f"side {number}"), Store(folder)) for number in range(sides)]
        rounds = plan_rounds(studies, cases, processes=processes)
        return [[f"{run.case.strategy} {run.case.devices}" for run in runs] for runs in rounds]

    def test_as_many_as_memory_holds_and_the_baseline_with_all_of_them(self, tmp_path: Path) -> None:
        cases = [("mirrored", 4), ("horovod", 2), ("single", 1), ("horovod", 4), ("multiworker", 2), ("multiworker", 1)]
        timed = [plan_case(train(*case, measure_seconds=1.0)) for case in cases]
        assert self.parts(tmp_path, timed, 100) == [["single 1", *(f"{a} {b}" for a, b in cases if a != "single")]]
        parts = self.parts(tmp_path, timed, 4)
        assert parts == [
            ["single 1", "mirrored 4", "horovod 2"],
            ["single 1", "horovod 4"],
            ["single 1", "multiworker 2", "multiworker 1"],
        ], "one that is too large by itself has the baseline beside it all the same"
        others = Counter(name for part in parts for name in part if name != "single 1")
        assert set(others.values()) == {1}

    def test_a_baseline_by_itself_is_measured_once(self, tmp_path: Path) -> None:
        assert self.parts(tmp_path, [plan_case(train("single", 1, measure_seconds=1.0))], 1) == [["single 1"]]

    def test_both_sides_of_a_case_are_in_one_round(self, tmp_path: Path) -> None:
        timed = [plan_case(train(name, 1, measure_seconds=1.0)) for name in ("single", "mirrored")]
        assert self.parts(tmp_path, timed, 100, sides=2) == [["single 1", "single 1", "mirrored 1", "mirrored 1"]]

    def test_what_is_skipped_takes_no_memory(self, tmp_path: Path) -> None:
        large = plan_case(train("horovod", 8, measure_seconds=1.0), skip_reason="no such device")
        small = plan_case(train("mirrored", 2, measure_seconds=1.0))
        assert self.parts(tmp_path, [large, small], 1) == [["horovod 8", "mirrored 2"]]

    def test_this_host_has_memory_for_some(self) -> None:
        assert 1 <= most_processes() < 100_000

    def test_what_is_compared_is_known_to_be_so(self, tmp_path: Path) -> None:
        base, new = make_study(tmp_path, name="base"), make_study(tmp_path, name="new")
        single, mirrored = (plan_case(train(name, 1, measure_seconds=1.0)) for name in ("single", "mirrored"))
        to_the_end = plan_case(train("horovod", 1))
        runs = [Run(base, each, 0) for each in (mirrored, single, to_the_end)]
        assert compared(runs) == [(runs[0], runs[1])], "with the training on one device"
        both = [Run(study, each, 0) for each in (single, mirrored) for study in (base, new)]
        assert compared(both) == [(both[1], both[0]), (both[3], both[2])], "with the other side"
        assert compared([Run(base, mirrored, 0)]) == []


def test_a_new_folder_is_named_for_who_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with results_folder(None, "quick", resume=False) as folder:
        assert folder.is_dir() and capsys.readouterr().err == f"results: {folder}\n"
    with results_folder(tmp_path, "quick", resume=True) as folder:
        assert folder == tmp_path and not capsys.readouterr().err, "who named it knows it"


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

    def test_a_study_goes_on_to_more_repeats_but_not_to_fewer(
        self, tmp_path: Path, user_error: Callable[..., str]
    ) -> None:
        arguments = (tmp_path, "quick", SUITE, MACHINE)
        open_study(*arguments, planned(BAD), resume=False)
        side = open_study(*arguments, planned(BAD, repeats=3), resume=True)
        assert side[1].study()["repeats"] == 3
        done = [make_record(BAD, study=side[0].name)]
        assert [[run.repeat for run in each] for each in plan_rounds([side], planned(BAD, repeats=3), done)] == [
            [1],
            [2],
        ]
        line = user_error(open_study, *arguments, planned(BAD, repeats=2), resume=True)
        assert "repeats: the folder's study has 3, this one 2; name another folder with --results, or" in line
        others = planned(train("single", 1), repeats=4)
        assert "cases: the folder's study has" in user_error(open_study, *arguments, others, resume=True)

    def test_a_study_goes_on_to_more_strategies_but_not_to_fewer(
        self, tmp_path: Path, user_error: Callable[..., str]
    ) -> None:
        """As that of `make bench`, which builds Horovod in between."""
        arguments, few = (tmp_path, "quick", SUITE, MACHINE), [train("single", 1), train("mirrored", 2)]
        open_study(*arguments, planned(*few), resume=False)
        _, store = open_study(*arguments, planned(train("horovod", 2), *few, repeats=2), resume=True)
        assert (len(store.study()["cases"]), store.study()["repeats"]) == (3, 2)
        assert "cases: " in user_error(open_study, *arguments, planned(*few, repeats=2), resume=True)

    def test_of_two_that_begin_at_once_one_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
    ) -> None:
        arguments = (tmp_path, "quick", SUITE, MACHINE, planned(BAD))
        write = Store.write_study

        def be_late(store: Store, plan: Mapping[str, Any]) -> bool:
            write(store, plan)  # The other's, after this one has looked whether there is one.
            return write(store, plan)

        monkeypatch.setattr(Store, "write_study", be_late)
        assert "add --resume" in user_error(open_study, *arguments, resume=False)
        open_study(*arguments, resume=True)

    def test_to_resume_what_never_began_is_to_begin(self, tmp_path: Path) -> None:
        open_study(tmp_path / "new", "quick", SUITE, MACHINE, planned(BAD), resume=True)
        assert Store(tmp_path / "new").study()["name"] == "new"


class TestEstimate:
    def estimate(self, *cases: PlannedCase) -> float:
        return estimate_seconds([[Run(make_study(Path()), case, 0) for case in cases]])

    def test_by_a_rule_of_thumb(self) -> None:
        short, long = (plan_case(train("single", 1, measure_seconds=seconds)) for seconds in (2.0, 30.0))
        to_the_end = plan_case(train("single", 1, settings={"training.epochs": 3}))
        assert self.estimate(long) - self.estimate(short) == pytest.approx(28)
        assert self.estimate(to_the_end) > self.estimate(short)
        assert self.estimate(short, long) == pytest.approx(self.estimate(short) + self.estimate(long))

    def test_each_variant_takes_its_time(self) -> None:
        case = train("single", 1, measure_seconds=2.0)
        more = self.estimate(plan_case(case, ablations=True)) - self.estimate(plan_case(case))
        assert more == pytest.approx(2.0 + VARIANT_SECONDS)

    def test_what_is_skipped_takes_no_time(self) -> None:
        assert self.estimate(*planned(BAD, skip_reason="no GPU")) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(("values", "repeats"), [(2000, 5), (100, 100)])
    @pytest.mark.parametrize("processes", [20, 100_000])
    def test_ten_thousand_runs_are_planned_at_once(
        self, values: int, repeats: int, processes: int, tmp_path: Path
    ) -> None:
        """By processor time, of which a busy machine may take twice as much; comparing all with all takes minutes."""
        vary = {"model.dense_units": list(range(1, values + 1))}
        content = {"description": "d", "minutes": 1, "repeats": repeats, "strategies": "single", "devices": 1}
        suite = Suite.model_validate(content | {"blocks": [{"vary": vary}]})
        began = time.process_time()
        cases = plan_cases(suite, MACHINE)
        rounds = plan_rounds([(make_study(tmp_path), Store(tmp_path))], cases, processes=processes)
        assert estimate_seconds(rounds) > 0
        assert sum(map(len, rounds)) == 10_000
        assert time.process_time() - began < 4

    @pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3600, "1:00:00")])
    def test_as_a_clock_shows_it(self, seconds: float, text: str) -> None:
        assert clock(seconds) == text

    def test_the_list_names_cases_reasons_and_total(self) -> None:
        cases = [*planned(BAD, repeats=2), *planned(train("mirrored", 2), skip_reason="no second GPU")]
        cases += planned(train("horovod", 4, cores_per_device=1))
        *lines, total = render_cases(cases, MACHINE, 2, 65.0).splitlines()
        assert [line.split()[0] for line in lines] == [item.case.case_id for item in cases]
        assert "(skipped: no second GPU)" in lines[1]
        assert lines[2].endswith("(oversubscribed: 4 cores on a host of 2)") and "oversubscribed" not in lines[0]
        assert total == "2 cases (1 more skipped), 3 runs in 2 rounds, about 1:05"
        assert render_cases(cases[:1], MACHINE, 1, 0.0).endswith("1 case, 2 runs in 1 round, about 0:00")


@pytest.mark.slow
def test_a_failing_case_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = planned(BAD, BAD.model_copy(update={"global_batch_size": 64})) + planned(
        train("mirrored", 2), skip_reason="no second GPU"
    )
    side = open_study(tmp_path / "results", "test", SUITE, MACHINE, cases, resume=False)
    records = run_rounds(plan_rounds([side], cases), [side])
    notes = Notes(capsys.readouterr().out.splitlines())
    assert Counter(record.status for record in records) == Counter(failed=2, skipped=1)
    assert {record.record_id for record in side[1].records()} == {record.record_id for record in records}
    assert sum("/nowhere/mnist.npz" in line for line in notes.lines if line.startswith("[")) == 2
    assert [line.split(",")[0] for line in notes.lines if "skipped: no second GPU" in line] == ["mirrored"]
    assert notes.lines[-1].startswith("[run 2 of 2] single, ")
    assert "0:00 left" not in notes.lines[-1], "of the last round"
    assert notes.lines[0].startswith("round 1 of 1: 2 cases in turns, about 0:")
    assert [text.split(",")[0] for text in notes.told[:2]] == ["starting single"] * 2
    left = plan_rounds([side], cases, side[1].records())
    assert sum(map(len, left)) == 2, "what failed is tried again, what is skipped is not"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench", "run", "quick"], "bench run quick --results 'my results/b'"),
        (["bench", "run", "quick", "--results", "a", "--resume"], "bench run quick --results 'my results/b'"),
        (["bench", "run", "quick", "--results=a"], "bench run quick --results 'my results/b'"),
        (
            ["bench", "run", "my suite.yaml", "--set", "training.epochs=2"],
            "bench run 'my suite.yaml' --set training.epochs=2 --results 'my results/b'",
        ),
    ],
)
def test_a_command_with_another_folder(words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [".venv/bin/mnist-dist", *words])
    monkeypatch.setenv("PATH", "")
    assert command_again(Path("my results/b")) == f".venv/bin/mnist-dist {expected}"
    assert command_again(Path("my results/b"), "--resume").endswith("/b' --resume")


def test_a_command_by_a_name_that_a_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/mnist_dist/__main__.py", "bench", "run", "quick"])
    monkeypatch.setenv("PATH", "")
    assert command_again(Path("b")) == "mnist-dist bench run quick --results b"


class TestProgress:
    """What a person reads while a round goes on."""

    def begin(self, display: Display, tmp_path: Path, *names: str) -> RoundProgress:
        settings = {"data.path": "x", "training.epochs": 3}
        case = plan_case(train("mirrored", 2, measure_seconds=1.0, settings=settings))
        other = plan_case(train("single", 1, measure_seconds=1.0, settings=settings))
        studies = [make_study(tmp_path, name=name, width=0.01) for name in names]
        rounds = [[Run(study, each, 0) for each in (other, case) for study in studies]]
        progress = RoundProgress(display, rounds)
        progress.begin(rounds[0], 100.0)
        return progress

    def test_which_contender_starts_and_how_far_the_measuring_is(self, tmp_path: Path) -> None:
        notes = Notes()
        progress = self.begin(notes, tmp_path, "study")
        name = next(name for name, run in progress._runs.items() if run.case.strategy == "mirrored")
        stages = [Stage("starting", name), *[Stage("training", training=2)] * 3, Stage("warming up")]
        stages += [Stage("measuring", None, cycle, 0.1 / cycle if cycle > 9 else None) for cycle in range(20)]
        for stage in [*stages, Stage("ending")]:
            progress.tell(stage)
        assert notes.lines[0] == "round 1 of 1: 2 cases in turns, about 1:40 left"
        assert notes.told == [
            "starting mirrored, 2 \N{MULTIPLICATION SIGN} 2 cores, 128 images per device, trained 1 s",
            "2 still training",
            "warming up",
            "measuring",
            "measuring, 1 cycle",
            "measuring, 2 cycles",
            "measuring, 4 cycles",
            "measuring, 8 cycles",
            "measuring, 16 cycles, the widest interval ±0.6 %, target ±1.0 %",
            "ending",
        ]

    @pytest.mark.parametrize(("cores", "is_busy"), [(0.1, False), (0.9, True)])
    def test_a_busy_machine_is_told_of_before_it_is_measured(self, tmp_path: Path, cores: float, is_busy: bool) -> None:
        notes = Notes()
        self.begin(notes, tmp_path, "study").tell(Stage("started", other_cores=cores))
        told = "the machine is busy: other programs use 0.9 of 2 cores; measure when it is idle"
        assert any(line.strip().startswith(told) for line in notes.lines) == is_busy

    def test_which_of_two_sides(self, tmp_path: Path) -> None:
        notes = Notes()
        progress = self.begin(notes, tmp_path, "base", "new")
        name = next(name for name in progress._runs if name.startswith("new/"))
        progress.tell(Stage("starting", name))
        assert notes.told[0].startswith("starting new: ")

    def test_the_bar_says_it_too(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with Bar(2, auto_refresh=False) as bar:
            self.begin(bar, tmp_path, "study").tell(Stage("measuring", None, 3))
        shown = capsys.readouterr().out
        assert "1:40 left  measuring, 3 cycles" in shown

    def test_how_much_of_a_study_that_goes_on_is_done(self, tmp_path: Path) -> None:
        cases = [train("single", 1, measure_seconds=1.0), train("mirrored", 2), train("horovod", 2)]
        side = make_study(tmp_path), Store(tmp_path)
        plan, known = [plan_case(case) for case in cases], make_records(cases[:2], 1, study=side[0].name)
        assert going_on(plan_rounds([side], plan, known), known) == (
            "resuming: 2 runs done, 2 to go, with the baseline once more"
        )
        assert going_on(plan_rounds([side], plan[1:], known), known) == "resuming: 2 runs done, 1 to go"

    def test_a_bar_is_not_drawn_with_each_turn(self, tmp_path: Path) -> None:
        with Bar(2, auto_refresh=False) as bar:
            progress = self.begin(bar, tmp_path, "study")
            progress.tick()
            progress._began -= 50
            progress.tick()
            assert bar._bar.tasks[0].description == "1:40 left  round 1 of 1"
            progress._looked = 0.0
            progress.tick()
            assert bar._bar.tasks[0].description == "0:50 left  round 1 of 1"

    def test_what_is_skipped_leaves_the_time_of_the_others(self, tmp_path: Path) -> None:
        with Bar(2, auto_refresh=False) as bar:
            progress = self.begin(bar, tmp_path, "study")
            (record,) = make_records([train("horovod", 1)], 1)
            progress.end(record.model_copy(update={"status": "skipped", "reason": "not installed"}), 0.0)
            assert bar._bar.tasks[0].description == "1:40 left  round 1 of 1"
            progress.end(record, 0.0)
            assert bar._bar.tasks[0].description == "0:00 left  round 1 of 1"


def test_a_long_text_leaves_the_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with Bar(12, auto_refresh=False) as bar:
        bar.show("1:40 left  measuring, 128 cycles, the widest interval ±12.3 %, target ±2.0 %", 3, at_once=True)
    assert " 3/12 1:40 left  measuring, 128 cycles, the widest interval" in capsys.readouterr().out


def test_a_bar_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(2, auto_refresh=False) as bar:
        bar.show("1:40 left  single, filters [4, 8] [bold]", 1, at_once=True)
        bar.say("[run 1 of 2] single [/]: failed: [red]")
    shown = capsys.readouterr().out
    assert "1/2 1:40 left  single, filters [4, 8] [bold]" in shown
    assert "[run 1 of 2] single [/]: failed: [red]" in shown


@pytest.mark.thorough
@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, tiny_mnist: Path) -> None:
    """The harness is killed in the second of two rounds; nothing is lost, and nothing measured again."""
    folder, mark = tmp_path / "results", make_mark()
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, repeats=2)
    arguments = ("run", suite, "--results", folder, "--no-report")
    harness = start(*arguments, mark=mark)
    try:
        assert wait_until(lambda: len(Store(folder).records()) == 1, 300)
        assert wait_until(lambda: len(marked_processes(mark)) > 1, 60), "the second round did not begin"
        harness.send_signal(signal.SIGKILL)
        harness.communicate(timeout=300)
        assert wait_until(lambda: not marked_processes(mark), 60), "the training outlived the harness"
        (first,) = Store(folder).records()
        resumed = run(*arguments, "--resume")
    finally:
        for process in marked_processes(mark):
            os.kill(process, signal.SIGKILL)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("images/s") == 1 and "[run 1 of 1]" in resumed.stdout
    records = Store(folder).records()
    assert [record.repeat for record in records] == [0, 1]
    assert first == records[0]
    assert {record.status for record in records} == {"ok"}
    assert {record.study for record in records} == {"results"}
    again = run(*arguments, "--resume")
    assert again.returncode == 0 and "images/s" not in again.stdout


@pytest.mark.slow
def test_an_interrupted_round_is_kept_and_measured_again(tmp_path: Path, tiny_mnist: Path) -> None:
    """Interrupted while it measures; and the harness' secret is in no place where others could read it."""
    folder, mark = tmp_path / "results", make_mark()
    block = {"measure_seconds": 4}
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, strategies=["single", "mirrored"], block=block)
    arguments = ("run", suite, "--results", folder)
    harness = start(*arguments, mark=mark)
    try:
        assert harness.stdout is not None
        said = []
        for line in harness.stdout:
            said.append(line)
            if line.startswith("  measuring, 1 cycle"):
                break
        processes = marked_processes(mark)
        (token,) = {found for each in processes.values() if (found := each.get("MNIST_DIST_TURNS_TOKEN"))}
        commands = [Path(f"/proc/{process}/cmdline").read_bytes().decode() for process in processes]
        logs = [log.read_text() for log in folder.rglob("output.log")]
        assert len(token) >= 32 and len(commands) >= 3 and len(logs) == 2
        harness.send_signal(signal.SIGINT)
        out, errors = harness.communicate(timeout=300)
        assert harness.returncode == 130, errors
        assert wait_until(lambda: not marked_processes(mark), 60)
    finally:
        for process in marked_processes(mark):
            os.kill(process, signal.SIGKILL)
    *_, stopped, rest = errors.splitlines()
    assert stopped == "mnist-dist: interrupted; what has been measured is kept"
    assert rest == "continue with: " + shlex.join(["mnist-dist", "bench", *map(str, arguments), "--resume"])
    assert "  stopping; saving what was measured, up to 60 s\n" in out
    assert [line.split(",")[0] for line in said if "starting" in line] == ["  starting single", "  starting mirrored"]
    kept = Store(folder).records()
    assert [(record.status, record.turns and record.turns.ended) for record in kept] == [("ok", "interrupted")] * 2
    again = run(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    ended = [record.turns.ended for record in Store(folder).records() if record.turns]
    assert ended in (["time"] * 2, ["narrow"] * 2), "what was interrupted no longer counts"
    files = [file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file()]
    assert files and not any(token in text for text in (*files, *commands, *logs, *said, out, errors))


@pytest.mark.thorough
@pytest.mark.slow
def test_a_disk_that_is_full_by_then(tmp_path: Path, tiny_mnist: Path, small_disk: Path, fill: Callable) -> None:  # type: ignore[type-arg]
    """The first round is kept, and the second cannot begin; one line says why."""
    folder = small_disk / "results"
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, repeats=2)
    harness = start("run", suite, "--results", folder, "--no-report")
    assert wait_until(lambda: len(Store(folder).records()) == 1, 300)
    fill(small_disk)
    _, errors = harness.communicate(timeout=300)
    assert harness.returncode == 2
    assert errors.splitlines()[-1].startswith("mnist-dist: error: ") and "No space left on device" in errors
    assert [record.status for record in Store(folder).records()] == ["ok"]
    assert not list(folder.glob("scratch/*"))


@pytest.mark.thorough
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
    assert again.returncode == 1
    assert "round 1 of 1: 2 cases in turns" in again.stdout, "what failed is tried again, beside its baseline"
    by_status = Counter(record.status for record in Store(tmp_path / "results").records())
    assert by_status["ok"] == 2, "the baseline was measured in both rounds"


@pytest.mark.thorough
@pytest.mark.slow
def test_two_harnesses_share_a_folder(tmp_path: Path, tiny_mnist: Path) -> None:
    """As two jobs of a scaling study do, each with its number of devices."""
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, strategies=["mirrored"], devices=[1, 2])
    folder = tmp_path / "results"
    folder.mkdir()
    arguments = ("run", suite, "--results", folder, "--resume", "--no-report")
    harnesses = [start(*arguments, "--only", str(devices)) for devices in (1, 2)]
    outcomes = [(*harness.communicate(timeout=300), harness.returncode) for harness in harnesses]
    assert [code for _, _, code in outcomes] == [0, 0], outcomes
    records = Store(folder).records()
    assert sorted(record.case.devices for record in records) == [1, 2]
    assert {record.status for record in records} == {"ok"}
    assert {record.study for record in records} == {"results"}
