"""What one run of a contestant left, and the folder that keeps all of them.

    study.json                        what all runs share: machine, versions, seconds
    runs/<contestant>-<mode>-r<repeat>.json

Imports neither TensorFlow nor PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mnist_dist.benchmarks.records.record import Git, Hardware, NonNegativeFloat, Status, Strings
from mnist_dist.config import NonNegativeInt, PositiveFloat, PositiveInt, Section, explain
from mnist_dist.errors import UserError
from mnist_dist.files import write_json

Mode = Literal["throughput", "accuracy"]


class Evaluation(Section):
    """An accuracy on the whole test set, with the seconds since the first step began, this evaluation included."""

    step: NonNegativeInt
    seconds: PositiveFloat
    accuracy: Annotated[float, Field(ge=0, le=1)]


class Measured(Section):
    """What a run measured.

    Attributes:
        window_work: [windows], images of all devices; of the matrix products, floating-point operations.
        window_seconds: [ranks][windows], between two synchronised edges; the first step is in none.
        first_step_seconds: of the slowest rank, with tracing and compiling.
        flops_per_image: that a training step executes, where it is known.
    """

    window_work: list[PositiveInt]
    window_seconds: list[list[PositiveFloat]]
    first_step_seconds: NonNegativeFloat = 0.0
    images_trained: NonNegativeInt = 0
    evaluations: list[Evaluation] = Field(default_factory=list)
    flops_per_image: PositiveInt | None = None
    device: str = ""
    precision: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


class Run(Section):
    """One contestant measured once. It is whole, and never changes.

    Attributes:
        seconds: from the start of the process to its end.
        measured: None unless the status is ok.
    """

    contestant: str
    mode: Mode
    repeat: NonNegativeInt
    status: Status
    reason: str | None = None
    output_tail: Strings = ()
    started_at: str
    seconds: NonNegativeFloat
    measured: Measured | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.contestant, self.mode, self.repeat


class PeerStudy(Section):
    """What all runs of a folder share.

    Attributes:
        environment: variables that change how libraries compute, such as OMP_NUM_THREADS.
    """

    date: str
    seconds: PositiveFloat
    hardware: Hardware
    software: dict[str, str]
    pytorch: str | None
    environment: dict[str, str]
    git: Git | None


class Folder:
    """The results of a comparison with peers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, study: PeerStudy, resume: bool) -> PeerStudy:
        """Lays down a new study, or returns the one that is there.

        Raises:
            UserError: there is one and it is not to go on, or it was measured in another way or on another machine.
        """
        file = self.path / "study.json"
        if not file.exists():
            write_json(file, study.model_dump(mode="json"))
            return study
        if not resume:
            raise UserError(
                f"--results: '{self.path}' already holds a comparison; add --resume to go on, or name another folder."
            )
        there = self.study()
        for name in ("seconds", "hardware", "software", "pytorch", "environment"):
            if getattr(there, name) != getattr(study, name):
                raise UserError(
                    f"--results: '{self.path}' was measured with another {name} ({getattr(there, name)}) than this is "
                    f"({getattr(study, name)}); name another folder."
                )
        return there

    def study(self) -> PeerStudy:
        file = self.path / "study.json"
        try:
            return PeerStudy.model_validate(_read(file))
        except ValidationError as error:
            raise UserError(f"{file}: not a comparison with peers: {explain(error)} Name another folder.") from None

    def add(self, run: Run) -> None:
        name = f"{run.contestant}-{run.mode}-r{run.repeat}.json"
        write_json(self.path / "runs" / name, run.model_dump(mode="json"))

    def runs(self) -> list[Run]:
        """Returns all runs, in the order in which they began."""
        runs = [_run(path) for path in sorted((self.path / "runs").glob("*.json"))]
        return sorted(runs, key=lambda run: run.started_at)


def read_measured(file: Path) -> Measured:
    """Reads what a peer's script left.

    Raises:
        ValueError: it is not there, or not whole.
    """
    try:
        return Measured.model_validate(json.loads(file.read_text()))
    except OSError as error:
        raise ValueError(f"no result: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def _run(path: Path) -> Run:
    try:
        return Run.model_validate(_read(path))
    except ValidationError as error:
        raise UserError(f"{path}: not a run: {explain(error)} Remove the file.") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the file or restore it from a copy.") from None
