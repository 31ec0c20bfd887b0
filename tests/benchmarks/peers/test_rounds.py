"""Peers in rounds: real scripts take turns, for parts of a second each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mnist_dist.benchmarks.analysis.in_turns import log_rates_of_both, paired_ratio
from mnist_dist.benchmarks.kinds.peer import KIND, PEERS, Peer, Script
from mnist_dist.benchmarks.measure.runner import Run, find_machine, run_round
from mnist_dist.benchmarks.measure.suite import PlannedCase, skip_reason
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.distributed.turns import FULL
from tests.benchmarks.harness import make_study
from tests.benchmarks.kinds.test_peer import peer_case
from tests.benchmarks.peers.made import CONTESTANTS

SLEEPER = Path(__file__).with_name("sleeper.py")
TO_ACCURACY = [name for name, script in PEERS.items() if script.module != "independent"]


def measure(cases: Sequence[Case], folder: Path, seconds: float) -> dict[str, Record]:
    """Returns the record of each case by its peer; of our own training by "ours"."""
    study = make_study(folder)
    variants = tuple((FULL,) if case.measure_seconds else () for case in cases)
    planned = [
        PlannedCase(case, 1, None, each, seconds * len(each)) for case, each in zip(cases, variants, strict=True)
    ]
    records = run_round([Run(study, each, 0) for each in planned], [])
    return {record.case.settings.get("peer", "ours"): record for record in records}


def explained(record: Record) -> str:
    return f"{record.reason}\n" + "\n".join(record.output_tail)


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that sleep: 20 ms a step, 40 ms, and one that dies."""
    flags = {"short": ("0.02",), "long": ("0.04",), "dying": ("0.02", "30")}
    for name, each in flags.items():
        monkeypatch.setitem(PEERS, name, Script("sleeper", each))

    def command(self: Peer, program: object, case: Case, config: object, scratch: Path) -> list[str]:
        mode = "throughput" if case.measure_seconds else "accuracy"
        return [sys.executable, str(SLEEPER), str(scratch), mode, *PEERS[case.settings["peer"]].flags]

    monkeypatch.setattr(Peer, "command", command)


@pytest.mark.slow
@pytest.mark.usefixtures("sleepers")
def test_a_script_that_dies_is_taken_out_and_the_others_go_on(tmp_path: Path) -> None:
    records = measure([peer_case(name) for name in ("short", "dying", "long")], tmp_path, 1.5)
    dead = records.pop("dying")
    assert (dead.status, dead.reason) == ("failed", "exit code 7: ValueError: of the sleeper")
    assert {record.status for record in records.values()} == {"ok"}
    ratio = paired_ratio([records["short"]], [records["long"]])
    assert ratio and ratio.at_level().value == pytest.approx(2, rel=0.15)
    assert len(log_rates_of_both(records["short"], records["long"])[0]) >= 5
    assert KIND.describe(records["short"])


@pytest.mark.slow
@pytest.mark.usefixtures("sleepers")
def test_trainings_to_an_accuracy_count_their_own_turns(tmp_path: Path) -> None:
    cases = [peer_case(name, measure_seconds=None) for name in ("short", "long")]
    records = measure(cases, tmp_path, 0.0)
    own_seconds = []
    for record in (records["short"], records["long"]):
        assert record.status == "ok", explained(record)
        assert record.turns and record.turns.ended == "trained"
        last = (record.measurements or {})["evaluations"][-1]
        assert (last["step"], last["accuracy"]) == (100, pytest.approx(0.99, abs=0.001))
        own_seconds.append(last["training_seconds"])
        assert "test accuracy 99.01 %" in KIND.describe(record)[0]
    assert own_seconds[0] / own_seconds[1] == pytest.approx(0.5, rel=0.2), "without the other's turns"


@pytest.mark.thorough
@pytest.mark.slow
def test_every_peer_takes_turns_with_ours(tmp_path: Path) -> None:
    machine = find_machine()
    horovod = {"horovod-example": {"devices": 2}}
    peers = [peer_case(name, **horovod.get(name, {})) for name in PEERS]
    able = [case for case in peers if skip_reason(case, machine) is None]
    ours = CONTESTANTS["ours"].throughput
    assert ours and len(able) >= 4
    records = measure([ours, *able], tmp_path, 0.5)
    for name, record in records.items():
        assert record.status == "ok", f"{name}: {explained(record)}"
        assert record.turns and record.turns.waiting_cores < 0.2
        assert len(log_rates_of_both(record, records["ours"])[0]) >= 1
        measured = record.measurements or {}
        ranks = 2 if name == "horovod-example" else 1
        assert len(measured["window_seconds"]) == len(measured["first_step_seconds"]) == ranks
        assert min(measured["first_step_seconds"]) > 0 and not measured["evaluations"]


@pytest.mark.thorough
@pytest.mark.slow
def test_every_peer_trains_to_an_accuracy_in_turns(tmp_path: Path, tiny_mnist: Path) -> None:
    machine = find_machine()
    settings = {name: {"peer": name, "data.path": str(tiny_mnist)} for name in TO_ACCURACY}
    cases = [peer_case(name, measure_seconds=None, settings=settings[name]) for name in TO_ACCURACY]
    records = measure([case for case in cases if skip_reason(case, machine) is None], tmp_path, 0.0)
    assert records.keys() >= {"keras-fit", "keras-fit-seed"}
    for name, record in records.items():
        assert record.status == "ok", f"{name}: {explained(record)}"
        last = (record.measurements or {})["evaluations"][-1]
        assert last["accuracy"] > 0.2, "an epoch of 2,000 images and more teaches something"
        assert last["accuracy"] * 500 == pytest.approx(round(last["accuracy"] * 500)), "of 500 test images"
        assert last["step"] >= 7 and last["training_seconds"] > (record.measurements or {})["first_step_seconds"][0]
