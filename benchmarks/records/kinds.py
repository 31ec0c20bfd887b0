"""The kinds of measurement: a line for each here, and a module that says all that is peculiar to it.

Whatever plans, measures, compares and reports asks for a kind by the name that a case holds, and so knows none itself.
A new kind takes its module with an object `KIND`, its line here, and its test.
"""

from __future__ import annotations

import importlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mnist_dist.config import Config, Section
from mnist_dist.distributed.turns import FULL
from mnist_dist.files import write_json

if TYPE_CHECKING:
    from mnist_dist.benchmarks.records.case import Case
    from mnist_dist.benchmarks.records.record import Record
    from mnist_dist.benchmarks.statistics.stats import Series

# The module of each, in the order of a report.
KINDS = {
    "train": "mnist_dist.benchmarks.kinds.train",
    "collectives": "mnist_dist.benchmarks.kinds.collectives",
    "matmul": "mnist_dist.benchmarks.kinds.matmul",
    "bandwidth": "mnist_dist.benchmarks.kinds.bandwidth",
    "input": "mnist_dist.benchmarks.kinds.input",
    "peer": "mnist_dist.benchmarks.kinds.peer",
}

STARTUP_SECONDS = 6.0  # What starting TensorFlow and leaving the results takes.


def kind(name: str) -> Kind:
    """Returns the kind that a case names."""
    return importlib.import_module(KINDS[name]).KIND


class Measurements(Section):
    """What one run of a kind measured; its fields become part of the schema of records."""

    per_rank: ClassVar[tuple[str, ...]] = ()  # The fields that hold a row for each rank.


class NoRateError(Exception):
    """Why runs have no rate to compare, in words."""


class Kind(ABC):
    """What measuring something takes, from the suite to the report.

    Attributes:
        description: what is measured, in a few words.
        prefix: of the labels of its cases, to tell them from trainings.
        measurements: the model of what a run leaves in its record.
        settings: by dotted key, which the process needs, whatever its case says.
        own_settings: of its cases, which no training knows.
        variants: of what it does, each of which has turns of its own.
        has_batches: whether its cases differ by their batch size.
        explains: whether its cases are there to explain others, so that a comparison judges them only if asked to,
            or if there is nothing else.
    """

    name: str
    description: str
    prefix: str
    measurements: type[Measurements]
    settings: ClassVar[Mapping[str, Any]] = {}
    own_settings: ClassVar[frozenset[str]] = frozenset()
    variants: tuple[str, ...] = (FULL,)
    has_batches: bool = False
    explains: bool = False

    def fits(self, strategy: str, devices: int) -> bool:
        """Returns whether there is something to measure with so many devices."""
        return True

    def problem(self, case: Case) -> str | None:
        """Says what is wrong with a case of this kind that its own settings decide, if anything is."""
        return None

    def skip_reason(self, case: Case, machine: Any) -> str | None:
        """Returns why this machine, a measure.suite.Machine, cannot run a case that others of this kind might be."""
        return None

    def variants_on(self, gpus: bool) -> tuple[str, ...]:
        """Returns the variants that GPUs, or else CPUs, have."""
        return self.variants

    def ablations(self, case: Case) -> tuple[str, ...]:
        """Returns the variants from which something is left out, to tell where time goes."""
        return ()

    def measuring_seconds(self, case: Case) -> float:
        """Returns for how long each variant is measured, at most; 0 for a training of which only its end matters."""
        return case.measure_seconds or 0.0

    @abstractmethod
    def estimate_seconds(self, case: Case) -> float:
        """Returns how long a run takes besides, from its start to its end, for as long as none has shown it."""

    @abstractmethod
    def command(self, program: Sequence[str], case: Case, config: Config, scratch: Path) -> list[str]:
        """Prepares a run in an empty folder, and returns what to start.

        Args:
            program: how `mnist-dist` is started.
            case: with the settings of a comparison.
            config: of the training run that follows from the case.
        """

    @abstractmethod
    def collect(self, scratch: Path) -> tuple[dict[str, Any], Sequence[str]]:
        """Returns what a run that ended well has measured, and the host of every rank where they are known.

        Raises:
            OSError, ValueError, TypeError, LookupError, UserError: it left no whole result.
        """

    def describe(self, record: Record) -> Sequence[str]:
        """Says in a few words what was measured, where a few words can."""
        return ()

    def aspects(self, record: Record) -> Mapping[str, float]:
        """Returns the log rates of a run by what they say of its devices, such as compute or memory."""
        return {}

    def rates_by_cycle(self, record: Record, variant: str = FULL) -> Mapping[int, float]:
        """Returns the work per second that a run did in each cycle of turns, where it has a rate."""
        return {}

    @abstractmethod
    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        """Returns the work of each run over its seconds, to compare rates.

        Args:
            records: of one side, all of which ended well.
            both: those of both sides, to leave out what one has not measured.

        Raises:
            NoRateError: there is no rate.
        """

    def sections(self, summaries: Sequence[Any], analysis: Any) -> Iterable[Any]:
        """Returns the report.sections.Section on CaseSummaries of this kind; `analysis` is a study.Analysis."""
        return ()


class WorkerKind(Kind):
    """A kind that is no training, and is measured by a process of measure/worker.py."""

    worker: str = "mnist_dist.benchmarks.measure.worker"
    seconds: float  # For which each variant is measured, where its case does not say.

    def measuring_seconds(self, case: Case) -> float:
        return case.measure_seconds or self.seconds

    def estimate_seconds(self, case: Case) -> float:
        return STARTUP_SECONDS

    @abstractmethod
    def measure(self, config: Config, strategy: Any, runtime: Any, turns: Any) -> dict[str, Any]:
        """Measures on every rank at once, by its Strategy, Runtime and Turns; returns what the record holds."""

    def command(self, program: Sequence[str], case: Case, config: Config, scratch: Path) -> list[str]:
        # The worker runs in another folder, so a relative path would lead elsewhere.
        settings = case.settings | ({"data.path": config.data.path} if config.data.path else {})
        file = scratch / "case.json"
        write_json(file, case.model_copy(update={"settings": settings}).model_dump(mode="json"))
        return [sys.executable, "-m", self.worker, str(file), str(scratch / "result.json")]

    def collect(self, scratch: Path) -> tuple[dict[str, Any], Sequence[str]]:
        return dict(json.loads((scratch / "result.json").read_text())), ()
