"""How this process computes: device, precision, XLA, TF32, threads, seeds, determinism.

`auto` settings are decided here by pure functions of the device, and every decision carries its reason.
"""

import gc
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from mnist_dist import cpuinfo, errors
from mnist_dist.config import RuntimeConfig
from mnist_dist.errors import UserError, counted, one_line
from mnist_dist.gpus import driver_gpus
from mnist_dist.lazy import hidden, hidden_from_keras
from mnist_dist.strategies import STRATEGIES


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
    replicas: int  # In this process.
    precision: Decision
    xla: Decision


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow without its notices about oneDNN and absent GPU libraries.

    They go to file descriptor 2 before any log level applies. When the import fails, they are printed after all.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # Whatever other programs of the user's take.
    # As NVIDIA's driver counts; by itself CUDA sorts by speed.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    _prefer_onednn()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notices:
        stderr = errors.stderr = os.dup(2)  # For who presses Ctrl-C now to get an answer.
        os.dup2(notices.fileno(), 2)
        collects = gc.isenabled()
        gc.disable()  # Else a third of the import goes into looking for garbage among thousands of modules.
        try:
            with hidden(hidden_from_keras):
                import keras  # noqa: F401 - its notices belong to the same moment.
                import tensorflow

            tensorflow.config.list_physical_devices()  # Says so when there is no GPU driver.
            tensorflow.get_logger().setLevel("ERROR")  # Warns of compiling when a process trains several times.
        except BaseException as error:
            notices.seek(0)
            os.write(stderr, notices.read())
            if isinstance(error, ImportError):
                raise UserError(
                    f"TensorFlow or Keras cannot be imported: {one_line(str(error))}; see `mnist-dist doctor` for what "
                    "is installed, `ulimit -v` for the memory that a process may take."
                ) from error
            raise
        finally:
            if collects:
                gc.enable()
            gc.freeze()  # The modules stay; later collections need not look at them.
            os.dup2(stderr, 2)
            errors.stderr = 2
            os.close(stderr)
    return tensorflow


def configure_runtime(
    config: RuntimeConfig, seed: int, *, local_rank: int = 0, local_size: int = 1, batch_norm: bool = False
) -> Runtime:
    """Applies the settings to TensorFlow, before it touches a device, and decides what `auto` means.

    Args:
        config: with the strategy resolved.
        local_rank, local_size: which of how many processes of the job on this host this one is.
        batch_norm: whether the model normalises over the batch, of all replicas.

    Raises:
        UserError: a setting asks for what the device lacks, TensorFlow already runs in another way, or it finds none of
            the GPUs that there are.
    """
    tf = import_tensorflow()
    import keras

    _set_threads("intra_op", config.intra_op_threads, tf.config.threading)
    _set_threads("inter_op", config.inter_op_threads, tf.config.threading)
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    # Not as in a user's ~/.keras/keras.json.
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    keras.utils.set_random_seed(seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    replicas = config.devices if STRATEGIES[config.strategy].one_process else 1
    select_devices(replicas, local_rank, local_size)
    device = find_device()
    if device.kind == "CPU" and (problem := why_no_gpu()):
        raise UserError(f"runtime.devices: {problem}; to train on the CPU all the same, set CUDA_VISIBLE_DEVICES=-1.")
    precision = decide_precision(config.precision, device)
    xla = decide_xla(config.xla, device, batch_norm and config.devices > 1, config.deterministic)
    return Runtime(device, replicas, precision, xla)


def select_devices(replicas: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
    """Shows TensorFlow the devices of this process only, one for each of its replicas, and no others' memory.

    Raises:
        UserError: there are fewer GPUs than replicas, or TensorFlow has already set up its devices otherwise.
    """
    tf = import_tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    try:
        if gpus:
            mine = choose_gpus(len(gpus), replicas, local_rank, local_size)
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
            f"runtime.devices: received {replicas}, but TensorFlow already runs in this process with other "
            "devices; train in a fresh process."
        ) from None


def choose_gpus(visible: int, replicas: int, local_rank: int, local_size: int) -> list[int]:
    """Returns the indices of this process' GPUs among those it can see.

    A scheduler may show each rank its own GPU only, which then has the index 0 on every rank.
    """
    if replicas > visible:
        raise UserError(f"runtime.devices: received {replicas}, but this process sees {counted(visible, 'GPU')}.")
    if local_size == 1:
        return list(range(replicas))
    if 1 < visible < local_size:
        raise UserError(
            f"runtime.devices: {local_size} ranks on this host see {visible} GPUs, expected one each; "
            "start fewer ranks."
        )
    return [local_rank % visible]


def why_no_gpu() -> str | None:
    """Returns why TensorFlow finds none of the GPUs that the driver shows, in its own words; None if there are none."""
    gpus = len(driver_gpus())
    if not gpus:
        return None
    program = [sys.executable, "-c", "import tensorflow; tensorflow.config.list_physical_devices('GPU')"]
    try:  # In a process of its own: in this one it has said so, if at all, before anybody knew that it matters.
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
        said = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False).stderr
    except (OSError, subprocess.SubprocessError) as error:
        said = f"CUDA: {error}"
    about = [
        line.partition("] ")[2] or line for line in said.splitlines() if re.search("cuda|gpu", line, re.IGNORECASE)
    ]
    reason = one_line(about[-1], 300).rstrip(".") if about else "it does not say why"
    return (
        f"NVIDIA's driver shows {gpus} GPU{'s' * (gpus > 1)}, but TensorFlow finds none ({reason}); "
        "`pip install 'mnist-dist[gpu]'` installs the libraries, or update the driver"
    )


def find_device() -> Device:
    """Describes the first visible GPU, or else the CPU."""
    tf = import_tensorflow()
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return Device("CPU", cpuinfo.cpu_name(), cpu_flags=cpuinfo.cpu_flags())
    details = tf.config.experimental.get_device_details(gpus[0])
    return Device("GPU", details.get("device_name", "GPU"), details.get("compute_capability"))


def decide_precision(requested: str, device: Device) -> Decision:
    """Picks the 16-bit type that the device computes natively, or float32; raises UserError for an emulated float16."""
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


def decide_xla(
    requested: str, device: Device, exchanges_in_model: bool = False, deterministic: bool = False
) -> Decision:
    """Returns whether XLA compiles the steps, or raises UserError where it was requested for what it cannot compile.

    With `exchanges_in_model`, replicas exchange values within the model.
    """
    if exchanges_in_model or deterministic:
        setting, reason = "runtime.deterministic", "XLA has no deterministic gradient of max pooling"
        if exchanges_in_model:
            setting, reason = "model.batch_norm on several replicas", "XLA cannot compile their exchange of statistics"
        if requested == "on":
            raise UserError(f"runtime.xla: received 'on' with {setting}, expected off or auto; {reason}.")
        return Decision("off", reason)
    if requested != "auto":
        return Decision(requested, "as configured")
    if device.kind == "GPU":
        return Decision("on", "XLA fuses the many small operations of this network on a GPU")
    return Decision("off", "XLA's CPU convolutions are slower than oneDNN's")


def decide_resident(requested: str, device: Device) -> Decision:
    """Decides whether the training images live on the devices, and each step is told which of them it takes."""
    if requested != "auto":
        return Decision(requested, "as configured")
    if device.kind == "GPU":
        return Decision("on", "a GPU reads images faster from its own memory than from the host's")
    return Decision("off", "a CPU has the images in its own memory anyway, and gathers the next while it trains")


def _prefer_onednn() -> None:
    """TensorFlow takes oneDNN by itself where the CPU has VNNI, bfloat16 or AMX; with AVX2 alone it is faster too.

    Training the default configuration on such an EPYC became 2.7 times as fast by it (docs/benchmarks.md).
    """
    if "avx2" in cpuinfo.cpu_flags():
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _has_float16(device: Device) -> bool:
    if device.kind == "GPU":
        return (device.compute_capability or (0, 0)) >= (5, 3)
    return bool(device.cpu_flags & cpuinfo.FLOAT16_FLAGS)


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
