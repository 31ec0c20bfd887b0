"""The training loop: `mnist-dist train` itself, whose own clock tells the time of its windows on every rank."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from mnist_dist.benchmarks.analysis.summary import RunSummary
from mnist_dist.benchmarks.kinds.windows import TimedAccuracy, Windows, WindowsKind
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import STARTUP_SECONDS
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.config import Config, NonNegativeFloat, NonNegativeInt, config_to_yaml
from mnist_dist.distributed.turns import FULL
from mnist_dist.training.variants import VARIANTS
from mnist_dist.training.workdir import Workdir
from mnist_dist.training.writers import read_rows

IMAGES_PER_SECOND, EPOCH_IMAGES = 18_000.0, 60_000  # A pace, until one is known.


class Evaluation(TimedAccuracy):
    loss: NonNegativeFloat


class Training(Windows):
    per_rank: ClassVar = ("window_seconds", "first_step_seconds", "startup_seconds", "peak_memory_bytes")

    first_step_seconds: list[NonNegativeFloat] = Field(description="[ranks]: tracing, compiling and the first step.")
    startup_seconds: list[NonNegativeFloat] = Field(
        description="[ranks]: from the start of the process to its first step."
    )
    peak_memory_bytes: list[NonNegativeFloat] = Field(description="[ranks]: largest resident set of the process.")
    peak_device_memory_bytes: list[NonNegativeFloat] | None = Field(description="[ranks]: of its GPUs.")
    evaluations: list[Evaluation]
    test_accuracy: NonNegativeFloat | None = Field(description="Of the saved float32 model; null where none was left.")
    test_loss: NonNegativeFloat | None
    flops_per_image: NonNegativeInt = Field(
        description="Executed in one training step: forward, gradients of weights and of activations; convolutions and "
        "dense layers only."
    )
    precision: str
    xla: str
    resident: str | None = Field(None, description="Whether images lived on the devices: on or off.")
    device: str
    kernels: str | None = Field(None, description="Of a CPU: fused, custom kernels; plain, TensorFlow's layers.")
    all_reduce_backend: str | None = Field(None, description="What summed gradients: NCCL, gRPC, Gloo, MPI or memory.")


class Train(WindowsKind):
    name = "train"
    description = "the training loop"
    prefix = ""
    measurements = Training

    def ablations(self, case: Case) -> tuple[str, ...]:
        """One device has no all-reduce that could be left out."""
        return tuple(name for name, each in VARIANTS.items() if name != FULL and (each.reduced or case.devices > 1))

    def estimate_seconds(self, case: Case) -> float:
        epochs = float(case.settings.get("training.epochs", 3))
        return STARTUP_SECONDS + (0.0 if case.measure_seconds else epochs * EPOCH_IMAGES / IMAGES_PER_SECOND)

    def command(self, program: Sequence[str], case: Case, config: Config, scratch: Path) -> list[str]:
        (scratch / "config.yaml").write_text(config_to_yaml(config, changed_only=True))
        return [*program, "train", "--config", str(scratch / "config.yaml"), "--workdir", str(scratch / "run")]

    def collect(self, scratch: Path) -> tuple[dict[str, Any], Sequence[str]]:
        folder = Workdir(scratch / "run")
        result = folder.read_result() or {}
        times = json.loads(folder.step_times_file.read_text())
        if result["status"] not in ("completed", "measured"):
            raise ValueError(f"the run was {result['status']}")
        found = {"test_accuracy": None, "test_loss": None, **result, **times}
        found["evaluations"] = [
            {name: row[name] for name in Evaluation.model_fields}
            for row in read_rows(folder.metrics_file)
            if row["kind"] == "evaluate"
        ]
        hosts = [platform.node() if host == "127.0.0.1" else host for host in times["hosts"]]
        return {name: found.get(name) for name in Training.model_fields}, hosts

    def aspects(self, record: Record) -> Mapping[str, float]:
        return {"training": RunSummary(record).series.log_rate}

    def describe(self, record: Record) -> Sequence[str]:
        accuracy = record.measured["test_accuracy"]
        found = [] if accuracy is None else [f"test accuracy {100 * accuracy:.2f} %"]
        return [*super().describe(record), *found]


KIND = Train()
