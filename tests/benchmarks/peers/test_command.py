"""The commands `peers` and `perf`."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.benchmarks.peers.command import add_peers, add_perf
from mnist_dist.benchmarks.peers.contestants import OURS
from mnist_dist.benchmarks.peers.runs import Folder

COMMANDS = (("peers", add_peers), ("perf", add_perf))


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for _, add in COMMANDS:
        add(commands)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("command", ["peers", "perf"])
def test_flags(command: str) -> None:
    args = parse(command, "--only", "a,b", "--repeats", "5", "--results", "somewhere")
    assert (args.only, args.repeats, args.results, args.resume) == (["a", "b"], 5, Path("somewhere"), False)
    with pytest.raises(SystemExit):
        parse(command, "--repeats", "0")


@pytest.mark.slow
def test_peers_leaves_a_table_in_which_missing_peers_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mnist_dist.benchmarks.peers.contestants.PYTORCH_PYTHON", tmp_path / "missing")
    options = ("--only", "fast-mnist", "--mode", "throughput", "--repeats", "1", "--seconds", "1")
    args = parse("peers", *options, "--results", str(tmp_path / "results"))
    assert args.command(args) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "results" / "peers.md").read_text() in printed
    assert "fast-mnist: skipped: no PyTorch in .venv-peers; `make peers` installs it" in printed
    runs = {run.contestant: run for run in Folder(tmp_path / "results").runs()}
    assert {name: run.status for name, run in runs.items()} == {OURS: "ok", "fast-mnist": "skipped"}
    measured = runs[OURS].measured
    assert measured and measured.flops_per_image and measured.images_trained > 128


@pytest.mark.slow
def test_perf_cannot_tell_from_one_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--only", "input-rate", "--repeats", "1", "--seconds", "1")
    args = parse("perf", *options, "--results", str(tmp_path / "results"))
    assert args.command(args) == 3
    assert "cannot tell" in capsys.readouterr().out
    goal = json.loads((tmp_path / "results" / "perf.json").read_text())["goals"][0]
    assert (goal["name"], goal["outcome"]) == ("input-rate", "open")
    assert {run.status for run in Folder(tmp_path / "results").runs()} == {"ok"}


def test_imports_are_quick() -> None:
    script = (
        "import sys\nfrom mnist_dist.benchmarks.peers import command, goals, run\n"
        "print(*({'tensorflow', 'keras', 'torch', 'horovod', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
