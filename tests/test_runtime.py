import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

import mnist_dist
from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.runtime import (
    Decision,
    Device,
    choose_gpus,
    configure_runtime,
    count_branches,
    cpu_flags,
    cpu_name,
    decide_kernels,
    decide_precision,
    decide_xla,
    find_device,
    import_tensorflow,
)

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


def test_xla_of_a_model_that_exchanges_statistics(user_error: Callable[..., str]) -> None:
    for requested in ("auto", "off"):
        assert decide_xla(requested, A100, exchanges_in_model=True).value == "off"
    assert user_error(decide_xla, "on", A100, True).startswith("runtime.xla: received 'on' with model.batch_norm")


@pytest.fixture
def onednn_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)


# Device, precision, XLA, batch normalisation, and a word of why the fused form is not taken.
OBSTACLES = [
    (A100, "mixed_bfloat16", "off", False, "GPU"),
    (OLD_CPU, "float32", "off", False, "oneDNN"),
    (ARM_CPU, "mixed_bfloat16", "off", False, "oneDNN"),
    (AMX_CPU, "mixed_float16", "off", False, "float16"),
    (BF16_CPU, "mixed_bfloat16", "on", False, "XLA"),
    (BF16_CPU, "mixed_bfloat16", "off", True, "batch normalisation"),
]


@pytest.mark.usefixtures("onednn_by_default")
@pytest.mark.parametrize(
    ("device", "precision"),
    [(BF16_CPU, "mixed_bfloat16"), (BF16_CPU, "float32"), (AMX_CPU, "mixed_bfloat16"), (VNNI_CPU, "float32")],
)
def test_fused_kernels_on_cpus_with_onednn(device: Device, precision: str) -> None:
    decision = decide_kernels("auto", device, precision, "off")
    assert decision.value == "fused" and "oneDNN" in decision.reason
    assert decide_kernels("fused", device, precision, "off") == Decision("fused", "as configured")
    assert decide_kernels("plain", device, precision, "off") == Decision("plain", "as configured")


@pytest.mark.usefixtures("onednn_by_default")
@pytest.mark.parametrize(("device", "precision", "xla", "batch_norm", "reason"), OBSTACLES)
def test_plain_kernels_where_the_fused_ones_do_not_fit(
    device: Device, precision: str, xla: str, batch_norm: bool, reason: str, user_error: Callable[..., str]
) -> None:
    decision = decide_kernels("auto", device, precision, xla, batch_norm)
    assert decision.value == "plain" and reason in decision.reason
    assert decide_kernels("plain", device, precision, xla, batch_norm).value == "plain"
    line = user_error(decide_kernels, "fused", device, precision, xla, batch_norm)
    assert line.startswith("runtime.kernels: received 'fused', but ") and reason in line


@pytest.mark.parametrize(
    ("told", "device", "value"),
    [("0", BF16_CPU, "plain"), ("1", OLD_CPU, "fused"), ("1", BF16_CPU, "fused"), ("", BF16_CPU, "fused")],
)
def test_onednn_by_its_variable(told: str, device: Device, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", told)
    assert decide_kernels("auto", device, "float32", "off").value == value


@pytest.mark.parametrize(
    ("cores", "replicas", "intra_op", "inter_op", "branches"),
    [
        (2, 1, 1, 0, 2),
        (2, 1, 1, 2, 2),
        (2, 2, 1, 0, 1),
        (2, 3, 1, 0, 1),
        (8, 2, 1, 0, 4),
        (1, 1, 1, 0, 1),
        (1, 1, 0, 0, 1),
        (8, 1, 0, 0, 1),  # Each operation takes all cores.
        (8, 1, 2, 0, 4),
        (8, 1, 3, 0, 2),
        (8, 1, 1, 3, 3),
        (8, 1, 1, 100, 8),
        (2, 1, 100, 0, 1),
    ],
)
def test_branches_that_do_not_share_cores(
    cores: int, replicas: int, intra_op: int, inter_op: int, branches: int
) -> None:
    assert count_branches(cores, replicas, intra_op, inter_op) == branches


@pytest.mark.parametrize(
    ("visible", "replicas", "cluster", "chosen"),
    [
        (8, 1, Cluster(), [0]),
        (8, 4, Cluster(), [0, 1, 2, 3]),
        (4, 1, Cluster(rank=5, size=6, local_rank=2, local_size=3), [2]),
        (1, 1, Cluster(rank=6, size=8, local_rank=2, local_size=4), [0]),  # The scheduler bound it.
        (8, 1, Cluster(rank=1, size=2, local_rank=1, local_size=2), [1]),
    ],
)
def test_gpus_of_a_process(visible: int, replicas: int, cluster: Cluster, chosen: list[int]) -> None:
    assert choose_gpus(visible, replicas, cluster) == chosen


@pytest.mark.parametrize(
    ("visible", "replicas", "cluster"),
    [(2, 3, Cluster()), (2, 1, Cluster(rank=1, size=3, local_rank=1, local_size=3))],
)
def test_too_few_gpus(visible: int, replicas: int, cluster: Cluster, user_error: Callable[..., str]) -> None:
    assert user_error(choose_gpus, visible, replicas, cluster).startswith("runtime.devices: ")


def test_this_machine(tf: ModuleType) -> None:
    device = find_device()
    assert device.name
    assert (device.kind == "GPU") == bool(tf.config.list_physical_devices("GPU"))
    assert cpu_name()
    if device.kind == "CPU" and Path("/proc/cpuinfo").exists():
        assert device.cpu_flags & {"fpu", "fp", "asimd"}


def test_threads_cannot_change_while_tensorflow_runs(tf: ModuleType, user_error: Callable[..., str]) -> None:
    float(tf.reduce_sum([1.0]))  # From the first operation on.
    running = tf.config.threading.get_intra_op_parallelism_threads()
    config = RuntimeConfig(strategy="single", intra_op_threads=running + 1)
    line = user_error(configure_runtime, config, 0, Cluster())
    assert line.startswith(f"runtime.intra_op_threads: received {running + 1}, but TensorFlow already runs")
    assert str(running) in line.partition("with")[2]
    configure_runtime(RuntimeConfig(strategy="single", intra_op_threads=running), 0, Cluster())


def test_the_seed_decides_every_random_number(tf: ModuleType) -> None:
    import random

    import numpy as np

    def draw(seed: int) -> tuple[float, float, float]:
        configure_runtime(RuntimeConfig(strategy="single"), seed, Cluster())
        return random.random(), float(np.random.random()), float(tf.random.uniform([]))  # noqa: S311

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def python(script: str, arguments: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=inherited | environment, capture_output=True, text=True)


CONFIGURE = """
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.config import RuntimeConfig
from mnist_dist.runtime import configure_runtime
settings = RuntimeConfig(
    strategy="single", precision="float32", intra_op_threads=3, inter_op_threads=2, tf32=False, deterministic=True
)
runtime = configure_runtime(settings, 5, Cluster())
import tensorflow as tf
float(tf.reduce_sum([1.0]))
print(tf.config.threading.get_intra_op_parallelism_threads(), tf.config.threading.get_inter_op_parallelism_threads())
print(tf.config.experimental.tensor_float_32_execution_enabled(), runtime.precision.value, runtime.xla.value)
try:
    tf.raw_ops.RandomUniform(shape=[2], dtype=tf.float32)
except tf.errors.InvalidArgumentError as error:
    print(error)
"""


def test_settings_reach_a_fresh_tensorflow_which_stays_quiet() -> None:
    done = python(CONFIGURE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "3 2"
    assert lines[1].startswith("False float32 ")
    assert "determinism is enabled" in lines[2]


BRANCHES = """
import os, sys
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.config import RuntimeConfig
from mnist_dist.runtime import configure_runtime
cores = sorted(os.sched_getaffinity(0))
settings = dict(pair.split("=") for pair in sys.argv[1:])
os.sched_setaffinity(0, cores[: int(settings.pop("cores", len(cores)))])
settings = {name: int(value) if value.isdigit() else value for name, value in settings.items()}
runtime = configure_runtime(RuntimeConfig(**{"strategy": "single", "precision": "float32"} | settings), 0, Cluster())
import tensorflow as tf
threads = tf.config.threading.get_intra_op_parallelism_threads()
print(runtime.kernels.value, runtime.branches - (0 if runtime.branches == 1 else len(cores)), threads)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "fused 0 1"),
        (["kernels=plain"], "plain 1 0"),
        (["cores=1"], "fused 1 1"),
        (["intra_op_threads=64"], "fused 1 64"),
        (["inter_op_threads=1"], "fused 1 1"),
        (["strategy=mirrored", "devices=64"], "fused 1 1"),
    ],
)
def test_threads_for_branches(settings: list[str], expected: str) -> None:
    """The second number is 0 for one branch on each core, if there are several."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("branches need two cores")
    if decide_kernels("auto", find_device(), "float32", "off").value != "fused":
        pytest.skip("there is no fused form here")
    done = python(BRANCHES, arguments=settings)
    assert done.stdout.strip() == expected, done.stderr


def test_a_failing_import_tells_why(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'a library is missing\\n')\nraise ImportError('keras is broken')\n"
    )
    done = python("from mnist_dist.runtime import import_tensorflow\nimport_tensorflow()", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("a library is missing\n") and "ImportError: keras is broken" in done.stderr


ONEDNN = """
from tensorflow.python.util import _pywrap_util_port
from mnist_dist.runtime import decide_kernels, find_device
print(_pywrap_util_port.IsMklEnabled(), decide_kernels("auto", find_device(), "float32", "off").value)
"""


@pytest.mark.parametrize("told", ["0", "1", None])
def test_onednn_computes_wherever_it_is_faster_unless_told(told: str | None) -> None:
    """On any CPU, what is decided must be what TensorFlow does."""
    environment = {} if told is None else {"TF_ENABLE_ONEDNN_OPTS": told}
    done = python("from mnist_dist.runtime import import_tensorflow\nimport_tensorflow()\n" + ONEDNN, **environment)
    used = told == "1" if told else "avx2" in cpu_flags()
    assert done.stdout.strip() == ("True fused" if used else "False plain"), done.stderr


def test_tensorflow_imported_before_keeps_its_choice() -> None:
    done = python("import tensorflow" + ONEDNN)
    assert done.stdout.strip() in ("True fused", "False plain"), done.stderr


def test_tensorflow_is_imported_once(tf: ModuleType) -> None:
    assert import_tensorflow() is tf
