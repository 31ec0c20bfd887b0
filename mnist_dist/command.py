"""What the command lines have in common: one line for bad input, and exit codes. Standard library only."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mnist_dist.errors import EXIT_BAD_INPUT, UserError, check_local, nearest, not_among, without_middle
from mnist_dist.lazy import UNUSED_BY_COMMANDS, hidden_from_keras

# As shells say of a process that Ctrl-C ended, or that wrote to a pipe which nobody reads.
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141
# What a system says of a name or a disk that the user may have to change.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as for all bad input; argparse would print all flags before it.

    Nor does it guess from an abbreviation what was meant; it names the nearest flag.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)
        self.register("type", int, _expecting(int, "a whole number"))
        self.register("type", float, _expecting(float, "a number"))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what this parser does not know, so that the hint is to its own --help."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            own = [text.removeprefix("--") for action in self._actions for text in action.option_strings]
            word = flag.strip("-").replace("_", "-")
            begun = [text for text in own if text.startswith(word)][:1]  # Else an alias may be nearer than its flag.
            hint = nearest(word, begun or own).replace("'", "'--", 1) if flag[:1] == "-" else ""
            self.error(f"unrecognized argument '{flag}'{'.' if hint else ''}{hint}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Names the nearest command or word as well, which argparse does from Python 3.14 on."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, not_among(value, action.choices))

    def error(self, message: str) -> NoReturn:
        see = " See" if message.endswith(("?", ".")) else "; see"
        self.exit(
            EXIT_BAD_INPUT, f"{self.prog.split()[0]}: error: {without_middle(message)}{see} `{self.prog} --help`.\n"
        )


def add_command(commands: Any, function: Callable[[argparse.Namespace], int], help: str, **options: Any) -> Parser:
    """Adds the command that a function `run_NAME` is; its docstring describes the command to users."""
    name = function.__name__.removeprefix("run_").replace("_", "-")
    description = " ".join((function.__doc__ or "").split())
    parser: Parser = commands.add_parser(name, help=help, description=description, **options)
    parser.set_defaults(command=function)
    return parser


def _expecting(kind: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """Returns a type of arguments that says what it expected, which argparse leaves out."""

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"received '{text}', expected {expected}") from None

    return convert


def folder_argument(text: str) -> Path:
    """The type of an argument that names a folder: a text, as TensorFlow and JSON take nothing else."""
    if not text:  # Such as a variable of the shell that is not set.
        raise argparse.ArgumentTypeError("received '', expected the name of a folder")
    if os.fsencode(text).decode(errors="ignore") != text:
        raise argparse.ArgumentTypeError(f"received {os.fsencode(text)!r}, expected a name in UTF-8")
    try:
        return Path(check_local(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"received '{text}', expected {error}") from None


def integer(text: str) -> int:
    """The type of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received '{text}', expected a positive whole number")
    return int(text)


def integers(text: str) -> list[int]:
    """The type of an argument that names several numbers of devices, such as `1,2,4`."""
    return [integer(part.strip()) for part in text.split(",")]


def clock(seconds: float) -> str:
    """Returns, for example, `4:05` or `1:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def run_command(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Parses, runs the chosen command's function, and returns its exit code.

    Args:
        parser: its commands set `command` to a function from their arguments to an exit code; what it raises after
            Ctrl-C, a KeyboardInterrupt, may say how to go on.
    """
    name = parser.prog.split()[0]
    arguments = sys.argv[1:] if arguments is None else arguments
    _reopen_closed_streams()
    _leave_out_of_account()
    hidden_from_keras.update(UNUSED_BY_COMMANDS)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # A terminal that cannot show a sign must not end a study for it.
    try:
        try:
            if not arguments:
                parser.print_help()
                return EXIT_BAD_INPUT
            args = parser.parse_args(arguments)
            code: int = args.command(args)
        finally:
            sys.stdout.flush()  # Also of --help, after which argparse exits.
        return code
    except UserError as error:
        print(f"{name}: error: {without_middle(str(error))}", *error.quoted, sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        print(f"{name}: {'; '.join(['interrupted', *interruption.args])}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough.
        # What is still to be written goes nowhere: Python would try again at its end, and say so.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it stays open until the process ends.
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:  # Of os.getcwd(), or of tempfile.
            reason = "the current folder was deleted; change to another one"
            if "temporary" in str(error):
                reason = f"{without_middle(str(error.strerror))}; set TMPDIR to a folder that can be written"
            print(f"{name}: error: {reason}.", file=sys.stderr)
            return EXIT_BAD_INPUT
        if error.errno not in REFUSED:
            raise
        if error.filename is None:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        what = "write the output" if error.filename is None else f"use '{os.fsdecode(error.filename)}'"
        print(f"{name}: error: cannot {what}: {error.strerror}; name another place.", file=sys.stderr)
        return EXIT_BAD_INPUT


class _WithoutReader(io.FileIO):
    """A file descriptor that takes everything, also when nobody is there to read any more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            return len(data)


def outlive_reader() -> None:
    """Lets a command that takes hours go on when its terminal has gone away, or the program that reads its output."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        # Not what a notebook or a test has put in its place.
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            buffered = io.BufferedWriter(_WithoutReader(number, "wb", closefd=False))
            text = io.TextIOWrapper(buffered, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
            setattr(sys, name, text)


def _leave_out_of_account() -> None:
    """Keeps what a user has set for other programs away from this one and from all that it starts.

    That is backend, layout, types and limits of Keras, in variables and in ~/.keras/keras.json, the Keras of before,
    style and backend of Matplotlib, errors instead of Python's warnings, and a parent's indifference to SIGCHLD. Either
    library takes the null device for a file without settings.
    """
    with contextlib.suppress(ValueError):  # In another thread. Where the signal is ignored, no child has an exit code.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if os.environ.pop("PYTHONWARNINGS", None):  # With "error", libraries' advice to their users would be errors.
        warnings.simplefilter("ignore")
    for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "TF_USE_LEGACY_KERAS", "MPLBACKEND"):
        os.environ.pop(name, None)
    os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull, "MATPLOTLIBRC": os.devnull}


def _reopen_closed_streams() -> None:
    """Puts nothing in the place of what was closed, as `>&-` does: the next file to be opened would take its place."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, stream, os.fdopen(number, "w" if number else "r", closefd=False))
