"""What is checked, each in a process of its own. What computes takes any devices, those of a CPU as well.

`python -m mnist_dist.gpu_doctor.checks NAME FILE DEVICE...` adds a line of JSON to the file for each finding.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_dist.doctor import ABSENT, BROKEN, OK, Finding, check_strategies, guarded, outdated_gpu
from mnist_dist.gpus import open_nvml

if TYPE_CHECKING:
    import tensorflow as tf

SLOW = "SLOW"  # It works, and takes longer than it has to.
BATCH_SIZE = 64  # Of the gradients that are compared.
MOST_MEMORY_SHARE = 0.25  # CUDA, cuDNN and this network take 1 to 3 GB; without growth, TensorFlow takes nearly all.
MESSAGE_BYTES, CALLS = 256 * 2**20, 10
# In GB/s, of an all-reduce's bus bandwidth. NCCL gets 5 and more out of PCIe 3.0 x16, even through the host's memory,
# and four fifths of the 25 of a single NVLink 2: what is slower takes another way, or a slot with few lanes.
SLOWEST_PCIE, SLOWEST_NVLINK = 3.0, 15.0
STEP_BATCHES = (128, 2048, 16384)
STEP_VARIANTS: Mapping[str, Mapping[str, Any]] = {  # What else a step's time depends on, by the settings of a training.
    "without XLA": {"runtime.xla": "off"},
    "with XLA": {"runtime.xla": "on"},
}


@dataclass(frozen=True)
class Form:
    """A way to compute a gradient.

    Attributes:
        digits: bits of the significand, of the coarsest type on the way.
        capability: the least compute capability that has this arithmetic.
    """

    precision: str
    digits: int
    capability: tuple[int, int] = (0, 0)
    tf32: bool = False
    xla: bool = False

    @property
    def bound(self) -> float:
        """Of the relative error: four times the root of the unit roundoff.

        Rounding lets some units of ReLU and some maxima of pooling change sides, in proportion to the unit roundoff.
        Each turns a part of the gradient over, and the length of such parts together grows with the root of their
        number. A wrong gradient is off by as much as its own length.
        """
        return 4 * 2 ** (-self.digits / 2)


ARITHMETIC = {
    "float32": Form("float32", 24),
    "TF32": Form("float32", 11, (8, 0), tf32=True),
    "bfloat16": Form("mixed_bfloat16", 8, (8, 0)),
    "float16": Form("mixed_float16", 11, (5, 3)),
}
COMPILED = {"XLA": Form("float32", 11, tf32=True, xla=True)}


def check_driver(devices: Sequence[str] = ()) -> Iterator[Finding]:
    """Names the GPUs as NVIDIA's driver tells of them, with what is wrong with them now, and where they are."""
    with open_nvml() as nvml:
        if nvml is None or not nvml.handles:
            yield Finding("driver", ABSENT, "NVIDIA's driver shows no GPU to this process")
            return
        yield Finding("driver", OK, f"{nvml.ask('SystemGetDriverVersion')}, {len(nvml.handles)} GPUs")
        for index, handle in enumerate(nvml.handles):
            memory = nvml.ask("DeviceGetMemoryInfo", handle)
            shown = f"{nvml.ask('DeviceGetName', handle)}" + (f", {memory.total / 2**30:.0f} GiB" if memory else "")
            troubles = list(nvml.troubles(handle))
            yield Finding(f"driver's {index}", BROKEN if troubles else OK, "; ".join([shown, *troubles]))
            words = nvml.ask("DeviceGetCpuAffinity", handle, -(-(os.cpu_count() or 1) // 64)) or ()
            near = {64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1}
            mine = os.sched_getaffinity(0)
            if near:
                detail = f"{len(near & mine)} of this process' {len(mine)} cores are on the GPU's NUMA node"
                yield Finding(f"NUMA of {index}", OK if near & mine else SLOW, detail)


def check_libraries(devices: Sequence[str] = ()) -> Iterator[Finding]:
    from mnist_dist import cuda

    with open_nvml() as nvml:
        needed = nvml is not None and bool(nvml.handles)
    for name, (opened, detail) in cuda.open_libraries(60).items():
        if opened or not needed:
            yield Finding(name, OK if opened else ABSENT, detail)
        else:
            yield Finding(name, BROKEN, f"{detail}; {cuda.REMEDY}")


def check_versions(devices: Sequence[str] = ()) -> Iterator[Finding]:
    from mnist_dist.benchmarks.records.environment import find_hardware, find_software, known_variables

    yield Finding("versions", OK, ", ".join(f"{name} {version}" for name, version in find_software().items()))
    hardware = find_hardware()
    yield Finding("host", OK, f"{hardware.cpu_model}, {hardware.cores} cores, {hardware.memory_bytes / 2**30:.0f} GiB")
    if variables := known_variables({name: each for name, each in os.environ.items() if not name.startswith("SLURM")}):
        yield Finding("variables", OK, ", ".join(f"{name}={value}" for name, value in variables.items()))


def check_topology(devices: Sequence[str] = ()) -> Iterator[Finding]:
    try:
        told = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("topology", ABSENT, f"`nvidia-smi topo -m` does not tell it ({type(error).__name__})")
        return
    text = re.sub(r"\x1b\[[0-9;]*m", "", told.stdout).partition("Legend")[0]
    yield Finding("topology", OK, "\n".join(line.rstrip() for line in text.splitlines() if line.strip()))


def check_devices(devices: Sequence[str] = ()) -> Iterator[Finding]:
    """Names the GPUs as TensorFlow does, which is how the other checks take them."""
    from mnist_dist.packages import find_package
    from mnist_dist.runtime import import_tensorflow, why_no_gpu

    tf, cudnn = import_tensorflow(), find_package("nvidia-cudnn-cu12")
    build = tf.sysconfig.get_build_info()
    told = ", ".join(f"{name} {build[name]}" for name in ("cuda_version", "cudnn_version") if name in build)
    yield Finding("build", OK, f"TensorFlow {tf.__version__}: {told or 'without CUDA'}")
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and (problem := why_no_gpu()):
        yield Finding("TensorFlow", BROKEN, problem)
    for index, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", ())
        shown = f"{details.get('device_name', 'GPU')}, compute capability {'.'.join(map(str, capability))}"
        problem = outdated_gpu(capability, build, (cudnn or ("", None))[1])
        yield Finding(f"GPU:{index}", BROKEN if problem else OK, f"{shown}: {problem}" if problem else shown)


def check_arithmetic(devices: Sequence[str], forms: Mapping[str, Form] = ARITHMETIC) -> Iterator[Finding]:
    """Compares the gradient of the network on a batch of MNIST with that in float64 on the CPU."""
    exact = gradient("CPU:0", Form("float64", 53))
    for device, (name, form) in itertools.product(devices, forms.items()):
        subject, capability = f"{device} {name}", _capability(device)
        if capability and capability < form.capability:
            least = ".".join(map(str, form.capability))
            yield Finding(subject, ABSENT, f"needs compute capability {least}")
            continue
        error = float(np.linalg.norm(gradient(device, form) - exact) / np.linalg.norm(exact))
        # Not `error > bound`: a gradient that is not a number is wrong, too.
        detail = f"relative error {error:.1e} of a gradient against float64, expected at most {form.bound:.1g}"
        yield Finding(subject, OK if error <= form.bound else BROKEN, detail)


def check_xla(devices: Sequence[str]) -> Iterator[Finding]:
    yield from check_arithmetic(devices, COMPILED)


def gradient(device: str, form: Form) -> np.ndarray:
    """Returns the gradient of the sum of a batch's losses by all weights of a new network, float64 in one row."""
    import keras
    import tensorflow as tf

    from mnist_dist.config import DataConfig, ModelConfig
    from mnist_dist.data.dataset import load_arrays
    from mnist_dist.network.model import build_model

    arrays = load_arrays(DataConfig())
    tf.config.experimental.enable_tensor_float_32_execution(form.tf32)
    with tf.device(device):
        model = build_model(ModelConfig(), precision="float32" if form.precision == "float64" else form.precision)
        if form.precision == "float64":  # All of it, logits included, with the same weights.
            weights = model.get_weights()
            model = keras.models.clone_model(
                model, clone_function=lambda layer: layer.from_config(layer.get_config() | {"dtype": "float64"})
            )
            model.set_weights(weights)

        @tf.function(jit_compile=form.xla, autograph=False)
        def compute(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
                loss = tf.reduce_sum(losses)
            return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

        images = tf.constant(arrays.train_images[:BATCH_SIZE, ..., None].astype(np.float32))
        parts = compute(images, tf.constant(arrays.train_labels[:BATCH_SIZE].astype(np.int32)))
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def check_memory(devices: Sequence[str]) -> Iterator[Finding]:
    """Looks with the driver at what a step takes of each GPU's memory, all programs' together."""
    with open_nvml() as nvml:
        handles = (nvml.handles if nvml else [])[: len(devices)]
        before = [nvml.ask("DeviceGetMemoryInfo", handle) for handle in handles] if nvml else []
        for device in devices:
            gradient(device, ARITHMETIC["float32"])
        after = [nvml.ask("DeviceGetMemoryInfo", handle) for handle in handles] if nvml else []
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is None or new is None:
            yield Finding(f"memory of {index}", ABSENT, "the driver does not tell it")
            continue
        taken = new.used - old.used
        detail = f"a step took {taken / 2**20:,.0f} MiB of {new.total / 2**20:,.0f}, expected at most a quarter"
        yield Finding(f"memory of {index}", OK if taken <= MOST_MEMORY_SHARE * new.total else BROKEN, detail)


def check_all_reduce(devices: Sequence[str], message_bytes: int = MESSAGE_BYTES) -> Iterator[Finding]:
    """Times all-reduces over all devices in one process, by what `mirrored` takes."""
    from mnist_dist.benchmarks.kinds.collectives import make_reduce_many
    from mnist_dist.distributed.strategies.mirrored import Mirrored

    count = len(devices)
    if count < 2:
        yield Finding("all-reduce", ABSENT, "not applicable to one GPU")
        return
    strategy = Mirrored(devices)
    reduce_many = make_reduce_many(strategy, message_bytes)
    total = float(reduce_many(2))
    if total != count**2:
        yield Finding("all-reduce", BROKEN, f"{strategy.backend} summed {count**2} ones to {total:g}")
        return
    began = time.perf_counter()
    reduce_many(CALLS)
    seconds = (time.perf_counter() - began) / CALLS
    bandwidth = 2 * (count - 1) / count * message_bytes / seconds / 1e9
    slowest = SLOWEST_NVLINK if _has_nvlink() else SLOWEST_PCIE
    yield Finding(
        "all-reduce",
        OK if bandwidth >= slowest else SLOW,
        f"{strategy.backend}, {message_bytes / 2**20:,.0f} MiB: bus bandwidth {bandwidth:.1f} GB/s, expected at least "
        f"{slowest:g}{' with NVLink' if slowest == SLOWEST_NVLINK else ''}",
    )


def check_horovod(devices: Sequence[str] = ()) -> Iterator[Finding]:
    for finding in check_strategies():
        lacks = finding.status == OK and "NCCL" not in finding.detail.partition(";")[0]
        detail = f"{finding.detail}; without NCCL it takes no GPUs: `mnist-dist install-horovod --force`"
        yield dataclasses.replace(finding, status=BROKEN, detail=detail) if lacks else finding


def check_step_times(
    devices: Sequence[str], batches: Sequence[int] = STEP_BATCHES, measure_seconds: float = 2.0
) -> Iterator[Finding]:
    """Trains on one device, in the loop that all trainings take."""
    from mnist_dist.config import load_config
    from mnist_dist.training.trainer import train

    always = {"training.measure_seconds": measure_seconds, "training.epochs": 1000, "logging.tensorboard": False}
    for batch, (name, settings) in itertools.product(batches, STEP_VARIANTS.items()):
        config = load_config("default", {**always, **settings, "training.batch_size": batch})
        with tempfile.TemporaryDirectory() as folder:

            def measure(config: Any = config, folder: str = folder, name: str = name) -> Iterator[Finding]:
                train(config, Path(folder) / "run")
                times = json.loads((Path(folder) / "run" / "step_times.json").read_text())
                step = sum(times["window_seconds"][0]) / sum(times["window_steps"])
                first = times["first_step_seconds"][0]
                detail = (
                    f"{1e3 * step:.3g} ms a step {name}, {batch / step:,.0f} images/s; the first took {first:.1f} s"
                )
                yield Finding(f"batch {batch}", OK, detail)

            yield from guarded(measure, f"batch {batch} {name}")


def _capability(device: str) -> tuple[int, int] | None:
    import tensorflow as tf

    kind, _, index = device.rpartition(":")
    physical = tf.config.get_visible_devices(kind)
    if kind != "GPU":
        return None
    return tf.config.experimental.get_device_details(physical[int(index)]).get("compute_capability")


def _has_nvlink() -> bool:
    with open_nvml() as nvml:
        return nvml is not None and any(nvml.ask("DeviceGetNvLinkState", handle, 0) for handle in nvml.handles)


CHECKS: Mapping[str, Callable[[Sequence[str]], Iterator[Finding]]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_driver,
        check_libraries,
        check_versions,
        check_topology,
        check_devices,
        check_arithmetic,
        check_xla,
        check_memory,
        check_all_reduce,
        check_horovod,
        check_step_times,
    )
}


def main(name: str, file: str, *devices: str) -> None:
    with open(file, "a", encoding="utf-8") as out:  # noqa: PTH123
        if devices:
            from mnist_dist.runtime import import_tensorflow, select_devices

            import_tensorflow()
            select_devices(len(devices))
        for finding in guarded(lambda: CHECKS[name](devices), name):
            out.write(json.dumps(dataclasses.asdict(finding)) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # Taking TensorFlow apart takes seconds.
