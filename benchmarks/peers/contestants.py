"""Who is compared: our training in its variants, and what users would otherwise run.

Imports neither TensorFlow nor PyTorch.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mnist_dist.benchmarks.kinds import input, matmul
from mnist_dist.benchmarks.measure.suite import Machine
from mnist_dist.benchmarks.peers.runs import Mode
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.environment import CODE_FOLDER
from mnist_dist.config import get_setting, load_config, setting_descriptions
from mnist_dist.errors import UserError, nearest

DATA = CODE_FOLDER / "mnist_dist" / "data" / "mnist.npz"
PYTORCH_PYTHON = CODE_FOLDER / ".venv-peers" / "bin" / "python"
GIVE_UP_SECONDS = 600.0  # For an accuracy that does not come.
RANK_BATCH_SIZE, RANK_STEPS_PER_CALL = 256, 20  # Where ranks are compared with independent processes.
OURS, OURS_ACCURACY = "ours", "speedrun"


@dataclass(frozen=True)
class Script:
    """A peer's script, with what it needs.

    Attributes:
        module: of mnist_dist.benchmarks.peers.
        flags: beyond those that all scripts take.
        python: in which environment it runs.
        ranks: that `horovodrun` starts; None: it needs no Horovod.
        devices: that it needs.
        cores: that it may use, of all of them; None: all.
    """

    module: str
    flags: tuple[str, ...] = ()
    python: Literal["own", "pytorch"] = "own"
    ranks: int | None = None
    devices: int = 1
    cores: int | None = None

    def command(self, python: str, mode: Mode, seconds: float, seed: int, out: Path) -> list[str]:
        launcher = [python, "-m", "horovod.runner.launch", "-np", str(self.ranks), "--gloo"] if self.ranks else []
        common = ["--data", str(DATA), "--mode", mode, "--seconds", f"{seconds:g}", "--seed", str(seed)]
        module = f"mnist_dist.benchmarks.peers.scripts.{self.module}"
        return [*launcher, python, "-m", module, *common, *self.flags, "--out", str(out)]


@dataclass(frozen=True)
class Contestant:
    """What is measured under one name.

    Attributes:
        label: what it is, in words.
        network: "seed CNN", or the name of another.
        throughput: what to run to measure it; None: it is not.
        accuracy: what to run to measure the time to an accuracy; None: it is not.
        in_table: whether it is a row of the table of peers; the others serve the goals alone.
    """

    name: str
    label: str
    network: str
    throughput: Case | Script | None = None
    accuracy: Case | Script | None = None
    in_table: bool = True

    def work(self, mode: Mode) -> Case | Script | None:
        return self.throughput if mode == "throughput" else self.accuracy


@dataclass(frozen=True)
class Environment:
    """What contestants find: the machine, and the Python that has PyTorch.

    Attributes:
        pytorch_version: None where there is no PyTorch; then `pytorch_missing` says why.
    """

    machine: Machine
    pytorch_python: str
    pytorch_version: str | None
    pytorch_missing: str = ""

    def skip_reason(self, work: Case | Script) -> str | None:
        """Returns why this machine cannot run something, or None."""
        uses_horovod = work.strategy == "horovod" if isinstance(work, Case) else work.ranks is not None
        available = self.machine.gpus or self.machine.cores
        if work.devices > available:
            return f"it needs {work.devices} devices, and there are {available}"
        if uses_horovod and "horovod" in self.machine.missing_packages:
            return "Horovod is not installed; run `mnist-dist install-horovod`"
        if isinstance(work, Script) and work.python == "pytorch" and self.pytorch_version is None:
            return self.pytorch_missing
        return None


def find_environment(machine: Machine, pytorch_python: Path | None) -> Environment:
    """Looks for PyTorch.

    Raises:
        UserError: the Python that the user named does not have it.
    """
    python = pytorch_python or PYTORCH_PYTHON
    try:
        done = subprocess.run(
            [str(python), "-c", "import torch; print(torch.__version__)"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        if pytorch_python is None:
            return Environment(machine, str(python), None, "no PyTorch in .venv-peers; `make peers` installs it")
        text = getattr(error, "stderr", None) or str(error)
        raise UserError(
            f"--pytorch-python: received '{python}', expected a Python that imports torch "
            f"({text.strip().splitlines()[-1][:200]})."
        ) from None
    return Environment(machine, str(python), done.stdout.strip())


def make_contestants(seconds: float, machine: Machine) -> dict[str, Contestant]:
    """Returns all contestants by name.

    Args:
        seconds: of steady training that a throughput is measured over.
    """
    ours = Case(measure_seconds=seconds)
    contestants = [
        Contestant(OURS, "mnist-dist train", "seed CNN", ours, case_of("default")),
        *(
            Contestant(config, f"mnist-dist train --config {config}", "its own", None, case_of(config))
            for config in (OURS_ACCURACY, "speedrun-995")
        ),
        _peer("keras-fit", "Keras fit, published MNIST convnet", "its own", Script("keras_fit")),
        _peer("keras-fit-seed", "Keras fit", "seed CNN", Script("keras_fit", ("--network", "seed"))),
        _peer("horovod-1", "Horovod's example on Keras 3, 1 rank", "seed CNN", Script("horovod_example", ranks=1)),
        _peer(
            "horovod-2",
            "Horovod's example on Keras 3, 2 ranks",
            "seed CNN",
            Script("horovod_example", ranks=2, devices=2),
        ),
        *(
            _peer(
                f"pytorch-{precision}",
                f"PyTorch eager, {description}",
                "seed CNN",
                Script("pytorch", ("--precision", precision), "pytorch"),
            )
            for precision, description in (("float32", "float32"), ("bfloat16", "channels last, bfloat16"))
        ),
        _peer("fast-mnist", "fast-MNIST recipe, PyTorch, as written", "its own", Script("fast_mnist", (), "pytorch")),
        _peer(
            "fast-mnist-bfloat16",
            "fast-MNIST recipe, PyTorch, channels last, bfloat16",
            "its own",
            Script("fast_mnist", ("--tuned",), "pytorch"),
        ),
        *_for_goals(ours, machine),
    ]
    return {contestant.name: contestant for contestant in contestants}


def _peer(name: str, label: str, network: str, script: Script) -> Contestant:
    return Contestant(name, label, network, script, script)


def _for_goals(ours: Case, machine: Machine) -> list[Contestant]:
    """Returns what our training is compared with besides peers: parts of itself, and its limits."""
    one_core = None if machine.gpus else 1
    ranks = ours.model_copy(
        update={
            "devices": 2,
            "cores_per_device": one_core,
            "global_batch_size": 2 * RANK_BATCH_SIZE,
            "settings": {"runtime.steps_per_call": RANK_STEPS_PER_CALL},
        }
    )
    of_each = ("--processes", "2", "--batch-size", str(RANK_BATCH_SIZE), "--steps-per-call", str(RANK_STEPS_PER_CALL))
    works: list[tuple[str, str, Case | Script]] = [
        ("synthetic", "mnist-dist train, synthetic resident data", ours.model_copy(update={"synthetic_input": True})),
        ("input", "our input pipeline alone", Case(kind=input.KIND.name)),
        *(
            (
                f"matmul-{dtype}",
                f"{dtype} matrix product",
                Case(kind=matmul.KIND.name, settings={"runtime.precision": precision}),
            )
            for dtype, precision in (("bfloat16", "mixed_bfloat16"), ("float32", "float32"))
        ),
        *(
            (
                f"ranks-{strategy}",
                f"mnist-dist train, {strategy}, 2 ranks of 256 images, a core each",
                ranks.model_copy(update={"strategy": strategy}),
            )
            for strategy in ("horovod", "multiworker")
        ),
        (
            "independent",
            "2 processes of mnist-dist train that know nothing of one another, 256 images and a core each",
            Script("independent", of_each, devices=2, cores=None if machine.gpus else 2),
        ),
    ]
    return [Contestant(name, label, "seed CNN", work, in_table=False) for name, label, work in works]


def case_of(config: str) -> Case:
    """Returns the case that trains a shipped configuration to its end."""
    default, wanted = load_config("default"), load_config(config)
    settings: dict[str, Any] = {}
    for key in setting_descriptions():
        value = get_setting(wanted, key)
        if value != get_setting(default, key) and key != "training.batch_size":  # That is a field of the case.
            settings[key] = list(value) if isinstance(value, tuple) else value
    return Case(global_batch_size=wanted.training.batch_size, settings=settings)


def choose(
    contestants: Mapping[str, Contestant], only: Sequence[str] | None, modes: Sequence[Mode]
) -> dict[str, Contestant]:
    """Returns the rows of the table, or those of them that a user names and what they are compared with.

    Raises:
        UserError: a name is not known.
    """
    rows = {name: contestant for name, contestant in contestants.items() if contestant.in_table}
    if only is None:
        return rows
    for name in only:
        if name not in rows:
            raise UserError(f"--only: received '{name}', expected some of {','.join(rows)}." + nearest(name, rows))
    bases: dict[Mode, str] = {"throughput": OURS, "accuracy": OURS_ACCURACY}
    return {name: row for name, row in rows.items() if name in {*only, *(bases[mode] for mode in modes)}}


def python_of(work: Script, environment: Environment) -> str:
    return environment.pytorch_python if work.python == "pytorch" else sys.executable
