"""What the tests of the harness share: small cases and suites of them, and a way to find what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.measure.rounds import Stage
from mnist_dist.benchmarks.measure.runner import Run, Study, run_round
from mnist_dist.benchmarks.measure.study import compared
from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record

REPOSITORY = Path(__file__).parents[2]
MARK = "MNIST_DIST_TEST_MARK"  # A variable by which the processes of a test are told from all others.
MACHINE = Machine(cores=2, gpus=0, devices_per_host=2)
BATCH_SIZE = 32
COMMAND = [sys.executable, "-m", "mnist_dist", "bench"]


def small_settings(data: Path) -> dict[str, Any]:
    """Settings of a network that computes a step in about a millisecond."""
    return {
        "data.path": str(data),
        "model.filters": [4, 8],
        "model.dense_units": 16,
        "runtime.precision": "float32",
        "runtime.steps_per_call": 10,
        "training.epochs": 1,
    }


def small_case(data: Path, **fields: Any) -> Case:
    devices = fields.get("devices", 1)
    common = {"cores_per_device": 1, "global_batch_size": BATCH_SIZE * devices, "measure_seconds": 0.5}
    return Case(**(common | {"settings": small_settings(data)} | fields))


def make_study(folder: Path, **fields: Any) -> Study:
    common = {"name": "test", "suite": "small", "timeout_seconds": 400.0, "machine": MACHINE, "scratch": folder}
    return Study(**(common | fields))


def plan_case(case: Case, ablations: bool = False, **fields: Any) -> PlannedCase:
    """Plans a case as a suite does, with a single repeat unless changed."""
    of_kind = kind(case.kind)
    seconds = of_kind.measuring_seconds(case)
    variants = of_kind.variants + (of_kind.ablations(case) if ablations else ()) if seconds else ()
    common = {"repeats": 1, "variants": variants, "measuring_seconds": seconds * len(variants)}
    return PlannedCase(case, **(common | fields))


def run_cases(
    study: Study,
    *cases: Case | PlannedCase,
    repeat: int = 0,
    tick: Callable[[], None] = lambda: None,
    tell: Callable[[Stage], None] = lambda stage: None,
) -> list[Record]:
    """Measures cases in one round."""
    planned = [plan_case(case) if isinstance(case, Case) else case for case in cases]
    runs = [Run(study, each, repeat) for each in planned]
    records = list(run_round(runs, compared(runs), tick, tell=tell))
    for record in records:
        record.check()
    assert not list(study.scratch.iterdir()), "it left files behind"
    return records


def run_case(study: Study, case: Case | PlannedCase, repeat: int = 0, **options: Any) -> Record:
    """Measures a case in a round of its own."""
    (record,) = run_cases(study, case, repeat=repeat, **options)
    return record


def write_suite(file: Path, data: Path, **changes: Any) -> Path:
    """Writes a suite of one case, on one device, unless changed; JSON is YAML."""
    block = {"images_per_device": BATCH_SIZE, "measure_seconds": 0.5, "settings": small_settings(data)}
    block |= changes.pop("block", {})
    content = {"description": "small", "minutes": 1, "repeats": 1, "strategies": ["single"], "devices": [1]}
    file.write_text(json.dumps(content | {"blocks": [block]} | changes))
    return file


def start(*arguments: str | Path, mark: str = "", cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
    """Starts `mnist-dist bench` as a process, its output to be read."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches only who is meant.
    )


def run(*arguments: str | Path, cwd: Path = REPOSITORY, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment(mark: str = "") -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **({MARK: mark} if mark else {})}


def make_mark() -> str:
    return uuid.uuid4().hex


def marked_processes(mark: str) -> dict[int, Mapping[str, str]]:
    """Returns the environment of every running process of a test, by its number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            content = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        variables = dict(item.split("=", 1) for item in content if "=" in item)
        if variables.get(MARK) == mark and state != "Z":
            found[int(folder.name)] = variables
    return found


def ranks_of(mark: str) -> dict[int, int]:
    """Returns the process of each rank that has bound itself to its cores, by its rank."""
    found = {}
    for process, variables in marked_processes(mark).items():
        rank = variables.get("MNIST_DIST_RANK")
        if rank is not None and len(os.sched_getaffinity(process)) == 1:
            found[int(rank)] = process
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
