"""The command: each check in a process with a time limit, and a file of all findings."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mnist_dist.benchmarks.records.published import Scrubber
from mnist_dist.doctor import BROKEN, Finding, show
from mnist_dist.errors import EXIT_FAILED, one_line
from mnist_dist.files import write_json
from mnist_dist.gpu_doctor.checks import SLOW
from mnist_dist.gpu_doctor.equality import compare_weights, training_commands

TOTAL_SECONDS = 300.0
# Longest times of the checks, in their order.
LOOKING = {"driver": 20.0, "versions": 20.0, "libraries": 60.0, "topology": 40.0, "devices": 90.0}
COMPUTING = {"arithmetic": 90.0, "xla": 60.0, "memory": 45.0, "all_reduce": 60.0, "horovod": 45.0}
TRAINING_SECONDS, STEP_TIMES_SECONDS = 60.0, 120.0
KILLED_SECONDS = 5.0  # For a killed process to end; one that waits for a driver may never.


class Examination:
    """Findings as they come: shown, and kept in a file that is whole at any time."""

    def __init__(self, file: Path, total_seconds: float = TOTAL_SECONDS) -> None:
        self.file, self.findings = file, list[Finding]()
        self._end, self._scrubber = time.monotonic() + total_seconds, Scrubber([])

    def add(self, finding: Finding) -> None:
        finding = dataclasses.replace(finding, detail=self._scrubber.without_names(finding.detail))
        show(finding)
        self.findings.append(finding)
        content = {"format": "mnist-dist doctor --gpu 1", "findings": list(map(dataclasses.asdict, self.findings))}
        write_json(self.file, content)

    def check(self, name: str, limit_seconds: float, devices: Sequence[str] = ()) -> None:
        """Adds what one of `checks.CHECKS` finds, and how it ends if it does not end well."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "findings"
            file.touch()
            command = [sys.executable, "-m", "mnist_dist.gpu_doctor.checks", name, str(file), *devices]
            problem = self.start(command, limit_seconds, name)
            for line in file.read_text(encoding="utf-8").splitlines():
                self.add(Finding(**json.loads(line)))
        if problem:
            self.add(Finding(name, BROKEN, problem))

    def check_strategies(self, devices: int, steps: int, limit_seconds: float) -> None:
        """Trains by each strategy, on one device and on all, and compares the weights with those of one device."""
        with tempfile.TemporaryDirectory() as folder:
            for subject, command in training_commands(Path(folder), devices, steps):
                problem = self.start(command, limit_seconds, subject) if command else None
                self.add(Finding(subject, BROKEN, problem) if problem else compare_weights(Path(folder), subject))

    def start(self, command: Sequence[str], limit_seconds: float, name: str) -> str | None:
        """Runs a process and returns None, or how it failed to end well, with the last line that it printed."""
        limit = min(limit_seconds, self._end - time.monotonic())
        if limit < 1:
            return "not tried, as the time of all checks together is over"
        print(f"        {name}, at most {limit:.0f} s", flush=True)
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.returncode is None:
                    _end(process)
            output.seek(0)
            said = [line for line in output.read()[-10_000:].splitlines() if line.strip()]
        if code == 0:
            return None
        ended = f"no answer within {limit:.0f} s" if code is None else f"ended with code {code}"
        ended = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else ended
        return f"{ended}; its last line: {one_line(said[-1], 300)}" if said else ended


def run() -> int:
    """Checks everything; returns 0 if there are GPUs, and nothing is broken or slow."""
    name = f"gpu-doctor-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.json"  # Of several hosts at once, too.
    examination = Examination(Path(name))
    for check, limit in LOOKING.items():
        examination.check(check, limit)
    devices = [each.subject for each in examination.findings if re.fullmatch(r"GPU:\d+", each.subject)]
    if devices:
        for check, limit in COMPUTING.items():
            examination.check(check, limit, devices)
        examination.check_strategies(len(devices), steps=200, limit_seconds=TRAINING_SECONDS)
        examination.check("step_times", STEP_TIMES_SECONDS, devices[:1])
    return conclude(examination, bool(devices))


def conclude(examination: Examination, has_gpu: bool) -> int:
    """Prints what is to be said in the end; the last line names the file."""
    by_status = {status: [f.subject for f in examination.findings if f.status == status] for status in (BROKEN, SLOW)}
    parts = [f"{status.capitalize()}: {', '.join(subjects)}." for status, subjects in by_status.items() if subjects]
    if not has_gpu:
        parts.append("There is no GPU here that TensorFlow can use.")
    print(f"\n{' '.join(parts or ['All is well.'])} Everything is in {examination.file}, without names and paths.")
    return EXIT_FAILED if parts else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and those that it has started; ranks end with their launcher."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_SECONDS)
