"""The strategies that there are, a row for each, with what others have to know. Their classes are loaded when used.

A new one takes its class in `distributed/strategies/`, its row here, and its test. Standard library only.
"""

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """What is known of a strategy without loading it.

    Attributes:
        summary: a few words for `--help`.
        where: "module:class".
        several_devices: whether it can use more than one.
        one_process: whether one process drives all devices, which are then on one host, or each has a process.
        preferred: whether `auto` picks it among those with as many devices and processes.
        package: that it needs beside the requirements of this one, by the name of both distribution and import.
        install: the command that installs that.
        launcher: that tells the ranks of this strategy on which hosts they are, beside `srun`.
    """

    name: str
    summary: str
    where: str
    several_devices: bool = True
    one_process: bool = False
    preferred: bool = False
    package: str | None = None
    install: str | None = None
    launcher: str | None = None

    def load(self) -> Any:
        """Returns the class, a `mnist_dist.distributed.strategies.interface.Strategy`."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def missing(self) -> str:
        """What to say where the package is missing."""
        return f"{(self.package or '').capitalize()} is not installed; run `{self.install}`"


CLASSES = "mnist_dist.distributed.strategies"
STRATEGIES = {
    row.name: row
    for row in (
        Row(
            "single", "one device", f"{CLASSES}.single:Single", several_devices=False, one_process=True, preferred=True
        ),
        Row("mirrored", "all devices in one process", f"{CLASSES}.mirrored:Mirrored", one_process=True, preferred=True),
        Row("multiworker", "a process per device, joined by TensorFlow", f"{CLASSES}.multiworker:MultiWorker"),
        Row(
            "horovod",
            "a process per device, joined by Horovod",
            f"{CLASSES}.horovod:Horovod",
            preferred=True,
            package="horovod",
            install="mnist-dist install-horovod",
            launcher="horovodrun",
        ),
    )
}
BASELINE = "single"  # On one device: what all others are compared with.


def choose(devices: int, *, launched: bool) -> str:
    """Returns what `auto` means where a launcher has started this process as one of several, or where none has."""
    return next(
        name
        for name, row in STRATEGIES.items()
        if row.preferred and row.one_process != launched and (launched or row.several_devices == (devices > 1))
    )


def beside_the_baseline() -> list[str]:
    """Returns the names of those that can use several devices."""
    return [name for name, row in STRATEGIES.items() if row.several_devices]


def with_processes() -> list[str]:
    """Returns the names of those that give each device a process."""
    return [name for name, row in STRATEGIES.items() if not row.one_process]


def missing_packages() -> frozenset[str]:
    """Returns those that a strategy needs and this Python lacks."""
    packages = {row.package for row in STRATEGIES.values() if row.package}
    return frozenset(package for package in packages if importlib.util.find_spec(package) is None)


def check_name(value: Any, *more: str) -> Any:
    """Returns the name of a strategy, or one of some more words, or raises ValueError that says what was expected."""
    expected = [*more, *STRATEGIES]
    if value not in expected:
        raise ValueError(either(f"'{name}'" for name in expected))
    return value


def either(names: Iterable[str]) -> str:
    """Returns `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
