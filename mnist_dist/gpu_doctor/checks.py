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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnist_dist.doctor import ABSENT, BROKEN, OK, Finding, check_devices, check_strategies, guarded
from mnist_dist.gpus import open_nvml
from mnist_dist.lazy import keras, tf

SLOW = "SLOW"  # It works, and takes longer than it has to.
BATCH_SIZE = 64  # Of the gradients that are compared.
MOST_MEMORY_SHARE = 0.5  # CUDA, cuDNN and this network may take 1 to 3 GB; without growth, TensorFlow takes nearly all.
MESSAGE_BYTES, CALLS = 256 * 2**20, 10
# In GB/s of bus bandwidth. NCCL gets 5 and more out of PCIe 3.0 x16, even through the host's memory, and four fifths of
# the 25 of a single NVLink 2. What is slower takes another way, or a slot with few lanes.
SLOWEST_PCIE, SLOWEST_NVLINK = 3.0, 15.0


@dataclass(frozen=True)
class Form:
    """A way to compute: with so many bits in the coarsest type's significand, and at least this compute capability."""

    precision: str
    digits: int
    capability: tuple[int, int] = (0, 0)
    tf32: bool = False
    xla: bool = False

    @property
    def bound(self) -> float:
        """Of a gradient's relative error: four times the root of the unit roundoff.

        Rounding lets units of ReLU and maxima of pooling change sides, in proportion to the unit roundoff. Each turns a
        part of the gradient over, and the length of all parts grows with the root of their number. A wrong gradient is
        off by about its own length.
        """
        return 4 * 2 ** (-self.digits / 2)


EXACT = Form("float64", 53)
ARITHMETIC = {
    "float32": Form("float32", 24),
    "TF32": Form("float32", 11, (8, 0), tf32=True),
    "bfloat16": Form("mixed_bfloat16", 8, (8, 0)),
    "float16": Form("mixed_float16", 11, (5, 3)),
}
COMPILED = {"XLA": Form("float32", 11, tf32=True, xla=True)}


def check_software(_: Sequence[str]) -> Iterator[Finding]:
    from mnist_dist.benchmarks.records.environment import find_software, known_variables

    # Not those of a scheduler, which name places.
    variables = known_variables({key: value for key, value in os.environ.items() if not key.startswith("S")})
    for name, content in {"software": find_software(), "variables": variables}.items():
        yield Finding(name, OK, ", ".join(f"{key} {value}" for key, value in content.items()) or "none")


def check_driver(_: Sequence[str]) -> Iterator[Finding]:
    with open_nvml() as nvml:
        if nvml is None or not nvml.handles:
            yield Finding("driver", ABSENT, "NVIDIA's driver shows no GPU to this process")
            return
        for index, handle in enumerate(nvml.handles):
            name, version = nvml.ask("DeviceGetName", handle), nvml.ask("SystemGetDriverVersion")
            troubles = list(nvml.troubles(handle))
            detail = "; ".join([f"{name}, driver {version}", *troubles])
            yield Finding(f"driver's {index}", BROKEN if troubles else OK, detail)


def check_libraries(_: Sequence[str]) -> Iterator[Finding]:
    from mnist_dist.gpu_doctor.libraries import try_libraries
    from mnist_dist.gpus import driver_gpus

    closed = BROKEN if driver_gpus() else ABSENT
    yield from (Finding(name, OK if opens else closed, text) for name, (opens, text) in try_libraries(60).items())


def check_topology(_: Sequence[str]) -> Iterator[Finding]:
    """Shows which GPU is linked how to which, and to which cores (NUMA), beside the cores that this process may use."""
    try:
        told = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=30, check=True)
        text = re.sub(r"\x1b\[[0-9;]*m", "", told.stdout).partition("\n\nLegend")[0]
        yield Finding("topology", OK, f"this process may use the cores {sorted(os.sched_getaffinity(0))}\n{text}")
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("topology", ABSENT, f"`nvidia-smi topo -m` failed ({type(error).__name__})")


def check_tensorflow(_: Sequence[str]) -> Iterator[Finding]:
    """What the doctor says of all devices; the GPUs have the names by which the other checks take them."""
    yield from check_devices()


def check_arithmetic(devices: Sequence[str], forms: Mapping[str, Form] = ARITHMETIC) -> Iterator[Finding]:
    """Compares the gradient of the network on a batch of MNIST with that in float64 on the CPU."""
    exact = gradient("CPU:0", EXACT)
    for device, (name, form) in itertools.product(devices, forms.items()):
        if _capability(device) < form.capability:
            yield Finding(f"{device} {name}", ABSENT, f"needs compute capability {'.'.join(map(str, form.capability))}")
            continue
        error = float(np.linalg.norm(gradient(device, form) - exact) / np.linalg.norm(exact))
        detail = f"relative error {error:.1e} of a gradient against float64, expected at most {form.bound:.1g}"
        yield Finding(f"{device} {name}", OK if error <= form.bound else BROKEN, detail)  # NaN is BROKEN, too.


def check_xla(devices: Sequence[str]) -> Iterator[Finding]:
    yield from check_arithmetic(devices, COMPILED)


def gradient(device: str, form: Form, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Returns the gradient of the sum of a batch's losses by all weights of a new network, float64 in one row."""
    from mnist_dist.config import DataConfig, ModelConfig
    from mnist_dist.data.dataset import load_arrays
    from mnist_dist.network.model import build_model

    arrays = load_arrays(DataConfig())
    rows = np.arange(batch_size) % len(arrays.train_images)
    tf.config.experimental.enable_tensor_float_32_execution(form.tf32)
    with tf.device(device):
        model = build_model(ModelConfig(), precision="float32" if form is EXACT else form.precision)
        if form is EXACT:  # All of it, with the same weights.
            weights = model.get_weights()
            model = keras.models.clone_model(
                model, clone_function=lambda layer: layer.from_config(layer.get_config() | {"dtype": "float64"})
            )
            model.set_weights(weights)

        @tf.function(jit_compile=form.xla, autograph=False)
        def compute(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                logits = model(tf.cast(images, tf.float32)[..., None], training=True)
                loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

        parts = compute(tf.constant(arrays.train_images[rows]), tf.constant(arrays.train_labels[rows], tf.int32))
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def check_memory(devices: Sequence[str]) -> Iterator[Finding]:
    """Looks with the driver at what a step takes of each GPU's memory."""
    with open_nvml() as nvml:
        if nvml is None:
            return
        before = [nvml.ask("DeviceGetMemoryInfo", handle) for handle in nvml.handles]
        for device in devices:
            gradient(device, ARITHMETIC["float32"])
        for index, (old, handle) in enumerate(zip(before, nvml.handles, strict=True)):
            if old and (new := nvml.ask("DeviceGetMemoryInfo", handle)):
                detail = f"a step took {(new.used - old.used) / 2**20:,.0f} MiB of {new.total / 2**20:,.0f}"
                is_small = new.used - old.used <= MOST_MEMORY_SHARE * new.total
                status = OK if is_small else BROKEN
                yield Finding(f"memory of {index}", status, f"{detail}, expected at most half")


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
    total = reduce_many(2)
    began = time.perf_counter()
    reduce_many(CALLS)
    # As nccl-tests count it, for comparison between numbers of GPUs.
    bandwidth = 2 * (count - 1) / count * message_bytes * CALLS / (time.perf_counter() - began) / 1e9
    with open_nvml() as nvml:
        linked = nvml is not None and any(nvml.ask("DeviceGetNvLinkState", handle, 0) for handle in nvml.handles)
    least, link = (SLOWEST_NVLINK, "NVLink") if linked else (SLOWEST_PCIE, "PCIe")
    detail = f"{message_bytes / 2**20:,.0f} MiB by {strategy.backend}: {bandwidth:.1f} GB/s of bus bandwidth"
    detail += f", expected at least {least:g} with {link}"
    wrong = f"{strategy.backend} summed {count**2} ones to {total:g}" if total != count**2 else ""
    yield Finding("all-reduce", BROKEN if wrong else OK if bandwidth >= least else SLOW, wrong or detail)


def check_horovod(_: Sequence[str]) -> Iterator[Finding]:
    for finding in check_strategies():
        lacks = finding.status == OK and "NCCL" not in finding.detail.partition(";")[0]
        detail = f"{finding.detail}; without NCCL it takes no GPUs: `mnist-dist install-horovod --force`"
        yield dataclasses.replace(finding, status=BROKEN, detail=detail) if lacks else finding


def check_batch(devices: Sequence[str], first: int = 4096, last: int = 2**20) -> Iterator[Finding]:
    """Doubles the batch of a gradient until memory does not suffice; each is told, lest one ends the process."""
    for batch in (first << doublings for doublings in range((last // first).bit_length())):
        try:
            gradient(devices[0], ARITHMETIC["float32"], batch)
        except (tf.errors.ResourceExhaustedError, MemoryError):
            yield Finding("batch", ABSENT, f"{batch:,} images at once are more than {devices[0]} has memory for")
            return
        yield Finding("batch", OK, f"{batch:,} images at once fit into the memory of {devices[0]}")


def _capability(device: str) -> tuple[int, ...]:
    """Returns the compute capability of a GPU; that of another device suffices for all."""
    kind, _, index = device.rpartition(":")
    gpu = tf.config.get_visible_devices("GPU")[int(index)] if kind == "GPU" else None
    return tf.config.experimental.get_device_details(gpu).get("compute_capability", ()) if gpu else (99,)


def main(name: str, file: str, *devices: str) -> None:
    check: Callable[[Sequence[str]], Iterator[Finding]] = globals()[f"check_{name}"]
    if devices:
        from mnist_dist.runtime import select_devices

        select_devices(len(devices))
    with Path(file).open("a", encoding="utf-8") as out:
        for finding in guarded(lambda: check(devices), name):
            print(json.dumps(dataclasses.asdict(finding)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # Taking TensorFlow apart takes seconds.
