"""A training and a study on a FAT disk, without links, modes, colons in names, or names that differ in case alone."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_dist.benchmarks.records.store import Store
from tests.benchmarks.factory import make_study, train
from tests.processes.conftest import StartRun
from tests.processes.held import Held

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

PROGRAMS = ("losetup", "mkfs.vfat", "mkfs.exfat", "mount.exfat-fuse")
# The kernel's own, or exFAT in a process of its own, where the kernel has neither.
MOUNTS = (("mkfs.vfat", ["mount", "-t", "vfat"]), ("mkfs.exfat", ["mount.exfat-fuse"]))


@pytest.fixture
def fat_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        if os.environ.get("CI"):
            pytest.fail(f"{missing} are missing; .ci/run installs them")
        pytest.skip(f"{missing} are missing; install them with `apt-get install dosfstools exfatprogs exfat-fuse`")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    image.touch()
    os.truncate(image, 96 * 2**20)
    attached = run("losetup", "--find", "--show", str(image))
    if attached.returncode:
        pytest.skip(f"this machine attaches no file as a disk: {attached.stderr.strip()}")
    device, refusals = attached.stdout.strip(), []
    try:
        for make, mount in MOUNTS:
            assert run(make, device).returncode == 0
            mounted = run(*mount, device, str(folder))
            if mounted.returncode == 0:
                break
            refusals.append(mounted.stderr.strip())
        else:
            pytest.skip(f"this machine mounts no FAT: {'; '.join(refusals)}")
        try:
            yield folder
        finally:
            assert run("umount", str(folder)).returncode == 0
    finally:
        run("losetup", "--detach", device)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_training_and_a_study_on_a_foreign_disk(fat_disk: Path, start: StartRun, tmp_path: Path) -> None:
    (fat_disk / "file").touch()
    with pytest.raises(OSError):
        os.link(fat_disk / "file", fat_disk / "link")
    with pytest.raises(OSError):
        (fat_disk / "link").symlink_to("file")
    assert (fat_disk / "FILE").exists(), "names differ in case"

    flags = ["--steps", "100", "--set", "checkpoint.every_steps=50", "--set", "logging.tensorboard=true"]
    held = Held(tmp_path / "held", "os.rename step-00000050.npz")  # It could end before the signal comes.
    stopped = start(str(fat_disk / "run"), *flags, environment=held.variables)
    process = held.wait(stopped)
    stopped.process.terminate()
    os.kill(process, signal.SIGCONT)
    assert stopped.finish() == 0 and stopped.result["status"] == "preempted"
    other_case = start(str(fat_disk / "RUN"), *flags)
    assert other_case.finish() == 2 and "--resume" in other_case.output, "it is the same folder"
    resumed = start(str(fat_disk / "run"), *flags, "--resume").succeed()
    assert (resumed.result["status"], resumed.result["steps"]) == ("completed", 100)
    assert "warning" not in resumed.output and len(list((resumed.workdir / "plots").iterdir())) == 3
    assert resumed.weights and (resumed.workdir / "model.keras").exists()

    store, records = Store(fat_disk / "study"), make_study([train("single", 1)], 2)
    plan = {"name": "s", "suite": "quick", "seed": 0, "cases": [records[0].case.model_dump(mode="json")], "repeats": 2}
    assert store.write_study(plan) and not store.write_study(plan)
    for record in records:
        store.add(record)
    assert store.records() == sorted(records, key=lambda record: (record.started_at, record.record_id))
    assert not [file for file in store.folder.rglob(".*") if file.is_file()], "what was being written is left"
