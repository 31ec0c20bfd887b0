"""The command as users meet it: what it says, what it refuses, and with which code it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks import command
from mnist_dist.benchmarks.command import main
from mnist_dist.benchmarks.measure.progress import exit_code
from mnist_dist.benchmarks.measure.suite import shipped_suites
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.distributed.signals import ENDING
from tests import nvml
from tests.benchmarks.factory import make_study, train
from tests.benchmarks.harness import COMMAND, REPOSITORY, environment, run, small_settings, write_suite

COMMANDS = ["run", "report", "compare", "predict", "trend", "publish", "reproduce"]


class TestHelp:
    @pytest.mark.slow
    @pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
    def test_it_comes_at_once_and_imports_no_giants(
        self, arguments: list[str], is_quick: Callable[[Callable[[], object]], bool]
    ) -> None:
        program = (
            "import contextlib, sys\nfrom mnist_dist.benchmarks.command import main\n"
            f"with contextlib.suppress(SystemExit): main({[*arguments, '--help']!r})\n"
            "print(*sorted({name.split('.')[0] for name in sys.modules}))"
        )
        command = [sys.executable, "-c", program]
        said = []

        def show_help() -> None:
            said.append(subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout)

        assert is_quick(show_help)
        modules = said[0].splitlines()[-1]
        giants = {"tensorflow", "keras", "matplotlib", "scipy", "ruptures", "jinja2", "PIL", "horovod"}
        assert not giants & set(modules.split())

    def test_it_fits_a_page_and_names_all_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--help"])
        text = capsys.readouterr().out
        assert len(text.splitlines()) <= 24
        assert all(re.search(rf"^ +{command}( |$)", text, re.MULTILINE) for command in COMMANDS)


class TestDryRun:
    def test_it_lists_the_cases_and_runs_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["run", "quick", "--dry-run", "--repeats", "3"]) == 0
        *cases, total = capsys.readouterr().out.splitlines()
        assert all(re.match(r"[0-9a-f]{12}  3 x  \S", case) for case in cases)
        possible = [case for case in cases if "(skipped: " not in case]
        left_out = rf" \({len(cases) - len(possible)} more skipped\)" if possible != cases else ""
        pattern = rf"{len(possible)} cases{left_out}, {3 * len(possible)} runs in \d+ rounds, about (\d+):\d\d"
        assert (found := re.fullmatch(pattern, total)) and 1 <= int(found[1]) < 20
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_plans_of_all_suites_for_eight_gpus(self, driver: Path, tmp_path: Path) -> None:
        """As a driver tells of them, which is made up; Volta has no bfloat16."""
        for capability, skipped in (("9", 0), ("7", 5)):
            code = "from mnist_dist.benchmarks.command import main\n"
            code += "".join(
                f"print('#', {name!r}); main(['run', {name!r}, '--dry-run'])\n" for name in shipped_suites()
            )
            surroundings = nvml.environment(driver, GPUS="8", CAPABILITY=capability, FORBID="DeviceGetMemoryInfo")
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=True)
            plans = {part.split()[0]: part for part in done.stdout.split("# ")[1:]}
            assert list(plans) == shipped_suites() and all(" runs in " in plan for plan in plans.values())
            assert all(" 8 GPUs" in plans[name] for name in ("scaling", "collectives", "accuracy"))
            assert "32,768 images per device" in plans["single"]
            assert done.stdout.count("(skipped: bfloat16 needs GPUs of compute capability 8.0 or more)") == skipped

    def test_only_some_devices(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["run", "quick", "--dry-run", "--only", "2"])
        *cases, _ = capsys.readouterr().out.splitlines()
        assert cases and all(" 2 \N{MULTIPLICATION SIGN} " in case for case in cases)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["rnu"], "argument COMMAND: received 'rnu', expected one of run, report, "),
            (["rnu"], ". Did you mean 'run'? See `mnist-dist bench --help`."),
            (["run", "quick", "--strategies", "single,miror"], ". Did you mean 'mirrored'? See "),
            (["run", "qick"], "SUITE: there is no file 'qick'"),
            (
                ["run", "quick", "--devices", "0"],
                "argument --devices: received '0', expected a positive whole number",
            ),
            (["run", "quick", "--devices", "1,,2"], "argument --devices: received ''"),
            (["run", "quick", "--gpus", "1,2"], "argument --gpus: received '1,2', expected a machine with GPUs, "),
            (["run", "quick", "--repeats", "-1"], "argument --repeats: received '-1'"),
            (["run", "quick", "--cores-per-device", "half"], "argument --cores-per-device: received 'half'"),
            (["run", "quick", "--strategies", "horovd"], "argument --strategies: received 'horovd'"),
            (["run", "quick", "--only", "7"], "--only: received 7, expected some of the study's numbers of devices"),
            (["run", "quick", "--set", "runtime.xla"], "--set: received 'runtime.xla', expected key=value"),
            (["run", "quick", "--set", "runtime.xlla=on"], "runtime.xlla: no such setting"),
            (["run", "quick", "--set", "training.batch_size=64"], "training.batch_size: received as a setting"),
            (["run", "quick", "--set", "seed=1"], "seed: received as a setting of a case"),
            (["report", "nowhere"], "DIR: 'nowhere' does not exist"),
            (["trend", "nowhere"], "DIR: 'nowhere' holds no studies"),
            (["trend"], "the following arguments are required: DIR"),
            (["predict", "nowhere"], "DIR: 'nowhere' does not exist"),
            (["run", "quick", "--resume"], "--resume: received no --results DIR"),
            (["run", "quick", "--results", "nowhere", "--resume"], "--resume: 'nowhere' does not exist"),
            (["compare", "HEAD", "HEAD", "--interleave", "--resume"], "--resume: received no --results DIR"),
            (["run", "quick", "--results", ""], "argument --results: received '', expected the name of a folder"),
            (["compare", "nowhere", "nowhere"], "BASE: 'nowhere' does not exist"),
            (["compare", "a", "b", "--repeats", "3"], "--repeats: received without --interleave"),
            (["compare", "a", "b", "--smallest-effect", "nan"], "argument --smallest-effect: received 'nan'"),
            (["compare", "a", "b", "--judge", "some"], "argument --judge: received 'some', expected one of all. See"),
            (["compare", "a", "b", "--smallest-effect", "0"], "argument --smallest-effect: received '0'"),
            (["compare", "a", "b", "--interleave", "--suite", "qick"], "SUITE: there is no file 'qick'"),
        ],
    )
    def test_one_line_and_code_2(
        self,
        arguments: list[str],
        said: str,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        if "--only" in arguments:
            arguments = [*arguments, "--dry-run"]
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        output = capsys.readouterr()
        assert code == 2
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("mnist-dist: error: ") and said in line
        assert not list(tmp_path.iterdir())

    def test_without_a_suite_they_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run"]) == 2
        said = capsys.readouterr().out
        assert [line.split()[0] for line in said.splitlines()[:-2]] == shipped_suites()
        assert "fastest on one device" in said and said.endswith("mnist-dist bench run SUITE\n")

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        assert main(["run", "quick", "--results", str(tmp_path / "file" / "results")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mnist-dist: error: results: cannot write")


class TestExitCode:
    @pytest.fixture
    def records(self) -> list[Record]:
        case, other = train("single", 1), train("mirrored", 2)
        return make_study([case, other], 2, failing=[other])

    def test_a_case_that_never_ended_well(self, records: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(records) == 1
        failed, timeout = capsys.readouterr().err.splitlines()
        assert failed.startswith("failed: mirrored") and failed.endswith("InternalError: collective timed out")
        assert timeout.startswith("timeout: mirrored") and "repeat 2: no result after 300 s" in timeout

    def test_that_of_other_devices_does_not_count(self, records: list[Record]) -> None:
        assert exit_code(records, only={1}) == 0
        assert exit_code(records, only={2}) == 1

    def test_a_second_try_that_ended_well(self, records: list[Record]) -> None:
        again = make_study([train("mirrored", 2)], 2)
        assert exit_code([*records, *again]) == 0

    def test_what_was_skipped_is_no_failure_unless_all_was(
        self, records: list[Record], capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured, other = ([each for each in records if each.case.devices == devices] for devices in (1, 2))
        nothing = {"status": "skipped", "reason": "no second GPU", "measurements": None}
        skipped = [record.model_copy(update=nothing) for record in other]
        assert exit_code([*measured, *skipped]) == 0
        assert exit_code(skipped) == 1
        assert capsys.readouterr().err.startswith("nothing was measured")


def test_a_second_signal_does_not_end_the_interpreter_before_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's comes twice, to the process and by way of the batch file; cleaning up may be over in between."""
    before = {number: signal.getsignal(number) for number in ENDING}
    monkeypatch.setattr(command, "read_study", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as ended:
            main(["report", "folder"])
        assert ended.value.code == 128 + signal.SIGTERM
        assert {signal.getsignal(number) for number in ENDING} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert {number: signal.getsignal(number) for number in ENDING} == before


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["run", "quick", "--dry-run"], ["run", "--help"]])
def test_a_reader_that_leaves_early_ends_it_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_studies_of_equal_names_are_told_apart_by_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for record in make_study([train("single", 1)], 2, study="quick"):
        for folder in ("monday/quick", "tuesday/quick"):
            Store(Path(folder)).add(record)
    assert main(["compare", "monday/quick", "tuesday/quick"]) == 0
    name = "quick (commit 0123456789)"
    assert re.findall("^(?:Base|New): .*", capsys.readouterr().out, re.MULTILINE) == [
        f"Base: monday/quick: {name}",
        f"New: tuesday/quick: {name}",
    ]


@pytest.mark.slow
def test_from_a_suite_to_its_report(tmp_path: Path, tiny_mnist: Path) -> None:
    """Run in another folder than the checkout, with paths relative to it."""
    block = {"measure_seconds": None, "settings": small_settings(Path("tiny.npz"))}
    (tmp_path / "tiny.npz").symlink_to(tiny_mnist)
    write_suite(tmp_path / "own.yaml", tiny_mnist, block=block)
    done = run("run", "own.yaml", "--results", "results", "--repeats", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("[run 1 of 1] single"))
    assert re.search(r": [\d,]+ images/s( \(not settled\))?, test accuracy \d\d?\.\d\d %, \d+ s$", line)
    assert "report: results/report.html" in done.stdout
    assert all((tmp_path / "results" / f"report.{form}").stat().st_size for form in ("md", "csv", "html"))
    (record,) = Store(tmp_path / "results").records()
    assert (record.suite, record.study, record.status) == ("own", "results", "ok")
    assert main(["compare", str(tmp_path / "results"), str(tmp_path / "results")]) == 2  # It says nothing.
    shutil.copytree(tmp_path / "results", tmp_path / "copy")
    assert main(["compare", str(tmp_path / "results"), str(tmp_path / "copy"), "--judge", "all"]) in (0, 3)
    again = run("run", "own.yaml", "--results", "results", cwd=tmp_path)
    assert again.returncode == 2 and "add --resume" in again.stderr
