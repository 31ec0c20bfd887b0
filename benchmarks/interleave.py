"""Measures two commits, or two configurations, against each other: alternating, in one go, on one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.environment import PACKAGE_FOLDER
from benchmarks.progress import make_progress
from benchmarks.record import Record
from benchmarks.runner import find_machine
from benchmarks.study import describe, estimate_seconds, label_run, open_study
from benchmarks.suite import Narrowing, load_suite, order_of_runs, plan_cases
from mnist_dist.config import load_config, parse_assignment, read_yaml
from mnist_dist.errors import UserError


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the two sides: a checkout of a commit, or settings."""

    name: str
    code: Path
    settings: dict[str, Any]


def measure_both(
    base: str, new: str, suite_name: str, results: Path | None, narrowing: Narrowing
) -> tuple[list[Record], list[Record], set[str]]:
    """Measures both sides of every case and repeat one right after the other, in a random order.

    Args:
        base: a commit of this checkout, a YAML file, or KEY=VALUE; `new` likewise.
        results: gets the folders `base` and `new`, each a study.

    Returns:
        The records of both sides, matching case by case, and what is allowed to differ because it is the subject.
    """
    suite, machine = load_suite(suite_name), find_machine()
    cases = [case for case in plan_cases(suite, machine, narrowing) if case.skip_reason is None]
    folder = results or Path("results") / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    with contextlib.ExitStack() as stack:
        arms = [stack.enter_context(open_arm(text)) for text in (base, new)]
        sides = []
        for side, arm in zip(("base", "new"), arms, strict=True):
            study, store = open_study(folder / side, suite_name, suite, machine, cases, resume=False)
            sides.append((dataclasses.replace(study, code=arm.code), store))
        runs = order_of_runs(cases, 0)
        with make_progress(2 * len(runs)) as progress:
            known: list[Record] = []
            for number, (planned, repeat) in enumerate(runs):
                order = random.Random(f"{planned.case.case_id}/{repeat}").sample((0, 1), 2)  # noqa: S311
                for turn, index in enumerate(order):
                    study, store = sides[index]
                    label = f"{arms[index].name}: {label_run(planned.case, machine)}, repeat {repeat + 1}"
                    progress.begin(2 * number + turn, label, 2 * estimate_seconds(runs[number:], known))
                    record = runner.run_case(study, planned.case, repeat, progress.tick, arms[index].settings)
                    store.add(record)
                    known.append(record)
                    progress.end(f"{label}: {describe(record)}", 2 * estimate_seconds(runs[number + 1 :], known))
    same_code = arms[0].code == arms[1].code
    return sides[0][1].records(), sides[1][1].records(), {"config"} if same_code else {"software"}


@contextlib.contextmanager
def open_arm(text: str) -> Iterator[Arm]:
    """Turns what a user names into a side: settings on the present code, or a checkout of a commit.

    Raises:
        UserError: it is neither.
    """
    here = PACKAGE_FOLDER.parent
    if "=" in text:
        key, value = parse_assignment(text)
        load_config("default", {key: value})
        yield Arm(text, here, {key: value})
    elif Path(text).is_file():
        content = read_yaml(Path(text).read_text(), text)
        load_config(text)
        yield Arm(Path(text).stem, here, dict(_dotted(content)))
    else:
        with _checkout(here, text) as code:
            yield Arm(text, code, {})


@contextlib.contextmanager
def _checkout(repository: Path, commit: str) -> Iterator[Path]:
    """Unpacks a commit into a folder of its own, for the time of the measurement."""
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found.returncode:
        raise UserError(
            f"--interleave: received '{commit}', expected a commit of this checkout, a YAML file or KEY=VALUE."
        )
    with tempfile.TemporaryDirectory(prefix="mnist-dist-commit-") as folder:
        code = Path(folder) / "code"
        added = _git(repository, "worktree", "add", "--detach", str(code), found.stdout.strip())
        if added.returncode:
            raise UserError(f"--interleave: cannot check out '{commit}': {added.stderr.strip().splitlines()[-1]}.")
        try:
            yield code
        finally:
            _git(repository, "worktree", "remove", "--force", str(code))


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)


def _dotted(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
