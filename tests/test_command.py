"""What all command lines say and return when something is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.command import Parser, folder_argument, run_command
from mnist_dist.errors import UserError


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
        (KeyboardInterrupt(), 130, "tool: stopped\n"),
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
    assert run_command(make_parser(raising(error)), ["do"], "stopped") == code
    assert capsys.readouterr().err == line


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", "received '', expected the name of a folder"), ("a\udcff", r"received b'a\xff', expected a name in UTF-8")],
)
def test_names_that_no_folder_can_have(name: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--workdir", type=folder_argument)
    assert parser.parse_args(["--workdir", "Größe/%d"]).workdir == Path("Größe/%d")
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(["--workdir", name])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"tool: error: argument --workdir: {expected}; see `tool --help`.\n"
