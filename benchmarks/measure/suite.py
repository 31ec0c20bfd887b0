"""A suite: a YAML matrix of cases, narrowed to what a user asks for and a machine can do.

Imports no TensorFlow.
"""

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from mnist_dist.benchmarks.records.case import Case, KindName
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.config import (
    Config,
    PositiveFloat,
    PositiveInt,
    Section,
    StrategyName,
    explain,
    get_setting,
    load_config,
    names_in,
    read_yaml,
    setting_descriptions,
    text_of,
)
from mnist_dist.errors import UserError, one_line
from mnist_dist.strategies import STRATEGIES

SUITES = Path(__file__).with_name("suites")
MAX_CASES, MAX_RUNS = 2000, 100_000
DEFAULT_IMAGES_PER_DEVICE, MNIST_IMAGES = 128, 60_000
ABLATION_SECONDS = 4.0  # For which each variant of a training to its end is measured, when it has ended.

# Settings of a training run that follow from its case, and what says them instead.
DECIDED = {
    "seed": "the number of the repeat",
    "data.kind": "a block's ablations",
    "runtime.strategy": "--strategies",
    "runtime.devices": "--devices",
    "runtime.all_reduce": "a block's ablations",
    "training.batch_size": "a block's images_per_device or global_batch_size",
    "training.measure_seconds": "a block's measure_seconds",
}


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Integers = Annotated[list[PositiveInt], Field(min_length=1), BeforeValidator(_as_list)]
Strategies = Annotated[list[StrategyName], Field(min_length=1), BeforeValidator(_as_list)]
Values = Annotated[list[Any], Field(min_length=1)]


class Block(Section):
    """Cases that share what they measure; lists are crossed with one another."""

    kind: KindName = Field("train", description="See mnist_dist.benchmarks.records.case.Case.")
    strategies: Strategies | None = Field(None, description="Instead of the suite's.")
    devices: Integers | None = Field(None, description="Instead of the suite's.")
    images_per_device: Integers | None = Field(None, description="Weak scaling: this many images of each device.")
    global_batch_size: Integers | None = Field(None, description="Strong scaling: this many images of all devices.")
    only_on: Literal["CPU", "GPU"] | None = Field(None, description="Left out where the devices are others.")
    whole_machine: bool = Field(False, description="Use all cores, however few the devices.")
    ablations: bool = Field(False, description="Also without input and without all-reduce, to tell where time goes.")
    measure_seconds: PositiveFloat | None = Field(
        None, description="Of a training, see mnist_dist.benchmarks.records.case.Case; else, instead of the kind's own."
    )
    repeats: PositiveInt | None = Field(None, description="Instead of the suite's.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Of the training runs, by dotted key.")
    vary: dict[str, Values] = Field(default_factory=dict, description="Settings that take each of some values.")

    @field_validator("ablations")
    @classmethod
    def _check_ablations(cls, ablations: bool, info: ValidationInfo) -> bool:
        if ablations and "kind" in info.data and not kind(info.data["kind"]).ablations(Case(devices=2)):
            raise ValueError(f"false, as nothing can be left out of kind {info.data['kind']}")
        return ablations


class Limits(Section):
    """Of all rounds of a study."""

    timeout_seconds: PositiveFloat = Field(600.0, description="After which a case is ended and recorded as such.")
    width: PositiveFloat = Field(0.01, description="Half of the 95 % interval of ratios, as a share, that is enough.")


class Suite(Limits):
    """The content of a suite's file."""

    description: str
    minutes: PositiveFloat = Field(description="What it took on two cores without a GPU.")
    repeats: PositiveInt = Field(description="Fresh processes per case.")
    strategies: Strategies = Field(default_factory=lambda: list(STRATEGIES))
    devices: Annotated[Integers | None, BeforeValidator(lambda value: None if value == "all" else value)] = Field(
        None, description="all, or none given: powers of two up to what the machine has."
    )
    blocks: Annotated[list[Block], Field(min_length=1)]


@dataclass(frozen=True)
class Machine:
    """What cases may use; cores and GPUs are those of each host."""

    cores: int
    gpus: int
    devices_per_host: int
    hosts: int | None = None  # Of a job in which `srun` starts the ranks; None: this host alone.
    missing_packages: frozenset[str] = frozenset()  # Of those that strategies need.
    has_float16: bool = True  # Arithmetic, not only storage.
    compute_capability: tuple[int, int] | None = None  # Of the GPU that has the least, where it is known.


@dataclass(frozen=True)
class PlannedCase:
    """A case as a suite has it.

    Attributes:
        repeats: rounds in which it takes part.
        skip_reason: why this machine cannot run it.
        variants: of its step that have turns of their own.
        measuring_seconds: for which all of them together are measured, at most.
    """

    case: Case
    repeats: int
    skip_reason: str | None = None
    variants: tuple[str, ...] = ()
    measuring_seconds: float = 0.0

    @functools.cached_property
    def case_id(self) -> str:
        """That of the case, which takes too long to find to ask for it again in every run."""
        return self.case.case_id


@dataclass(frozen=True)
class Narrowing:
    """What a user asked for instead of what the suite says."""

    devices: Sequence[int] | None = None
    strategies: Sequence[str] | None = None
    repeats: int | None = None
    cores_per_device: int | None = None
    settings: Mapping[str, Any] | None = None


def shipped_suites() -> list[str]:
    return names_in(SUITES)


def load_suite(name: str) -> Suite:
    """Reads a shipped suite by its name, or a YAML file; a UserError says what is wrong with it."""
    try:
        return Suite.model_validate(read_yaml(text_of(name, SUITES, "SUITE"), source=name))
    except ValidationError as error:
        raise UserError(f"{name}: {_explain(error)}") from None


def plan_cases(suite: Suite, machine: Machine, narrowing: Narrowing = Narrowing()) -> list[PlannedCase]:
    """Expands a suite into its cases, each once, those that cannot run here with the reason.

    Raises:
        UserError: a setting is not accepted, nothing is left, or a number of devices does not fit the machine.
    """
    fitting = (block for block in suite.blocks if block.only_on in (None, "GPU" if machine.gpus else "CPU"))
    blocks = [(block, _device_counts(block, suite, machine, narrowing)) for block in fitting]
    most_devices = max((devices for _, counts in blocks for devices in counts), default=1)
    planned: dict[str, PlannedCase] = {}
    for block, counts in blocks:
        chosen = [name for name in block.strategies or suite.strategies if name in (narrowing.strategies or STRATEGIES)]
        repeats = narrowing.repeats or block.repeats or suite.repeats
        for strategy, devices in itertools.product(chosen, counts):
            cores = _cores_per_device(block, devices, machine, narrowing, most_devices)
            for case in _expand(block, strategy, devices, machine, cores, narrowing.settings or {}):
                before = planned.get(case.case_id)
                if before is None or before.repeats < repeats:
                    variants = _variants(block, case, machine)
                    planned[case.case_id] = PlannedCase(case, repeats, skip_reason(case, machine), *variants)
                if len(planned) > MAX_CASES:
                    raise UserError(f"SUITE: received more than {MAX_CASES:,} cases, expected at most that many.")
    if sum(case.repeats for case in planned.values()) > MAX_RUNS:
        raise UserError(f"SUITE, --repeats: received more than {MAX_RUNS:,} runs, expected at most that many.")
    if not planned:
        raise UserError(
            "--devices, --strategies: none of the suite's cases is left, expected at least one; "
            "`--dry-run` without them lists all."
        )
    for case in {str(item.case.settings): item.case for item in planned.values()}.values():
        training_settings(case, seed=0)  # A mistake in a setting shows before anything runs.
    return list(planned.values())


def training_settings(case: Case, seed: int) -> dict[str, Any]:
    """Returns the settings, by dotted key, that make a training run of a case; a UserError names one it cannot have."""
    of_kind = kind(case.kind)
    check_settings(case.settings)
    if problem := of_kind.problem(case):
        raise UserError(problem)
    settings = {
        "logging.tensorboard": False,  # Nobody reads it.
        **{key: value for key, value in case.settings.items() if key not in of_kind.own_settings},
        # A measurement must not end with its epochs.
        **({"training.epochs": 1000, "training.steps": None} if case.measure_seconds else {}),
        "seed": seed,
        "runtime.strategy": case.strategy,
        "runtime.devices": case.devices,
        "runtime.all_reduce": case.all_reduce,
        "training.batch_size": case.global_batch_size,
        "training.measure_seconds": case.measure_seconds,
        "data.kind": "synthetic" if case.synthetic_input else "mnist",
        **of_kind.settings,
    }
    load_config("default", settings)
    return settings


def changed_settings(config: Config) -> dict[str, Any]:
    """Returns, by dotted key, what a configuration does other than the defaults, as JSON has it."""
    defaults, content = load_config(), config.model_dump(mode="json")
    changed = (key for key in setting_descriptions() if get_setting(config, key) != get_setting(defaults, key))
    return {key: functools.reduce(operator.getitem, key.split("."), content) for key in changed}


def check_settings(settings: Iterable[str]) -> None:
    """Refuses keys that a case would not follow."""
    for key in settings:
        if key in DECIDED:
            where = (
                "; blocks are in the suite's file: copy one from benchmarks/measure/suites/, and pass yours as SUITE"
            )
            hint = where if "block" in DECIDED[key] else ""
            raise UserError(f"{key}: received as a setting of a case, but {DECIDED[key]} decides it{hint}.")
        if any(known.startswith(f"{key}.") for known in setting_descriptions()):
            raise UserError(f"{key}: received a section, expected dotted keys such as runtime.precision.")


def _explain(error: ValidationError) -> str:
    """Turns the first of pydantic's findings about a suite's file into one line."""
    finding = error.errors(include_url=False)[0]
    key = one_line(".".join(str(part) for part in finding["loc"]))
    if finding["type"] == "missing":
        return f"{key}: is missing; see benchmarks/measure/suites/ for examples."
    if finding["type"] == "too_short":
        return f"{key}: received an empty list, expected at least one entry."
    if finding["type"] == "extra_forbidden":
        fields = Suite.model_fields if len(finding["loc"]) == 1 else Block.model_fields
        return f"{key}: no such field, expected one of {', '.join(fields)}."
    return explain(error)


def _expand(
    block: Block, strategy: str, devices: int, machine: Machine, cores: int | None, settings: Mapping[str, Any]
) -> Iterator[Case]:
    """Yields the cases of a block with a strategy on so many devices, each with so many cores."""
    row = STRATEGIES[strategy]
    if (devices > 1 and not row.several_devices) or not kind(block.kind).fits(strategy, devices):
        return
    # The fewest hosts that give each device its own place. It does not depend on how many this job has, as the jobs of
    # one study have more or fewer.
    hosts = 1 if row.one_process or machine.hosts is None else -(-devices // machine.devices_per_host)
    varied = [[(key, value) for value in values] for key, values in block.vary.items()]
    for batch in _batches(block, devices):
        for values in itertools.product(*varied):
            yield Case(
                kind=block.kind,
                strategy=strategy,
                devices=devices,
                hosts=hosts,
                cores_per_device=cores,
                global_batch_size=batch,
                measure_seconds=block.measure_seconds,
                settings=_with_words({**block.settings, **dict(values), **settings}),
            )


def _with_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Gives switches their words, so that a case is the same however it is written: to YAML, `on` is a boolean."""
    switches = {key for key, (default, _) in setting_descriptions().items() if default == "auto"}
    named = {key: "on" if value else "off" for key, value in settings.items() if isinstance(value, bool)}
    return {key: named[key] if key in named and key in switches else value for key, value in settings.items()}


def _variants(block: Block, case: Case, machine: Machine) -> tuple[tuple[str, ...], float]:
    """Returns what of a case is measured in turns, and for how long altogether; a GPU trains too fast for a rate."""
    of_kind = kind(case.kind)
    seconds = of_kind.measuring_seconds(case) or (ABLATION_SECONDS if block.ablations or machine.gpus else 0.0)
    variants = of_kind.variants_on(bool(machine.gpus)) + (of_kind.ablations(case) if block.ablations else ())
    return (variants, seconds * len(variants)) if seconds else ((), 0.0)


def _batches(block: Block, devices: int) -> list[int]:
    """Returns the global batch sizes of a block's cases on this many devices."""
    per_device = block.images_per_device or ([] if block.global_batch_size else [DEFAULT_IMAGES_PER_DEVICE])
    batches = [images * devices for images in per_device] + (block.global_batch_size or [])
    return batches if kind(block.kind).has_batches else batches[:1]  # The others have sizes of their own.


def _device_counts(block: Block, suite: Suite, machine: Machine, narrowing: Narrowing) -> list[int]:
    """Returns the numbers of devices of a block, rising."""
    if block.devices and narrowing.devices:
        # What one device does stays, as it is what the others are compared with.
        return sorted({devices for devices in block.devices if devices in narrowing.devices or devices == 1})
    given = narrowing.devices or block.devices or suite.devices
    if given:
        return sorted(set(given))
    most = (machine.hosts or 1) * machine.devices_per_host
    powers = [2**exponent for exponent in range(most.bit_length())]
    return sorted({*powers, most})


def _cores_per_device(
    block: Block, devices: int, machine: Machine, narrowing: Narrowing, most_devices: int
) -> int | None:
    """A device of a study has the same cores, however many devices take part; a GPU has its host's as it needs them."""
    if machine.gpus:
        return None
    most_on_host = min(most_devices, machine.devices_per_host)
    cores = narrowing.cores_per_device or max(machine.cores // most_on_host, 1)
    if not block.whole_machine:
        return cores
    if machine.hosts is not None:  # This job may have fewer, and all jobs of one study have to plan the same cases.
        return max(cores * most_on_host // min(devices, machine.devices_per_host), 1)
    # One device with all cores is the whole machine already, and would be measured twice.
    return cores if (devices, cores) == (1, machine.cores) else None


def skip_reason(case: Case, machine: Machine) -> str | None:
    """Returns why a machine cannot run a case, or None."""
    on_host = -(-case.devices // case.hosts)
    if case.hosts > (machine.hosts or 1):
        return f"{case.devices} devices need {case.hosts} hosts, but the job has {machine.hosts}"
    if case.devices % case.hosts:
        return f"{case.devices} devices do not spread evenly over {case.hosts} hosts"
    cores = on_host * (case.cores_per_device or 0)
    if machine.hosts is not None and on_host > machine.devices_per_host:
        return f"{on_host} devices on one host, which has room for {machine.devices_per_host}"
    if machine.hosts is not None and cores > machine.cores:
        return f"{cores} cores on one host, where the job has {machine.cores}"
    if machine.gpus and on_host > machine.gpus:
        return f"{on_host} devices on one host, which has {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"
    steps = case.settings.get("training.accumulation_steps", 1)
    steps = max(steps, 1) if isinstance(steps, int) else 1  # What else is given is refused with all settings.
    if case.global_batch_size % (case.devices * steps):
        return (
            f"a global batch of {case.global_batch_size} images does not divide over {case.devices} "
            f"device{'s' if case.devices > 1 else ''}" + (f" in {steps} accumulation steps" if steps > 1 else "")
        )
    if case.settings.get("runtime.precision") == "mixed_float16" and not machine.has_float16:
        return "the CPU has no float16 arithmetic"
    if case.settings.get("runtime.precision") == "mixed_bfloat16" and (machine.compute_capability or (8, 0)) < (8, 0):
        return "bfloat16 needs GPUs of compute capability 8.0 or more"
    if case.global_batch_size > MNIST_IMAGES and "data.path" not in case.settings:
        return f"a global batch of {case.global_batch_size:,} images, but MNIST has {MNIST_IMAGES:,}"
    row = STRATEGIES[case.strategy]
    if row.package in machine.missing_packages:
        return row.missing
    return kind(case.kind).skip_reason(case, machine)
