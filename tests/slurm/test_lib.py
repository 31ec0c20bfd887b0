"""The shell functions that the batch files share: arguments, and signals at awkward moments."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    command = ["bash", "-c", f"source {ROOT}/slurm/lib.sh; {script}"]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script: str, folder: Path) -> str:
    process = start(script, folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("--epochs 3", ""),
        ("--workdir 'a b' --epochs 3", "a b"),
        ("--workdir='a b'", "a b"),
        ("--workdir a --workdir=b", "b"),
        ("--workdirs a", ""),
        ("--workdir", ""),
        ("--workdir=a=b", "a=b"),
    ],
)
def test_option_value(arguments: str, value: str, tmp_path: Path) -> None:
    assert run(f"option_value --workdir {arguments}", tmp_path) == value


def test_each_job_has_a_secret_of_its_own_which_reaches_its_tasks(tmp_path: Path) -> None:
    script = "echo $MNIST_DIST_SECRET; export SLURM_EXPORT_ENV=NONE"  # As `sbatch --export=NONE` leaves it behind.
    script += f"; source {ROOT}/slurm/lib.sh; printenv MNIST_DIST_SECRET; echo $SLURM_EXPORT_ENV"
    first, second, exported = run(script, tmp_path).split()
    assert len(bytes.fromhex(first)) == len(bytes.fromhex(second)) == 32 and first != second
    assert exported == "ALL"


def test_what_the_job_tells_each_of_its_tasks_about_gpus_is_dropped(tmp_path: Path) -> None:
    """One task that drives all GPUs of the job would get a single one."""
    script = "export SLURM_GPUS_PER_TASK=1 SLURM_TRES_PER_TASK=cpu=2,gres/gpu=1"
    script += f"; source {ROOT}/slurm/lib.sh; echo ${{SLURM_GPUS_PER_TASK-unset}} ${{SLURM_TRES_PER_TASK-unset}}"
    assert run(script, tmp_path) == "unset unset\n"


@pytest.mark.parametrize("code", [0, 3, 127, 137])
def test_the_exit_code_of_what_was_watched(code: int, tmp_path: Path) -> None:
    assert run(f"run_watched bash -c 'exit {code}'; echo $status", tmp_path) == f"{code}\n"


# What a training does: on the signal it saves, which takes a while, and ends well.
SAVES = (
    "import os, signal, sys, time\n"
    "def stop(number, frame):\n"
    "    os.write(1, signal.Signals(number).name.encode() + bytes([10])); time.sleep(0.5); sys.exit(7)\n"
    "for number in (signal.SIGUSR2, signal.SIGTERM): signal.signal(number, stop)\n"
    "print('started', flush=True); time.sleep(30)"
)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_is_handed_on_and_the_end_awaited(number: signal.Signals, tmp_path: Path) -> None:
    process = start(f'run_watched {sys.executable} -c "{SAVES}"; echo $status ${{warned-no}}', tmp_path)
    assert process.stdout and process.stdout.readline() == "started\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert output == f"{number.name}\n7 {'yes' if number == signal.SIGUSR2 else 'no'}\n"


def test_a_signal_before_the_command_begins(tmp_path: Path) -> None:
    """As while modules are loaded: the shell survives, and nothing is begun for which there is no time."""
    process = start("echo ready; read; run_watched echo begun; echo $status", tmp_path)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate("\n", timeout=300)
    assert output == "140\n"


def test_a_signal_while_slurm_is_asked(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nkill -USR2 $SHELL_PID\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = (
        f"export SHELL_PID=$$ PATH={tmp_path}:$PATH; source {ROOT}/slurm/lib.sh; run_watched echo begun; echo $status"
    )
    done = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "140\n"), done


def test_many_signals(tmp_path: Path) -> None:
    process = start(f'run_watched {sys.executable} -c "{SAVES}"; echo $status', tmp_path)
    assert process.stdout and process.stdout.readline() == "started\n"
    for _ in range(3):
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.1)
    output, _ = process.communicate(timeout=300)
    assert output.splitlines()[-1] == "7"
