"""One thing to measure: what runs, on how many devices, with which settings.

Imports no TensorFlow: cases are planned, listed and compared on login nodes.
"""

import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mnist_dist.benchmarks.records.kinds import KINDS
from mnist_dist.config import PositiveFloat, PositiveInt, Section, StrategyName
from mnist_dist.strategies import BASELINE, STRATEGIES


def _check_kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"one of {', '.join(KINDS)}")
    return name


KindName = Annotated[str, AfterValidator(_check_kind), Field(json_schema_extra={"enum": list(KINDS)})]


class Case(Section):
    """What is measured. Equal cases may be averaged, and compared between studies."""

    kind: KindName = Field("train", description="What is measured; see mnist_dist.benchmarks.records.kinds.")
    strategy: StrategyName = Field(BASELINE, description="How the devices work together.")
    devices: PositiveInt = Field(1, description="Devices (replicas) in total.")
    hosts: PositiveInt = Field(1, description="Hosts over which the devices spread evenly.")
    cores_per_device: PositiveInt | None = Field(
        None, description="CPU cores that each device may use; empty: all that the job has."
    )
    global_batch_size: PositiveInt = Field(128, description="Images of all devices in one step.")
    synthetic_input: bool = Field(False, description="Ablation: one resident batch instead of the input pipeline.")
    all_reduce: bool = Field(True, description="Whether gradients are summed over devices; without is an ablation.")
    measure_seconds: PositiveFloat | None = Field(
        None, description="Train for this long and leave no model; empty: train to the end, with its test accuracy."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Further settings of the training run, by dotted key (not the seed)."
    )

    @property
    def case_id(self) -> str:
        """Twelve hexadecimal digits that equal cases share."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def images_per_device(self) -> float:
        """Images of one device in one step."""
        return self.global_batch_size / self.devices

    @property
    def order(self) -> tuple[Any, ...]:
        """By which tables sort cases: trainings first, then by strategy and number of devices."""
        place, settings = list(STRATEGIES).index(self.strategy), str(sorted(self.settings.items()))
        what = (self.kind != "train", self.kind, place, settings, self.devices, self.hosts)
        return *what, -self.global_batch_size, self.synthetic_input, not self.all_reduce, self.case_id

    @property
    def is_ablation(self) -> bool:
        return self.synthetic_input or not self.all_reduce

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it: a training on one device."""
        return (self.kind, self.strategy, self.devices) == ("train", BASELINE, 1) and not self.is_ablation
