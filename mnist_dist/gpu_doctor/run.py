"""The command: each check in a process with a time limit, and all findings in one file."""

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
from collections.abc import Callable, Sequence
from pathlib import Path

from mnist_dist.benchmarks.records.published import Scrubber
from mnist_dist.doctor import ABSENT, BROKEN, Finding, show
from mnist_dist.errors import EXIT_FAILED, one_line
from mnist_dist.files import write_json, writing
from mnist_dist.gpu_doctor import trainings
from mnist_dist.gpu_doctor.checks import SLOW

TOTAL_SECONDS = 300.0
LOOKING = {"software": 20.0, "driver": 20.0, "libraries": 60.0, "topology": 40.0, "tensorflow": 150.0}
COMPUTING = {
    "arithmetic": 150.0,  # From compute capability 9.0 on, the driver compiles TensorFlow's kernels at their first use.
    "xla": 60.0,
    "memory": 40.0,
    "all_reduce": 60.0,
    "horovod": 40.0,
    "batch": 60.0,
}
TRAINING_SECONDS = 60.0
NOT_TRIED = "not tried: the time for all checks together is used up"
KILLED_SECONDS = 5.0  # For a killed process to end; one that waits for a driver may never.


class Examination:
    """Findings as they come: shown, and kept without names and paths in a file that is whole at any time."""

    def __init__(self, file: Path, total_seconds: float = TOTAL_SECONDS) -> None:
        self.file, self.findings = file, list[Finding]()
        self._end, self._scrubber = time.monotonic() + total_seconds, Scrubber([])

    def add(self, finding: Finding) -> None:
        finding = dataclasses.replace(finding, detail=self._scrubber.without_names(finding.detail))
        show(finding)
        self.findings.append(finding)
        self.write()

    def write(self) -> None:
        findings = [dataclasses.asdict(each) for each in self.findings]
        write_json(self.file, {"format": "mnist-dist doctor --gpu 1", "findings": findings})

    def check(self, name: str, limit_seconds: float, devices: Sequence[str] = ()) -> None:
        """Adds what one of the checks finds, and how it ends if it does not end well."""
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
            program = [sys.executable, "-m", "mnist_dist.gpu_doctor.checks", name, file.name, *devices]
            problem = self.start(program, limit_seconds, name)
            for line in file:
                self.add(Finding(**json.loads(line)))
        if problem:
            self.add(_failed(name, problem))

    def train(
        self, runs: trainings.Trainings, judge: Callable[[Path, str], Finding], limit_seconds: float = TRAINING_SECONDS
    ) -> None:
        """Trains, one after the other, and adds what is to be said of each, or how it failed."""
        with tempfile.TemporaryDirectory() as folder:
            for name, settings in runs.items():
                problem = self.start(trainings.command(Path(folder, name), settings), limit_seconds, name)
                self.add(_failed(name, problem) if problem else judge(Path(folder), name))

    def start(self, command: Sequence[str], limit_seconds: float, name: str) -> str | None:
        """Runs a process, and returns how it failed to end well, with the last line that it printed."""
        limit = min(limit_seconds, self._end - time.monotonic())
        if limit < 1:
            return NOT_TRIED
        print(f"        {name} (at most {limit:.0f} s)", flush=True)
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                ended = f"no answer within {limit:.0f} s"
            else:
                ended = f"ended with code {process.returncode}"
            finally:  # Also its ranks, which end with their launcher.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KILLED_SECONDS)
            output.seek(0)
            said = output.read()[-10_000:].split("\n")
        last = next((line for line in reversed(said) if line.strip()), "nothing")
        return None if ended == "ended with code 0" else f"{ended}; last output: {one_line(last)}"


def _failed(name: str, problem: str) -> Finding:
    return Finding(name, ABSENT if problem == NOT_TRIED else BROKEN, problem)


def run(total_seconds: float = TOTAL_SECONDS) -> int:
    """Checks everything; returns 0 if there are GPUs, and nothing is broken or slow."""
    # Several hosts may share a folder.
    file = Path(f"gpu-doctor-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.json")
    examination = Examination(file, total_seconds)
    with writing(file.absolute().parent):
        examination.write()
    for check, limit in LOOKING.items():
        examination.check(check, limit)
    findings = examination.findings
    gpus = [each.subject for each in findings if re.fullmatch(r"GPU:\d+", each.subject)]
    if gpus:
        for check, limit in COMPUTING.items():
            examination.check(check, limit, gpus)
        examination.train(trainings.of_strategies(len(gpus)), trainings.compare_weights)
        examination.train(trainings.of_step_times(), trainings.tell_step_time)
    faulty = [f"{each.subject} ({each.status.lower()})" for each in findings if each.status in (BROKEN, SLOW)]
    untried = [each.subject for each in findings if each.detail == NOT_TRIED]
    verdict = f"Look at: {', '.join(faulty)}." if faulty else "All is well." if gpus else ""
    unknown = any(each.subject == "tensorflow" for each in findings)  # How that check ended, if it did not end well.
    why = "Its check did not end well, so whether TensorFlow can use a GPU is not known; try again on an idle node."
    verdict += f" Not tried, for want of time: {', '.join(untried)}." if untried else ""
    verdict += "" if gpus else f" {why}" if unknown else " There is no GPU here that TensorFlow can use."
    print(f"\n{verdict.strip()} All findings are in {file}, without names and paths.")
    return EXIT_FAILED if faulty or not gpus else 0
