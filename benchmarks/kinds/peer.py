"""What users would run instead of our training: a script of benchmarks/peers/scripts, which takes turns as ours."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mnist_dist.benchmarks.kinds.windows import TimedAccuracy, Windows, WindowsKind
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.environment import CODE_FOLDER
from mnist_dist.benchmarks.records.kinds import STARTUP_SECONDS
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.config import Config, NonNegativeFloat, PositiveInt
from mnist_dist.errors import not_among, one_line
from mnist_dist.strategies import BASELINE

SETTING = "peer"  # Of a case: which of PEERS it is.
DATA = CODE_FOLDER / "mnist_dist" / "data" / "mnist.npz"
PYTHON_VARIABLE = "MNIST_DIST_PEERS_PYTHON"  # The Python that has PyTorch.
TO_ACCURACY_SECONDS = 60.0  # Typically.


@dataclass(frozen=True)
class Script:
    """A script, with what it needs."""

    module: str  # Of mnist_dist.benchmarks.peers.scripts.
    flags: tuple[str, ...] = ()  # Beyond those that all scripts take.
    python: Literal["own", "pytorch"] = "own"  # In which environment it runs.
    batch_size: int = 128  # Of each device.
    by_horovod: bool = False  # Whether `horovodrun` starts a rank for each device.
    devices: int | None = 1  # That it must have; None: as many as its case says.


PEERS = {
    "keras-fit": Script("keras_fit"),
    "keras-fit-seed": Script("keras_fit", ("--network", "seed")),
    "horovod-example": Script("horovod_example", by_horovod=True, devices=None),
    "pytorch-float32": Script("pytorch", ("--precision", "float32"), "pytorch"),
    "pytorch-bfloat16": Script("pytorch", ("--precision", "bfloat16"), "pytorch"),
    "fast-mnist": Script("pytorch", ("--recipe", "fast-mnist"), "pytorch", 256),
    "fast-mnist-bfloat16": Script("pytorch", ("--recipe", "fast-mnist", "--precision", "bfloat16"), "pytorch", 256),
    "independent": Script("independent", batch_size=256, devices=2),
}


class PeerTraining(Windows):
    per_rank: ClassVar = ("window_seconds", "first_step_seconds")

    window_images: list[PositiveInt] = Field(
        description="[windows]: of all devices; the last batch of an epoch may be smaller than the others."
    )
    first_step_seconds: list[NonNegativeFloat] = Field(description="[ranks]: tracing, compiling and the first step.")
    evaluations: list[TimedAccuracy]
    precision: str
    device: str
    versions: dict[str, str] = Field(description="Name to version, of what the peer is built on.")


class Peer(WindowsKind):
    name = "peer"
    description = "a training as users would run it elsewhere"
    prefix = "peer: "
    measurements = PeerTraining
    own_settings = frozenset({SETTING})

    def problem(self, case: Case) -> str | None:
        name = str(case.settings.get(SETTING))
        if name not in PEERS:
            return f"{SETTING}: {not_among(one_line(name), PEERS)}"
        script = PEERS[name]
        expected = {
            "devices": script.devices or case.devices,
            "strategy": "horovod" if script.by_horovod else BASELINE,
            "global_batch_size": script.batch_size * case.devices,
        }
        for field, value in expected.items():
            if getattr(case, field) != value:
                return f"{field}: received {getattr(case, field)}, expected {value} with peer {name}."
        return None

    def skip_reason(self, case: Case, machine: Any) -> str | None:
        if machine.hosts is not None:
            return "srun does not start peers; `mnist-dist bench peers` in the job measures them on its first host"
        if _script(case).python == "pytorch" and find_pytorch(pytorch_python()) is None:
            return "no PyTorch in .venv-peers; `make peers` installs it"
        return None

    def estimate_seconds(self, case: Case) -> float:
        return STARTUP_SECONDS + (0.0 if case.measure_seconds else TO_ACCURACY_SECONDS)

    def command(self, program: Sequence[str], case: Case, config: Config, scratch: Path) -> list[str]:
        script = _script(case)
        python = pytorch_python() if script.python == "pytorch" else sys.executable
        ranks = [python, "-m", "horovod.runner.launch", "-np", str(case.devices), "--gloo"] if script.by_horovod else []
        return [
            *ranks,
            *(python, "-m", f"mnist_dist.benchmarks.peers.scripts.{script.module}"),
            *("--data", str(config.data.path or DATA), "--seed", str(config.seed)),
            *("--mode", "throughput" if case.measure_seconds else "accuracy"),
            *script.flags,
            *("--out", str(scratch)),
        ]

    def collect(self, scratch: Path) -> tuple[dict[str, Any], Sequence[str]]:
        files = sorted(scratch.glob("[0-9]*.json"), key=lambda file: int(file.stem))
        ranks = [json.loads(file.read_text()) for file in files]
        of_each = {name: [rank[name] for rank in ranks] for name in ("window_seconds", "first_step_seconds")}
        return {**ranks[0], **of_each}, [platform.node()] * len(ranks)

    def describe(self, record: Record) -> Sequence[str]:
        evaluations = record.measured["evaluations"]
        if not evaluations:
            return super().describe(record)
        last = evaluations[-1]
        seconds = last["training_seconds"] + last["evaluation_seconds"]
        return [f"test accuracy {100 * last['accuracy']:.2f} % after {seconds:.1f} s"]

    def images(self, record: Record) -> np.ndarray:
        return np.asarray(record.measured["window_images"], np.int64)


def _script(case: Case) -> Script:
    return PEERS[case.settings[SETTING]]


def pytorch_python() -> str:
    """Returns the Python in which peers find PyTorch, whether it is there or not."""
    return os.environ.get(PYTHON_VARIABLE, str(CODE_FOLDER / ".venv-peers" / "bin" / "python"))


@functools.cache
def find_pytorch(python: str) -> str | None:
    """Returns the version of PyTorch that a Python has, or None."""
    try:
        command = [python, "-c", "import torch; print(torch.__version__)"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


KIND = Peer()
