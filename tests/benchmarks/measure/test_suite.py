from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.kinds import collectives
from mnist_dist.benchmarks.measure.suite import (
    ABLATION_SECONDS,
    DECIDED,
    Block,
    Machine,
    Narrowing,
    PlannedCase,
    Suite,
    load_suite,
    plan_cases,
    shipped_suites,
    training_settings,
)
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.config import load_config

LAPTOP = Machine(cores=2, gpus=0, devices_per_host=2)
JOB = Machine(cores=8, gpus=0, devices_per_host=4, hosts=2)
MACHINES = {
    "1 core": Machine(cores=1, gpus=0, devices_per_host=1),
    "2 cores": LAPTOP,
    "64 cores": Machine(cores=64, gpus=0, devices_per_host=64),
    "8 GPUs": Machine(cores=96, gpus=8, devices_per_host=8),
    "4 hosts of 8 GPUs": Machine(cores=96, gpus=8, devices_per_host=8, hosts=4),
    "4 hosts of 16 cores": Machine(cores=16, gpus=0, devices_per_host=16, hosts=4),
}
UserErrorLine = Callable[..., str]


def make_suite(*blocks: dict[str, Any], **fields: Any) -> Suite:
    content = {"description": "for a test", "minutes": 1, "repeats": 1, "blocks": list(blocks) or [{}]}
    return Suite.model_validate(content | fields)


def plan(suite: Suite, machine: Machine = LAPTOP, **narrowing: Any) -> list[PlannedCase]:
    return plan_cases(suite, machine, Narrowing(**narrowing))


def cases_of(planned: Iterable[PlannedCase]) -> list[Case]:
    return [item.case for item in planned]


def places(planned: Iterable[PlannedCase]) -> set[tuple[str, int]]:
    return {(item.case.strategy, item.case.devices) for item in planned}


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "own.yaml").write_text(text)
        return str(tmp_path / "own.yaml")

    return write


class TestExpansion:
    def test_strategies_and_devices_are_crossed_but_single_is_one_device(self) -> None:
        several = {(name, devices) for name in ("mirrored", "multiworker", "horovod") for devices in (1, 2)}
        assert places(plan(make_suite({}, devices=[1, 2]))) == several | {("single", 1)}

    def test_all_devices_are_powers_of_two_and_what_the_machine_has(self) -> None:
        machine = Machine(cores=12, gpus=0, devices_per_host=12)
        cases = cases_of(plan(make_suite({}, strategies="mirrored"), machine))
        assert [case.devices for case in cases] == [1, 2, 4, 8, 12]

    def test_all_devices_of_a_job_are_those_of_all_its_hosts(self) -> None:
        cases = cases_of(plan(make_suite({}, strategies="horovod"), JOB))
        assert [case.devices for case in cases] == [1, 2, 4, 8]

    def test_weak_scaling_keeps_the_images_of_a_device(self) -> None:
        cases = cases_of(plan(make_suite({"images_per_device": 96}, strategies="mirrored")))
        assert [(case.devices, case.global_batch_size) for case in cases] == [(1, 96), (2, 192)]

    def test_strong_scaling_keeps_the_global_batch(self) -> None:
        cases = cases_of(plan(make_suite({"global_batch_size": 96}, strategies="mirrored")))
        assert [(case.devices, case.global_batch_size) for case in cases] == [(1, 96), (2, 96)]

    def test_varied_settings_are_crossed(self) -> None:
        vary = {"runtime.xla": ["on", False], "data.shift_pixels": [0, 1, 2]}  # YAML takes `off` for False.
        block = {"vary": vary, "settings": {"model.dense_units": 16}, "images_per_device": [64, 128]}
        cases = cases_of(plan(make_suite(block, strategies="single")))
        assert len({case.case_id for case in cases}) == len(cases) == 2 * 3 * 2
        assert all(case.settings["model.dense_units"] == 16 for case in cases)
        assert Counter(case.settings["runtime.xla"] for case in cases) == {"on": 6, "off": 6}

    def test_a_case_of_two_blocks_is_measured_once_with_the_larger_number_of_repeats(self) -> None:
        (only,) = plan(make_suite({"repeats": 2}, {"repeats": 5}, {"repeats": 3}, strategies="single"))
        assert only.repeats == 5

    def test_ablations_are_variants_of_the_same_processes(self) -> None:
        planned = plan(make_suite({"ablations": True, "measure_seconds": 2}, strategies=["single", "horovod"]))
        found = {(item.case.strategy, item.case.devices): item for item in planned}
        assert not any(item.case.is_ablation for item in planned)
        alone, together = ("full", "resident"), ("full", "resident", "unreduced", "resident-unreduced")
        variants = {("single", 1): alone, ("horovod", 1): alone, ("horovod", 2): together}
        assert {key: item.variants for key, item in found.items()} == variants
        assert {key: item.measuring_seconds for key, item in found.items()} == {
            key: 2 * len(names) for key, names in variants.items()
        }

    def test_a_training_to_its_end_is_measured_after_it_if_that_explains_something(self) -> None:
        (plain,), (explained,) = (
            plan(make_suite({"ablations": ablations}, strategies="single")) for ablations in (False, True)
        )
        assert (plain.variants, plain.measuring_seconds) == ((), 0)
        assert explained.variants == ("full", "resident") and explained.measuring_seconds == 2 * ABLATION_SECONDS
        assert explained.case == plain.case

    def test_what_is_no_training_has_the_variants_of_its_kind(self) -> None:
        (sizes,) = plan(make_suite({"kind": "collectives"}, strategies="horovod"))
        assert len(sizes.variants) == len(collectives.MESSAGE_BYTES)
        assert sizes.measuring_seconds == pytest.approx(len(sizes.variants) * collectives.KIND.seconds)
        (shorter,) = plan(make_suite({"kind": "collectives", "measure_seconds": 0.1}, strategies="horovod"))
        assert shorter.measuring_seconds == pytest.approx(len(sizes.variants) * 0.1)

    def test_all_reduces_need_two_devices_and_matrix_products_one(self) -> None:
        suite = make_suite({"kind": "collectives"}, {"kind": "matmul"})
        found = {(case.kind, case.strategy, case.devices) for case in cases_of(plan(suite))}
        several = {("collectives", name, 2) for name in ("mirrored", "multiworker", "horovod")}
        assert found == several | {("matmul", "single", 1)}

    def test_what_does_not_depend_on_a_batch_is_measured_once(self) -> None:
        batches = {"images_per_device": [64, 128], "global_batch_size": [512], "strategies": "single", "devices": 1}
        suite = make_suite(*({"kind": kind, **batches} for kind in ("train", "input", "matmul")))
        assert Counter(case.kind for case in cases_of(plan(suite))) == {"train": 3, "input": 3, "matmul": 1}

    def test_a_block_may_name_devices_that_the_suite_does_not(self) -> None:
        planned = plan(make_suite({"devices": [4]}, {"devices": [1]}, strategies="horovod", devices=[1]))
        assert {(item.case.devices, item.skip_reason) for item in planned} == {(4, None), (1, None)}

    def test_too_many_cases_are_refused_at_once(self, user_error: UserErrorLine) -> None:
        vary = {f"model.{name}": list(range(1, 200)) for name in ("dense_units", "dropout", "batch_norm")}
        line = user_error(plan, make_suite({"vary": vary}))
        assert "more than 2,000 cases" in line


class TestCores:
    @pytest.mark.parametrize(("cores", "devices", "expected"), [(2, [1, 2], 1), (64, [1, 2], 32), (2, [1, 4], 1)])
    def test_one_device_has_its_share_at_the_most_devices(self, cores: int, devices: list[int], expected: int) -> None:
        machine = Machine(cores=cores, gpus=0, devices_per_host=cores)
        planned = plan(make_suite({}, {"devices": 1, "kind": "matmul"}, devices=devices), machine)
        assert {case.cores_per_device for case in cases_of(planned)} == {expected}

    def test_shares_are_those_of_a_host(self) -> None:
        assert {case.cores_per_device for case in cases_of(plan(make_suite(), JOB))} == {8 // 4}

    def test_the_user_decides(self) -> None:
        assert {case.cores_per_device for case in cases_of(plan(make_suite(), cores_per_device=7))} == {7}

    def test_whole_machine_and_gpus_have_no_limit(self) -> None:
        suite = make_suite({"whole_machine": True, "strategies": "single"}, {"devices": 2})
        assert {case.cores_per_device for case in cases_of(plan(suite)) if case.devices == 1} == {None}
        assert {case.cores_per_device for case in cases_of(plan(make_suite(), MACHINES["8 GPUs"]))} == {None}

    def test_the_whole_machine_is_not_measured_twice(self) -> None:
        blocks: list[dict[str, Any]] = [{}, {"whole_machine": True}]
        suite = make_suite(*blocks, strategies="single", devices=1)
        assert [case.cores_per_device for case in cases_of(plan(suite, cores_per_device=1))] == [1, None]
        (only,) = cases_of(plan(suite))
        assert only.cores_per_device == 2

    def test_jobs_of_a_study_plan_the_same_whatever_they_have(self) -> None:
        """A job for one device has fewer cores than one for all of a host; it leaves out what it cannot measure."""
        suite = make_suite({}, {"whole_machine": True}, strategies=["single", "mirrored"])
        jobs = [Machine(cores=cores, gpus=0, devices_per_host=4, hosts=1) for cores in (2, 4, 8)]
        plans = [plan(suite, job, devices=[1, 2, 4], cores_per_device=2) for job in jobs]
        assert cases_of(plans[0]) == cases_of(plans[1]) == cases_of(plans[2])
        whole = {case.devices: case.cores_per_device for case in cases_of(plans[0])}
        assert whole == {1: 8, 2: 4, 4: 2}
        skipped = [{item.case.cores_per_device for item in planned if item.skip_reason} for planned in plans]
        assert skipped[0] >= {8} and skipped[2] == set()

    def test_too_many_runs(self, user_error: Callable[..., str]) -> None:
        assert "more than 100,000 runs" in user_error(plan, make_suite(), repeats=200_000)


class TestHosts:
    def test_ranks_take_the_fewest_hosts_that_hold_them(self) -> None:
        cases = cases_of(plan(make_suite({}, strategies="horovod", devices=[1, 4, 8]), JOB))
        assert [(case.devices, case.hosts) for case in cases] == [(1, 1), (4, 1), (8, 2)]

    def test_they_do_not_depend_on_how_many_the_job_has(self) -> None:
        suite = make_suite({}, strategies="multiworker", devices=[1, 4, 8])
        one_host = Machine(cores=8, gpus=0, devices_per_host=4, hosts=1)
        assert cases_of(plan(suite, JOB)) == cases_of(plan(suite, one_host))

    def test_all_are_this_one_outside_a_job(self) -> None:
        assert {case.hosts for case in cases_of(plan(make_suite({}, devices=[1, 4])))} == {1}


class TestSkipReasons:
    @pytest.mark.parametrize(
        ("strategy", "devices", "machine", "reason"),
        [
            ("horovod", 8, Machine(8, 0, 4, hosts=1), "8 devices need 2 hosts, but the job has 1"),
            ("horovod", 5, JOB, "5 devices do not spread evenly over 2 hosts"),
            ("mirrored", 8, JOB, "8 devices on one host, which has room for 4"),
            ("mirrored", 4, Machine(4, 2, 2), "4 devices on one host, which has 2 GPUs"),
            ("multiworker", 2, Machine(4, 1, 1), "2 devices on one host, which has 1 GPU"),
            ("horovod", 2, Machine(2, 0, 2, missing_packages=frozenset({"horovod"})), "Horovod is not installed"),
        ],
    )
    def test_of_a_machine(self, strategy: str, devices: int, machine: Machine, reason: str) -> None:
        (planned,) = plan(make_suite({}, strategies=strategy, devices=[devices]), machine)
        assert planned.skip_reason and planned.skip_reason.startswith(reason)

    def test_of_cores_that_a_job_does_not_have(self) -> None:
        (planned,) = plan(make_suite({}, strategies="mirrored", devices=[4]), JOB, cores_per_device=3)
        assert planned.skip_reason == "12 cores on one host, where the job has 8"

    def test_of_a_batch_that_does_not_divide(self) -> None:
        (planned,) = plan(make_suite({"global_batch_size": 7}, strategies="mirrored", devices=[2]))
        assert planned.skip_reason == "a global batch of 7 images does not divide over 2 devices"

    def test_of_a_batch_that_does_not_divide_into_accumulation_steps(self) -> None:
        block = {"global_batch_size": 8, "vary": {"training.accumulation_steps": [1, 3, 4]}}
        planned = plan(make_suite(block, strategies="mirrored", devices=[1, 2]))
        reasons = {reason for item in planned if (reason := item.skip_reason)}
        assert reasons == {
            f"a global batch of 8 images does not divide over {devices} in 3 accumulation steps"
            for devices in ("1 device", "2 devices")
        }

    def test_more_devices_than_cores_run_all_the_same(self) -> None:
        assert {item.skip_reason for item in plan(make_suite({}, devices=[1, 4]))} == {None}


class TestNarrowing:
    def test_devices_and_strategies(self) -> None:
        planned = plan(load_suite("quick"), devices=[2], strategies=["mirrored", "horovod"])
        assert places(planned) == {("mirrored", 2), ("horovod", 2)}

    def test_what_one_device_does_stays_beside_other_numbers(self) -> None:
        planned = plan(make_suite({}, {"devices": [1, 4], "kind": "input"}, strategies="mirrored"), devices=[2])
        assert {(case.kind, case.devices) for case in cases_of(planned)} == {("train", 2), ("input", 1)}

    def test_repeats_widen_and_narrow(self) -> None:
        for repeats in (1, 9):
            planned = plan(make_suite({"repeats": 3, "ablations": True}), repeats=repeats)
            assert {item.repeats for item in planned} == {repeats}

    def test_settings_replace_those_of_the_suite(self) -> None:
        block = {"settings": {"runtime.xla": "on"}, "vary": {"model.dense_units": [16, 32]}}
        planned = plan(make_suite(block, strategies="single"), settings={"model.dense_units": 64})
        assert [case.settings for case in cases_of(planned)] == [{"runtime.xla": "on", "model.dense_units": 64}]

    def test_nothing_left(self, user_error: UserErrorLine) -> None:
        line = user_error(plan, make_suite({}, strategies="single"), strategies=["horovod"])
        assert line.startswith("--devices, --strategies: none of the suite's cases is left")


class TestSettings:
    def test_a_mistake_shows_before_anything_runs(self, user_error: UserErrorLine) -> None:
        assert "runtime.precison: no such setting" in user_error(plan, make_suite(), settings={"runtime.precison": 1})
        assert "received 'float8'" in user_error(plan, make_suite(), settings={"runtime.precision": "float8"})

    @pytest.mark.parametrize("key", sorted(DECIDED))
    def test_what_follows_from_the_case_is_refused(self, key: str, user_error: UserErrorLine) -> None:
        assert user_error(plan, make_suite(), settings={key: 1}).startswith(f"{key}: received as a setting of a case")

    def test_a_section_is_refused(self, user_error: UserErrorLine) -> None:
        settings = {"training": {"batch_size": 64}}
        assert "training: received a section" in user_error(plan, make_suite(), settings=settings)

    @pytest.mark.parametrize("settings", [{}, {"training.epochs": 1}, {"training.steps": 10}])
    def test_a_measurement_does_not_end_with_its_epochs(self, settings: dict[str, Any]) -> None:
        config = load_config("default", training_settings(Case(measure_seconds=2.0, settings=settings), seed=3))
        assert (config.training.measure_seconds, config.training.steps, config.seed) == (2.0, None, 3)
        assert config.training.epochs >= 1000

    def test_a_training_does(self) -> None:
        settings = training_settings(Case(settings={"training.epochs": 2}), seed=0)
        assert load_config("default", settings).training.epochs == 2

    @pytest.mark.parametrize("field", ["synthetic_input", "all_reduce"])
    def test_ablations_reach_the_run(self, field: str) -> None:
        case = Case(measure_seconds=1.0, **{field: field == "synthetic_input"})
        config = load_config("default", training_settings(case, seed=0))
        assert config.data.kind == ("synthetic" if case.synthetic_input else "mnist")
        assert config.runtime.all_reduce is case.all_reduce


class TestFiles:
    HEAD = "description: d\nminutes: 1\nrepeats: 1\n"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "description: is missing"),
            ("- 1", "received [1]"),
            ("blocks: [", "not valid YAML"),
            (HEAD, "blocks: is missing"),
            (HEAD + "blocks: []", "blocks: received an empty list"),
            (HEAD + "devices: []\nblocks: [{}]", "devices: received an empty list"),
            (HEAD + "devices: some\nblocks: [{}]", "devices.0: received 'some', expected a whole number"),
            (HEAD + "devices: [0]\nblocks: [{}]", "devices.0: received 0, expected greater than 0"),
            (HEAD + "strategies: [horovd]\nblocks: [{}]", "strategies.0: received 'horovd'"),
            (HEAD + "strategies: []\nblocks: [{}]", "strategies: received an empty list"),
            (
                HEAD + "repeat: 3\nblocks: [{}]",
                "repeat: no such field, expected one of timeout_seconds, width, description, minutes, repeats",
            ),
            (HEAD + "width: 0\nblocks: [{}]", "width: received 0, expected greater than 0"),
            (HEAD + "blocks: [{ablation_repeats: 1}]", "blocks.0.ablation_repeats: no such field"),
            (HEAD + "blocks: [{device: 1}]", "blocks.0.device: no such field, expected one of kind, strategies"),
            (HEAD + "blocks: [{kind: trian}]", "blocks.0.kind: received 'trian'"),
            (HEAD + "blocks: [{kind: input, ablations: true}]", "blocks.0.ablations: received true, expected"),
            (HEAD + "blocks: [{images_per_device: [a]}]", "blocks.0.images_per_device.0: received 'a'"),
            (HEAD + "blocks: [{measure_seconds: -1}]", "blocks.0.measure_seconds: received -1"),
            (HEAD + "blocks: [{measure_seconds: .nan}]", "blocks.0.measure_seconds: received nan"),
            (HEAD + "blocks: [{vary: {runtime.xla: []}}]", "blocks.0.vary.runtime.xla: received an empty list"),
            (HEAD + 'blocks: [{"a\\nb": 1}]', "no such field"),
            (HEAD.replace("repeats: 1", "repeats: 0") + "blocks: [{}]", "repeats: received 0"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(
        self, write_suite: Callable[[str], str], user_error: UserErrorLine, text: str, expected: str
    ) -> None:
        name = write_suite(text)
        line = user_error(load_suite, name)
        assert name in line and expected in line

    @pytest.mark.parametrize("name", ["qick", "x" * 5000, "a\0b", "a\nb", ".", "missing.yaml", "/dev/null"])
    def test_no_such_suite(self, user_error: UserErrorLine, name: str) -> None:
        line = user_error(load_suite, name)
        assert line.startswith("SUITE: ")
        if name == "qick":
            assert line.endswith("Did you mean 'quick'?")

    def test_neither_text_nor_of_a_sensible_size(self, tmp_path: Path, user_error: UserErrorLine) -> None:
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        assert "as text" in user_error(load_suite, str(tmp_path / "binary.yaml"))
        (tmp_path / "large.yaml").write_text("#" * 2_000_000)
        assert "2000000 bytes" in user_error(load_suite, str(tmp_path / "large.yaml"))

    def test_numbers_and_names_may_stand_without_a_list(self, write_suite: Callable[[str], str]) -> None:
        suite = load_suite(write_suite(self.HEAD + "strategies: mirrored\ndevices: 2\nblocks: [{devices: 4}]"))
        assert (suite.strategies, suite.devices, suite.blocks) == (["mirrored"], [2], [Block(devices=[4])])
        assert load_suite(write_suite(self.HEAD + "devices: all\nblocks: [{}]")).devices is None


class TestShipped:
    def test_those_that_are_promised(self) -> None:
        assert set(shipped_suites()) >= {"quick", "single", "scaling", "accuracy", "input", "collectives"}

    def test_the_documents_list_them_with_what_they_take(self) -> None:
        text = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
        listed = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) min \|$", text, re.MULTILINE))
        assert listed == {name: f"{load_suite(name).minutes:g}" for name in shipped_suites()}

    @pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
    @pytest.mark.parametrize("name", shipped_suites())
    def test_each_plans_on_every_machine(self, name: str, machine: Machine, user_error: UserErrorLine) -> None:
        suite = load_suite(name)
        if name == "collectives" and machine.cores == 1:
            assert "none of the suite's cases is left" in user_error(plan, suite, machine)
            return
        planned = plan(suite, machine)
        assert len({item.case.case_id for item in planned}) == len(planned)
        assert any(item.skip_reason is None for item in planned)
        assert 0 < suite.minutes < 60

    @pytest.mark.parametrize("name", ["quick", "scaling"])
    def test_the_single_device_to_compare_with_is_among_them(self, name: str) -> None:
        cases = cases_of(plan(load_suite(name)))
        for case in cases:
            if case.kind == "train" and case.devices > 1 and not case.is_ablation:
                images = case.global_batch_size // case.devices
                baselines = [
                    case.model_copy(update={"strategy": "single", "devices": 1, "global_batch_size": batch})
                    for batch in (images, case.global_batch_size)
                ]
                assert any(baseline in cases for baseline in baselines)

    def test_quick_measures_every_strategy_on_one_and_two_devices(self) -> None:
        several = {(name, devices) for name in ("mirrored", "multiworker", "horovod") for devices in (1, 2)}
        planned = [item for item in plan(load_suite("quick")) if item.case.kind == "train"]
        assert places(planned) == several | {("single", 1)}
        assert all(item.skip_reason is None for item in planned)


class TestGpus:
    """What suites plan where a driver shows GPUs, which no machine of the tests has."""

    V100 = Machine(cores=96, gpus=8, devices_per_host=8, compute_capability=(7, 0))
    H100 = Machine(cores=96, gpus=8, devices_per_host=8, compute_capability=(9, 0))

    def test_batches_fill_a_gpu(self) -> None:
        images = {
            name: {
                item.case.images_per_device for item in plan(load_suite(name), self.H100) if item.case.kind == "train"
            }
            for name in ("single", "scaling", "input")
        }
        assert images["single"] == {256, 1024, 4096, 16384, 32768}
        assert images["scaling"] == {4096, 8192, 16384, 32768}
        assert images["input"] >= {4096, 32768}

    def test_scaling_is_weak_and_strong(self) -> None:
        cases = [case for case in cases_of(plan(load_suite("scaling"), self.H100)) if case.kind == "train"]
        for strategy in ("mirrored", "multiworker", "horovod"):
            found = {(case.devices, case.global_batch_size) for case in cases if case.strategy == strategy}
            counts = (1, 2, 4, 8)
            assert found == {(n, 4096 * n) for n in counts} | {(n, 32768) for n in counts}
        alone = {case.global_batch_size for case in cases if case.strategy == "single"}
        assert alone == {32768 // n for n in (1, 2, 4, 8)}, "each strong case has a single device with its images"

    def test_messages_reach_a_gibibyte(self) -> None:
        planned = plan(load_suite("collectives"), self.H100)
        assert {(max(map(int, item.variants)), len(item.variants)) for item in planned} == {(2**30, 11)}
        cpus = plan(load_suite("collectives"), LAPTOP)
        assert {max(map(int, item.variants)) for item in cpus} == {2**26}

    @pytest.mark.parametrize(("machine", "skipped"), [(V100, True), (H100, False), (MACHINES["8 GPUs"], False)])
    def test_bfloat16_needs_tensor_cores_that_have_it(self, machine: Machine, skipped: bool) -> None:
        planned = plan(load_suite("single"), machine)
        reasons = {
            item.skip_reason for item in planned if item.case.settings.get("runtime.precision") == "mixed_bfloat16"
        }
        assert reasons == ({"bfloat16 needs GPUs of compute capability 8.0 or more"} if skipped else {None})
        others = [item for item in planned if item.case.settings.get("runtime.precision") == "mixed_float16"]
        assert others and not any(item.skip_reason for item in others)

    def test_a_batch_is_no_larger_than_the_data(self) -> None:
        block = {"images_per_device": 8192, "strategies": "horovod", "devices": [4, 8]}
        reasons = {item.case.devices: item.skip_reason for item in plan(make_suite(block), self.H100)}
        assert reasons == {4: None, 8: "a global batch of 65,536 images, but MNIST has 60,000"}
        (own,) = plan(make_suite({**block, "devices": 8}), self.H100, settings={"data.path": "own.npz"})
        assert own.skip_reason is None

    @pytest.mark.parametrize("name", ["single", "scaling", "input"])
    def test_cpus_have_their_own_batches(self, name: str) -> None:
        assert max(case.images_per_device for case in cases_of(plan(load_suite(name)))) <= 512
