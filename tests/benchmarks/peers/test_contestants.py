"""Who is compared, and what the machine must have for it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.benchmarks.measure.suite import Machine, training_settings
from mnist_dist.benchmarks.peers.contestants import (
    DATA,
    OURS,
    Environment,
    case_of,
    choose,
    find_environment,
    make_contestants,
)
from mnist_dist.benchmarks.peers.run import MODES
from mnist_dist.benchmarks.peers.scripts.script import make_parser
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.config import load_config, shipped_configs

TWO_CORES = Machine(cores=2, gpus=0, devices_per_host=2)
CONTESTANTS = make_contestants(5.0, TWO_CORES)


def test_our_cases_are_accepted_by_the_trainer() -> None:
    cases = [each.work(mode) for each in CONTESTANTS.values() for mode in ("throughput", "accuracy")]  # type: ignore[arg-type]
    cases = [case for case in cases if isinstance(case, Case)]
    assert len(cases) >= 7
    for case in cases:
        assert training_settings(case, seed=3)["seed"] == 3


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_becomes_the_case_that_trains_it(name: str) -> None:
    wanted = load_config(name)
    trained = load_config("default", training_settings(case_of(name), seed=wanted.seed))
    same = {"runtime": wanted.runtime, "logging": wanted.logging}  # A case has its own, or none.
    assert trained.model_copy(update=same) == wanted


def test_commands_are_what_the_scripts_understand() -> None:
    for contestant in CONTESTANTS.values():
        script = contestant.throughput
        if isinstance(script, Case) or script is None:
            continue
        command = script.command("python3", "throughput", 2.5, 7, Path("out.json"))
        arguments = command[command.index(f"mnist_dist.benchmarks.peers.scripts.{script.module}") + 1 :]
        known, rest = make_parser("A.").parse_known_args(arguments)
        assert (known.data, known.seconds, known.seed, known.out) == (DATA, 2.5, 7, Path("out.json"))
        assert tuple(rest) == script.flags
        assert Path(sys.modules["mnist_dist.benchmarks.peers"].__path__[0], "scripts", f"{script.module}.py").is_file()


def test_reasons_to_skip() -> None:
    one = Machine(cores=1, gpus=0, devices_per_host=1, missing_packages=frozenset({"horovod"}))
    nothing = Environment(one, "python3", None, "no PyTorch here")
    works = {name: contestant.throughput for name, contestant in CONTESTANTS.items() if contestant.throughput}
    reasons = {name: nothing.skip_reason(work) for name, work in works.items()}
    assert {name for name, reason in reasons.items() if reason is None} == {
        OURS, "keras-fit", "keras-fit-seed", "synthetic", "input", "matmul-bfloat16", "matmul-float32",
    }  # fmt: skip
    assert reasons["pytorch-float32"] == "no PyTorch here"
    assert "install-horovod" in str(reasons["horovod-1"])
    assert "2 devices" in str(reasons["ranks-multiworker"])
    everything = Environment(TWO_CORES, "python3", "2.13.0")
    assert {everything.skip_reason(work) for work in works.values()} == {None}


def test_a_python_without_pytorch(user_error: Callable[..., str], tmp_path: Path) -> None:
    without = tmp_path / "python"
    without.write_text("#!/bin/sh\necho 'ModuleNotFoundError: torch' >&2\nexit 1\n")
    without.chmod(0o755)
    for python in (without, tmp_path / "missing"):
        assert "--pytorch-python" in user_error(find_environment, TWO_CORES, python)


def test_choosing(user_error: Callable[..., str]) -> None:
    assert "independent" not in choose(CONTESTANTS, None, MODES)
    assert set(choose(CONTESTANTS, ["keras-fit"], MODES)) == {OURS, "speedrun", "keras-fit"}
    assert set(choose(CONTESTANTS, ["keras-fit"], ["accuracy"])) == {"speedrun", "keras-fit"}
    assert "Did you mean 'keras-fit'?" in user_error(choose, CONTESTANTS, ["keras-fi"], MODES)
    assert "independent" in user_error(choose, CONTESTANTS, ["independent"], MODES)
