"""The doctor on this machine as it is, and on the same machine with something broken."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import mnist_dist
from mnist_dist import doctor, runtime
from mnist_dist.doctor import ABSENT, BROKEN, OK, Finding
from mnist_dist.training import steps

PACKAGE = Path(mnist_dist.__file__).parent


@pytest.mark.slow
def test_this_machine_can_train(tf: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.run()
    *lines, empty, verdict = capsys.readouterr().out.splitlines()
    assert (code, empty, verdict) == (0, "", "Ready to train: `mnist-dist train`.")
    findings = {}
    for line in lines:
        match = re.fullmatch(r"(ok|-) +(\S+) +(\S.*)", line)
        assert match, line
        findings[match[2]] = match[3]
    assert {"Python", "mnist_dist", "tensorflow", "keras", "MNIST", "CPU", "GPU", "precision", "XLA"} <= set(findings)
    assert {"load", "kernels", "ranks", "training", "Horovod", "Slurm", "disk"} <= set(findings)
    assert findings["tensorflow"] == tf.__version__
    assert findings["MNIST"] == "60,000 training and 10,000 test images, checksum correct"
    assert f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores" in findings["CPU"]
    assert re.fullmatch(r"auto picks (float32|mixed_\w+): .+", findings["precision"])
    assert re.fullmatch(r"auto picks (on|off): .+", findings["XLA"])
    losses = re.fullmatch(r"three steps in \w+, loss (\d+\.\d\d) to (\d+\.\d\d)", findings["training"])
    assert losses and 0 < float(losses[2]) < 10


def test_what_other_programs_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(doctor.time, "sleep", lambda _: None)
    for share, status, end in ((0.05, OK, "cores"), (0.6, ABSENT, "cores; measure when it is idle")):
        seconds = iter((7.0, 7.0 + share * cores))
        monkeypatch.setattr("mnist_dist.cpuinfo.busy_cpu_seconds", lambda seconds=seconds: next(seconds))
        (finding,) = doctor.check_other_programs()
        assert finding.status == status and finding.detail.startswith(f"other programs use {share * cores:.1f} of ")
        assert finding.detail.replace("core;", "cores;").endswith(end)


def test_where_nobody_tells_what_other_programs_use_nothing_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "sleep", lambda _: None)
    monkeypatch.setattr("mnist_dist.cpuinfo.busy_cpu_seconds", lambda: 0.0)
    assert [finding.status for finding in doctor.check_other_programs()] == [ABSENT]


def test_where_training_takes_xla_the_doctor_tries_it(tf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ptxas and libdevice, of which XLA makes use on a GPU, are missed here and not in the first training."""
    options: list[dict[str, object]] = []
    monkeypatch.setattr(runtime, "decide_xla", lambda *_: runtime.Decision("on", "it is a GPU"))
    monkeypatch.setattr(
        steps, "make_train_steps", lambda *_, **given: options.append(given) or (lambda *_: tf.ones([3, 2]))
    )
    (finding,) = doctor.check_training()
    assert finding.status == OK and options[0]["xla"]


def test_one_broken_part_is_named_and_the_others_are_still_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check_cables() -> Iterator[Finding]:
        yield Finding("plug", OK, "it is in")
        raise RuntimeError("a cable\nis loose")

    def check_fan() -> Iterator[Finding]:
        yield Finding("fan", ABSENT, "none; not needed")

    monkeypatch.setattr(doctor, "CHECKS", (check_cables, check_fan))
    assert doctor.run() == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      plug         it is in",
        "BROKEN  cables       RuntimeError: a cable is loose",
        "-       fan          none; not needed",
        "",
        "Broken: cables.",
    ]


@pytest.mark.parametrize(
    ("script", "status", "detail"),
    [
        (None, ABSENT, "no sbatch on PATH"),
        ("#!/bin/sh\necho slurm-wlm 22.05.8\n", OK, "slurm-wlm 22.05.8"),
        ("#!/bin/sh\necho Welcome!\necho slurm-wlm 22.05.8\n", OK, "slurm-wlm 22.05.8"),
        ("#!/bin/sh\necho hm >&2\necho 'fatal: no cluster' >&2\nexit 1\n", ABSENT, "sbatch fails (fatal: no cluster)"),
        ("#!/bin/sh\nexit 1\n", ABSENT, "sbatch fails (it says nothing)"),
    ],
)
def test_slurm(script: str | None, status: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script:
        (tmp_path / "sbatch").write_text(script)
        (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(doctor.check_slurm()) == [Finding("Slurm", status, detail)]


BUILD = {
    "cuda_compute_capabilities": ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"],
    "cuda_version": "12.5.1",
}
OLD_DRIVER = "its driver must compile TensorFlow's kernels, which requires CUDA 12.5, but it supports 12.2; "


@pytest.mark.parametrize(
    ("capability", "cudnn", "problem"),
    [
        ((9, 0), "9.28.0.42", None),
        ((12, 0), "9.28.0.42", None),
        ((7, 5), "9.28.0.42", None),
        ((7, 0), "9.10.2.21", None),
        ((7, 0), "9.28.0.42", "cuDNN 9.28.0.42 requires 7.5 or higher; `pip install 'nvidia-cudnn-cu12<9.11'`"),
        ((3, 7), None, "TensorFlow's kernels require 6.0 or higher"),
        ((7, 0), None, None),  # cuDNN comes from elsewhere.
        ((), "9.28.0.42", None),
    ],
)
def test_gpus_that_are_too_old(capability: tuple[int, ...], cudnn: str | None, problem: str | None) -> None:
    assert doctor.outdated_gpu(capability, BUILD, cudnn) == problem


@pytest.mark.parametrize(
    ("capability", "driver_cuda", "problem"),
    [
        ((9, 0), 12020, OLD_DRIVER + "update it"),
        ((9, 0), 12050, None),
        ((12, 0), 13000, None),
        ((8, 9), 12020, None),  # There are kernels for it.
        ((9, 0), None, None),
        ((), 12020, None),
    ],
)
def test_drivers_that_are_too_old(capability: tuple[int, ...], driver_cuda: int | None, problem: str | None) -> None:
    assert doctor.outdated_gpu(capability, BUILD, None, driver_cuda) == problem


def test_the_installed_tensorflow_says_for_which_gpus_it_is_built(tf: ModuleType) -> None:
    build = tf.sysconfig.get_build_info()
    assert doctor.outdated_gpu((1, 0), build, None) or not build["is_cuda_build"]
    assert doctor.outdated_gpu((99, 0), build, None, 11000) or not build["is_cuda_build"]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, small_disk: Path) -> None:
    assert [finding.status for finding in doctor.check_disk()] == [OK]
    monkeypatch.chdir(small_disk)
    assert list(doctor.check_disk()) == [Finding("disk", BROKEN, f"0.0 GB free in {small_disk}")]


def test_a_version_of_python_that_is_too_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    monkeypatch.setattr("platform.python_version", lambda: "3.15.0")
    assert next(doctor.check_versions()) == Finding("Python", BROKEN, "3.15.0, expected 3.10 to 3.13")


@pytest.mark.slow
def test_a_damaged_installation(tmp_path: Path) -> None:
    copy = tmp_path / "mnist_dist"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    data = bytearray((copy / "data" / "mnist.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "data" / "mnist.npz").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "mnist_dist", "doctor"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"^BROKEN +data +data: the embedded mnist\.npz is damaged: sha256 ", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\n\nBroken: data, training.\n")
    assert "Traceback" not in done.stdout + done.stderr and re.search(r"^ok +disk", done.stdout, re.MULTILINE)
