"""The command as users meet it: what it says, what it refuses, and what its parts leave for one another."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import mnist_dist
from mnist_dist import gpus
from mnist_dist.__main__ import FLAGS, SHELLS, describe_result, main, make_parser
from mnist_dist.config import Config, load_config
from mnist_dist.data.dataset import Arrays
from mnist_dist.runtime import find_device
from mnist_dist.training.writers import Console
from tests.speeds import thorough_but_for

REPOSITORY = Path(mnist_dist.__file__).parent.parent
COMMANDS = ["train", "evaluate", "predict", "export", "doctor", "install-horovod", "bench", "slurm", "completion"]
SMALL = ["--set", "model.filters=[4, 8]", "--set", "model.dense_units=16", "--set", "logging.tensorboard=false"]


def learning(data: Path) -> list[str]:
    """Flags of a short run that learns to read."""
    flags = ["--epochs", "6", "--learning-rate", "0.01", "--batch-size", "50", "--precision", "float32"]
    return [*SMALL, "--set", "model.filters=[8, 16]", "--set", f"data.path={data}", *flags]


@pytest.fixture(autouse=True)
def quiet(tf: ModuleType) -> None:
    """TensorFlow is imported once, without its notices."""


@pytest.fixture(scope="module")
def run(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *learning(tiny_mnist), "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def digits(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of a 7, a 2 and a 1: the first test images, enlarged, dark on light."""
    folder = tmp_path_factory.mktemp("digits")
    files = [folder / f"{label}.png" for label in arrays.test_labels[:3]]
    for file, image in zip(files, arrays.test_images, strict=False):
        Image.fromarray(255 - image).resize((200, 200)).save(file)
    return files


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Returns time and content of every file; an empty folder counts as nothing."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """A function that runs a command, in a folder of the test, which must refuse its input with one line.

    It returns the line without the command's name. Nothing may be printed before it, written, or changed.
    """
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: str | Path, watch: Path = tmp_path) -> str:
        capsys.readouterr()
        before = snapshot(watch)
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # Of the parser.
            code = int(ended.code or 0)
        said, errors = capsys.readouterr()
        assert code == 2, errors
        assert errors.startswith("mnist-dist: error: ") and errors.endswith("\n") and errors.count("\n") == 1, errors
        assert said == ""
        assert snapshot(watch) == before, "something was written"
        return errors.removeprefix("mnist-dist: error: ").strip()

    return refuse


def python(*arguments: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Runs the command as a process."""
    command = [sys.executable, "-m", "mnist_dist", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)


# --- Help ---


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_comes_at_once(command: Sequence[str], is_quick: Callable[[Callable[[], object]], bool]) -> None:
    def show_help() -> None:
        done = python(*command, "--help")
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.startswith(f"usage: {' '.join(['mnist-dist', *command])} ")

    assert is_quick(show_help)


@pytest.mark.slow
def test_help_builds_no_validators() -> None:
    """They take a third of its time."""
    program = "from mnist_dist import __main__, config; __main__.make_parser('train'); "
    program += "print(config.Config.__pydantic_complete__); config.Config(); print(config.Config.__pydantic_complete__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert re.findall(r"^    (\S+)", said, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_within_commands_and_their_flags(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("--smallest-effect", "--devices-per-node", "--learning-rate", "scaling"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_names_that_other_programs_have_for_flags_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "driver_gpus", lambda: ["GPU-0"])
    given = ["train", "--num-gpus", "4", "--batchsize", "64", "--lr", "0.1", "--precision", "bf16"]
    args = make_parser().parse_args(given)
    settings = {key: getattr(args, key) for key, _ in FLAGS.values() if getattr(args, key) is not None}
    config = load_config("default", settings)
    assert (config.runtime.devices, config.training.batch_size, config.optimizer.learning_rate) == (4, 64, 0.1)
    assert config.runtime.precision == "mixed_bfloat16"


def test_help_tells_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    defaults = Config()
    for default in (defaults.training.epochs, defaults.optimizer.learning_rate, defaults.optimizer.name, "auto"):
        assert f"(default: {default})" in said
    assert "%%" not in said and "above 99 %" in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mnist-dist {mnist_dist.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["bench"], ["slurm"]])
def test_without_arguments_it_prints_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: {' '.join(['mnist-dist', *arguments])} [-h]") and not output.err


# --- Bad input: the command line ---


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], r"argument COMMAND: received 'trian', .* Did you mean 'train'\? See `mnist-dist --help`\."),
        (["train", "--epochs", "x"], "argument --epochs: received 'x', expected a whole number; see .*"),
        (["train", "--learning-rate", ""], r"argument --learning-rate/--lr: received '', expected a number; see .*"),
        (
            ["train", "--gpus", "2"],
            r"argument --gpus/--num-gpus: received '2', expected a machine with GPUs, found none; "
            r"`--devices 2` takes shares of the CPU's cores; see `mnist-dist train --help`\.",
        ),
        (["train", "--gpus", "0"], "argument --gpus/--num-gpus: received '0', expected a positive whole number; .*"),
        (["train", ""], r"unrecognized argument ''; see `mnist-dist train --help`\."),
        (["train", "--turbo"], r"unrecognized argument '--turbo'; see `mnist-dist train --help`\."),
        (
            ["train", "--epoch", "1"],
            r"unrecognized argument '--epoch'\. Did you mean '--epochs'\? See `mnist-dist train --help`\.",
        ),
        (["train", "--batch", "64"], r"unrecognized argument '--batch'\. Did you mean '--batch-size'\? See .*"),
        (["evaluate"], r"the following arguments are required: WORKDIR; see `mnist-dist evaluate --help`\."),
        (
            ["export", "run", "--format", "onnx"],
            r"argument --format: received 'onnx', expected one of .*-int8\. See .*",
        ),
        (["predict", "3.png"], r"IMAGE: received only '3.png', expected the folder of a run and .* WORKDIR 3.png"),
        (["train", "--set", "model.dropout"], r"--set: received 'model.dropout', expected key=value, for example .*"),
        (["train", "--resume"], r"--resume: no --workdir was given, expected the folder of the run to continue\."),
        (["train", "--config", "defualt"], r"--config: there is no file 'defualt'; .* Did you mean 'default'\?"),
        (["train", "--config", "."], r"--config: there is no file '\.'; expected a YAML file or one of: .*"),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], line: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert re.fullmatch(line, refused(*arguments))


@pytest.mark.parametrize(
    "command", ["train --workdir", "bench run quick --results", "export run --format tflite --output"]
)
def test_an_address_is_no_folder(command: str, refused: Refused) -> None:
    assert re.fullmatch(
        r"argument --\w+: received 'gs://bucket/run', expected a path on this machine, not an address; .*",
        refused(*command.split(), "gs://bucket/run"),
    )


@pytest.mark.parametrize(
    ("epochs", "accuracy", "guesses"), [(3.0, 0.1135, True), (3.0, 0.99, False), (0.01, 0.1, False)]
)
def test_a_model_that_learned_nothing_is_called_so(epochs: float, accuracy: float, guesses: bool) -> None:
    result = {
        "status": "completed",
        "epochs": epochs,
        "test_accuracy": accuracy,
        "images_per_second": 1.0,
        "seconds": 1.0,
    }
    assert describe_result(result, Path("run")).splitlines()[0].endswith("; it only guesses" if guesses else "see run")


# --- Bad input: settings ---


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "optimizer.lerning_rate=1",
            r"optimizer\.lerning_rate: no such setting\. Did you mean 'optimizer\.learning_rate'\?",
        ),
        ("optimiser.name=sgd", r"optimiser\S*: no such setting\. Did you mean .*optimizer.*"),
        ("dropout=0.5", r"dropout: no such setting\. Did you mean 'model\.dropout'\?"),
        ("training.epochs=three", r"training\.epochs: received 'three', expected a whole number\."),
        ("training.epochs=1.5", r"training\.epochs: received 1\.5, expected a whole number\."),
        ("training.epochs=0", r"training\.epochs: received 0, expected greater than 0\."),
        ("model.dropout=1", r"model\.dropout: received 1, expected less than 1\."),
        ("optimizer.learning_rate=.nan", r"optimizer\.learning_rate: received nan, expected .*"),
        ("optimizer.name=adma", r"optimizer\.name: received 'adma', expected 'adam', .*"),
        ("model.filters=32", r"model\.filters: received 32, expected two whole numbers.*"),
        ("model.filters=[a, b]", r"model\.filters\.0: received 'a', expected a whole number\."),
        ("model.kernel_sizes=[27, 3]", r"model\.kernel_sizes: received \[27, 3\], expected smaller windows.*"),
        ("model=5", r"model: received 5, expected a section with settings below it\."),
        ("seed={", r"--set seed=\{: not valid YAML: .*"),
        ("training.batch_size=60001", r"training\.batch_size: received 60001, expected at most the 60000 .*"),
        (
            "training.accumulation_steps=3",
            r"training\.batch_size: received 128 for 1 replica in 3 .*; for example --batch-size 126\.",
        ),
        ("data.path=https://x.org/a.npz", r"data\.path: received 'https://\S+', expected a path on this .*"),
        ("data.holdout_images=60000", r"data\.holdout_images: received 60000, expected fewer than the 60000 .*"),
        ("training.epochs=1000000", r"training: 468,000,000 steps were asked for, expected at most 10,000,000\."),
    ],
)
def test_a_wrong_setting(setting: str, line: str, refused: Refused) -> None:
    assert re.fullmatch(line, refused("train", "--set", setting))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("training: {epoks: 2}", r".*run\.yaml: training\.epoks: no such setting\. Did you mean 'training\.epochs'\?"),
        (
            "training: {epochs: 2, epochs: 3}",
            r".*run\.yaml: not valid YAML: the key 'epochs' appears twice at line 1.*",
        ),
        ("[1, 2]", r".*run\.yaml: received \[1, 2\], expected 'section:' lines with settings\."),
        ("a: !!python/object/apply:os.getcwd []", r".*run\.yaml: not valid YAML: .*"),
        ("training: {epochs: 2", r".*run\.yaml: not valid YAML: .* at line 1, column \d+\."),
        (b"\xff\xfe\x00", r"--config: cannot read '.*run\.yaml' as text: .*"),
    ],
)
def test_a_wrong_file_of_settings(content: str | bytes, line: str, refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.fullmatch(line, refused("train", "--config", file))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--devices 3", "training.batch_size: received 128 for 3 replicas, expected a multiple of 3; for example "),
        (
            "--devices 8 --batch-size 4",
            "training.batch_size: received 4 for 8 replicas, expected a multiple of 8; for ",
        ),
        ("--devices 2 --strategy single", "runtime.devices: received 2, expected 1 with the strategy 'single'."),
        ("--devices 0", "runtime.devices: received 0, expected greater than 0."),
        ("--strategy parameter_server", "runtime.strategy: received 'parameter_server', expected 'auto', "),
        ("--strategy multiworker --devices 3", "training.batch_size: received 128 for 3 replicas, expected a multiple"),
        ("--precision float64", "runtime.precision: received 'float64', expected 'auto', "),
    ],
)
def test_wrong_devices(flags: str, line: str, refused: Refused) -> None:
    assert refused("train", *flags.split()).startswith(line)


def test_float16_where_the_processor_lacks_it(refused: Refused) -> None:
    device = find_device()
    if device.kind == "GPU" or device.cpu_flags & {"avx512_fp16", "amx_fp16"}:
        pytest.skip("this device computes in float16")
    line = refused("train", "--precision", "mixed_float16")
    assert line.startswith(f"runtime.precision: received 'mixed_float16', but the CPU ({device.name}) has no float16 ")
    assert line.endswith("expected float32, mixed_bfloat16 or auto.")


# --- Bad input: files ---


def damage(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (None, r"data\.path: '.*mine\.npz' does not exist; expected an mnist\.npz or a folder of idx\(\.gz\) files\."),
        (lambda content: b"", r"data\.path: cannot read '.*mine\.npz' \(.+\); expected an intact mnist\.npz .*"),
        (lambda content: content[:-5000], r"data\.path: cannot read '.*mine\.npz' \(.+\); expected an intact .*"),
        (damage, r"data\.path: cannot read '.*mine\.npz' \(.+\); expected an intact .*"),
        (lambda content: b"hello\n" * 100, r"data\.path: cannot read '.*mine\.npz' \(.+\); expected an intact .*"),
    ],
)
def test_missing_or_damaged_data(
    make: Callable[[bytes], bytes] | None, line: str, refused: Refused, tiny_mnist: Path, tmp_path: Path
) -> None:
    if make:
        (tmp_path / "mine.npz").write_bytes(make(tiny_mnist.read_bytes()))
    assert re.fullmatch(line, refused("train", "--set", f"data.path={tmp_path / 'mine.npz'}"))


def test_a_folder_without_data(refused: Refused, tmp_path: Path) -> None:
    line = refused("train", "--set", f"data.path={tmp_path}")
    assert line.startswith(f"data.path: '{tmp_path}' has no train-images-idx3-ubyte")


def png(width: int, height: int) -> bytes:
    """A picture that says to be this large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"'.*picture': received no file \(No such file or directory\), expected a PNG, .*; check the path\."),
        (b"", r"'.*picture': received an empty file \(0 bytes\), expected a PNG, .*"),
        (b"hello", r"'.*picture': received a file in another format, expected a PNG, .*"),
        (png(28, 28), r"'.*picture': received an undecodable file \(.*\), expected a PNG, .*"),
        (png(60_000, 50_000), r"'.*picture': received an image of .*pixels, expected at most 50 megapixels; .*"),
    ],
)
def test_a_picture_that_cannot_be_read(content: bytes | None, line: str, refused: Refused, tmp_path: Path) -> None:
    """It shows before the model is loaded, which takes seconds; here there is none."""
    if content is not None:
        (tmp_path / "picture").write_bytes(content)
    started = time.process_time()
    assert re.fullmatch(line, refused("predict", tmp_path / "run", tmp_path / "picture", "--json"))
    assert time.process_time() - started < 5


# --- Bad input: the folder of a run ---


def test_a_folder_that_cannot_be_made(refused: Refused, tmp_path: Path, tiny_mnist: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused("train", "--set", f"data.path={tiny_mnist}", "--workdir", tmp_path / "file" / "run")
    assert line.startswith(f"workdir: cannot write '{tmp_path / 'file' / 'run'}': Not a directory; ")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_of_something_else(resume: list[str], refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("three years")
    line = refused("train", "--workdir", tmp_path / "thesis", *resume)
    assert line == f"--workdir: '{tmp_path / 'thesis'}' holds other files; expected a new or empty folder."
    assert refused("train", "--workdir", tmp_path / "thesis" / "thesis.tex", *resume).startswith("--workdir: '")


@pytest.mark.slow
def test_a_folder_of_another_run(refused: Refused, run: Path) -> None:
    line = refused("train", "--workdir", run, watch=run)
    assert line.startswith(f"--workdir: '{run}' already holds a run; add --resume to continue it, or name another")


@pytest.mark.slow
def test_a_run_of_another_configuration(refused: Refused, run: Path, tiny_mnist: Path) -> None:
    line = refused("train", *learning(tiny_mnist), "--seed", "1", "--workdir", run, "--resume", watch=run)
    assert line.startswith(f"seed: received 1, but the run in '{run}' was started with 0; resume with the same value")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--json"], ["export", "--format", "tflite"]])
def test_a_run_without_a_model(
    command: list[str], refused: Refused, run: Path, digits: list[Path], tmp_path: Path
) -> None:
    pictures = digits[:1] if command[0] == "predict" else []
    line = refused(*command, tmp_path / "missing", *pictures)
    assert line.startswith(f"WORKDIR: '{tmp_path / 'missing'}' does not exist; expected a folder written by")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("model.keras"))
    line = refused(*command, unfinished, *pictures)
    assert line.startswith(f"WORKDIR: '{unfinished}' holds no model.keras; finish the training with `mnist-dist train")
    (unfinished / "model.keras").write_bytes(damage((run / "model.keras").read_bytes()))
    line = refused(*command, unfinished, *pictures)
    assert line.startswith(f"WORKDIR: cannot load '{unfinished / 'model.keras'}' (") and "train again" in line


@pytest.mark.slow
def test_an_export_that_cannot_be_written(refused: Refused, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused("export", run, "--format", "tflite", "--output", tmp_path / "file" / "below")
    assert line.startswith(f"--output: cannot write '{tmp_path / 'file' / 'below' / 'model.tflite'}': Not a directory;")


# --- What the commands do ---


@pytest.mark.slow
def test_defaults_give_way_to_the_file_and_the_file_to_flags(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: without --workdir, a new folder is named after the file and the time."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "seed: 7\ntraining: {steps: 1, batch_size: 64}\nmodel: {dense_units: 20, batch_norm: true}\n"
    )
    flags = ["--batch-size", "32", "--no-batch-norm", "--set", "optimizer.beta_2=0.9"]
    assert main(["train", "--config", "mine.yaml", *SMALL, "--set", f"data.path={tiny_mnist}", *flags]) == 0
    (workdir,) = Path("runs").iterdir()
    assert re.fullmatch(r"mine-\d{8}-\d{6}", workdir.name)
    config = load_config(str(workdir / "config.yaml"))
    assert config.optimizer.learning_rate == Config().optimizer.learning_rate, "a default"
    assert (config.seed, config.training.steps) == (7, 1), "from the file"
    assert (config.training.batch_size, config.model.batch_norm) == (32, False), "from flags, over the file"
    assert (config.model.dense_units, config.optimizer.beta_2) == (16, 0.9), "from --set, over the file"
    assert json.loads((workdir / "result.json").read_text())["global_batch_size"] == 32
    *_, last, following = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"completed: test accuracy \d+\.\d\d % .* after 0\.02 epochs; .*; see {workdir}", last)
    assert following == f"next: mnist-dist evaluate {workdir}"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [learning, lambda data: []])
def test_a_finished_run_tells_its_result_again(
    settings: Callable[[Path], list[str]], run: Path, tiny_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *settings(tiny_mnist), "--workdir", str(run), "--resume"]) == 0
    result = json.loads((run / "result.json").read_text())
    said = capsys.readouterr().out
    accuracy = f"{100 * result['test_accuracy']:.2f} % (saved model, float32)"
    assert said.startswith(f"nothing left to train; completed: test accuracy {accuracy} after 6.00 epochs; ")
    assert f"{result['images_per_second']:,.0f} images/s of all devices in training steps" in said
    assert f"{result['seconds']:.1f} s from start to end; see {run}" in said


@pytest.mark.slow
def test_a_run_that_fails_ends_with_one_line_and_code_1(
    tiny_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--learning-rate", "1e38", "--set", "schedule.warmup_percent=0", "--set", f"data.path={tiny_mnist}"]
    assert main(["train", *SMALL, *arguments, "--steps", "20", "--workdir", str(tmp_path / "run")]) == 1
    errors = capsys.readouterr().err
    assert re.fullmatch(r"mnist-dist: error: training: the loss at step 2 is (nan|inf), .*\n", errors)


@pytest.mark.slow
def test_evaluating_gives_the_accuracy_of_the_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = json.loads((run / "result.json").read_text())["test_accuracy"]
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Accuracy {accuracy:.4f} (") and "of 500 images wrong" in said.splitlines()[0]
    assert main(["evaluate", str(run), "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    assert evaluation["accuracy"] == accuracy and np.sum(evaluation["confusion"]) == 500


@pytest.mark.slow
def test_predictions_as_lines_of_json(run: Path, digits: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), *map(str, digits), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [str(file) for file in digits]
    assert [row["digit"] for row in rows] == [int(file.stem) for file in digits]
    assert all(
        set(row) == {"file", "digit", "probability", "uncertain"} and 0.1 <= row["probability"] <= 1 for row in rows
    )


@pytest.mark.slow
def test_one_bad_picture_among_good_ones(
    run: Path, digits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run), str(digits[0]), str(tmp_path / "missing.png"), str(digits[1])]) == 2
    said, errors = capsys.readouterr()
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [[str(digits[0]), "7"], [str(digits[1]), "2"]]
    assert errors.startswith(f"mnist-dist: error: '{tmp_path / 'missing.png'}': received no file")


@pytest.mark.slow
def test_exporting(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = json.loads((run / "result.json").read_text())["test_accuracy"]
    assert main(["export", str(run), "--format", "tflite", "--output", str(tmp_path / "phone")]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path / 'phone' / 'model.tflite'}: ")
    measured = re.search(r"test accuracy (0\.\d{4}) on 500 images", line)
    assert measured and float(measured[1]) == pytest.approx(accuracy, abs=0.003)
    assert (tmp_path / "phone" / "model.tflite").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_exit_code_of_a_run_that_a_signal_stopped(
    number: signal.Signals,
    code: int,
    tiny_mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def send_a_signal(console: Console, step: int, step_seconds: float) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Console, "advance", send_a_signal)
    arguments = [*SMALL, "--set", f"data.path={tiny_mnist}", "--workdir", str(tmp_path / "run")]
    assert main(["train", *arguments]) == code
    said, errors = capfd.readouterr()
    assert errors.count("mnist-dist: stopping after the current steps") == (number == signal.SIGINT)
    last = said.splitlines()[-1]
    command = f"mnist-dist train --workdir {tmp_path / 'run'} --resume"
    assert last == f"preempted by {number.name} after step 1; continue with `{command}`"


# --- Processes ---


@pytest.mark.slow
def test_bad_input_as_a_process(tmp_path: Path) -> None:
    done = python("train", "--set", "optimizer.lerning_rate=1", "--workdir", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "mnist-dist: error: optimizer.lerning_rate: no such setting. Did you mean 'optimizer.learning_rate'?\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """As in `mnist-dist doctor | head -1`."""
    command = [sys.executable, "-m", "mnist_dist", "doctor"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout
        process.stdout.close()
        assert process.wait(timeout=60) == 141
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.thorough
@pytest.mark.slow
def test_nothing_is_left_in_the_folder_for_temporary_files(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by training, on one device or two, nor by evaluating."""
    temporary, workdir = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    train = ["train", *learning(tiny_mnist), "--epochs", "1", "--set", "runtime.guard=true", "--workdir"]
    for arguments in (
        [*train, tmp_path / "alone", "--set", "data.shift_pixels=1"],
        [*train, workdir, "--strategy", "multiworker", "--devices", "2"],
        ["evaluate", workdir],
    ):
        done = python(*arguments)
        assert done.returncode == 0, done.stderr
        assert [file.name for file in temporary.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", thorough_but_for(0, range(2)))
def test_the_defaults_reach_99_percent(seed: int, tmp_path: Path) -> None:
    done = python("train", "--seed", str(seed), "--workdir", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    print(f"seed {seed}: test accuracy {result['test_accuracy']:.4f} after {result['seconds']:.0f} s")
    assert result["test_accuracy"] >= 0.990
