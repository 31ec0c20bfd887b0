"""Which form of the network is chosen, and how many parts of a batch are computed side by side."""

import os
from collections.abc import Callable

import pytest

from mnist_dist.cpuinfo import cpu_flags
from mnist_dist.network.forward import count_branches, decide_kernels
from mnist_dist.runtime import Decision, Device, find_device
from tests.speeds import thorough_but_for
from tests.test_runtime import A100, AMX_CPU, ARM_CPU, BF16_CPU, OLD_CPU, VNNI_CPU, python


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


BRANCHES = """
import os, sys
from mnist_dist.config import RuntimeConfig
from mnist_dist.network.forward import choose_form
from mnist_dist.runtime import configure_runtime
cores = sorted(os.sched_getaffinity(0))
settings = dict(pair.split("=") for pair in sys.argv[1:])
os.sched_setaffinity(0, cores[: int(settings.pop("cores", len(cores)))])
settings = {name: int(value) if value.isdigit() else value for name, value in settings.items()}
config = RuntimeConfig(**{"strategy": "single", "precision": "float32"} | settings)
form = choose_form(config, configure_runtime(config, 0))
import tensorflow as tf
threads = tf.config.threading.get_intra_op_parallelism_threads()
print(form.kernels.value, form.branches - (0 if form.branches == 1 else len(cores)), threads)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "fused 0 1"),
        pytest.param(["kernels=plain"], "plain 1 0", marks=pytest.mark.thorough),
        pytest.param(["cores=1"], "fused 1 1", marks=pytest.mark.thorough),
        pytest.param(["intra_op_threads=64"], "fused 1 64", marks=pytest.mark.thorough),
        pytest.param(["inter_op_threads=1"], "fused 1 1", marks=pytest.mark.thorough),
        pytest.param(["strategy=mirrored", "devices=64"], "fused 1 1", marks=pytest.mark.thorough),
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


ONEDNN = """
from tensorflow.python.util import _pywrap_util_port
from mnist_dist.network.forward import decide_kernels
from mnist_dist.runtime import find_device
print(_pywrap_util_port.IsMklEnabled(), decide_kernels("auto", find_device(), "float32", "off").value)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("onednn_by_default")
@pytest.mark.parametrize("told", thorough_but_for(None, ["0", "1", None]))
def test_onednn_computes_wherever_it_is_faster_unless_told(told: str | None) -> None:
    """On any CPU, what is decided must be what TensorFlow does."""
    environment = {} if told is None else {"TF_ENABLE_ONEDNN_OPTS": told}
    done = python("from mnist_dist.runtime import import_tensorflow\nimport_tensorflow()\n" + ONEDNN, **environment)
    used = told == "1" if told else "avx2" in cpu_flags()
    assert done.stdout.strip() == ("True fused" if used else "False plain"), done.stderr


@pytest.mark.thorough
def test_tensorflow_imported_before_keeps_its_choice() -> None:
    done = python("import tensorflow" + ONEDNN)
    assert done.stdout.strip() in ("True fused", "False plain"), done.stderr
