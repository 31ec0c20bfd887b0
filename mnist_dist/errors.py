"""The one error that a user can mend, and how a command ends on it."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Sequence

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1

stderr = 2  # Where standard error goes, also while 2 takes the notices of TensorFlow's import.


class UserError(Exception):
    """Bad input: the message is one line naming field, value received, value expected and remedy.

    Commands print it on stderr without a traceback and exit with `exit_code`; below it, the lines that it quotes.
    """

    exit_code = EXIT_BAD_INPUT
    quoted: Sequence[str] = ()


class TrainingError(UserError):
    """The input was acceptable, but the run itself failed in a way that has a known name."""

    exit_code = EXIT_FAILED


def say_now(message: str) -> None:
    """Says one line from a signal's handler or a thread; not by print, which the signal may have interrupted."""
    with contextlib.suppress(OSError):  # Who reads it may be gone, as the terminal that SIGHUP tells of.
        os.write(stderr, f"mnist-dist: {message}\n".encode())


def one_line(text: str, limit: int = 300) -> str:
    """Returns text that may hold anything as one short line that is safe to print on a terminal."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def without_middle(text: str, limit: int = 1000) -> str:
    """Returns a message that may quote anything as one line; of a long one, what came and what was expected is left."""
    line = one_line(text, len(text) + 1)
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[5 - limit // 2 :]}"


def check_local(name: str) -> str:
    """Returns a path, or raises ValueError for an address: of `gs://bucket`, a folder `gs:/bucket` would be made."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise ValueError("a path on this machine, not an address; mount what is elsewhere, or copy it")
    return name


def counted(number: int, what: str) -> str:
    """Returns, for example, `1 case` or `1,234 cases`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def not_among(name: str, valid: Iterable[str]) -> str:
    """Says what was expected instead of a name, and which of that is the closest."""
    return f"received '{name}', expected one of {', '.join(valid)}.{nearest(name, valid)}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
