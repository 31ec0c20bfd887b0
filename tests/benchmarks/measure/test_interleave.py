from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.command import KEPT
from mnist_dist.benchmarks.measure import interleave
from mnist_dist.benchmarks.measure.interleave import open_arm
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from tests.benchmarks.harness import COMMAND, REPOSITORY, environment, run, wait_until, write_suite


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own with the present code, in which a second commit says something else at the start."""
    folder = tmp_path / "checkout"
    git(REPOSITORY, "clone", "--quiet", "--local", "--no-hardlinks", str(REPOSITORY), str(folder))
    for package in ("mnist_dist", "benchmarks"):  # What is not committed belongs to the present code, too.
        for file in (REPOSITORY / package).rglob("*"):
            if file.suffix in (".py", ".yaml", ".json"):
                target = folder / file.relative_to(REPOSITORY)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "present")
    return folder


def in_turns(base: list[Record], new: list[Record]) -> bool:
    """Whether both sides of each repeat have taken turns with each other, and with nobody else."""
    rounds: dict[str, list[int]] = {}
    for record in base + new:
        assert record.turns is not None
        rounds.setdefault(record.turns.round_id, []).append(record.repeat)
    return sorted(rounds.values()) == [[record.repeat] * 2 for record in base]


def cycles(record: Record) -> set[int]:
    return {cycle for cycle in (record.measurements or {})["window_cycles"] if cycle >= 0}


def sides(folder: Path) -> tuple[list[Record], list[Record]]:
    return Store(folder / "base").records(), Store(folder / "new").records()


class TestArms:
    def test_a_setting(self, tmp_path: Path) -> None:
        with open_arm("model.dense_units=64", tmp_path) as (code, settings):
            assert (settings, code) == ({"model.dense_units": 64}, REPOSITORY)

    def test_a_file_counts_by_what_it_changes(self, tmp_path: Path) -> None:
        """Also one that lists every setting, as a run leaves it."""
        file = tmp_path / "faster.yaml"
        text = (REPOSITORY / "mnist_dist" / "configs" / "default.yaml").read_text()
        assert "dense_units: 128" in text
        file.write_text(text.replace("dense_units: 128", "dense_units: 64"))
        with open_arm(str(file), tmp_path) as (_, settings):
            assert settings == {"model.dense_units": 64}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("training.batch_size=64", "training.batch_size: received as a setting of a case"),
            ("runtime.devices=2", "runtime.devices: received as a setting of a case"),
            ("training={steps: 3}", "training: received a section"),
            ("runtime.xla=maybe", "runtime.xla: received 'maybe'"),
            ("runtime.xlla=on", "runtime.xlla: no such setting"),
            ("no-such-commit", "--interleave: received 'no-such-commit', expected a commit of this checkout"),
            ("--exec=touch", "--exec: no such setting"),
            ("-p", "--interleave: received '-p'"),
        ],
    )
    def test_neither_commit_nor_settings(
        self, tmp_path: Path, user_error: Callable[..., str], text: str, said: str
    ) -> None:
        line = user_error(open_arm(text, tmp_path).__enter__)
        assert line.startswith(said)
        assert not list(tmp_path.iterdir())

    def test_a_commit_is_checked_out_for_the_time_being(
        self, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interleave, "CODE_FOLDER", checkout)
        hook = checkout / ".git" / "hooks" / "post-checkout"
        hook.write_text("#!/bin/sh\necho ran >&2\nexit 1\n")
        hook.chmod(0o755)
        with open_arm("HEAD~1", tmp_path / "results") as (code, _):
            assert git(code, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD~1")
            assert (code / "mnist_dist" / "__main__.py").is_file()
            assert code.is_relative_to(tmp_path / "results"), "all hosts of a job see the results"
        assert not code.exists()
        assert len(git(checkout, "worktree", "list").splitlines()) == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_two_settings_take_turns(tmp_path: Path, tiny_mnist: Path) -> None:
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, repeats=2)
    results = tmp_path / "results"
    done = run(
        *("compare", "--interleave", "model.dense_units=16", "model.dense_units=32"),
        *("--suite", suite, "--results", results),
    )
    assert done.returncode in (0, 1, 3), done.stderr
    assert done.returncode != 1 or "slower" in done.stdout
    base, new = sides(results)
    assert in_turns(base, new)
    assert all(cycles(one) == cycles(other) and cycles(one) for one, other in zip(base, new, strict=True))
    assert [record.status for record in base + new] == ["ok"] * 4
    assert [record.identity.config["model"]["dense_units"] for record in base + new] == [16, 16, 32, 32]
    assert {record.case_id for record in base} == {record.case_id for record in new}
    assert "Speed: images/s" in done.stdout and "incomparable" not in done.stdout.lower()


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_leaves_nothing_behind_and_resuming_goes_on(
    number: signal.Signals, checkout: Path, tmp_path: Path, tiny_mnist: Path
) -> None:
    """Slurm sends USR2 before a job's time is over; with it and with TERM, Python would end without cleaning up."""
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist, repeats=2)
    results = checkout / "results"
    command = [*COMMAND, "compare", "--interleave", "HEAD", "HEAD", "--suite", str(suite), "--results", str(results)]
    variables = environment() | {"PYTHONPATH": "", "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(command, cwd=checkout, env=variables, stderr=subprocess.PIPE, text=True) as process:
        assert wait_until(lambda: len(sides(results)[0] + sides(results)[1]) == 2, 300)
        process.send_signal(number)
        if number != signal.SIGINT:  # Slurm's reaches a process itself and by way of the batch file.
            time.sleep(0.1)
            process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    last = errors.splitlines()[-1]
    assert last.startswith("continue with: mnist") if number == signal.SIGINT else last.endswith(f"; {KEPT}"), errors
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list(results.rglob("scratch/*")) == [] and list(results.glob("commit-*")) == []
    kept = sides(results)[0] + sides(results)[1]
    done = subprocess.run([*command, "--resume"], cwd=checkout, env=variables, capture_output=True, text=True)
    assert done.returncode in (0, 1, 3), done.stderr
    assert "resuming: " in done.stdout + done.stderr
    base, new = sides(results)
    assert all(record in base + new for record in kept)
    whole = [sorted(r.repeat for r in side if r.turns and r.turns.ended != "interrupted") for side in (base, new)]
    assert whole == [[0, 1], [0, 1]]


@pytest.mark.slow
def test_a_commit_is_measured_with_its_own_code(checkout: Path, tmp_path: Path, tiny_mnist: Path) -> None:
    """The older commit says another device, and knows no turns; the harness' code is the newer commit's."""
    trainer = checkout / "mnist_dist" / "training" / "trainer.py"
    text = trainer.read_text()
    assert '"device": f"' in text and "join_turns(os.environ" in text
    old_text = text.replace("join_turns(os.environ", "join_turns({}")
    trainer.write_text(old_text.replace('"device": f"', '"device": f"OLD '))
    git(checkout, "commit", "--quiet", "--all", "--message", "old")
    old = git(checkout, "rev-parse", "HEAD")
    trainer.write_text(text.replace('"device": f"', '"device": f"NEW '))
    git(checkout, "commit", "--quiet", "--all", "--message", "new")
    suite = write_suite(tmp_path / "small.yaml", tiny_mnist)
    done = subprocess.run(
        [*COMMAND, "compare", "--interleave", old, "HEAD", "--suite", str(suite), "--results", "results"],
        cwd=checkout,
        env=environment() | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode in (0, 1, 3), done.stderr
    head = git(checkout, "rev-parse", "HEAD")
    assert f"Base: {old}: base (commit {old[:10]})" in done.stdout
    assert f"New: HEAD: new (commit {head[:10]})" in done.stdout
    again = shlex.split(done.stdout.splitlines()[-1].removeprefix("next, to see this again: mnist-dist bench "))
    shown = subprocess.run([*COMMAND, *again], cwd=checkout, env=environment(), capture_output=True, text=True)
    assert shown.returncode == done.returncode
    assert [line for line in shown.stdout.splitlines() if line.startswith("single")] == [
        line for line in done.stdout.splitlines() if line.startswith("single")
    ]
    base, new = sides(checkout / "results")
    assert [record.status for record in base + new] == ["ok", "ok"], base + new
    devices = [(record.measurements or {})["device"].split()[0] for record in base + new]
    assert devices == ["OLD", "NEW"]
    assert base[0].turns is None and (base[0].measurements or {})["window_cycles"] is None, "measured by itself"
    assert new[0].turns is not None and cycles(new[0])
    commits = [record.identity.git for record in base + new]
    assert [commit and (commit.commit, commit.dirty) for commit in commits] == [
        (old, False),
        (head, False),
    ]
    assert git(checkout, "worktree", "list").count("\n") == 0, "the old commit's folder is still there"
    assert not list((checkout / "results").glob("commit-*"))
