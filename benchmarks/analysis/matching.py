"""Which cases of two studies are the same, and what else differs between their runs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.errors import one_line
from mnist_dist.strategies import STRATEGIES

Difference = Literal["hardware", "software", "config"]

MEMORY_TOLERANCE = 0.02  # Of the same memory a kernel leaves a little more or less at each boot.
MEASURED = ("precision", "xla", "backend", "all_reduce_backend")  # What `auto` has chosen.
WHICH_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # A scheduler gives whichever are free.


def match_cases(
    base: dict[str, list[Record]], new: dict[str, list[Record]], across_settings: bool
) -> tuple[list[tuple[list[Record], list[Record]]], list[list[Record]], list[list[Record]]]:
    """Returns the records of matching cases, and those of cases of only one study."""
    pairs = [(base.pop(case_id), new.pop(case_id)) for case_id in sorted(base.keys() & new.keys())]
    if across_settings:
        cases = {case_id: records[0].case for side in (base, new) for case_id, records in side.items()}
        subject = _subject(*([cases[case_id] for case_id in side] for side in (base, new)))

        def rest(case_id: str) -> str:
            """Returns what cases share that differ in the subject alone."""
            settings = {name: value for name, value in cases[case_id].settings.items() if name not in subject}
            return cases[case_id].model_copy(update={"settings": settings}).case_id

        base_keys, new_keys = group_by(base, rest), group_by(new, rest)
        for key in sorted(base_keys.keys() & new_keys.keys()):
            if len(base_keys[key]) == len(new_keys[key]) == 1:
                pairs.append((base.pop(base_keys[key][0]), new.pop(new_keys[key][0])))
    return pairs, list(base.values()), list(new.values())


def _subject(base: Sequence[Case], new: Sequence[Case]) -> set[str]:
    """Returns the settings of which the studies have no value in common."""

    def values(cases: Sequence[Case], name: str) -> set[str]:
        return {json.dumps(case.settings.get(name)) for case in cases}

    names = {name for case in (*base, *new) for name in case.settings}
    return {name for name in names if not values(base, name) & values(new, name)}


def find_differences(base: Sequence[Record], new: Sequence[Record]) -> Iterator[tuple[Difference, str]]:
    """Yields what is not the same in all runs of a case, in words."""
    runs = (*base, *new)
    settings = set.intersection(*(set(settings_of(record)) for record in runs))  # A commit may add some or drop some.
    aspects: list[tuple[Difference, Callable[[Record], dict[str, Any]]]] = [
        ("hardware", _hardware),
        ("software", _software),
        ("config", lambda record: {name: settings_of(record)[name] for name in settings}),
        ("config", _surroundings),
    ]
    for kind, aspect in aspects:
        sides = [[aspect(record) for record in side] for side in (base, new)]
        for name in sorted({name for side in sides for values in side for name in values}):
            found = [sorted({show_value(values.get(name)) for values in side}) for side in sides]
            if len(set(found[0] + found[1])) > 1:
                yield kind, f"{kind} differs: {name}: base {' and '.join(found[0])}, new {' and '.join(found[1])}"
    memory = [record.identity.hardware.memory_bytes for record in runs]
    if max(memory) > (1 + MEMORY_TOLERANCE) * min(memory):
        yield "hardware", f"hardware differs: memory: from {min(memory) / 2**30:.1f} to {max(memory) / 2**30:.1f} GiB"


def machine_type(record: Record) -> str:
    """Returns what machines share on which the same case may be compared."""
    return ", ".join(f"{name} {show_value(value)}" for name, value in _hardware(record).items() if value)


def describe_surroundings(record: Record) -> dict[str, str]:
    """Returns by name, in words, how and with what a record was measured, but for the machine's type."""
    identity, told = record.identity, record.telemetry.gpus if record.telemetry else ()
    gpus = [gpu.model_dump(exclude={"name", "memory_bytes", "uuid", "pci_id"}) for gpu in identity.hardware.gpus]
    clocks = {round(each.sm_clock_mhz, -2) for each in told if each.sm_clock_mhz}  # Else each night has another.
    found = {
        "memory": f"{identity.hardware.memory_bytes / 2**30:.0f} GiB",
        "commit": identity.git and f"{identity.git.commit[:10]}{', changed' * identity.git.dirty}",
        "mnist_dist": identity.software.get("mnist_dist"),
        "SM clock, MHz": sorted(clocks),
        "throttled by": sorted({cause for each in told for cause in each.throttled_by}),
        **{f"GPU {name}": sorted({show_value(gpu[name]) for gpu in gpus}) for name in (gpus[0] if gpus else ())},
        **{name: record.measured.get(name) for name in MEASURED},
    }
    everything = found | _software(record) | settings_of(record) | _surroundings(record)
    return {name: show_value(value) for name, value in everything.items()}


def _hardware(record: Record) -> dict[str, Any]:
    hardware = record.identity.hardware
    return {
        "architecture": hardware.architecture,
        "processor": hardware.cpu_model,
        "cores": hardware.cores,
        "GPUs": [f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in hardware.gpus],
    }


def _software(record: Record) -> dict[str, Any]:
    """The package's own version belongs to the commit; a library that does not run does not matter."""
    others = {row.package for name, row in STRATEGIES.items() if name != record.case.strategy}
    unused = {"mnist_dist", *others}
    versions = {name: version for name, version in record.identity.software.items() if name not in unused}
    return versions | {"GPU driver": record.identity.hardware.gpu_driver}


def settings_of(record: Record) -> dict[str, Any]:
    """Returns the settings of the training run by dotted key, without the seed, which repeats vary."""
    return {name: value for name, value in flat(record.identity.config) if name != "seed"}


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested settings by dotted key."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _surroundings(record: Record) -> dict[str, Any]:
    environment = record.identity.environment
    variables = {name: value for name, value in environment.items() if name not in WHICH_DEVICES}
    return variables | {"launcher": record.identity.launcher}


def show_value(value: Any) -> str:
    """Returns a setting's value as a reader would write it."""
    return "none" if value in (None, []) else one_line(value if isinstance(value, str) else json.dumps(value), 80)
