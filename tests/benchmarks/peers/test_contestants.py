"""Who is compared, and what the machine must have for it."""

from collections.abc import Callable

import pytest

from mnist_dist.benchmarks.kinds import peer
from mnist_dist.benchmarks.measure.suite import Machine, training_settings
from mnist_dist.benchmarks.peers.contestants import MODES, OURS, case_of, choose, plan
from mnist_dist.config import CONFIGS, load_config, names_in
from tests.benchmarks.peers.made import CONTESTANTS, TWO_CORES

ALL = list(CONTESTANTS.values())


def test_cases_are_accepted() -> None:
    cases = [case for each in ALL for mode in MODES if (case := each.case(mode))]
    assert len(cases) > 20
    for case in cases:
        assert training_settings(case, seed=3)["seed"] == 3


@pytest.mark.parametrize("name", names_in(CONFIGS))
def test_a_shipped_configuration_becomes_the_case_that_trains_it(name: str) -> None:
    wanted = load_config(name)
    trained = load_config("default", training_settings(case_of(name), seed=wanted.seed))
    same = {"runtime": wanted.runtime, "logging": wanted.logging}  # A case has its own, or none.
    assert trained.model_copy(update=same) == wanted


def test_a_case_is_planned_once_with_all_of_its_variants() -> None:
    planned = plan(ALL, "throughput", 3, TWO_CORES)
    assert len({each.case_id for each in planned}) == len(planned)
    (ours,) = (each for each in planned if each.case_id == CONTESTANTS[OURS].throughput.case_id)  # type: ignore[union-attr]
    assert (ours.variants, ours.measuring_seconds) == (("full", "resident"), 10.0)
    assert {(each.variants, each.measuring_seconds) for each in plan(ALL, "accuracy", 3, TWO_CORES)} == {((), 0.0)}


def test_reasons_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(peer.PYTHON_VARIABLE, "/missing/python")
    one = Machine(cores=1, gpus=0, devices_per_host=1, missing_packages=frozenset({"horovod"}))

    def reasons(machine: Machine) -> dict[str, str | None]:
        found = {each.case_id: each.skip_reason for each in plan(ALL, "throughput", 1, machine)}
        return {each.name: found[each.throughput.case_id] for each in ALL if each.throughput}

    on_one = reasons(one)
    assert {name for name, reason in on_one.items() if reason is None} == {
        OURS, "keras-fit", "keras-fit-seed", "synthetic", "input", "matmul-bfloat16", "matmul-float32",
    }  # fmt: skip
    assert on_one["pytorch-float32"] == "no PyTorch in .venv-peers; `make peers` installs it"
    assert "install-horovod" in str(on_one["horovod-1"])
    assert "2 devices" in str(on_one["ranks-multiworker"])
    monkeypatch.setattr(peer, "find_pytorch", lambda python: "2.13.0")
    assert set(reasons(TWO_CORES).values()) == {None}
    in_job = Machine(cores=2, gpus=0, devices_per_host=2, hosts=1)
    assert "bench peers" in str(reasons(in_job)["keras-fit"])


def test_choosing(user_error: Callable[..., str]) -> None:
    assert "independent" not in choose(CONTESTANTS, None, MODES)
    assert set(choose(CONTESTANTS, ["keras-fit"], MODES)) == {OURS, "speedrun", "keras-fit"}
    assert set(choose(CONTESTANTS, ["keras-fit"], ["accuracy"])) == {"speedrun", "keras-fit"}
    assert "Did you mean 'keras-fit'?" in user_error(choose, CONTESTANTS, ["keras-fi"], MODES)
    assert "independent" in user_error(choose, CONTESTANTS, ["independent"], MODES)
