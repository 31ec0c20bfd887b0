"""The kinds of faults: how each is brought about, what the command has to make of it, and what a user does then.

A kind is a function that raises AssertionError where something goes wrong. What they have in common is in checks.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.strategies import STRATEGIES, missing_packages
from tests.benchmarks.harness import marked_processes
from tests.campaign import studies
from tests.campaign.checks import (
    Reference,
    check_done,
    check_end,
    check_kept,
    check_nothing_left,
    check_resumed,
    check_says,
)
from tests.campaign.damage import damage
from tests.campaign.trial import MOMENTS, TRAINING, Plan, Trial
from tests.processes.conftest import Run

ALONE = [(name, 1 if not row.several_devices else 2) for name, row in STRATEGIES.items() if row.one_process]
RANKS = [(row.name, 2) for row in STRATEGIES.values() if not row.one_process]
ALL = [*ALONE, *RANKS]
BEFORE, CHECKPOINT, END = "before the first step", "in a checkpoint", "at the end"
HERE = [BEFORE, TRAINING, CHECKPOINT, END]
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass(frozen=True)
class Kind:
    """A row of the table below; `places` are instead of those of its moments in `MOMENTS`."""

    name: str
    play: Callable[[Trial, Reference], None]
    runs: Sequence[tuple[str, int]] = ()
    moments: Sequence[str] = ()
    places: Sequence[str] = ()


def make_plan(seed: int) -> Plan:
    """Returns what a seed stands for: neighbouring seeds have different kinds, and the rest is drawn."""
    kind = KINDS[seed % len(KINDS)]
    rng = random.Random(seed)  # noqa: S311
    strategy, devices = rng.choice(kind.runs) if kind.runs else ("", 0)
    moment = rng.choice(kind.moments)
    place = rng.choice(kind.places or MOMENTS[moment])
    # Only the chief comes to the other places.
    of_chief = moment in (CHECKPOINT, END) or place.startswith(("os.rename", "socket"))
    rank = rng.randrange(devices) if (strategy, devices) in RANKS and not of_chief else 0
    return Plan(seed, kind.name, strategy, devices, moment, place, rank)


class UnableError(Exception):
    """This host has not what a plan needs."""


def skip_unless_here(plan: Plan) -> None:
    if plan.strategy and STRATEGIES[plan.strategy].package in missing_packages():
        raise UnableError(f"{plan.strategy} is not installed")
    if plan.kind == "clock set back" and not find_libfaketime():
        raise UnableError("needs libfaketime, as of Debian's package faketime")


def find_libfaketime() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def play(trial: Trial, reference: Reference | None) -> None:
    next(kind for kind in KINDS if kind.name == trial.plan.kind).play(trial, reference)  # type: ignore[arg-type]


# --- Processes that die or stop ---


def kill_rank(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    victim = trial.rng.randrange(trial.plan.devices)
    saved = trial.checkpoints()
    os.kill(trial.process_of(run, victim), signal.SIGKILL)
    trial.release()
    if trial.several:
        codes = {1}
        says = f"rank {victim} was killed by SIGKILL"
    else:
        codes, says = {-signal.SIGKILL}, ""
    _end_or_late(trial, run, codes, says)
    check_kept(trial, saved)
    check_resumed(trial, reference)


def kill_all(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    saved = trial.checkpoints()
    trial.kill(signal.SIGKILL)
    _end_or_late(trial, run, {-signal.SIGKILL})
    check_kept(trial, saved)
    check_resumed(trial, reference)


def kill_launcher(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    saved = trial.checkpoints()
    run.process.kill()
    trial.release()
    _end_or_late(trial, run, {-signal.SIGKILL})
    check_kept(trial, saved)
    check_resumed(trial, reference)


def stop_and_continue(trial: Trial, reference: Reference) -> None:
    """For a while that is shorter than any time-out: nothing is to be seen of it in the results."""
    run = trial.start_to_moment()
    if trial.rng.random() < 0.5:
        trial.kill(signal.SIGSTOP)
    else:
        os.kill(trial.process_of(run, trial.rng.randrange(trial.plan.devices)), signal.SIGSTOP)
    time.sleep(trial.rng.uniform(1, 7))  # Also for longer than the launcher waits for a sign of life.
    trial.release()
    check_end(trial, run, {0})
    check_done(trial, run, reference)


def stop_and_kill(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    victim = trial.rng.randrange(trial.plan.devices)
    saved = trial.checkpoints()
    process = trial.process_of(run, victim)
    os.kill(process, signal.SIGSTOP)
    time.sleep(trial.rng.uniform(1, 7))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    trial.release()
    codes, says = ({1}, f"rank {victim} was killed by SIGKILL") if trial.several else ({-signal.SIGKILL}, "")
    _end_or_late(trial, run, codes, says)
    check_kept(trial, saved)
    check_resumed(trial, reference)


def stop_for_good(trial: Trial, reference: Reference) -> None:
    """The other rank has waited for long enough some time, and the one that is stopped is named."""
    run = trial.start_to_moment({"runtime.stall_timeout_seconds": 90.0})
    victim = trial.plan.rank
    saved = trial.checkpoints()
    os.kill(trial.process_of(run, victim), signal.SIGSTOP)
    _end_or_late(trial, run, {1}, f"rank {victim} gave no sign of life")
    check_kept(trial, saved)
    check_resumed(trial, reference)


def _end_or_late(trial: Trial, run: Run, codes: set[int], says: str = "") -> None:
    """Checks the end of a run that a fault should have hit; it has come late where the run has ended well."""
    trial.late = (trial.workdir / "result.json").exists()
    check_end(trial, run, {0, *codes} if trial.late else codes, "" if trial.late else says)


# --- The disk ---


def fill_disk(trial: Trial, reference: Reference) -> None:
    trial.workdir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(trial.workdir)]
    if subprocess.run(mount, capture_output=True).returncode:
        limit_files(trial, reference)
        return
    trial.stack.callback(subprocess.run, ["umount", "--lazy", str(trial.workdir)], check=True)
    run = trial.start_to_moment()
    saved = trial.checkpoints()
    filling = trial.workdir / ".lock"  # The one file there that may hold anything.
    with filling.open("ab") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(512))
    trial.release()
    _refused(trial, run, "No space left on device")
    os.truncate(filling, 0)
    check_kept(trial, saved)
    check_resumed(trial, reference)


def limit_files(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    saved = trial.checkpoints()
    for process in marked_processes(trial.mark):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (1024, 1024))
    trial.release()
    _refused(trial, run, "File too large")
    check_kept(trial, saved)
    check_resumed(trial, reference)


def forbid_writing(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    saved = trial.checkpoints()
    with _read_only(trial.workdir):
        trial.release()
        _refused(trial, run, "Operation not permitted|Permission denied")
    check_kept(trial, saved)
    check_resumed(trial, reference)


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Forbids to make, rename or remove files; root needs to be forbidden it in another way."""
    folders = [str(path) for path in (folder, *folder.iterdir()) if path.is_dir()]
    forbid, allow = (["chattr", "+i"], ["chattr", "-i"]) if os.getuid() == 0 else (["chmod", "a-w"], ["chmod", "u+w"])
    try:
        subprocess.run([*forbid, *folders], check=True, capture_output=True)
        yield
    finally:
        subprocess.run([*allow, *folders], check=True)


def delete_folder(trial: Trial, reference: Reference) -> None:
    """The run says so, and where nothing is left of the folder, it can begin anew."""
    run = trial.start_to_moment()
    shutil.rmtree(trial.workdir, ignore_errors=True)
    trial.release()
    _refused(trial, run, "No such file or directory|was deleted during the run")
    if not trial.late:
        shutil.rmtree(trial.workdir, ignore_errors=True)  # What it wrote before it noticed.
    check_resumed(trial, reference)


def _refused(trial: Trial, run: Run, says: str) -> None:
    """Checks the end of a run that may have found no need of what was taken away; if it had, it says so."""
    trial.late = check_end(trial, run, {0, 2}) == 0
    check_says(run, "completed" if trial.late else says)


# --- Files that are damaged ---


def damage_checkpoint(trial: Trial, reference: Reference) -> None:
    _kill_at_the_end(trial)
    files = sorted((trial.workdir / "checkpoints").glob("step-*.npz"))
    how = trial.rng.choice(["truncate", "flip", "swap"])
    damage(files[-1], how, trial.rng, files[0])
    check_resumed(trial, reference, "is damaged" if how == "truncate" else "")


def damage_result(trial: Trial, reference: Reference) -> None:
    """That of a run which has ended, or its settings, metrics or step times; it may have to be removed."""
    run = trial.start()
    check_end(trial, run, {0})
    victim = trial.workdir / trial.rng.choice(["result.json", "config.yaml", "metrics.jsonl", "step_times.json"])
    config = trial.workdir / "config.yaml"
    intact = config.read_bytes()
    others = [file for file in sorted(trial.workdir.iterdir()) if file.is_file() and file != victim]
    how = trial.rng.choice(["truncate", "flip", "swap"] if victim.name != "config.yaml" else ["truncate", "swap"])
    damage(victim, how, trial.rng, trial.rng.choice(others))
    while check_end(trial, resumed := trial.start("--resume"), {0, 2}) == 2:  # Of two that were swapped, one by one.
        named = [file for file in (victim, *others) if file.exists() and str(file) in resumed.output]
        assert named, f"it names no file that is in the way:\n{resumed.output}"
        named[0].unlink()
        if named[0] == config:
            config.write_bytes(intact)
    check_resumed_or_told(trial, reference)


def check_resumed_or_told(trial: Trial, reference: Reference) -> None:
    """Resumes a run whose metrics may have lost what was damaged; its weights may not."""
    check_end(trial, trial.start("--resume"), {0})
    weights = Run.weights_in(trial.workdir)
    assert all((weights[name] == value).all() for name, value in reference.weights.items())
    check_nothing_left(trial, trial.workdir)


def _kill_at_the_end(trial: Trial) -> None:
    run = trial.start_to_moment()
    trial.kill(signal.SIGKILL)
    check_end(trial, run, {-signal.SIGKILL})


# --- Surroundings ---


def take_port(trial: Trial, reference: Reference) -> None:
    """One that a rank is about to listen on: of the roll call, or of TensorFlow's server."""
    run = trial.start_to_moment()
    variables = marked_processes(trial.mark)[trial.process_of(run, trial.plan.rank)]
    first, size = int(variables["MNIST_DIST_PORT"]), int(variables["MNIST_DIST_SIZE"])
    port = first + size + 1 if trial.plan.place.startswith("socket") else first + 1 + trial.plan.rank
    with socket.create_server(("127.0.0.1", port)):
        trial.release()
        check_end(trial, run, {1}, rf"cannot listen on port {port}\b")
    check_resumed(trial, reference)


def set_clock_back(trial: Trial, reference: Reference) -> None:
    """By hours or days, in the middle."""
    clock = trial.folder / "clock"
    clock.write_text("+0\n")
    run = trial.start_to_moment(
        LD_PRELOAD=str(find_libfaketime()),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    clock.write_text(f"-{trial.rng.choice([2, 50, 9000])}h\n")
    trial.release()
    check_end(trial, run, {0})
    check_done(trial, run, reference)


def send_signals(trial: Trial, reference: Reference) -> None:
    run = trial.start_to_moment()
    saved = trial.checkpoints()
    sent = [trial.rng.choice(SIGNALS) for _ in range(trial.rng.randint(2, 8))]
    for number in sent:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.process.pid, number)
        time.sleep(trial.rng.choice([0, 0.001, 0.02]))
    trial.release()
    # Whoever has not begun yet is ended as any program is.
    early = {1, *(-number for number in sent)} if trial.plan.moment == BEFORE else set()
    code = check_end(trial, run, {0, 130, *early})
    check_kept(trial, saved)
    if code == 0 and run.result["status"] == "preempted":
        assert trial.checkpoints()[-1] == run.result["steps"], "what it says to continue from is not there"
    check_resumed(trial, reference)


def start_twice(trial: Trial, reference: Reference) -> None:
    """A second run comes to the folder of the first while that one runs, or when it has just begun."""
    run = trial.start_to_moment()
    flags = ["--resume"] if trial.rng.random() < 0.5 else []
    second = trial.start(*flags)
    wanted = "another process is training|already holds a run"
    if trial.plan.moment == TRAINING:
        check_end(trial, run, {0})
        code = second.finish()
        assert code in ({0, 2} if flags else {2}), second.output
    else:
        code = second.finish()  # The first one waits.
        assert code == 2, second.output
        assert any(part in second.output for part in wanted.split("|")), second.output
        trial.release()
        check_end(trial, run, {0})
    check_done(trial, run, reference)


def overtake(trial: Trial, reference: Reference) -> None:
    """A run has looked at the folder, which was new; before it locks it, another one trains there to its end."""
    slow = trial.start_to_moment()
    quick = trial.start()
    code = quick.finish()
    assert code == 0, quick.output
    before = (trial.workdir / "result.json").read_bytes()
    trial.release()
    check_end(trial, slow, {2}, "already holds a run")
    assert (trial.workdir / "result.json").read_bytes() == before, "the result of the other run was replaced"
    check_done(trial, quick, reference)


KINDS = [
    Kind("SIGKILL of a rank", kill_rank, ALL, HERE),
    Kind("full disk", fill_disk, ALL, [TRAINING, CHECKPOINT, END]),
    Kind("signals in bursts", send_signals, ALL, HERE),
    Kind("damaged checkpoint", damage_checkpoint, ALL, [END], MOMENTS[END][:1]),
    Kind("SIGKILL of all", kill_all, ALL, HERE),
    Kind("deleted folder", delete_folder, ALL, [TRAINING, CHECKPOINT, END]),
    Kind("killed in a round of turns", studies.kill_in_round, [], ["while cases take turns"], ["record", "turn"]),
    Kind("SIGSTOP, then SIGCONT", stop_and_continue, ALL, HERE),
    Kind("damaged result", damage_result, ALL, ["after the end"], ["all done"]),
    Kind("SIGKILL of the launcher", kill_launcher, RANKS, HERE),
    Kind("two runs in one folder", start_twice, ALL, [TRAINING, CHECKPOINT, END]),
    Kind("damaged records", studies.damage_records, [], ["before a report"], ["record", "study.json"]),
    Kind("SIGSTOP for good", stop_for_good, RANKS, [TRAINING, CHECKPOINT, END]),
    Kind("limited files", limit_files, ALL, [TRAINING, CHECKPOINT, END]),
    Kind(
        "port taken",
        take_port,
        [run for run in RANKS if run[0] == "multiworker"],
        [BEFORE],
        ["socket.bind *", "import tensorflow"],
    ),
    Kind("read-only folder", forbid_writing, ALL, [TRAINING, CHECKPOINT, END]),
    Kind("killed in a report", studies.kill_in_report, [], ["in a report"], studies.PLACES),
    Kind("SIGSTOP, then SIGKILL", stop_and_kill, ALL, HERE),
    Kind("overtaken by another run", overtake, ALONE, [BEFORE], ["fcntl.flock *"]),
    Kind("clock set back", set_clock_back, ALONE, HERE),
]
