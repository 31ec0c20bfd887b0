"""How this process computes: device, precision, XLA, kernels, TF32, threads, seeds, determinism.

`auto` settings are decided here by pure functions of the device, and every decision carries its reason.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.errors import UserError
from mnist_dist.network.cpu import build as kernel_build

FLOAT16_FLAGS = frozenset({"avx512_fp16", "amx_fp16"})  # Of CPUs that compute with it.


@dataclass(frozen=True)
class Device:
    """The kind of device that trains, with what decides about precision."""

    kind: str  # "CPU" or "GPU"
    name: str
    compute_capability: tuple[int, int] | None = None  # GPUs only.
    cpu_flags: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class Decision:
    value: str
    reason: str


@dataclass(frozen=True)
class Runtime:
    """What was decided for this process."""

    device: Device
    precision: Decision
    xla: Decision
    kernels: Decision
    branches: int  # Parts of each replica's batch that are computed side by side.


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow without its notices about oneDNN and absent GPU libraries.

    They go to file descriptor 2 before any log level applies. When the import fails, they are printed after all.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    _prefer_onednn()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notices:
        stderr = os.dup(2)
        os.dup2(notices.fileno(), 2)
        try:
            import keras  # noqa: F401 - its notices belong to the same moment.
            import tensorflow

            tensorflow.config.list_physical_devices()  # Says so when there is no GPU driver.
            tensorflow.get_logger().setLevel("ERROR")  # Warns of compiling when a process trains several times.
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return tensorflow


def configure_runtime(config: RuntimeConfig, seed: int, cluster: Cluster, *, batch_norm: bool = False) -> Runtime:
    """Applies the settings to TensorFlow, before it touches a device, and decides what `auto` means.

    Args:
        config: with the strategy resolved.
        batch_norm: whether the model normalises over the batch, of all replicas.

    Raises:
        UserError: a setting asks for what the device lacks, or TensorFlow already runs in another way.
    """
    tf = import_tensorflow()
    import keras

    _set_threads("intra_op", config.intra_op_threads, tf.config.threading)
    _set_threads("inter_op", config.inter_op_threads, tf.config.threading)
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    keras.utils.set_random_seed(seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    select_devices(config, cluster)
    device = find_device()
    precision = decide_precision(config.precision, device)
    xla = decide_xla(config.xla, device, batch_norm and config.devices > 1)
    kernels = decide_kernels(config.kernels, device, precision.value, xla.value, batch_norm)
    kernels = compile_kernels(config.kernels, kernels)
    replicas = config.devices if config.strategy == "mirrored" else 1
    branches = _start_branches(replicas, tf.config.threading) if kernels.value == "fused" else 1
    return Runtime(device, precision, xla, kernels, branches)


def select_devices(config: RuntimeConfig, cluster: Cluster) -> None:
    """Shows TensorFlow the devices of this process only.

    Raises:
        UserError: there are fewer GPUs than replicas, or TensorFlow has already set up its devices otherwise.
    """
    tf = import_tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    replicas = config.devices if config.strategy == "mirrored" else 1
    try:
        if gpus:
            mine = choose_gpus(len(gpus), replicas, cluster)
            tf.config.set_visible_devices([gpus[index] for index in mine], "GPU")
            for index in mine:
                tf.config.experimental.set_memory_growth(gpus[index], True)
        elif replicas > 1:
            cpu = tf.config.list_physical_devices("CPU")[0]
            if len(tf.config.get_logical_device_configuration(cpu) or [0]) < replicas:
                logical = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
                tf.config.set_logical_device_configuration(cpu, logical)
    except RuntimeError:
        raise UserError(
            f"runtime.devices: received {config.devices}, but TensorFlow already runs in this process with other "
            "devices; train in a fresh process."
        ) from None


def choose_gpus(visible: int, replicas: int, cluster: Cluster) -> list[int]:
    """Returns the indices of this process' GPUs among those it can see.

    A scheduler may show each rank its own GPU only, which then has the index 0 on every rank.
    """
    if replicas > visible:
        raise UserError(f"runtime.devices: received {replicas}, but this process sees {visible} GPUs.")
    if cluster.size == 1:
        return list(range(replicas))
    if 1 < visible < cluster.local_size:
        raise UserError(
            f"runtime.devices: {cluster.local_size} ranks on this host see {visible} GPUs, expected one each; "
            "start fewer ranks."
        )
    return [cluster.local_rank % visible]


def find_device() -> Device:
    """Describes the first visible GPU, or else the CPU."""
    tf = import_tensorflow()
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return Device("CPU", cpu_name(), cpu_flags=cpu_flags())
    details = tf.config.experimental.get_device_details(gpus[0])
    return Device("GPU", details.get("device_name", "GPU"), details.get("compute_capability"))


def decide_precision(requested: str, device: Device) -> Decision:
    """Picks the 16-bit type that the device computes natively, or float32.

    Raises:
        UserError: float16 was requested on a device that only emulates it.
    """
    if requested == "mixed_float16" and not _has_float16(device):
        raise UserError(
            f"runtime.precision: received 'mixed_float16', but the {device.kind} ({device.name}) has no float16 "
            "arithmetic; expected float32, mixed_bfloat16 or auto."
        )
    if requested != "auto":
        return Decision(requested, "as configured")
    if device.kind == "GPU":
        capability = device.compute_capability or (0, 0)
        shown = ".".join(map(str, capability))
        if capability >= (8, 0):
            return Decision("mixed_bfloat16", f"compute capability {shown} has bfloat16 tensor cores")
        if capability >= (7, 0):
            return Decision("mixed_float16", f"compute capability {shown} has float16 but no bfloat16 tensor cores")
        return Decision("float32", f"compute capability {shown} has no tensor cores")
    native = sorted(device.cpu_flags & {"avx512_bf16", "amx_bf16", "bf16"})
    if native:
        return Decision("mixed_bfloat16", f"the CPU has native bfloat16 ({', '.join(native)})")
    return Decision("float32", "the CPU has no native 16-bit arithmetic")


def decide_xla(requested: str, device: Device, exchanges_in_model: bool = False) -> Decision:
    """XLA fuses this small network well on GPUs; on CPUs it loses oneDNN's convolutions and is slower.

    Args:
        exchanges_in_model: replicas exchange values within the model, which XLA cannot compile.

    Raises:
        UserError: XLA was requested for a model that exchanges values.
    """
    if exchanges_in_model:
        if requested == "on":
            raise UserError(
                "runtime.xla: received 'on' with model.batch_norm on several replicas, expected off or auto; "
                "XLA cannot compile the exchange of batch statistics."
            )
        return Decision("off", "XLA cannot compile the exchange of batch statistics between replicas")
    if requested != "auto":
        return Decision(requested, "as configured")
    if device.kind == "GPU":
        return Decision("on", "XLA fuses the many small operations of this network on a GPU")
    return Decision("off", "XLA's CPU convolutions are slower than oneDNN's")


def decide_kernels(requested: str, device: Device, precision: str, xla: str, batch_norm: bool = False) -> Decision:
    """Picks the layers of Keras (plain), or the same function in a form that CPUs compute faster (fused).

    Args:
        precision, xla: as decided.

    Raises:
        UserError: the fused form was requested where there is none.
    """
    if requested == "plain":
        return Decision("plain", "as configured")
    obstacle = None
    if device.kind == "GPU":
        obstacle = "a GPU computes the layers well as they are"
    elif not _has_onednn(device):
        obstacle = "TensorFlow runs without oneDNN on this CPU"
    elif precision == "mixed_float16":
        obstacle = "the fused form is not made for float16"
    elif xla == "on":
        obstacle = "XLA compiles the layers"
    elif batch_norm:
        obstacle = "the fused form has no batch normalisation"
    if obstacle is None:
        return Decision(
            "fused", "as configured" if requested == "fused" else "oneDNN and own kernels compute this form faster"
        )
    if requested == "fused":
        raise UserError(f"runtime.kernels: received 'fused', but {obstacle}; expected plain or auto.")
    return Decision("plain", obstacle)


def compile_kernels(requested: str, decided: Decision) -> Decision:
    """Compiles what the fused form needs, the first time; where that fails, the layers of Keras take its place.

    Raises:
        UserError: the fused form was requested.
    """
    if decided.value == "plain":
        return decided
    try:
        kernel_build.load(cpu_flags())
    except kernel_build.KernelError as error:
        if requested == "fused":
            raise UserError(f"runtime.kernels: received 'fused', but {error}; or set it to plain.") from None
        return Decision("plain", f"the faster form is not compiled: {error}")
    return decided


def count_branches(cores: int, replicas: int, intra_op: int, inter_op: int) -> int:
    """Returns how many parts of its batch a replica may compute side by side without two of them sharing a core.

    Args:
        cores: that this process may use.
        replicas: in this process.
        intra_op, inter_op: threads of TensorFlow; 0 stands for one for each core.
    """
    at_once = min(inter_op or cores, cores // min(intra_op or cores, cores))
    return max(1, at_once // replicas)


def cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _prefer_onednn() -> None:
    """TensorFlow takes oneDNN by itself where the CPU has VNNI, bfloat16 or AMX; with AVX2 alone it is faster too.

    Training the default configuration on such an EPYC became 2.7 times as fast by it (docs/benchmarks.md).
    """
    if "avx2" in cpu_flags():
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _has_onednn(device: Device) -> bool:
    """Tells whether TensorFlow computes with oneDNN: by its own default where the CPU has one of these, or as told."""
    told = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    known = device.cpu_flags & {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile"}
    return told == "1" if told in ("0", "1") else bool(known)


def cpu_has_float16() -> bool:
    """Tells whether this CPU computes with float16; imports no TensorFlow."""
    return bool(cpu_flags() & FLOAT16_FLAGS)


def _has_float16(device: Device) -> bool:
    if device.kind == "GPU":
        return (device.compute_capability or (0, 0)) >= (5, 3)
    return bool(device.cpu_flags & FLOAT16_FLAGS)


def cpu_flags() -> frozenset[str]:
    """Returns what the CPU can, as /proc/cpuinfo has it."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _set_threads(pool: str, threads: int, threading: Any) -> None:
    if not threads or getattr(threading, f"get_{pool}_parallelism_threads")() == threads:
        return
    try:
        getattr(threading, f"set_{pool}_parallelism_threads")(threads)
    except RuntimeError:
        running = getattr(threading, f"get_{pool}_parallelism_threads")()
        raise UserError(
            f"runtime.{pool}_threads: received {threads}, but TensorFlow already runs in this process with {running}; "
            "set it before the first training of the process."
        ) from None


def _start_branches(replicas: int, threading: Any) -> int:
    """Gives each operation one thread, so that several run at once, unless the threads are set or run already."""
    with contextlib.suppress(RuntimeError):
        if not threading.get_intra_op_parallelism_threads():
            threading.set_intra_op_parallelism_threads(1)
    intra_op, inter_op = threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()
    return count_branches(len(os.sched_getaffinity(0)), replicas, intra_op, inter_op)
