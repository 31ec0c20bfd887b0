import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mnist_dist
from mnist_dist.config import Config, load_config
from mnist_dist.training.workdir import Workdir, check_workdir, claim_workdir

REPOSITORY = Path(mnist_dist.__file__).parent.parent


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with the defaults."""
    with claim_workdir(Workdir(tmp_path / "run"), Config()):
        pass
    return tmp_path / "run"


def test_what_a_folder_holds() -> None:
    folder = Workdir(Path("runs/a"))
    assert folder.path == Path("runs/a")
    files = [folder.config_file, folder.metrics_file, folder.result_file, folder.model_file]
    folders = [folder.plots, folder.checkpoints, folder.tensorboard]
    assert [str(path.relative_to("runs/a")) for path in files + folders] == [
        *("config.yaml", "metrics.jsonl", "result.json", "model.keras"),
        *("plots", "checkpoints", "tensorboard"),
    ]


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_folder_is_fine_and_not_made_yet(tmp_path: Path, resume: bool) -> None:
    assert check_workdir(tmp_path / "a" / "b", Config(), resume).path == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", [[], [".lock"], [".lock", ".config.x1.tmp.yaml"]])
def test_an_empty_folder_or_one_of_a_run_killed_at_its_start_is_fine(
    tmp_path: Path, resume: bool, content: list[str]
) -> None:
    for name in content:
        (tmp_path / name).touch()
    check_workdir(tmp_path, Config(), resume)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(content)


def test_a_clock_that_no_zip_file_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    """Else Keras would say so after the last step, when it writes the model."""
    monkeypatch.setattr("time.localtime", lambda: time.gmtime(0))
    assert user_error(check_workdir, tmp_path / "run", Config(), False).startswith("workdir: the clock says 1970, exp")


def test_a_file_is_not_a_folder(tmp_path: Path, user_error: Callable[..., str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert user_error(check_workdir, file, Config(), True).startswith(f"--workdir: '{file}' is a file; expected")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, resume: bool, user_error: Callable[..., str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    line = user_error(check_workdir, tmp_path, Config(), resume)
    assert line == f"--workdir: '{tmp_path}' holds other files; expected a new or empty folder."


def test_a_run_is_continued_only_when_asked_for(run: Path, user_error: Callable[..., str]) -> None:
    line = user_error(check_workdir, run, Config(), False)
    assert line.startswith(f"--workdir: '{run}' already holds a run; add --resume")
    assert check_workdir(run, Config(), True).path == run


def test_a_run_is_continued_with_its_configuration(run: Path, user_error: Callable[..., str]) -> None:
    other = load_config("default", {"training.epochs": 9})
    line = user_error(check_workdir, run, other, True)
    assert line.startswith(f"training.epochs: received 9, but the run in '{run}' was started with 3;")
    line = user_error(check_workdir, run, load_config("default", {"training.steps": 150}), True)
    assert line.startswith(f"training.steps: received 150, but the run in '{run}' was started without; leave it out,")
    check_workdir(run, load_config("default", {"logging.every_steps": 9}), True)


def test_a_damaged_configuration_is_named(run: Path, user_error: Callable[..., str]) -> None:
    (run / "config.yaml").write_text("seed: [")
    assert str(run / "config.yaml") in user_error(check_workdir, run, Config(), True)


def test_claiming_records_the_configuration(tmp_path: Path) -> None:
    config = load_config("default", {"seed": 5})
    with claim_workdir(Workdir(tmp_path / "a" / "b"), config):
        assert load_config(str(tmp_path / "a" / "b" / "config.yaml")) == config


HOLD = """
import pathlib, sys
from mnist_dist.config import Config
from mnist_dist.training.workdir import Workdir, claim_workdir
with claim_workdir(Workdir(pathlib.Path(sys.argv[1])), Config(), resume=True):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_folder(run: Path, user_error: Callable[..., str]) -> None:
    command = [sys.executable, "-c", HOLD, str(run)]
    other = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "claimed\n"
        claim = claim_workdir(Workdir(run), load_config("default", {"seed": 5}))
        line = user_error(claim.__enter__)
        assert line.startswith(f"--workdir: another process is training in '{run}'; wait for it")
        assert load_config(str(run / "config.yaml")) == Config(), "the other process' configuration was overwritten"
    finally:
        other.kill()
        other.communicate()
    with claim_workdir(Workdir(run), Config(), resume=True):  # A killed process leaves nothing locked.
        pass


def test_a_run_that_came_and_went_since_the_folder_was_checked(tmp_path: Path, user_error: Callable[..., str]) -> None:
    folder = check_workdir(tmp_path / "run", Config(), resume=False)
    with claim_workdir(folder, load_config("default", {"seed": 5})):
        pass
    line = user_error(claim_workdir(folder, Config()).__enter__)
    assert line.startswith(f"--workdir: '{tmp_path / 'run'}' already holds a run; add --resume to continue it")
    assert "seed: received 0, but the run in" in user_error(claim_workdir(folder, Config(), resume=True).__enter__)


def test_a_folder_that_is_deleted_under_a_run(run: Path, user_error: Callable[..., str]) -> None:
    Workdir(run).check_there()
    shutil.rmtree(run)
    line = user_error(Workdir(run).check_there)
    assert line == f"workdir: '{run}' was deleted during the run; name another folder with --workdir."


def test_a_folder_that_cannot_be_made(tmp_path: Path, user_error: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    line = user_error(claim_workdir(Workdir(tmp_path / "file" / "run"), Config()).__enter__)
    assert line.startswith(f"workdir: cannot write '{tmp_path / 'file' / 'run'}': Not a directory;")


def test_results(run: Path, user_error: Callable[..., str]) -> None:
    folder = Workdir(run)
    assert folder.read_result() is None
    folder.result_file.write_text(json.dumps({"status": "completed"}))
    assert folder.read_result() == {"status": "completed"}
    for content in (b'{"status": "comp', b"\xff\xfe", b"", b"[]", b"{}", b"null"):
        folder.result_file.write_bytes(content)
        assert user_error(folder.read_result).startswith(f"workdir: cannot read '{folder.result_file}' (")
