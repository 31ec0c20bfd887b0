"""Measures two commits, or two configurations, against each other: in turns, on one machine."""

import contextlib
import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.measure.runner import Run, find_machine
from mnist_dist.benchmarks.measure.study import Progress, open_study, plan_rounds, run_rounds
from mnist_dist.benchmarks.measure.suite import Narrowing, changed_settings, check_settings, load_suite, plan_cases
from mnist_dist.benchmarks.records.environment import CODE_FOLDER
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.config import load_config, parse_assignment
from mnist_dist.errors import UserError
from mnist_dist.files import named_or_dated, writing


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the two sides: a checkout of a commit, or settings."""

    name: str
    code: Path
    settings: dict[str, Any]


def measure_both(
    base: str,
    new: str,
    suite_name: str,
    results: Path | None,
    narrowing: Narrowing,
    resume: bool,
    show: Callable[[Sequence[Sequence[Run]]], contextlib.AbstractContextManager[Progress]],
) -> tuple[list[Record], list[Record], set[str]]:
    """Measures both sides of every case in turns.

    Args:
        base: a commit of this checkout, a YAML file, or KEY=VALUE; `new` likewise.
        results: gets the folders `base` and `new`, each a study.
        resume: go on there, with what one side or both have not measured yet.
        show: makes what is told of the rounds that it is given.

    Returns:
        The records of both sides, matching case by case, and what is allowed to differ because it is the subject.
    """
    suite, machine = load_suite(suite_name), find_machine()
    cases = [case for case in plan_cases(suite, machine, narrowing) if case.skip_reason is None]
    if not cases:
        raise UserError(f"--suite: this machine can run no case of '{suite_name}'; --dry-run of `run` says why.")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(named_or_dated(results, "results", "compare"))
        arms = [stack.enter_context(open_arm(text, folder)) for text in (base, new)]
        sides = []
        for name, arm in zip(("base", "new"), arms, strict=True):
            study, store = open_study(folder / name, Path(suite_name).stem, suite, machine, cases, resume)
            study = dataclasses.replace(study, code=arm.code, under_test=arm.settings)
            sides.append((study, store))
        known = [record for _, store in sides for record in store.records()]
        rounds = plan_rounds(sides, cases, known)
        with show(rounds) as progress:
            run_rounds(rounds, sides, progress)
    subject = {"software"} if arms[0].code != arms[1].code else set()
    subject |= {"config"} if arms[0].settings != arms[1].settings else set()
    return sides[0][1].records(), sides[1][1].records(), subject


@contextlib.contextmanager
def open_arm(text: str, folder: Path) -> Iterator[Arm]:
    """Turns what a user names into a side: settings on the present code, or a checkout of a commit.

    Args:
        folder: where a commit is checked out meanwhile, on a disk that all hosts of a job see.

    Raises:
        UserError: it is neither.
    """
    here = CODE_FOLDER
    if "=" in text or Path(text).is_file():
        settings = dict([parse_assignment(text)]) if "=" in text else changed_settings(load_config(text))
        check_settings(settings)
        load_config("default", settings)
        yield Arm(text if "=" in text else Path(text).stem, here, settings)
    else:
        with _checkout(here, text, folder) as code:
            yield Arm(text, code, {})


@contextlib.contextmanager
def _checkout(repository: Path, commit: str, parent: Path) -> Iterator[Path]:
    """Unpacks a commit into a folder of its own, for the time of the measurement."""
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found.returncode:
        raise UserError(
            f"--interleave: received '{commit}', expected a commit of this checkout, a YAML file or KEY=VALUE."
        )
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="commit-", dir=parent.resolve()) as folder:
        code = Path(folder) / "code"
        added = _git(repository, "worktree", "add", "--detach", str(code), found.stdout.strip())
        if added.returncode:
            raise UserError(f"--interleave: cannot check out '{commit}': {added.stderr.strip().splitlines()[-1]}.")
        try:
            yield code
        finally:
            _git(repository, "worktree", "remove", "--force", str(code))


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    no_hooks = f"core.hooksPath={os.devnull}"  # The user's are for the user's checkouts.
    command = ["git", "-C", str(repository), "-c", no_hooks, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--interleave: cannot run git: {error.strerror}; it is needed to measure a commit.") from None
