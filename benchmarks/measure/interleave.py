"""Measures two commits, or two configurations, against each other: in turns, on one machine."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.measure.runner import find_machine
from mnist_dist.benchmarks.measure.study import naming_the_rest, open_study, plan_rounds, results_folder, run_rounds
from mnist_dist.benchmarks.measure.suite import Narrowing, changed_settings, check_settings, load_suite, plan_cases
from mnist_dist.benchmarks.records.environment import CODE_FOLDER
from mnist_dist.config import load_config, parse_assignment
from mnist_dist.errors import UserError
from mnist_dist.files import writing


def measure_both(
    base: str,
    new: str,
    suite_name: str,
    results: Path | None,
    narrowing: Narrowing,
    resume: bool,
) -> tuple[Path, Path, set[str]]:
    """Measures both sides of every case in turns.

    Args:
        base: a commit of this checkout, a YAML file, or KEY=VALUE; `new` likewise.
        results: gets the folders `base` and `new`, each a study.
        resume: go on there, with what one side or both have not measured yet.

    Returns:
        The folders of both studies, matching case by case, and what is allowed to differ because it is the subject.
    """
    suite, machine = load_suite(suite_name), find_machine()
    cases = [case for case in plan_cases(suite, machine, narrowing) if case.skip_reason is None]
    if not cases:
        raise UserError(f"--suite: this machine can run no case of '{suite_name}'; --dry-run of `run` says why.")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(results_folder(results, "compare", resume))
        arms = [stack.enter_context(open_arm(text, folder)) for text in (base, new)]
        sides = []
        for name, (code, settings) in zip(("base", "new"), arms, strict=True):
            study, store = open_study(folder / name, Path(suite_name).stem, suite, machine, cases, resume)
            sides.append((replace(study, code=code, under_test=settings), store))
        known = [record for _, store in sides for record in store.records()]
        with naming_the_rest(folder):
            run_rounds(plan_rounds(sides, cases, known), sides, known=known)
    subject = {what for what, *sides in zip(("software", "config"), *arms, strict=True) if sides[0] != sides[1]}
    return folder / "base", folder / "new", subject


@contextlib.contextmanager
def open_arm(text: str, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Turns what a user names into a side, its code and its settings: the present code, or a checkout of a commit.

    That is in `folder` meanwhile, on a disk that all hosts of a job see.

    Raises:
        UserError: it is neither.
    """
    if "=" in text or Path(text).is_file():
        settings = dict([parse_assignment(text)]) if "=" in text else changed_settings(load_config(text))
        check_settings(settings)
        load_config("default", settings)
        yield CODE_FOLDER, settings
    else:
        with _checkout(text, folder) as code:
            yield code, {}


@contextlib.contextmanager
def _checkout(commit: str, parent: Path) -> Iterator[Path]:
    """Unpacks a commit into a folder of its own, for the time of the measurement."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found.returncode:
        raise UserError(
            f"--interleave: received '{commit}', expected a commit of this checkout, a YAML file or KEY=VALUE."
        )
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="commit-", dir=parent.resolve()) as folder:
        code = Path(folder) / "code"
        added = _git("worktree", "add", "--detach", str(code), found.stdout.strip())
        if added.returncode:
            raise UserError(f"--interleave: cannot check out '{commit}': {added.stderr.strip().splitlines()[-1]}.")
        try:
            yield code
        finally:
            _git("worktree", "remove", "--force", str(code))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    no_hooks = f"core.hooksPath={os.devnull}"  # The user's are for the user's checkouts.
    command = ["git", "-C", str(CODE_FOLDER), "-c", no_hooks, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--interleave: cannot run git: {error.strerror}; it is needed to measure a commit.") from None
