import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import mnist_dist
from mnist_dist import command, doctor, runtime
from mnist_dist.config import RuntimeConfig
from mnist_dist.lazy import UNUSED_BY_COMMANDS
from mnist_dist.runtime import (
    Decision,
    Device,
    choose_gpus,
    configure_runtime,
    decide_precision,
    decide_resident,
    decide_xla,
    find_device,
    import_tensorflow,
)
from tests import nvml

REPOSITORY = Path(mnist_dist.__file__).parent.parent
H100 = Device("GPU", "NVIDIA H100", (9, 0))
A100 = Device("GPU", "NVIDIA A100", (8, 0))
T4 = Device("GPU", "Tesla T4", (7, 5))
V100 = Device("GPU", "Tesla V100", (7, 0))
P100 = Device("GPU", "Tesla P100", (6, 0))
K80 = Device("GPU", "Tesla K80", (3, 7))
UNKNOWN_GPU = Device("GPU", "GPU")
VNNI_CPU = Device("CPU", "Xeon", cpu_flags=frozenset({"avx2", "avx512f", "avx512_vnni"}))
OLD_CPU = Device("CPU", "Xeon", cpu_flags=frozenset({"sse4_2", "avx2", "avx512f"}))
BF16_CPU = Device("CPU", "EPYC", cpu_flags=frozenset({"avx2", "avx512_bf16"}))
AMX_CPU = Device("CPU", "Xeon", cpu_flags=frozenset({"avx512_bf16", "amx_bf16", "avx512_fp16"}))
ARM_CPU = Device("CPU", "Graviton", cpu_flags=frozenset({"asimd", "bf16"}))


@pytest.mark.parametrize(
    ("device", "value", "reason"),
    [
        (H100, "mixed_bfloat16", "9.0"),
        (A100, "mixed_bfloat16", "8.0"),
        (T4, "mixed_float16", "7.5"),
        (V100, "mixed_float16", "7.0"),
        (P100, "float32", "6.0"),
        (K80, "float32", "3.7"),
        (UNKNOWN_GPU, "float32", "0.0"),
        (OLD_CPU, "float32", "no native 16-bit"),
        (BF16_CPU, "mixed_bfloat16", "avx512_bf16"),
        (AMX_CPU, "mixed_bfloat16", "amx_bf16"),
        (ARM_CPU, "mixed_bfloat16", "bf16"),
    ],
)
def test_precision_that_the_device_computes_natively(device: Device, value: str, reason: str) -> None:
    decision = decide_precision("auto", device)
    assert decision.value == value and reason in decision.reason


@pytest.mark.parametrize("device", [H100, V100, P100, AMX_CPU])
def test_float16_where_it_is_asked_for_and_there(device: Device) -> None:
    assert decide_precision("mixed_float16", device) == Decision("mixed_float16", "as configured")


@pytest.mark.parametrize("device", [K80, UNKNOWN_GPU, OLD_CPU, BF16_CPU, ARM_CPU])
def test_float16_where_it_is_missing(device: Device, user_error: Callable[..., str]) -> None:
    line = user_error(decide_precision, "mixed_float16", device)
    assert line.startswith("runtime.precision: received 'mixed_float16'") and device.name in line


@pytest.mark.parametrize("device", [H100, K80, OLD_CPU])
@pytest.mark.parametrize("requested", ["float32", "mixed_bfloat16"])
def test_any_device_computes_these(requested: str, device: Device) -> None:
    assert decide_precision(requested, device).value == requested


@pytest.mark.parametrize(
    ("requested", "device", "value"),
    [
        ("auto", A100, "on"),
        ("auto", K80, "on"),
        ("auto", BF16_CPU, "off"),
        ("on", BF16_CPU, "on"),
        ("off", A100, "off"),
    ],
)
def test_xla(requested: str, device: Device, value: str) -> None:
    decision = decide_xla(requested, device)
    assert decision.value == value
    assert (decision.reason == "as configured") == (requested != "auto")


@pytest.mark.parametrize(
    ("requested", "device", "value"),
    [("auto", K80, "on"), ("auto", AMX_CPU, "off"), ("on", AMX_CPU, "on"), ("off", A100, "off")],
)
def test_images_live_on_a_gpu(requested: str, device: Device, value: str) -> None:
    decision = decide_resident(requested, device)
    assert decision.value == value
    assert (decision.reason == "as configured") == (requested != "auto")


def test_xla_of_a_deterministic_run(user_error: Callable[..., str]) -> None:
    for requested in ("auto", "off"):
        assert decide_xla(requested, A100, deterministic=True).value == "off"
    line = user_error(decide_xla, "on", A100, deterministic=True)
    assert line.startswith("runtime.xla: received 'on' with runtime.deterministic")


def test_xla_of_a_model_that_exchanges_statistics(user_error: Callable[..., str]) -> None:
    for requested in ("auto", "off"):
        assert decide_xla(requested, A100, exchanges_in_model=True).value == "off"
    assert user_error(decide_xla, "on", A100, True).startswith("runtime.xla: received 'on' with model.batch_norm")


@pytest.mark.parametrize(
    ("visible", "replicas", "local_rank", "local_size", "chosen"),
    [
        (8, 1, 0, 1, [0]),
        (8, 4, 0, 1, [0, 1, 2, 3]),
        (4, 1, 2, 3, [2]),
        (1, 1, 2, 4, [0]),  # The scheduler bound it.
        (8, 1, 1, 2, [1]),
    ],
)
def test_gpus_of_a_process(visible: int, replicas: int, local_rank: int, local_size: int, chosen: list[int]) -> None:
    assert choose_gpus(visible, replicas, local_rank, local_size) == chosen


@pytest.mark.parametrize(("visible", "replicas", "local_rank", "local_size"), [(2, 3, 0, 1), (2, 1, 1, 3)])
def test_too_few_gpus(
    visible: int, replicas: int, local_rank: int, local_size: int, user_error: Callable[..., str]
) -> None:
    assert user_error(choose_gpus, visible, replicas, local_rank, local_size).startswith("runtime.devices: ")


def test_this_machine(tf: ModuleType) -> None:
    device = find_device()
    assert device.name
    assert (device.kind == "GPU") == bool(tf.config.list_physical_devices("GPU"))
    if device.kind == "CPU" and Path("/proc/cpuinfo").exists():
        assert device.cpu_flags & {"fpu", "fp", "asimd"}


def test_threads_cannot_change_while_tensorflow_runs(tf: ModuleType, user_error: Callable[..., str]) -> None:
    float(tf.reduce_sum([1.0]))  # From the first operation on.
    running = tf.config.threading.get_intra_op_parallelism_threads()
    config = RuntimeConfig(strategy="single", intra_op_threads=running + 1)
    line = user_error(configure_runtime, config, 0)
    assert line.startswith(f"runtime.intra_op_threads: received {running + 1}, but TensorFlow already runs")
    assert str(running) in line.partition("with")[2]
    configure_runtime(RuntimeConfig(strategy="single", intra_op_threads=running), 0)


def test_the_seed_decides_every_random_number(tf: ModuleType) -> None:
    import random

    import numpy as np

    def draw(seed: int) -> tuple[float, float, float]:
        configure_runtime(RuntimeConfig(strategy="single"), seed)
        return random.random(), float(np.random.random()), float(tf.random.uniform([]))  # noqa: S311

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def python(script: str, arguments: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    faster = "import gc; gc.disable()"  # A third of the import of TensorFlow.
    command = [sys.executable, "-c", f"{faster}\n{script}", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=inherited | environment, capture_output=True, text=True)


CONFIGURE = """
import sys
from mnist_dist import lazy
from mnist_dist.config import RuntimeConfig
from mnist_dist.runtime import configure_runtime
settings = RuntimeConfig(
    strategy="single", precision="float32", intra_op_threads=3, inter_op_threads=2, tf32=False, deterministic=True
)
lazy.hidden_from_keras.update(lazy.UNUSED_BY_COMMANDS)
runtime = configure_runtime(settings, 5)
import tensorflow as tf
print({*lazy.UNUSED_BY_COMMANDS} & sys.modules.keys())
import matplotlib
float(tf.reduce_sum([1.0]))
print(tf.config.threading.get_intra_op_parallelism_threads(), tf.config.threading.get_inter_op_parallelism_threads())
print(tf.config.experimental.tensor_float_32_execution_enabled(), runtime.precision.value, runtime.xla.value)
try:
    tf.raw_ops.RandomUniform(shape=[2], dtype=tf.float32)
except tf.errors.InvalidArgumentError as error:
    print(error)
"""


@pytest.mark.slow
def test_settings_reach_a_fresh_tensorflow_which_stays_quiet_and_small() -> None:
    done = python(CONFIGURE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["set()", "3 2"]
    assert lines[2].startswith("False float32 ")
    assert "determinism is enabled" in lines[3]


def test_commands_hide_from_keras_what_they_do_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "hidden_from_keras", hidden := set[str]())
    assert command.run_command(command.Parser(prog="mnist-dist"), []) == 2
    assert hidden == {*UNUSED_BY_COMMANDS}


@pytest.mark.slow
def test_a_failing_import_tells_why(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'a library is missing\\n')\nraise ImportError('keras is broken')\n"
    )
    train = ["train", "--workdir", str(tmp_path / "run")]
    done = python("from mnist_dist.__main__ import run\nrun()", train, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    said, line = done.stderr.splitlines()
    assert said == "a library is missing"
    assert line.startswith("mnist-dist: error: TensorFlow or Keras cannot be imported: keras is broken; see `mnist")


@pytest.mark.slow
def test_what_is_said_while_tensorflow_is_imported_is_heard() -> None:
    """As the answer to Ctrl-C. The import's own notices are not."""
    program = (
        "import os, sys\nfrom mnist_dist import errors, runtime\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'keras': errors.say_now('heard'); os.write(2, b'a notice')\n"
        "sys.meta_path.insert(0, Finder())\nruntime.import_tensorflow()\nerrors.say_now('after')\n"
    )
    done = python(program)
    assert (done.returncode, done.stderr) == (0, "mnist-dist: heard\nmnist-dist: after\n")


def test_tensorflow_is_imported_once(tf: ModuleType) -> None:
    assert import_tensorflow() is tf


TRAIN = """
import os
from mnist_dist.config import RuntimeConfig
from mnist_dist.errors import UserError
from mnist_dist.runtime import configure_runtime
try:
    print(configure_runtime(RuntimeConfig(strategy="single"), 0).device.kind, os.environ["CUDA_DEVICE_ORDER"])
except UserError as error:
    print(error)
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_a_gpu_that_tensorflow_does_not_find_ends_the_run_with_its_reason(driver: Path) -> None:
    """The driver's library is made up, and TensorFlow is the real one, which looks for the real driver."""
    visible = python(TRAIN, **nvml.environment(driver)).stdout
    assert visible.count("\n") == 1
    assert visible.startswith("runtime.devices: NVIDIA's driver shows 2 GPUs, but TensorFlow finds none (")
    reason = visible.partition("(")[2].partition("); ")[0]
    assert re.search("cuda|gpu", reason, re.IGNORECASE) and "does not say" not in reason, reason
    assert "`pip install 'mnist-dist[gpu]'`" in visible and "CUDA_VISIBLE_DEVICES=-1" in visible
    hidden = python(TRAIN, **nvml.environment(driver, CUDA_VISIBLE_DEVICES="-1"))
    assert hidden.stdout == "CPU PCI_BUS_ID\n", hidden.stderr


@pytest.mark.parametrize("command", ["predict", "export", "evaluate", "doctor"])
def test_commands_take_one_device(
    command: str, tf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything computes: without it TensorFlow takes nearly all memory of all GPUs."""
    import mnist_dist.__main__ as program

    picture = tmp_path / "one.png"
    Image.fromarray(np.pad(np.full([18, 2], 255, np.uint8), ((5, 5), (13, 13)))).save(picture)

    class SelectedError(Exception):
        pass

    def select(*which: int) -> None:
        raise SelectedError(which)

    monkeypatch.setattr(runtime, "select_devices", select)
    calls = {
        "predict": lambda: program.run_predict(argparse.Namespace(images=[picture], json=False)),
        "export": lambda: program.load_run(Path("nowhere")),
        "evaluate": lambda: program.load_run(Path("nowhere")),
        "doctor": lambda: list(doctor.check_devices()),
    }
    with pytest.raises(SelectedError, match=r"^\(\)$"):
        calls[command]()
