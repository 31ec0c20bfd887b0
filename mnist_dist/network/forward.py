"""How the network is computed: by its Keras layers (plain), or as the same function in a form that suits CPUs (fused).

The latter is the folder `cpu`, which nobody else knows; whoever trains or measures asks here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mnist_dist import cpuinfo
from mnist_dist.config import ModelConfig, RuntimeConfig
from mnist_dist.errors import UserError
from mnist_dist.lazy import keras, tf
from mnist_dist.network import flops
from mnist_dist.network.cpu import build as kernel_build
from mnist_dist.network.cpu import forward as cpu_forward
from mnist_dist.runtime import Decision, Device, Runtime, import_tensorflow


@dataclass(frozen=True)
class Forward:
    """The network as a function.

    Attributes:
        compute: `compute(images, training=...)`, from pixels [b, 28, 28, 1] to the model's output [b, 10].
        count_parts: from the images of a batch to the number of parts to compute it in, side by side.
        traced_apart: whether all parts share one `tf.function`; impossible where the model exchanges values between
            replicas.
    """

    compute: Callable[..., tf.Tensor]
    count_parts: Callable[[int], int] = lambda images: 1
    traced_apart: bool = False


@dataclass(frozen=True)
class Form:
    """How this process computes the network."""

    kernels: Decision  # "plain" or "fused".
    branches: int = 1  # Parts of each replica's batch that are computed side by side.

    @property
    def fuses_updates(self) -> bool:
        """Whether the optimizer should update each variable in one operation."""
        return self.kernels.value == "fused"

    def make_forward(self, model: keras.Model) -> Forward:
        """Returns the function of a model as `build_model` makes it."""
        if self.kernels.value == "plain":
            return Forward(model)
        return Forward(
            cpu_forward.make_forward(model),
            lambda images: cpu_forward.count_parts(images, self.branches),
            traced_apart=True,
        )

    def flops_per_image(self, config: ModelConfig) -> int:
        """See `flops.flops_per_image`; the fused form leaves out what pooling discards."""
        return flops.flops_per_image(config, cropped=self.kernels.value == "fused")


def choose_form(config: RuntimeConfig, runtime: Runtime, *, batch_norm: bool = False) -> Form:
    """Decides what `kernels: auto` means, compiles what is needed, and gives TensorFlow the threads for it.

    TensorFlow must not have touched its devices before. Raises UserError as `decide_kernels` does.
    """
    decided = decide_kernels(config.kernels, runtime.device, runtime.precision.value, runtime.xla.value, batch_norm)
    kernels = compile_kernels(config.kernels, decided)
    if kernels.value == "plain":
        return Form(kernels)
    return Form(kernels, _start_branches(runtime.replicas, import_tensorflow().config.threading))


def decide_kernels(requested: str, device: Device, precision: str, xla: str, batch_norm: bool = False) -> Decision:
    """Picks the layers of Keras (plain), or the same function in a form that CPUs compute faster (fused).

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
            "fused", "as configured" if requested == "fused" else "custom kernels and oneDNN's are faster than Keras'"
        )
    if requested == "fused":
        raise UserError(f"runtime.kernels: received 'fused', but {obstacle}; expected plain or auto.")
    return Decision("plain", obstacle)


def compile_kernels(requested: str, decided: Decision) -> Decision:
    """Compiles what the fused form needs, the first time.

    Where that fails, the layers of Keras take its place, or UserError is raised if the fused form was requested.
    """
    if decided.value == "plain":
        return decided
    try:
        kernel_build.load(cpuinfo.cpu_flags())
    except kernel_build.KernelError as error:
        if requested == "fused":
            raise UserError(f"runtime.kernels: received 'fused', but {error}; or set it to plain.") from None
        return Decision("plain", f"the fused form could not be compiled: {error}")
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


def _has_onednn(device: Device) -> bool:
    """Tells whether TensorFlow computes with oneDNN: by its own default where the CPU has one of these, or as told."""
    told = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    known = device.cpu_flags & {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile"}
    return told == "1" if told in ("0", "1") else bool(known)


def _start_branches(replicas: int, threading: Any) -> int:
    """Gives each operation one thread, so that several run at once, unless the threads are set or run already."""
    with contextlib.suppress(RuntimeError):
        if not threading.get_intra_op_parallelism_threads():
            threading.set_intra_op_parallelism_threads(1)
    intra_op, inter_op = threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()
    return count_branches(len(os.sched_getaffinity(0)), replicas, intra_op, inter_op)
