"""A suite: a YAML matrix of cases, narrowed to what a user asks for and a machine can do.

Imports no TensorFlow.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from benchmarks.case import Case, Kind, StrategyName
from mnist_dist.config import PositiveFloat, PositiveInt, Section, explain, load_config, read_yaml
from mnist_dist.errors import UserError, nearest

ONE_PROCESS = ("single", "mirrored")
MAX_CASES = 2000
DEFAULT_IMAGES_PER_DEVICE = 128
ABLATION_SECONDS = 4.0  # Of a full run that trains to its end.


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Integers = Annotated[list[PositiveInt], BeforeValidator(_as_list)]
Strategies = Annotated[list[StrategyName], BeforeValidator(_as_list)]


class Block(Section):
    """Cases that share what they measure; lists are crossed with one another."""

    kind: Kind = Field("train", description="See benchmarks.case.Case.")
    strategies: Strategies | None = Field(None, description="Instead of the suite's.")
    devices: Integers | None = Field(None, description="Instead of the suite's.")
    images_per_device: Integers | None = Field(None, description="Weak scaling: this many images of each device.")
    global_batch_size: Integers | None = Field(None, description="Strong scaling: this many images of all devices.")
    whole_machine: bool = Field(False, description="Use all cores, however few the devices.")
    ablations: bool = Field(False, description="Also without input and without all-reduce, to tell where time goes.")
    measure_seconds: PositiveFloat | None = Field(None, description="See benchmarks.case.Case.")
    repeats: PositiveInt | None = Field(None, description="Instead of the suite's.")
    ablation_repeats: PositiveInt | None = Field(None, description="Of the ablations, instead of the block's.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Of the training runs, by dotted key.")
    vary: dict[str, list[Any]] = Field(default_factory=dict, description="Settings that take each of some values.")


class Suite(Section):
    """The content of a suite's file."""

    description: str
    minutes: PositiveFloat = Field(description="What it took on two cores without a GPU.")
    repeats: PositiveInt = Field(description="Fresh processes per case.")
    timeout_seconds: PositiveFloat = Field(600.0, description="After which a case is ended and recorded as such.")
    strategies: Strategies = Field(["single", "mirrored", "multiworker", "horovod"])
    devices: Integers | Literal["all"] = Field("all", description="all: powers of two up to what the machine has.")
    blocks: list[Block]


@dataclass(frozen=True)
class Machine:
    """What cases may use; cores and GPUs are those of each host."""

    cores: int
    gpus: int
    devices_per_host: int
    hosts: int | None = None  # Of a job in which `srun` starts the ranks; None: this host alone.
    has_horovod: bool = True


@dataclass(frozen=True)
class PlannedCase:
    case: Case
    repeats: int
    skip_reason: str | None = None  # Why this machine cannot run it.


@dataclass(frozen=True)
class Narrowing:
    """What a user asked for instead of what the suite says."""

    devices: Sequence[int] | None = None
    strategies: Sequence[str] | None = None
    repeats: int | None = None
    cores_per_device: int | None = None
    settings: Mapping[str, Any] | None = None


def shipped_suites() -> list[str]:
    folder = resources.files("benchmarks") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name: str) -> Suite:
    """Reads a shipped suite by its name, or a YAML file.

    Raises:
        UserError: there is no such suite, or its file is not accepted.
    """
    path: Any = Path(name)
    if not path.is_file():
        if name not in shipped_suites():
            raise UserError(
                f"SUITE: received '{name}', expected one of {', '.join(shipped_suites())}, or a YAML file."
                + nearest(name, shipped_suites())
            )
        path = resources.files("benchmarks") / "suites" / f"{name}.yaml"
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), source=name)
        return Suite.model_validate(content)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"SUITE: cannot read '{name}' as text: {error}.") from None
    except ValidationError as error:
        raise UserError(f"{name}: {explain(error)}") from None


def plan_cases(suite: Suite, machine: Machine, narrowing: Narrowing = Narrowing()) -> list[PlannedCase]:
    """Expands a suite into its cases, each once, those that cannot run here with the reason.

    Raises:
        UserError: a setting is not accepted, nothing is left, or a number of devices does not fit the machine.
    """
    counts = _device_counts(suite, machine, narrowing)
    planned: dict[str, PlannedCase] = {}
    for block in suite.blocks:
        for case in _expand(block, suite, machine, narrowing, counts):
            repeats = narrowing.repeats or block.repeats or suite.repeats
            if case.is_ablation and block.ablation_repeats:
                repeats = min(repeats, block.ablation_repeats)
            before = planned.get(case.case_id)
            if before is None or before.repeats < repeats:
                planned[case.case_id] = PlannedCase(case, repeats, _skip_reason(case, machine))
    if not planned:
        raise UserError("--strategies: none of the suite's cases is left, expected at least one of its strategies.")
    if len(planned) > MAX_CASES:
        raise UserError(f"SUITE: it has {len(planned):,} cases, expected at most {MAX_CASES:,}.")
    for item in planned.values():
        training_settings(item.case, seed=0)  # A mistake in a setting shows before anything runs.
    return list(planned.values())


def order_of_runs(cases: Sequence[PlannedCase], seed: int) -> list[tuple[PlannedCase, int]]:
    """Interleaves: all cases once in a random order, then again in another one; drift falls on all alike.

    Returns:
        (case, repeat) in the order in which they run.
    """
    runs: list[tuple[PlannedCase, int]] = []
    for repeat in range(max(case.repeats for case in cases)):
        of_repeat = sorted((case for case in cases if repeat < case.repeats), key=lambda case: case.case.case_id)
        random.Random(f"{seed}/{repeat}").shuffle(of_repeat)  # noqa: S311 - an order, not a secret.
        runs += [(case, repeat) for case in of_repeat]
    return runs


def training_settings(case: Case, seed: int) -> dict[str, Any]:
    """Returns the settings, by dotted key, that make a training run of a case.

    Raises:
        UserError: a setting of the case is not accepted.
    """
    settings = {
        # A measurement must not end with its epochs, nor pay for logs that nobody reads.
        **({"training.epochs": 1000} if case.measure_seconds else {}),
        "logging.tensorboard": False,
        **case.settings,
        "seed": seed,
        "runtime.strategy": case.strategy,
        "runtime.devices": case.devices,
        "runtime.all_reduce": case.all_reduce,
        "training.batch_size": case.global_batch_size,
        "training.measure_seconds": case.measure_seconds,
        "data.kind": "synthetic" if case.synthetic_input else "mnist",
    }
    load_config("default", settings)
    return settings


def _expand(
    block: Block, suite: Suite, machine: Machine, narrowing: Narrowing, counts: Sequence[int]
) -> Iterator[Case]:
    strategies = [
        name
        for name in (block.strategies or suite.strategies)
        if narrowing.strategies is None or name in narrowing.strategies
    ]
    of_block = [devices for devices in block.devices or counts if devices in counts or devices == 1]
    varied = [[(key, value) for value in values] for key, values in block.vary.items()]
    cores_per_device = None if block.whole_machine else _cores_per_device(machine, narrowing, max(counts))
    for strategy, devices, *values in itertools.product(strategies, of_block, *varied):
        if (strategy == "single" and devices > 1) or (block.kind == "collectives" and devices == 1):
            continue
        for batch in _batches(block, devices):
            case = Case(
                kind=block.kind,
                strategy=strategy,
                devices=devices,
                hosts=_hosts(strategy, devices, machine),
                cores_per_device=cores_per_device,
                global_batch_size=batch,
                measure_seconds=block.measure_seconds,
                settings=block.settings | dict(values) | dict(narrowing.settings or {}),
            )
            yield case
            if block.ablations and (devices > 1 or strategy == "single"):
                yield from _ablations(case)


def _ablations(case: Case) -> Iterator[Case]:
    """What attribution needs beside the full run: without input, and without input and all-reduce."""
    measured = case.model_copy(update={"measure_seconds": case.measure_seconds or ABLATION_SECONDS})
    yield measured.model_copy(update={"synthetic_input": True})
    if case.devices > 1:
        yield measured.model_copy(update={"synthetic_input": True, "all_reduce": False})


def _batches(block: Block, devices: int) -> list[int]:
    """Returns the global batch sizes of a block's cases on this many devices."""
    per_device = block.images_per_device or ([] if block.global_batch_size else [DEFAULT_IMAGES_PER_DEVICE])
    return [images * devices for images in per_device] + (block.global_batch_size or [])


def _device_counts(suite: Suite, machine: Machine, narrowing: Narrowing) -> list[int]:
    if narrowing.devices:
        return sorted(set(narrowing.devices))
    if suite.devices != "all":
        return sorted(set(suite.devices))
    most = (machine.hosts or 1) * machine.devices_per_host
    powers = [2**exponent for exponent in range(most.bit_length())]
    return sorted({*powers, most})


def _cores_per_device(machine: Machine, narrowing: Narrowing, most_devices: int) -> int | None:
    """A device of a study has the same cores, however many devices take part; a GPU has its host's as it needs them."""
    if machine.gpus:
        return None
    return narrowing.cores_per_device or max(machine.cores // min(most_devices, machine.devices_per_host), 1)


def _hosts(strategy: str, devices: int, machine: Machine) -> int:
    """The fewest hosts that give each device its own place. It does not depend on how many this job has, as the
    jobs of one study have more or fewer."""
    if strategy in ONE_PROCESS or machine.hosts is None:
        return 1
    return -(-devices // machine.devices_per_host)


def _skip_reason(case: Case, machine: Machine) -> str | None:
    on_host = -(-case.devices // case.hosts)
    if case.hosts > (machine.hosts or 1):
        return f"{case.devices} devices take {case.hosts} hosts, and the job has {machine.hosts}"
    if case.devices % case.hosts:
        return f"{case.devices} devices do not spread evenly over {case.hosts} hosts"
    if machine.gpus and on_host > machine.gpus:
        return f"{on_host} devices on one host, which has {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"
    if case.global_batch_size % case.devices:
        return f"a global batch of {case.global_batch_size} images does not divide over {case.devices} devices"
    if case.strategy == "horovod" and not machine.has_horovod:
        return "Horovod is not installed; run `mnist-dist install-horovod`"
    return None
