"""What all command lines say and return when something is wrong."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mnist_dist
from mnist_dist.command import Parser, folder_argument, run_command
from mnist_dist.errors import UserError

REPOSITORY = Path(mnist_dist.__file__).parent.parent


def make_parser(command: Callable[[Any], int], prog: str = "tool group") -> Parser:
    parser = Parser(prog=prog)
    parser.add_subparsers(required=True).add_parser("do").set_defaults(command=command)
    return parser


def raising(error: BaseException) -> Callable[[Any], int]:
    def command(args: Any) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--this: received 1, expected 2."), 2, "tool: error: --this: received 1, expected 2.\n"),
        (KeyboardInterrupt(), 130, "tool: interrupted\n"),
        (KeyboardInterrupt("go on: tool do --more"), 130, "tool: interrupted; go on: tool do --more\n"),
        (BrokenPipeError(), 141, ""),
        (
            OSError(28, "No space left on device"),
            2,
            "tool: error: cannot write the output: No space left on device; name another place.\n",
        ),
        (
            OSError(36, "File name too long", "long"),
            2,
            "tool: error: cannot use 'long': File name too long; name another place.\n",
        ),
    ],
)
def test_how_a_command_may_end(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str) -> None:
    assert run_command(make_parser(raising(error)), ["do"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("received", ["a\nb", "\x1b[2J\u202e", "\udcff", "x" * 5000])
def test_whatever_a_message_quotes_it_is_one_line_that_a_terminal_can_show(
    capsys: pytest.CaptureFixture[str], received: str
) -> None:
    """And what was expected is at its end, however long what came is."""
    line = f"--this: received '{received}', expected 2."
    assert run_command(make_parser(raising(UserError(line))), ["do"]) == 2
    with pytest.raises(SystemExit) as ended:
        run_command(make_parser(lambda args: 0), [received])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert len(lines) == 2 and all(line.isprintable() and len(line) < 1100 for line in lines), lines
    assert lines[0].startswith("tool: error: --this: received '") and lines[0].endswith("', expected 2."), lines
    assert lines[1].endswith("expected one of do. See `tool group --help`."), lines


def test_quoted_lines_stand_below_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    error = UserError("a rank ended.")
    error.quoted = ["  [1] its  line"]
    assert run_command(make_parser(raising(error)), ["do"]) == 2
    assert capsys.readouterr().err == "tool: error: a rank ended.\n  [1] its  line\n"


def test_the_commands_own_code_is_returned() -> None:
    assert run_command(make_parser(lambda args: 3), ["do"]) == 3


def test_errors_of_the_program_itself_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(make_parser(raising(ZeroDivisionError())), ["do"])


@pytest.mark.parametrize(("prog", "name"), [("mnist-dist", "mnist-dist"), ("mnist-dist bench", "mnist-dist")])
def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str], prog: str, name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(make_parser(lambda args: 0, prog), ["do", "--wrong"])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{name}: error: ") and line.count("\n") == 1 and f"`{prog} " in line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_all_signs(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_: Any) -> int:
        print("faster ≥ 5 %")
        return 0

    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding=encoding))
    assert run_command(make_parser(command), ["do"]) == 0
    assert shown.getvalue() == b"faster ? 5 %\n"


OUTLIVE = """
import sys
from mnist_dist.command import outlive_reader
from mnist_dist.display import make_display
from mnist_dist.training.writers import open_console
outlive_reader()
with make_display(2, auto_refresh=False) as display, open_console(10, 1) as console:
    console.say("begun")
    sys.stdin.readline()
    for _ in range(3):
        console.say("nobody reads this")
        display.show("nor this", 1, at_once=True)
        display.say("nor this")
        print("nor this", file=sys.stderr, flush=True)
open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize("make_output", [os.openpty, os.pipe])
def test_who_reads_the_output_may_go_away(make_output: Callable[[], tuple[int, int]], tmp_path: Path) -> None:
    """As a terminal whose connection is lost, with the bars that one gets, or `| tee` that was killed."""
    reader, writer = make_output()
    command = [sys.executable, "-c", OUTLIVE, str(tmp_path / "done")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=writer, stderr=writer)
    os.close(writer)
    seen = b""
    while b"begun" not in seen:
        seen += os.read(reader, 4096)
    os.close(reader)
    process.communicate(b"gone\n", timeout=120)
    assert process.returncode == 0 and (tmp_path / "done").exists()


def test_a_current_folder_that_was_deleted_and_none_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(make_parser(lambda _: len(str(Path("results").absolute()))), ["do"]) == 2
    assert capsys.readouterr().err == "tool: error: the current folder was deleted; change to another one.\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", None)  # It is looked for anew.
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/gone"])
    assert run_command(make_parser(lambda _: len(tempfile.gettempdir())), ["do"]) == 2
    assert capsys.readouterr().err == (
        "tool: error: No usable temporary directory found in ['/gone']; set TMPDIR to a folder that can be written.\n"
    )
    missing = raising(FileNotFoundError(2, "No such file or directory", "needed"))
    with pytest.raises(FileNotFoundError):  # Which no user can mend.
        run_command(make_parser(missing), ["do"])


HOSTILE = {
    "KERAS_MAX_EPOCHS": "1",
    "TF_USE_LEGACY_KERAS": "1",
    "KERAS_BACKEND": "jax",
    "KERAS_HOME": "/somewhere",
    "MPLBACKEND": "Qt4Agg",
    "MATPLOTLIBRC": "/somewhere",
    "PYTHONWARNINGS": "error",
}


def test_variables_for_other_programs_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)

    def command(_: Any) -> int:
        warnings.warn("a library will change", DeprecationWarning, stacklevel=1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # As Python begins with that variable.
        assert run_command(make_parser(command), ["do"]) == 0
    expected = [None, None, "tensorflow", os.devnull, None, os.devnull, None]
    assert [os.environ.get(name) for name in HOSTILE] == expected


def test_a_parent_that_ignored_the_end_of_its_children() -> None:
    """As some daemons do; their programs inherit it, and Python then takes each child's code for 0."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run_command(make_parser(lambda _: subprocess.run(["false"]).returncode), ["do"]) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "received '', expected the name of a folder"),
        ("a\udcff", r"received b'a\xff', expected a name in UTF-8"),
        (
            "gs://bucket/run",
            "received 'gs://bucket/run', expected a path on this machine, not an address; mount what is elsewhere, "
            "or copy it",
        ),
    ],
)
def test_names_that_no_folder_can_have(name: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--workdir", type=folder_argument)
    assert parser.parse_args(["--workdir", "Größe/%d"]).workdir == Path("Größe/%d")
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(["--workdir", name])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"tool: error: argument --workdir: {expected}; see `tool --help`.\n"
