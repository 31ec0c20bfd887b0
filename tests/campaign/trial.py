"""One run of the command that a fault is to hit: its folders, its processes, and where it is held for the fault."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

from mnist_dist.config import load_config
from mnist_dist.strategies import STRATEGIES
from tests.benchmarks.harness import MARK, REPOSITORY, make_mark, marked_processes
from tests.processes.conftest import Run, wait_until
from tests.processes.held import Held

STEPS, CHECKPOINT_STEPS = 120, 20
BATCH_SIZE = 48
SETTINGS = {
    "model.filters": [8, 16],
    "model.dense_units": 32,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.02,
    "training.steps": STEPS,
    "training.batch_size": BATCH_SIZE,
    "evaluation.every_epochs": 0,
    "runtime.precision": "float32",
    "runtime.deterministic": True,
    "runtime.steps_per_call": 4,
    "checkpoint.every_steps": CHECKPOINT_STEPS,
    "logging.every_steps": 4,
    "logging.tensorboard": False,
    "runtime.join_timeout_seconds": 400.0,  # On a busy machine.
}
SECONDS_TO_END = 500.0  # Far more than anything here takes on a busy machine: who is still there then hangs.
TRAINING = "in training"
# Where a fault may hit: an audit event and a name in its arguments (see hook/), or a step that the console tells of.
MOMENTS = {
    "before the first step": ("import tensorflow", "os.rename config.yaml"),
    TRAINING: ("24", "48", "72"),
    "in a checkpoint": (
        "tempfile.mkstemp .step-00000040.*",
        "os.chmod .step-00000060.*",  # It has reached the disk.
        "os.rename step-00000060.npz",
        "os.remove step-00000020.npz",  # A newer one has taken its place.
    ),
    "at the end": (
        "os.rename model.keras",
        "os.rename curves.png",
        "os.rename step_times.json",
        "os.rename result.json",
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a seed stands for; the same seed is the same plan for ever."""

    seed: int
    kind: str
    strategy: str
    devices: int
    moment: str
    place: str
    rank: int  # Where the fault hits a rank, or a rank is held.

    def __str__(self) -> str:
        where = f"{self.moment} ({self.place})"
        if self.strategy:
            where = f"{self.strategy} {self.devices}, {where}, rank {self.rank}"
        return f"seed {self.seed}  {self.kind}: {where}"


@dataclass
class Trial:
    """The folders and processes of one plan; as a context, it leaves nothing behind.

    Attributes:
        rng: what the plan leaves open; begins with its seed.
        late: the fault came when nobody was left for it to hit.
    """

    plan: Plan
    folder: Path
    data: Path
    late: bool = False
    mark: str = field(default_factory=make_mark)
    runs: list[Run] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.plan.seed + 1)  # noqa: S311
        self.workdir = self.folder / "run"
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir(parents=True)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill(signal.SIGKILL)
        self.stack.close()
        for run in self.runs:
            run.kill_group()

    @property
    def several(self) -> bool:
        """Whether a launcher starts ranks."""
        return bool(self.plan.strategy) and not STRATEGIES[self.plan.strategy].one_process

    def environment(self, place: str = "") -> dict[str, str]:
        """Returns the variables of a process of this trial, which stops at a place if one is named."""
        variables = {MARK: self.mark, "TMPDIR": str(self.temporary), "PYTHONPATH": str(REPOSITORY)}
        return variables | (replace(self.held, place=place).variables if place else {})

    @property
    def held(self) -> Held:
        rank = self.plan.rank if self.several else None
        return Held(self.folder / "held", self.plan.place, rank)

    def arguments(self, **settings: object) -> list[str]:
        of_plan = {"runtime.strategy": self.plan.strategy, "runtime.devices": self.plan.devices}
        values = {**SETTINGS, **of_plan, "data.path": str(self.data), **settings}
        load_config("default", values)  # Else each trial would fail for a mistake here.
        return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]

    def start(self, *flags: str, place: str = "", settings: dict[str, object] | None = None, **variables: str) -> Run:
        """Starts the training of the plan."""
        arguments = [*self.arguments(**(settings or {})), *flags]
        run = Run(self.workdir, arguments, self.environment(place) | variables)
        self.runs.append(run)
        return run

    def start_to_moment(self, settings: dict[str, object] | None = None, **variables: str) -> Run:
        """Starts it, and returns when it has come to the moment of the plan."""
        held = self.plan.moment != TRAINING
        run = self.start(place=self.plan.place if held else "", settings=settings, **variables)
        if held:
            self.wait_held(run)
        else:
            run.read_until(f"step {int(self.plan.place):>5}/")
        return run

    def wait_held(self, run: Run) -> int:
        """Returns the process that has come to its place and stopped there."""
        return self.held.wait(run, SECONDS_TO_END)

    def release(self) -> None:
        """Lets go on whoever is stopped."""
        self.kill(signal.SIGCONT)

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the trial."""
        for process in marked_processes(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def process_of(self, run: Run, rank: int) -> int:
        """Returns the process of a rank, or that of the run where it is the only one."""
        if not self.several:
            return run.process.pid
        found = [
            process
            for process, variables in marked_processes(self.mark).items()
            if variables.get("MNIST_DIST_RANK") == str(rank)
        ]
        return found[0] if found else run.process.pid

    def note_if_over(self, run: Run) -> None:
        """Notes it where the run has done all of its work already, so that nothing can hit it any more."""
        self.late |= (self.workdir / "result.json").exists() or run.process.poll() is not None

    def checkpoints(self) -> list[int]:
        """Returns the steps of the checkpoints that readers can see."""
        return sorted(int(file.stem[5:]) for file in (self.workdir / "checkpoints").glob("step-*.npz"))


def all_gone(trial: Trial, seconds: float = 60.0) -> bool:
    """Whether nobody of a trial lives on; the kernel may need a moment for orphans."""
    return wait_until(lambda: not marked_processes(trial.mark), seconds)
