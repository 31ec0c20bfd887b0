"""Rounds of real trainings: what is recorded of their turns, who ends when, and that they learn the same."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.measure.process import Running
from mnist_dist.benchmarks.measure.rounds import Contender, Limits, Round, Stage, Standing
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.config import config_to_yaml, load_config
from mnist_dist.distributed.turns import GROUP_VARIABLE
from mnist_dist.training.workdir import Workdir
from tests.benchmarks.harness import (
    MARK,
    REPOSITORY,
    environment,
    make_mark,
    make_study,
    marked_processes,
    plan_case,
    run_cases,
    small_case,
    small_settings,
    wait_until,
)
from tests.benchmarks.measure.test_rounds import SLEEPER
from tests.speeds import thorough_but_for

pytestmark = pytest.mark.slow

VARIANTS = ("full", "resident", "unreduced", "resident-unreduced")


def measured_of(record: Record) -> dict[str, Any]:
    assert record.status == "ok", record.output_tail
    return record.measurements or {}


def cycles_of(record: Record, variant: str = "full") -> list[int]:
    measured = measured_of(record)
    pairs = zip(measured["window_variants"], measured["window_cycles"], strict=True)
    return list(dict.fromkeys(cycle for name, cycle in pairs if name == variant and cycle >= 0))


@pytest.fixture(scope="module")
def round_of_all(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Path) -> dict[str, Record]:
    settings = small_settings(tiny_mnist) | {"training.epochs": 8}
    to_the_end = small_case(tiny_mnist, measure_seconds=None, settings=settings)
    single = plan_case(to_the_end, variants=("full", "resident"), measuring_seconds=1.0)
    others = [
        plan_case(small_case(tiny_mnist, strategy=strategy, devices=2, measure_seconds=1.0), ablations=True)
        for strategy in ("mirrored", "multiworker", "horovod")
    ]
    study = make_study(tmp_path_factory.mktemp("round") / "scratch")
    return {record.case.strategy: record for record in run_cases(study, single, *others, repeat=3)}


class TestRecords:
    """One round of every strategy on two devices and of a single one, which trains to its end before."""

    @pytest.mark.parametrize("strategy", ["single", "mirrored", "multiworker", "horovod"])
    def test_windows_of_each_variant_by_cycle(self, round_of_all: dict[str, Record], strategy: str) -> None:
        record = round_of_all[strategy]
        ranks = 2 if strategy in ("multiworker", "horovod") else 1
        measured = measured_of(record)
        assert len(measured["window_seconds"]) == len(record.identity.hosts) == ranks
        assert {len(row) for row in measured["window_seconds"]} == {len(measured["window_steps"])}
        variants = VARIANTS if strategy != "single" else VARIANTS[:2]
        assert set(measured["window_variants"]) == set(variants)
        measuring = cycles_of(round_of_all["mirrored"])
        assert len(measuring) >= 2
        for variant in variants:
            assert cycles_of(record, variant)[-len(measuring) :] == measuring, "neighbours in the same cycles"

    def test_they_belong_to_one_round(self, round_of_all: dict[str, Record]) -> None:
        turns = [record.turns for record in round_of_all.values()]
        assert len({each.round_id for each in turns if each}) == 1
        assert {(each.contenders, each.ended) for each in turns if each} <= {(4, "time"), (4, "narrow")}

    def test_who_waits_uses_less_than_a_twentieth_of_a_core(self, round_of_all: dict[str, Record]) -> None:
        assert all(record.turns and record.turns.waiting_cores < 0.05 for record in round_of_all.values())

    def test_the_harness_sleeps_meanwhile(self, round_of_all: dict[str, Record]) -> None:
        assert all(record.harness_cpu_seconds < 0.02 * record.seconds for record in round_of_all.values())

    def test_a_training_to_its_end(self, round_of_all: dict[str, Record]) -> None:
        record = round_of_all["single"]
        measured = measured_of(record)
        steps = 8 * (2000 // 32)
        assert sum(measured["window_steps"]) > steps, "and was measured on"
        assert measured["evaluations"][-1]["step"] == steps
        assert 0.1 < measured["test_accuracy"] <= 1
        assert record.seed == record.identity.config["seed"] == 3
        assert record.identity.hosts == (platform.node(),)
        assert measured["peak_memory_bytes"][0] > 1e8

    def test_a_measurement_leaves_no_model(self, round_of_all: dict[str, Record]) -> None:
        assert measured_of(round_of_all["horovod"])["test_accuracy"] is None


@pytest.fixture(scope="module")
def round_with_losses(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Path) -> dict[str, Record]:
    mark = make_mark()
    cases = {
        name: small_case(tiny_mnist, strategy=name, devices=1 if name == "single" else 2, measure_seconds=3.0)
        for name in ("horovod", "multiworker", "single")
    }

    def end_rank(strategy: str, number: signal.Signals) -> None:
        group = f"test/{cases[strategy].case_id}/0"
        for process, variables in marked_processes(mark).items():
            if (variables.get(GROUP_VARIABLE), variables.get("MNIST_DIST_RANK")) == (group, "1"):
                os.kill(process, number)

    def tell(stage: Stage) -> None:
        if (stage.name, stage.cycle) == ("measuring", 2):
            end_rank("horovod", signal.SIGTERM)
            end_rank("multiworker", signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        study = make_study(tmp_path_factory.mktemp("round") / "scratch")
        found = {record.case.strategy: record for record in run_cases(study, *cases.values(), tell=tell)}
    assert wait_until(lambda: not marked_processes(mark), 60)
    return found


@pytest.mark.thorough
class TestEndings:
    """Something happens to ranks while they wait or train; the others go on."""

    def test_a_signal_to_one_rank_ends_its_group_with_what_was_measured(
        self, round_with_losses: dict[str, Record]
    ) -> None:
        record = round_with_losses["horovod"]
        assert cycles_of(record)[:2] == [0, 1]
        assert record.turns and record.turns.ended == "interrupted"

    def test_a_group_that_loses_a_rank_is_taken_out(self, round_with_losses: dict[str, Record]) -> None:
        assert round_with_losses["multiworker"].status == "failed"

    def test_the_others_go_on(self, round_with_losses: dict[str, Record]) -> None:
        single = round_with_losses["single"]
        assert single.turns and single.turns.ended == "time"
        assert len(cycles_of(single)) > len(cycles_of(round_with_losses["horovod"])) + 2


@pytest.fixture(scope="module", params=thorough_but_for("single", ["single", "horovod"]))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Path
) -> tuple[Workdir, Workdir, dict[str, Standing]]:
    """The workdirs of a training alone and of one in turns, and how the round went."""
    folder = tmp_path_factory.mktemp(request.param)
    devices = 1 if request.param == "single" else 2
    settings = small_settings(tiny_mnist) | {
        "runtime.strategy": request.param,
        "runtime.devices": devices,
        "runtime.deterministic": True,
        "training.batch_size": 32 * devices,
        "training.epochs": 12,
    }
    (folder / "config.yaml").write_text(config_to_yaml(load_config("default", settings)))
    command = [sys.executable, "-m", "mnist_dist", "train", "--config", str(folder / "config.yaml"), "--workdir"]
    subprocess.run([*command, str(folder / "alone")], env=environment(), check=True, capture_output=True)

    def start(name: str, *arguments: str) -> Contender:
        def run(variables: Mapping[str, str]) -> Running:
            cores = os.sched_getaffinity(0)
            return Running(arguments, REPOSITORY, environment() | variables, cores, folder / f"{name}.log")

        return Contender(name, run, variants=())

    sleeper = (sys.executable, str(SLEEPER), "0.05", "--train=1000")
    limits = Limits(seconds=1.0, width=0.0, ratios=[], timeout_seconds=400.0)
    round_ = Round([start("other", *sleeper), start("train", *command, str(folder / "turns"))], limits)
    with pytest.MonkeyPatch.context() as patch:  # It need not sleep on when the training is over.
        original = round_._end

        def end(standing: Standing) -> None:
            original(standing)
            if standing.contender.name == "train":
                round_.standings["other"].end = round_.standings["other"].running.end("not needed any more")

        patch.setattr(round_, "_end", end)
        standings = dict(round_.run())
    return Workdir(folder / "alone"), Workdir(folder / "turns"), standings


class TestLearning:
    """Trainings in turns with others learn what they learn alone, bit for bit, and their time is their own."""

    def test_the_same_weights_and_accuracy(self, pair: tuple[Workdir, Workdir, dict[str, Standing]]) -> None:
        alone, turns, standings = pair
        end = standings["train"].end
        assert end and end.status == "ok", end
        weights, others = (np.load(max(workdir.checkpoints.glob("*.npz"))) for workdir in (alone, turns))
        assert weights.files == others.files and len(weights.files) > 5
        for name in weights.files:
            if not name.endswith(".json"):  # It tells the time.
                np.testing.assert_array_equal(weights[name], others[name], err_msg=name)
        results = [workdir.read_result() or {} for workdir in (alone, turns)]
        for name in ("status", "steps", "test_accuracy", "test_loss"):
            assert results[0][name] == results[1][name]

    def test_the_time_of_others_is_in_no_time_of_its_own(
        self, pair: tuple[Workdir, Workdir, dict[str, Standing]]
    ) -> None:
        """The other one has as many turns, which last as long."""
        _, workdir, standings = pair
        own, other = standings["train"], standings["other"]
        assert len(own.rates["full"]) >= 3 and other.turn_seconds > 0.5
        result, times = workdir.read_result() or {}, json.loads(workdir.step_times_file.read_text())
        assert result["training_seconds"] - result["first_step_seconds"] <= own.turn_seconds
        startup = max(times["startup_seconds"]) + max(times["first_step_seconds"])
        assert result["seconds"] < startup + own.turn_seconds + other.turn_seconds / 2
        assert sum(max(row) for row in zip(*times["window_seconds"], strict=True)) <= own.turn_seconds
