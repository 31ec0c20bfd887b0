"""The image's entry point, run with stand-ins on PATH that print their arguments and where they may write."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "docker" / "entrypoint.sh"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a `python` and an `mnist-dist` that print their arguments, HOME and TMPDIR, a line each."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "mnist-dist"):
        script = folder / name
        script.write_text('#!/bin/sh\necho "${0##*/} $*"\necho "$HOME"\necho "$TMPDIR"\n')
        script.chmod(0o755)
    return folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user cannot write to: for root it takes a file system that is mounted read-only."""
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        yield folder
        return
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a read-only folder needs the right to mount one, or not to be root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(programs: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": f"{programs}:{os.defpath}", **environment}
    return subprocess.run([ENTRYPOINT, *arguments], cwd=folder, env=own, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["train", "--epochs", "1"], "mnist-dist train --epochs 1"),
        (["bench", "quick", "--results", "x"], "mnist-dist bench run quick --results x"),
        (["bench"], "mnist-dist bench run"),
        (["report", "x"], "mnist-dist bench report x"),
        (["python", "-c", "pass"], "python -c pass"),
    ],
)
def test_commands(programs: Path, tmp_path: Path, arguments: list[str], command: str) -> None:
    done = start(programs, tmp_path, *arguments)
    assert done.stdout.splitlines()[0] == command, done.stderr
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_help_names_every_command(programs: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = start(programs, tmp_path, *arguments)
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["train", "bench", "report", "COMMAND"]


def test_arguments_stay_whole(programs: Path, tmp_path: Path) -> None:
    (programs / "mnist-dist").write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    assert start(programs, tmp_path, "train", "--workdir", "a b").stdout == "[train][--workdir][a b]"


def test_exit_code_is_the_commands(programs: Path, tmp_path: Path) -> None:
    assert start(programs, tmp_path, "sh", "-c", "exit 7").returncode == 7
    assert start(programs, tmp_path, "no-such-command").returncode == 127


def test_signals_reach_the_command(programs: Path, tmp_path: Path) -> None:
    """The command takes the place of the shell, so that a container's SIGTERM is the program's own."""
    done = start(programs, tmp_path, "sh", "-c", "echo $$; kill -TERM $$")
    assert done.returncode == -15


def test_home_that_can_be_written_stays(programs: Path, tmp_path: Path) -> None:
    lines = start(programs, tmp_path, "train", HOME=str(programs), TMPDIR=str(tmp_path)).stdout.splitlines()
    assert lines[1:] == [str(programs), str(tmp_path)]


@pytest.mark.parametrize("home", [{}, {"HOME": "/"}, {"HOME": "{results}/missing"}, {"HOME": "{results}"}])
def test_user_without_home_gets_one(programs: Path, tmp_path: Path, home: dict[str, str]) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    home = {name: text.format(results=tmp_path) for name, text in home.items()}
    lines = start(programs, tmp_path, "train", TMPDIR=str(scratch), **home).stdout.splitlines()
    assert Path(lines[1]) == scratch / f"home-{os.geteuid()}" and Path(lines[1]).is_dir()
    assert start(programs, tmp_path, "train", TMPDIR=str(scratch), **home).stdout.splitlines() == lines
    assert len(list(scratch.iterdir())) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, "{results}/.cache/cuda"),
        ({"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_CACHE_PATH": "/kept"}, "/kept"),
        ({"NVIDIA_VISIBLE_DEVICES": "all", "HOME": "{home}"}, ""),  # The driver has a folder there.
        ({}, ""),
    ],
)
def test_what_the_driver_compiles_outlives_the_container(
    programs: Path, tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    places = {"results": tmp_path, "home": programs}
    environment = {name: text.format(**places) for name, text in environment.items()}
    command = ["sh", "-c", 'echo "${CUDA_CACHE_PATH-}"']
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    told = start(programs, tmp_path, *command, TMPDIR=str(scratch), **environment).stdout.strip()
    assert told == expected.format(**places)
    assert (tmp_path / ".cache" / "cuda").is_dir() == told.startswith(str(tmp_path))


def test_home_of_somebody_else_is_not_taken(programs: Path, tmp_path: Path) -> None:
    (tmp_path / f"home-{os.geteuid()}").symlink_to(tmp_path)
    assert start(programs, tmp_path, "train", TMPDIR=str(tmp_path)).stdout.splitlines()[1] == "/"


def test_temporary_files_go_below_the_results_where_nothing_else_can_be_written(programs: Path, tmp_path: Path) -> None:
    lines = start(programs, tmp_path, "train", TMPDIR=str(tmp_path / "missing")).stdout.splitlines()
    assert lines[2] == str(tmp_path / ".cache" / "tmp") and Path(lines[2]).is_dir()
    assert Path(lines[1]).parent == Path(lines[2])


@pytest.mark.parametrize("command", ["train", "bench", "report"])
def test_results_that_cannot_be_written_are_named_at_once(programs: Path, read_only: Path, command: str) -> None:
    done = start(programs, read_only, command)
    assert done.returncode == 2 and not done.stdout
    assert f"cannot write to {read_only}; mount a folder" in done.stderr and len(done.stderr.splitlines()) == 1


def test_other_commands_need_no_results(programs: Path, read_only: Path) -> None:
    done = start(programs, read_only, "mnist-dist", "doctor", TMPDIR=str(read_only))
    assert done.stdout.splitlines() == ["mnist-dist doctor", "/", str(read_only)] and not done.stderr
