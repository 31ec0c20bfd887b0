"""The commands `peers` and `perf`."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.kinds.peer import PYTHON_VARIABLE
from mnist_dist.benchmarks.peers.command import add_peers, add_perf
from mnist_dist.benchmarks.records.store import Store

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


@pytest.mark.parametrize("options", [("peers", "--only", "ours"), ("perf", "--only", "matmul")])
def test_who_resumes_names_the_folder(options: tuple[str, ...], user_error: Callable[..., str]) -> None:
    args = parse(*options, "--resume")
    assert user_error(args.command, args).startswith("--resume: received no --results DIR")


def test_a_python_without_pytorch(user_error: Callable[..., str], tmp_path: Path) -> None:
    args = parse("peers", "--pytorch-python", str(tmp_path / "python"))
    assert "--pytorch-python" in user_error(args.command, args)


@pytest.mark.slow
def test_peers_leaves_a_table_in_which_missing_peers_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "missing"))
    options = ("--only", "keras-fit-seed,fast-mnist", "--mode", "throughput", "--repeats", "1", "--seconds", "3")
    args = parse("peers", *options, "--results", str(tmp_path / "results"))
    assert args.command(args) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "results" / "peers.md").read_text() in printed
    assert "fast-mnist: skipped: no PyTorch in .venv-peers; `make peers` installs it" in printed
    assert re.search(r"^\| `keras-fit-seed` .*\| [\d,.]+ \([\d,.]+–[\d,.]+\) \| [\d.]+ \(", printed, re.M)  # noqa: RUF001
    store = Store(tmp_path / "results")
    records = {record.case.settings.get("peer", "ours"): record for record in store.records()}
    assert {name: record.status for name, record in records.items()} == {
        "ours": "ok",
        "keras-fit-seed": "ok",
        "fast-mnist": "skipped",
    }
    resumed = parse("peers", *options, "--results", str(tmp_path / "results"), "--resume")
    assert resumed.command(resumed) == 0
    assert "resuming: 2 runs done, none to go" in capsys.readouterr().out
    assert len(store.records()) == 3, "nothing is measured again"


@pytest.mark.thorough
@pytest.mark.slow
def test_perf_judges_from_two_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--only", "input-rate", "--repeats", "2", "--seconds", "1")
    args = parse("perf", *options, "--results", str(tmp_path / "results"))
    code = args.command(args)
    (goal,) = json.loads((tmp_path / "results" / "perf.json").read_text())["goals"]
    assert (goal["name"], goal["ratio"]["repeats"]) == ("input-rate", 2)
    assert goal["ratio"]["value"] > 1
    assert code == {"reached": 0, "missed": 1, "open": 3}[goal["outcome"]]
    assert "input-rate" in capsys.readouterr().out
    records = Store(tmp_path / "results").records()
    assert {record.status for record in records} == {"ok"}
    assert len({record.turns.round_id for record in records if record.turns}) == 2


@pytest.mark.slow
def test_imports_are_quick() -> None:
    script = (
        "import sys\nfrom mnist_dist.benchmarks.peers import command, goals\n"
        "print(*({'tensorflow', 'keras', 'torch', 'horovod', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
