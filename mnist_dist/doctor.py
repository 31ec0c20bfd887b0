"""`mnist-dist doctor`: what this machine offers, what `auto` makes of it, and what is broken."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_dist import __version__
from mnist_dist.errors import UserError, counted
from mnist_dist.gpus import open_nvml
from mnist_dist.packages import TENSORFLOW, find_package
from mnist_dist.strategies import STRATEGIES

OK, ABSENT, BROKEN = "ok", "-", "BROKEN"  # ABSENT: optional, and not there.
MIN_FREE_BYTES = 500_000_000  # Of a run with its checkpoints and logs, about 20 MB are used.


@dataclass(frozen=True)
class Finding:
    subject: str
    status: str
    detail: str


def run() -> int:
    """Prints one line for each finding; returns 1 when something that training needs is broken, else 0."""
    findings = []
    for check in CHECKS:
        for finding in guarded(check, check.__name__.removeprefix("check_")):
            show(finding)
            findings.append(finding)
    broken = [finding.subject for finding in findings if finding.status == BROKEN]
    print(f"\nBroken: {', '.join(broken)}." if broken else "\nReady to train: `mnist-dist train`.")
    return 1 if broken else 0


def show(finding: Finding) -> None:
    print(f"{finding.status:<7} {finding.subject:<12} {finding.detail}", flush=True)


def check_versions() -> Iterator[Finding]:
    version = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Finding("Python", OK if supported else BROKEN, version if supported else f"{version}, expected 3.10 to 3.13")
    yield Finding("mnist_dist", OK, __version__)
    for names in (TENSORFLOW, *((name,) for name in ("keras", "numpy", "matplotlib", "pillow", "tensorboard"))):
        found = find_package(*names)
        detail = found[1] if found else f"not installed; run `pip install {names[0]}`"
        yield Finding(names[0], OK if found else BROKEN, detail)


def check_data() -> Iterator[Finding]:
    from mnist_dist.config import DataConfig
    from mnist_dist.data.dataset import load_arrays

    arrays = load_arrays(DataConfig())
    counts = f"{len(arrays.train_images):,} training and {len(arrays.test_images):,} test images"
    yield Finding("MNIST", OK, f"{counts}, checksum correct")


def check_other_programs() -> Iterator[Finding]:
    """Watches the cores for a second: what is measured beside other programs is slower, and varies more."""
    from mnist_dist.cpuinfo import MOST_OTHERS, busy_cpu_seconds

    cores, before, own_before = len(os.sched_getaffinity(0)), busy_cpu_seconds(), sum(os.times()[:2])
    time.sleep(1)
    others = max(busy_cpu_seconds() - before - (sum(os.times()[:2]) - own_before), 0.0)
    if not before:
        yield Finding("load", ABSENT, "cannot tell what other programs use (/proc/stat)")
        return
    is_busy, use = others > MOST_OTHERS * cores, f"other programs use {others:.1f} of {counted(cores, 'core')}"
    yield Finding("load", ABSENT if is_busy else OK, f"{use}; measure when it is idle" if is_busy else use)


def check_devices() -> Iterator[Finding]:
    from mnist_dist import runtime
    from mnist_dist.cpuinfo import cpu_name
    from mnist_dist.network.forward import compile_kernels, decide_kernels

    tf = runtime.import_tensorflow()
    usable = len(os.sched_getaffinity(0))
    yield Finding("CPU", OK, f"{cpu_name()}, {usable} of {counted(os.cpu_count() or 1, 'core')} usable by this process")
    gpus, cudnn = tf.config.list_physical_devices("GPU"), find_package("nvidia-cudnn-cu12")
    with open_nvml() as nvml:
        driver_cuda = nvml.ask("SystemGetCudaDriverVersion_v2") if nvml else None
    for index, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", ())
        shown = f"{details.get('device_name', gpu.name)}, compute capability {'.'.join(map(str, capability))}"
        problem = outdated_gpu(capability, tf.sysconfig.get_build_info(), (cudnn or ("", None))[1], driver_cuda)
        yield Finding(f"GPU:{index}", BROKEN if problem else OK, f"{shown}: {problem}" if problem else shown)
    if not gpus:
        problem = runtime.why_no_gpu()
        yield Finding("GPU", BROKEN if problem else ABSENT, problem or "none; training runs on the CPU")
    runtime.select_devices()  # What follows needs one, and no more of its memory than it takes.
    device = runtime.find_device()
    precision, xla = runtime.decide_precision("auto", device), runtime.decide_xla("auto", device)
    resident = runtime.decide_resident("auto", device)
    for name, auto in (("precision", precision), ("XLA", xla), ("resident", resident)):
        yield Finding(name, OK, f"auto picks {auto.value}: {auto.reason}")
    kernels = compile_kernels("auto", decide_kernels("auto", device, precision.value, xla.value))
    yield Finding("kernels", OK, f"auto picks {kernels.value}: {kernels.reason}")
    yield Finding("ranks", OK, explain_ranks(len(gpus), usable))


def outdated_gpu(
    capability: tuple[int, ...], build: Mapping[str, Any], cudnn: str | None, driver_cuda: int | None = None
) -> str | None:
    """Says why a GPU is too old for TensorFlow or cuDNN, or its driver too old to compile TensorFlow's kernels for it.

    Args:
        build: names capabilities as in sm_60, for which there are kernels, and compute_90, for which there is also PTX.
        cudnn: its version.
        driver_cuda: of the driver, such as 12050 for 12.5.
    """
    kernels = {name: int(name.partition("_")[2]) for name in build.get("cuda_compute_capabilities", ())}
    own = 10 * capability[0] + capability[1] if capability else 0
    if own and own < min(kernels.values(), default=0):
        return f"TensorFlow's kernels require {min(kernels.values()) / 10} or higher"
    # https://docs.nvidia.com/deeplearning/cudnn/backend/v9.11.0/release-notes.html
    if cudnn and () < capability < (7, 5) and tuple(map(int, cudnn.split(".")[:2])) >= (9, 11):
        return f"cuDNN {cudnn} requires 7.5 or higher; `pip install 'nvidia-cudnn-cu12<9.11'`"
    # A driver compiles PTX of its own CUDA at most: https://docs.nvidia.com/cuda/parallel-thread-execution/#release-notes
    major, minor = map(int, build.get("cuda_version", "0.0").split(".")[:2])
    is_compiled = own > max((number for name, number in kernels.items() if name.startswith("sm_")), default=own)
    if is_compiled and driver_cuda and driver_cuda < 1000 * major + 10 * minor:
        of_driver = f"{driver_cuda // 1000}.{driver_cuda % 1000 // 10}"
        needs = f"its driver must compile TensorFlow's kernels, which requires CUDA {major}.{minor}"
        return f"{needs}, but it supports {of_driver}; update it"
    return None


def explain_ranks(gpus: int, cores: int) -> str:
    """Tells how several processes share this host and how they sum their gradients."""
    if gpus:
        share = f"each sees one of {gpus} GPUs" if gpus > 1 else "one sees the GPU"
    elif cores > 1:
        share = f"each is pinned to its share of {cores} cores"
    else:
        share = "all share one core, so their scaling says nothing"
    return f"{share}; one all-reduce a step sums all gradients (docs/distributed.md)"


def check_training() -> Iterator[Finding]:
    """Takes three real steps; a broken installation often imports well and fails here."""
    import numpy as np

    from mnist_dist.config import DataConfig, parse_config
    from mnist_dist.data.dataset import load_arrays, make_train_dataset
    from mnist_dist.distributed.strategies.single import Single
    from mnist_dist.network.model import build_model
    from mnist_dist.network.optimizers import build_optimizer
    from mnist_dist.runtime import decide_precision, decide_xla, find_device
    from mnist_dist.training.steps import make_train_steps

    config, arrays, device = parse_config({}), load_arrays(DataConfig()), find_device()
    precision, xla = decide_precision("auto", device).value, decide_xla("auto", device).value == "on"
    model = build_model(config.model, precision=precision)
    optimizer = build_optimizer(
        config.optimizer, np.full(3, 1e-3, np.float32), loss_scaling=precision == "mixed_float16"
    )
    train_steps = make_train_steps(model, optimizer, Single(), batch_size=64, xla=xla)
    dataset = make_train_dataset(arrays.train_images, arrays.train_labels, batch_size=64, seed=0)
    losses = train_steps(iter(dataset), 3).numpy()[:, 0]
    finite = bool(np.isfinite(losses).all())
    yield Finding(
        "training", OK if finite else BROKEN, f"three steps in {precision}, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )


def check_strategies() -> Iterator[Finding]:
    """Looks at what single strategies need."""
    for row in STRATEGIES.values():
        if row.package is None:
            continue
        subject = row.package.capitalize()
        found = find_package(row.package)
        if found is None:
            detail = f"not installed; `{row.install}` (only --strategy {row.name} needs it)"
            yield Finding(subject, ABSENT, detail)
            continue
        try:
            yield Finding(subject, OK, f"{found[1]} {row.load().describe_installation()}")
        except UserError as error:
            yield Finding(subject, BROKEN, f"{found[1]} {error}")


def check_slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("Slurm", ABSENT, "no sbatch on PATH")
        return
    answer = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=20, check=False)
    text = (answer.stdout or answer.stderr).strip().splitlines() or ["it says nothing"]
    if answer.returncode == 0:
        yield Finding("Slurm", OK, next((line for line in text if line.startswith("slurm")), text[0]))
    else:  # As where the tools are installed, but no cluster is configured.
        yield Finding("Slurm", ABSENT, f"sbatch fails ({text[-1]})")


def check_disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    yield Finding("disk", OK if free >= MIN_FREE_BYTES else BROKEN, detail)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_versions,
    check_data,
    check_other_programs,
    check_devices,
    check_training,
    check_strategies,
    check_slurm,
    check_disk,
)


def guarded(check: Callable[[], Iterator[Finding]], subject: str) -> Iterator[Finding]:
    """A check that breaks is a finding, not the end of the others."""
    try:
        yield from check()
    except UserError as error:
        yield Finding(subject, BROKEN, str(error))
    except Exception as error:  # Anything may be broken in a broken installation.
        yield Finding(subject, BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
