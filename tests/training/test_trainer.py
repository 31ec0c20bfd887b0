"""Real runs on a small part of MNIST, in this process; those that are killed are processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mnist_dist
from mnist_dist.config import Config, config_to_yaml, load_config
from mnist_dist.data.dataset import Shard, load_arrays
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.strategies.single import Single
from mnist_dist.errors import TrainingError
from mnist_dist.inference.evaluate import predict
from mnist_dist.network.model import load_model
from mnist_dist.network.schedule import learning_rates, peak_learning_rate
from mnist_dist.training import trainer
from mnist_dist.training.checkpoint import Checkpoints
from mnist_dist.training.step_times import StepClock
from mnist_dist.training.trainer import train
from mnist_dist.training.writers import Console, read_rows

pytestmark = pytest.mark.slow  # It trains models.
THOROUGH = pytest.mark.thorough

REPOSITORY = Path(mnist_dist.__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
BATCH_SIZE, STEPS_PER_EPOCH, TEST_IMAGES = 100, 20, 500
# A network and a set on which a step takes a millisecond.
SMALL = {
    "model.filters": [4, 8],
    "model.dense_units": 16,
    "training.batch_size": BATCH_SIZE,
    "training.epochs": 2,
    "runtime.precision": "float32",
    "logging.tensorboard": False,
}
# Everything that draws random numbers or keeps a state of its own.
RANDOM = {"model.dropout": 0.3, "model.batch_norm": True, "data.shift_pixels": 2, "runtime.deterministic": True}
TIMINGS = {"images_per_second", "training_seconds", "first_step_seconds", "evaluation_seconds", "seconds"}


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What a deterministic run switches on stays on in its process, and would slow the other tests."""
    yield
    from tensorflow.python.framework import config

    config.disable_op_determinism()


Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def configure(tiny_mnist: Path) -> Configure:
    """Makes a configuration of the small network on the small set, with changes."""
    return lambda changes=None: load_config("default", SMALL | {"data.path": str(tiny_mnist)} | (changes or {}))


@pytest.fixture(scope="module")
def finished(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two epochs: its folder and what `train` returned."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(configure({"logging.tensorboard": True, "logging.every_steps": 8}), workdir)


@pytest.fixture(scope="module")
def short(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A run of seven steps that was told to resume in a new folder: its folder, its result and what it said."""
    workdir = tmp_path_factory.mktemp("runs") / "short"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = train(configure({"training.steps": 7, "training.epochs": 5}), workdir, resume=True)
    return workdir, result, said.getvalue().splitlines()


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Returns the newest checkpoint's variables, which must be intact."""
    loaded = Checkpoints(workdir / "checkpoints", 1, report=pytest.fail).load_latest()
    assert loaded, "no checkpoint"
    return loaded[0]


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(file.stem.partition("-")[2]) for file in (workdir / "checkpoints").glob("step-*.npz"))


def untimed(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in TIMINGS}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Returns time and content of every file."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


def assert_same_run(actual: Path, expected: Path) -> None:
    """Weights, statistics, optimizer, random state and rows are equal, bit for bit."""
    arrays, others = final_arrays(actual), final_arrays(expected)
    assert arrays.keys() == others.keys()
    assert [name for name in arrays if arrays[name].tobytes() != others[name].tobytes()] == []
    rows = [[untimed(row) for row in read_rows(workdir / "metrics.jsonl")] for workdir in (actual, expected)]
    assert rows[0] == rows[1]
    results = [json.loads((workdir / "result.json").read_text()) | {"resident": ""} for workdir in (actual, expected)]
    assert untimed(results[0]) == untimed(results[1])


# --- What a run leaves ---


def test_files_of_a_run(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, _ = finished
    assert sorted(entry.name for entry in workdir.iterdir()) == [
        *(".lock", "checkpoints", "config.yaml", "metrics.jsonl", "model.keras", "plots"),
        *("result.json", "step_times.json", "tensorboard"),
    ]
    assert saved_steps(workdir) == [20, 40]
    assert len(list((workdir / "checkpoints").iterdir())) == 2, "something unfinished was left"
    plots = sorted((workdir / "plots").iterdir())
    assert [plot.name for plot in plots] == ["confusion_matrix.png", "curves.png", "samples.png"]
    assert all(plot.read_bytes().startswith(PNG) for plot in plots)
    assert [file.name.partition(".")[0] for file in (workdir / "tensorboard").iterdir()] == ["events"]


def test_the_result_is_what_train_returns(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert list(result) == [
        *("status", "epochs", "steps", "global_batch_size", "images_per_second", "training_seconds"),
        *("first_step_seconds", "strategy", "replicas", "all_reduce_backend", "device", "precision", "xla"),
        *("resident", "kernels", "flops_per_image", "versions"),
        *("test_accuracy", "test_loss", "seconds"),
    ]
    expected = {
        "status": "completed",
        "epochs": 2.0,
        "steps": 40,
        "global_batch_size": BATCH_SIZE,
        "strategy": "single",
        "replicas": 1,
        "all_reduce_backend": "none",
        "precision": "float32",
    }
    assert {name: result[name] for name in expected} == expected
    assert result["versions"].keys() == {"mnist_dist", "python", "tensorflow", "keras", "numpy"}


def test_throughput_is_images_over_seconds_without_the_step_that_compiles(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    _, result = finished
    timed_seconds = result["training_seconds"] - result["first_step_seconds"]
    assert result["images_per_second"] == pytest.approx(39 * BATCH_SIZE / timed_seconds)
    assert 0 < timed_seconds < result["training_seconds"] < result["seconds"]


def test_step_times_hold_every_step_but_the_first(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, result = finished
    times = json.loads((workdir / "step_times.json").read_text())
    assert times["hosts"] == ["127.0.0.1"]
    assert sum(times["window_steps"]) == result["steps"] - 1
    assert len(times["window_seconds"][0]) == len(times["window_steps"])
    assert times["first_step_seconds"] == [result["first_step_seconds"]]
    seconds = sum(times["window_seconds"][0])
    assert result["images_per_second"] == pytest.approx((result["steps"] - 1) * BATCH_SIZE / seconds)
    assert min(times["startup_seconds"][0], times["peak_memory_bytes"][0]) > 0


@pytest.mark.parametrize("all_reduce", [True, False])
def test_measuring_ends_in_time_and_leaves_no_model(configure: Configure, tmp_path: Path, all_reduce: bool) -> None:
    measuring = {"training.measure_seconds": 0.3, "training.epochs": 10_000, "runtime.steps_per_call": 5}
    result = train(configure(measuring | {"runtime.all_reduce": all_reduce}), tmp_path)
    times = json.loads((tmp_path / "step_times.json").read_text())
    seconds = times["window_seconds"][0]
    assert result["status"] == "measured"
    assert sum(seconds[:-1]) < 0.3 <= sum(seconds)
    assert sum(times["window_steps"]) == result["steps"] - 1
    assert not [name for name in ("model.keras", "plots", "checkpoints") if (tmp_path / name).exists()]


def test_the_test_accuracy_is_that_of_the_saved_model(
    finished: tuple[Path, dict[str, Any]], configure: Configure
) -> None:
    workdir, result = finished
    data = load_arrays(configure().data)
    probabilities = predict(load_model(workdir), data.test_images).astype(np.float64)
    assert result["test_accuracy"] == np.mean(probabilities.argmax(axis=1) == data.test_labels)
    of_true_class = probabilities[np.arange(TEST_IMAGES), data.test_labels]
    assert result["test_loss"] == pytest.approx(-np.log(of_true_class).mean(), rel=1e-4)
    assert result["test_accuracy"] > 0.5


def test_rows_of_metrics(finished: tuple[Path, dict[str, Any]], configure: Configure) -> None:
    workdir, result = finished
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train_rows, evaluations = ([row for row in rows if row["kind"] == kind] for kind in ("train", "evaluate"))
    assert len(rows) == len(train_rows) + len(evaluations)
    assert [row["step"] for row in rows] == [8, 16, 20, 24, 32, 40, 40]
    assert all(row["epoch"] == row["step"] / STEPS_PER_EPOCH for row in rows)
    config = configure()
    rates = learning_rates(config.schedule, config.optimizer.learning_rate, BATCH_SIZE, 40)
    assert [row["learning_rate"] for row in train_rows] == [float(rates[row["step"] - 1]) for row in train_rows]
    losses = [row["loss"] for row in train_rows]
    assert losses[0] > losses[2] > losses[-1]
    assert [(row["split"], row["step"], row["images"]) for row in evaluations] == [
        ("test", 20, TEST_IMAGES),
        ("test", 40, TEST_IMAGES),
    ]
    assert evaluations[-1]["accuracy"] == pytest.approx(result["test_accuracy"], abs=1.01 / TEST_IMAGES)
    assert result["test_loss"] < evaluations[-1]["loss"], "the saved model is calibrated"


def test_a_profile_of_steady_steps(configure: Configure, tmp_path: Path) -> None:
    lines: list[str] = []
    workdir = tmp_path / "profiled"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        train(configure({"logging.profile": True}), workdir)
    lines = said.getvalue().splitlines()
    assert f"profiled the steps before step 40: tensorboard --logdir {workdir / 'tensorboard'}" in lines
    (trace,) = (workdir / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 1000 and b"IteratorGetNext" in trace.read_bytes()


def test_the_configuration_is_written_complete(finished: tuple[Path, dict[str, Any]], configure: Configure) -> None:
    workdir, _ = finished
    expected = configure({"logging.tensorboard": True, "logging.every_steps": 8, "runtime.strategy": "single"})
    assert load_config(str(workdir / "config.yaml")) == expected
    assert "warmup_percent: 20.0" in (workdir / "config.yaml").read_text(), "a default is written, too"


def test_what_is_said(short: tuple[Path, dict[str, Any], list[str]], configure: Configure) -> None:
    workdir, _, lines = short
    assert [line.split()[0] for line in lines] == [
        *("device", "strategy", "precision", "XLA", "resident", "kernels", "training", "workdir", "No", "step", "step")
    ]
    assert lines[1:3] == ["strategy   single, 1 replica", "precision  float32 (as configured)"]
    config = configure()
    peak = peak_learning_rate(config.schedule, config.optimizer.learning_rate, BATCH_SIZE)
    rate = f"peak learning rate {peak:.3g} (scaled to the batch from {config.optimizer.learning_rate:g})"
    assert lines[6] == f"training   7 steps of 100 images (all replicas), adam, {rate}"
    assert lines[7] == f"workdir    {workdir}"
    assert "test accuracy" in lines[-1]


# --- What the settings do ---


def test_steps_instead_of_epochs(short: tuple[Path, dict[str, Any], list[str]]) -> None:
    workdir, result, _ = short
    assert (result["status"], result["steps"], result["epochs"]) == ("completed", 7, 7 / STEPS_PER_EPOCH)
    assert saved_steps(workdir) == [7]


def test_evaluating_once_on_held_out_images_and_saving_often(configure: Configure, tmp_path: Path) -> None:
    evaluating = {"data.holdout_images": 300, "evaluation.every_epochs": 0, "evaluation.batch_size": 128}
    result = train(configure(evaluating | {"checkpoint.every_steps": 12, "checkpoint.keep": 2}), tmp_path / "run")
    assert (result["steps"], result["epochs"]) == (34, 2.0), "1,700 images are left to train on"
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [("train", 34), ("evaluate", 34)]
    assert (rows[1]["split"], rows[1]["images"]) == ("holdout", 300)
    tested = result["test_accuracy"] * TEST_IMAGES
    assert tested == pytest.approx(round(tested)), "not a share of the test images"
    assert saved_steps(tmp_path / "run") == [24, 34]


def test_evaluating_more_often_than_there_are_steps(configure: Configure, tmp_path: Path) -> None:
    train(configure({"training.steps": 3, "evaluation.every_epochs": 0.001}), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "evaluate"] == [1, 2, 3]


def test_synthetic_data_needs_no_files(configure: Configure, tmp_path: Path) -> None:
    settings = {"data.kind": "synthetic", "data.path": "/nowhere/mnist.npz", "training.steps": 60}
    result = train(configure(settings), tmp_path / "run")
    assert result["epochs"] == 60 / 600
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-2]["loss"] < rows[0]["loss"], "it repeats one batch, which can be learnt by heart"
    assert 0.05 < result["test_accuracy"] < 0.15, "random labels cannot be predicted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "schedule", "others"),
    [
        pytest.param("adam", 0.01, "one_cycle", {"model.dropout": 0.2}, marks=THOROUGH),
        pytest.param(
            *("adamw", 0.01, "cosine", {"optimizer.weight_decay": 0.01, "data.shift_pixels": 1}),
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            *("rmsprop", 0.002, "constant", {"training.accumulation_steps": 4, "runtime.guard": True}),
            marks=pytest.mark.thorough,
        ),
        ("sgd", 0.1, "one_cycle", {"model.batch_norm": True, "runtime.steps_per_call": 7}),
        ("lamb", 0.02, "cosine", {"runtime.precision": "mixed_bfloat16", "runtime.guard": True}),
    ],
)
def test_every_optimizer_and_schedule_learns(
    optimizer: str, learning_rate: float, schedule: str, others: dict[str, Any], configure: Configure, tmp_path: Path
) -> None:
    chosen = {"optimizer.name": optimizer, "optimizer.learning_rate": learning_rate, "schedule.name": schedule}
    result = train(configure(chosen | others | {"training.epochs": 4}), tmp_path / "run")
    assert result["test_accuracy"] > 0.8
    assert result["precision"] == others.get("runtime.precision", "float32")
    config = configure(chosen | {"training.epochs": 4})
    rates = learning_rates(config.schedule, learning_rate, BATCH_SIZE, 4 * STEPS_PER_EPOCH)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    logged = {row["step"]: row["learning_rate"] for row in rows if row["kind"] == "train"}
    assert logged == {step: float(rates[step - 1]) for step in (50, 80)}


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic")
def test_from_a_thread_and_with_other_settings_of_keras(configure: Configure, tmp_path: Path) -> None:
    """As a web service trains, in a process that has used Keras in its own way."""
    import keras

    keras.config.set_floatx("float16")
    keras.config.set_image_data_format("channels_first")
    try:
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(train, configure({"training.steps": 3}), tmp_path / "run").result()
        assert result["status"] == "completed"
        assert {weight.dtype for weight in load_model(tmp_path / "run").weights} == {"float32"}
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")


@pytest.mark.thorough
def test_the_seed_alone_decides_the_weights(configure: Configure, tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        train(configure(RANDOM | {"seed": seed, "training.steps": 3}), tmp_path / name)
    assert_same_run(tmp_path / "again", tmp_path / "first")
    kernels = [final_arrays(tmp_path / name)["model/dense/kernel"] for name in ("first", "other")]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1, "they began with the same weights: three steps do not go so far"


# --- Resuming ---


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, signal.Signals], None]]:
    """A function that has a real signal sent to this process when a step has been taken."""
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)  # Should it come late, it must not end the tests.
    advance = Console.advance

    def arrange(due: int, number: signal.Signals) -> None:
        def advance_and_send(console: Console, step: int, step_seconds: float) -> None:
            advance(console, step, step_seconds)
            if step == due:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Console, "advance", advance_and_send)

    yield arrange
    signal.signal(signal.SIGUSR1, previous)


@pytest.mark.usefixtures("deterministic")
def test_a_run_that_was_interrupted_twice_is_the_same_run(
    configure: Configure, tmp_path: Path, signal_at: Callable[[int, signal.Signals], None]
) -> None:
    config = configure(RANDOM | {"logging.every_steps": 5, "runtime.steps_per_call": 1})
    train(config, tmp_path / "whole")
    # Where the images are changes nothing either; the guard looks at each of them.
    resident = config.data.model_copy(update={"resident": "on"})
    guarded = config.runtime.model_copy(update={"guard": True})
    config = config.model_copy(update={"data": resident, "runtime": guarded})
    for step in (1, 13):  # After the first of all steps; then in the middle of an epoch and of a row of metrics.
        signal_at(step, signal.SIGUSR1)
        result = train(config, tmp_path / "parts", resume=step > 1)
        assert (result["status"], result["signal"], result["steps"]) == ("preempted", "SIGUSR1", step)
        assert "test_accuracy" not in result and not (tmp_path / "parts" / "model.keras").exists()
        assert json.loads((tmp_path / "parts" / "result.json").read_text()) == result
        assert saved_steps(tmp_path / "parts")[-1] == step
    result = train(config, tmp_path / "parts", resume=True)
    assert (result["status"], result["resident"]) == ("completed", "on")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_resuming_a_finished_run_returns_its_result_at_once(
    finished: tuple[Path, dict[str, Any]], configure: Configure
) -> None:
    workdir, result = finished
    before = snapshot(workdir)
    started = time.process_time()
    config = configure({"logging.tensorboard": True, "logging.every_steps": 8})
    assert train(config, workdir, resume=True) == result
    assert time.process_time() - started < 0.5
    assert snapshot(workdir) == before


def test_resuming_a_new_folder_starts_anew(short: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, result, lines = short
    assert re.fullmatch("No checkpoint to resume from in '.*': starting anew.", lines[8])
    assert result["steps"] == 7


def test_resuming_in_another_precision_is_refused_and_changes_nothing(
    configure: Configure,
    tmp_path: Path,
    signal_at: Callable[[int, signal.Signals], None],
    user_error: Callable[..., str],
) -> None:
    signal_at(2, signal.SIGUSR1)
    train(configure({"runtime.steps_per_call": 1}), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    other = configure({"runtime.precision": "mixed_bfloat16"})
    line = user_error(train, other, tmp_path / "run", True)
    assert line.startswith(
        "runtime.precision: this device would continue in mixed_bfloat16, but the run began in float32"
    )
    assert line.endswith("add --precision float32.")
    assert snapshot(tmp_path / "run") == before


# --- Failing ---

# Adam's first step sets the logits' biases so far apart that their loss over a batch overflows, whatever the rest does.
DIVERGING = {"optimizer.name": "adam", "optimizer.learning_rate": 1e38, "schedule.warmup_percent": 0}


@pytest.mark.parametrize(
    ("steps", "saved", "line"),
    [
        (30, [1], r"training: the loss at step 2 is (nan|inf), expected a finite number; lower --learning-rate, .*"),
        (
            1,
            [],
            r"training: the test loss after step 1 is (nan|inf), expected a finite number; .*--precision float32\.",
        ),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(
    steps: int, saved: list[int], line: str, configure: Configure, tmp_path: Path
) -> None:
    diverging = DIVERGING | {"training.steps": steps, "checkpoint.every_steps": 1}
    with pytest.raises(TrainingError) as caught:
        train(configure(diverging), tmp_path / "run")
    assert re.fullmatch(line, str(caught.value))
    assert caught.value.exit_code == 1
    assert saved_steps(tmp_path / "run") == saved
    assert not (tmp_path / "run" / "result.json").exists() and not (tmp_path / "run" / "model.keras").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("place", "setting"), enumerate(["runtime.precision", "runtime.xla", "runtime.kernels", "data.resident"])
)
def test_ranks_whose_devices_decide_differently_end_before_the_first_step(
    place: int,
    setting: str,
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    user_error: Callable[..., str],
) -> None:
    """The other rank is made up. A bfloat16 CPU and one without would wait for each other's messages for ever."""

    class BesideAnother(Single):
        shard = Shard(0, 1, 2)

        def all_reduce(self, tensor: Any) -> Any:
            own, other = tensor.numpy()
            assert not other.any()
            return np.stack([own, own + (np.arange(len(own)) == place)])

    monkeypatch.setattr(trainer, "build", lambda *_: pytest.fail("it went on"))
    monkeypatch.setattr(trainer, "make_strategy", lambda *_: BesideAnother())
    monkeypatch.setattr(trainer, "find_cluster", lambda _: Cluster(hosts=("n1", "n2")))
    line = user_error(train, configure(), tmp_path / "run")
    assert line.startswith(f"{setting}: 'auto' resolved differently on rank 1 (n2) than on rank 0 (n1), as their")


@pytest.mark.parametrize("own", [[0.0, 0.0, 0.25], [signal.SIGTERM, 0.0, 0.25], [0.0, 1.0, 0.25]])
@pytest.mark.parametrize("other", [[0.0, 0.0, 0.125], [signal.SIGTERM, 0.0, 0.5], [0.0, 1.0, 0.5]])
def test_what_comes_to_one_rank_holds_for_all(own: list[float], other: list[float], configure: Configure) -> None:
    """A signal, the end of the time to measure, and the pace of the slowest; the other rank is made up."""

    class BesideAnother(Single):
        shard = Shard(0, 1, 2)

        def all_reduce(self, tensor: Any) -> Any:
            return np.stack([tensor.numpy()[0], other])

    session: Any = SimpleNamespace(
        config=configure({"training.measure_seconds": 2.0}),
        strategy=BesideAnother(),
        preemption=SimpleNamespace(received="SIGTERM" if own[0] else None, agreed=None),
        clock=StepClock(window_seconds=[1.0, 1.0] if own[1] else [1.0]),
    )
    assert trainer.agree(session, own[2]) == (max(own[1], other[1]), max(own[2], other[2]))
    assert session.preemption.agreed == ("SIGTERM" if own[0] or other[0] else None)


def test_after_a_failure_the_process_trains_on(configure: Configure, tmp_path: Path) -> None:
    """Locks, signal handlers and the like are given back."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    diverging = configure(DIVERGING)
    for resume in (False, True):  # The second time the folder can be locked again.
        with pytest.raises(TrainingError):
            train(diverging, tmp_path / "run", resume)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


# --- Processes that are killed ---

KILLABLE = RANDOM | {
    "training.steps": 300,
    "checkpoint.every_steps": 3,
    "logging.every_steps": 4,
    "runtime.steps_per_call": 2,
}


class Process:
    """`mnist-dist train` in a process of its own, told to resume."""

    def __init__(self, config: Config, workdir: Path) -> None:
        self.workdir = workdir
        file = workdir.with_suffix(".yaml")
        file.write_text(config_to_yaml(config))
        self.output = workdir.with_suffix(".txt")
        command = [sys.executable, "-m", "mnist_dist", "train", "--config", str(file), "--workdir", str(workdir)]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--resume"], cwd=REPOSITORY, stdout=output, stderr=subprocess.PIPE, text=True
            )

    def finish(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code and what came on stderr."""
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors

    def succeed(self) -> None:
        assert self.finish() == (0, "")

    def wait_for_checkpoint(self, step: int, at_most_seconds: float = 400.0) -> None:
        """Waits until a checkpoint of this step or a later one is there."""
        deadline = time.monotonic() + at_most_seconds
        while time.monotonic() < deadline and not any(saved >= step for saved in saved_steps(self.workdir)):
            assert self.process.poll() is None, "the run ended early"
            time.sleep(0.001)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL, "the run had ended already"

    def kill_while_it_saves(self) -> None:
        """Kills the process with a checkpoint half written; stops it first, to look whether it is."""
        while True:
            assert self.process.poll() is None, "the run ended without being caught while it saved"
            if unfinished_files(self.workdir):
                self.process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
                if unfinished_files(self.workdir):
                    return self.kill()
                self.process.send_signal(signal.SIGCONT)


def unfinished_files(workdir: Path) -> list[str]:
    return [file.name for file in (workdir / "checkpoints").glob("*") if not file.name.startswith("step-")]


@pytest.fixture(scope="module")
def uninterrupted(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that those below must equal."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    Process(configure(KILLABLE), workdir).succeed()
    return workdir


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_at_random_moments_it_is_still_the_same_run(
    configure: Configure, tmp_path: Path, uninterrupted: Path
) -> None:
    config, workdir = configure(KILLABLE), tmp_path / "run"
    chance = np.random.default_rng(0)
    for kill in range(4):
        process = Process(config, workdir)
        if kill == 0:  # While it starts, most likely.
            process.wait_for_checkpoint(24, at_most_seconds=chance.uniform(0, 4))
        else:
            process.wait_for_checkpoint(max(saved_steps(workdir), default=0) + int(chance.integers(3, 24)))
            time.sleep(chance.uniform(0, 0.02))
        process.kill()
        print("killed after step", saved_steps(workdir))
    Process(config, workdir).succeed()
    assert_same_run(workdir, uninterrupted)


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_while_it_saves_it_is_still_the_same_run(
    configure: Configure, tmp_path: Path, uninterrupted: Path
) -> None:
    config, workdir = configure(KILLABLE), tmp_path / "run"
    for _ in range(2):
        process = Process(config, workdir)
        process.wait_for_checkpoint(max(saved_steps(workdir), default=0) + 3)
        process.kill_while_it_saves()
        assert unfinished_files(workdir)
    Process(config, workdir).succeed()
    assert unfinished_files(workdir) == []
    assert_same_run(workdir, uninterrupted)


@pytest.mark.thorough
@pytest.mark.slow
def test_damaged_checkpoints_are_reported_and_the_one_before_is_used(
    configure: Configure, tmp_path: Path, uninterrupted: Path
) -> None:
    config, workdir = configure(KILLABLE), tmp_path / "run"
    process = Process(config, workdir)
    process.wait_for_checkpoint(30)
    process.kill()
    *_, before, middle, newest = sorted((workdir / "checkpoints").glob("step-*.npz"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 1
    middle.write_bytes(content)
    process = Process(config, workdir)
    process.succeed()
    lines = process.output.read_text().splitlines()
    damaged = [line for line in lines if line.startswith("checkpoint '")]
    assert [line.partition("' is damaged (")[0] for line in damaged] == [
        f"checkpoint '{file}" for file in (newest, middle)
    ]
    assert f"Resuming after step {int(before.stem.partition('-')[2])}." in lines
    assert_same_run(workdir, uninterrupted)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_disk_without_room_for_the_second_checkpoint(configure: Configure, small_disk: Path) -> None:
    settings = {"model.dense_units": 64, "training.steps": 15, "checkpoint.every_steps": 5}
    process = Process(configure(settings), small_disk / "run")
    code, errors = process.finish()
    assert code == 2
    assert errors.startswith(
        f"mnist-dist: error: workdir: cannot write '{small_disk}/run/checkpoints/step-00000010.npz'"
    )
    assert "No space left on device" in errors and errors.count("\n") == 1
    assert saved_steps(small_disk / "run") == [5] and unfinished_files(small_disk / "run") == []
    final_arrays(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    Process(configure(settings), small_disk / "run").succeed()
    result = json.loads((small_disk / "run" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", 15)
