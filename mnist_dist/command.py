"""What the command lines have in common: one line for bad input, and exit codes. Standard library only."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mnist_dist.errors import EXIT_BAD_INPUT, UserError

# As shells say of a process that Ctrl-C ended, or that wrote to a pipe which nobody reads.
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as for all bad input; argparse would print all flags before it.

    Nor does it guess from an abbreviation what was meant.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("python -m ").split()[0]
        self.exit(EXIT_BAD_INPUT, f"{name}: error: {message}; see `{self.prog} --help`.\n")


def run_command(parser: Parser, arguments: Sequence[str] | None, interrupted: str = "interrupted") -> int:
    """Parses, runs the chosen command's function, and returns its exit code.

    Args:
        parser: its commands set `command` to a function from their arguments to an exit code.
        interrupted: what to say after Ctrl-C.
    """
    name = parser.prog.removeprefix("python -m ")
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # It was closed, as `>&-` does.
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the process ends.
    try:
        try:
            args = parser.parse_args(arguments)
            code: int = args.command(args)
        finally:
            sys.stdout.flush()  # Also of --help, after which argparse exits.
        return code
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough.
        # What is still to be written goes nowhere: Python would try again at its end, and say so.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it stays open until the process ends.
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        print(f"{name}: error: cannot write the output: {error.strerror}.", file=sys.stderr)
        return EXIT_BAD_INPUT
