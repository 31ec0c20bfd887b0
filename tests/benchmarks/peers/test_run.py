"""Measuring contestants, and the folder that keeps the runs; every peer for a second."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.measure.runner import find_machine
from mnist_dist.benchmarks.measure.suite import Machine
from mnist_dist.benchmarks.peers.contestants import (
    Contestant,
    Environment,
    Script,
    find_environment,
    make_contestants,
    python_of,
)
from mnist_dist.benchmarks.peers.run import MODES, estimate_seconds, measure_peers, order_of_runs, run_once, wanted_runs
from mnist_dist.benchmarks.peers.runs import Folder, read_measured
from mnist_dist.benchmarks.report.progress import Progress
from tests.benchmarks.peers.runs import STUDY, bad_run, rate_run, time_run

TWO_CORES = Machine(cores=2, gpus=0, devices_per_host=2)
CONTESTANTS = make_contestants(1.0, TWO_CORES)
WITHOUT_PYTORCH = Environment(TWO_CORES, "python3", None, "no PyTorch here")
TENSORFLOW_PEERS = ("keras-fit", "keras-fit-seed", "horovod-1", "horovod-2", "independent")
PYTORCH_PEERS = ("pytorch-float32", "pytorch-bfloat16", "fast-mnist", "fast-mnist-bfloat16")


def test_every_repeat_has_everything_once_in_an_order_of_its_own() -> None:
    wanted = wanted_runs(CONTESTANTS, MODES)
    plan = order_of_runs(wanted, 3)
    repeats = [[(each.name, mode) for each, mode, repeat in plan if repeat == number] for number in range(3)]
    assert plan == order_of_runs(list(reversed(wanted)), 3), "the same again"
    assert all(len(repeat) == len(wanted) and set(repeat) == set(repeats[0]) for repeat in repeats)
    assert repeats[0] != repeats[1] != repeats[2]


def test_what_does_not_run_here_is_skipped_with_the_reason_and_not_tried_again(tmp_path: Path) -> None:
    wanted = [(CONTESTANTS[name], mode) for name in PYTORCH_PEERS for mode in MODES]
    folder = Folder(tmp_path / "results")
    runs = measure_peers(wanted, WITHOUT_PYTORCH, folder, repeats=2, seconds=1.0)
    assert len(runs) == 2 * len(wanted)
    assert {(run.status, run.reason) for run in runs} == {("skipped", "no PyTorch here")}
    assert measure_peers(wanted, WITHOUT_PYTORCH, folder, repeats=2, seconds=1.0, resume=True) == runs
    assert len(measure_peers(wanted, WITHOUT_PYTORCH, folder, repeats=3, seconds=1.0, resume=True)) == 3 * len(wanted)


def test_a_folder_belongs_to_one_way_of_measuring(tmp_path: Path, user_error: Callable[..., str]) -> None:
    folder = Folder(tmp_path)
    folder.open(STUDY, resume=False)
    assert "--resume" in user_error(folder.open, STUDY, False)
    assert folder.open(STUDY.model_copy(update={"date": "2026-01-02"}), resume=True) == STUDY
    other = STUDY.model_copy(update={"software": {"tensorflow": "2.99"}})
    assert "software" in user_error(folder.open, other, True)


def test_runs_are_kept_as_they_were(tmp_path: Path, user_error: Callable[..., str]) -> None:
    folder = Folder(tmp_path)
    runs = [rate_run("a", 0, 100.0), time_run("a", 1, (3.0, 0.99)), bad_run("b", "accuracy", 0)]
    for run in runs:
        folder.add(run)
    assert sorted(folder.runs(), key=str) == sorted(runs, key=str)
    next((tmp_path / "runs").iterdir()).write_text("{}")
    assert "not a run" in user_error(folder.runs)


def test_a_script_that_fails_leaves_its_reason(tmp_path: Path) -> None:
    contestant = Contestant("broken", "a peer that is not there", "none", Script("no_such_peer"))
    run = run_once(contestant, "throughput", 0, WITHOUT_PYTORCH, 1.0, tmp_path, Progress(1))
    assert run.status == "failed" and run.measured is None
    assert "no_such_peer" in "\n".join(run.output_tail)


def test_the_time_left_follows_what_was_seen() -> None:
    plan = [(CONTESTANTS["keras-fit"], "throughput", repeat) for repeat in range(3)]
    known = [rate_run("keras-fit", 0, 100.0)]
    assert estimate_seconds(plan, known) == pytest.approx(60.0)  # type: ignore[arg-type]
    assert estimate_seconds(plan, []) > 0  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", TENSORFLOW_PEERS)
def test_a_peer_measures_its_throughput(name: str, tmp_path: Path) -> None:
    check_throughput(name, find_environment(find_machine(), None), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTORCH_PEERS)
def test_a_pytorch_peer_measures_its_throughput(name: str, tmp_path: Path) -> None:
    check_throughput(name, find_environment(find_machine(), None), tmp_path)


def check_throughput(name: str, environment: Environment, folder: Path) -> None:
    work = CONTESTANTS[name].throughput
    assert work is not None
    if reason := environment.skip_reason(work):
        pytest.skip(reason)
    run = run_once(CONTESTANTS[name], "throughput", 0, environment, 1.0, folder, Progress(1))
    assert run.status == "ok", f"{run.reason}\n" + "\n".join(run.output_tail)
    assert run.measured and run.measured.first_step_seconds > 0
    assert sum(run.measured.window_seconds[0]) >= 1.0
    assert 0 < sum(run.measured.window_work) <= run.measured.images_trained
    assert not run.measured.evaluations


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TENSORFLOW_PEERS[:3], *PYTORCH_PEERS])
def test_a_peer_evaluates_on_the_test_set(name: str, tiny_mnist: Path, tmp_path: Path) -> None:
    environment, script = find_environment(find_machine(), None), CONTESTANTS[name].accuracy
    assert isinstance(script, Script)
    if reason := environment.skip_reason(script):
        pytest.skip(reason)
    out = tmp_path / "result.json"
    command = script.command(python_of(script, environment), "accuracy", 2.0, 0, out)
    command[command.index("--data") + 1] = str(tiny_mnist)
    done = subprocess.run(command, cwd=Path(sys.modules["tests"].__path__[0]).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = read_measured(out)
    last = measured.evaluations[-1]
    assert last.accuracy > 0.2, "an epoch of 2,000 images and more teaches something"
    assert last.accuracy * 500 == pytest.approx(round(last.accuracy * 500)), "of 500 test images"
    assert measured.images_trained >= 15 * 128
    assert last.seconds > measured.first_step_seconds > 0
