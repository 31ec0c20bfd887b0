"""What to try against a cause must exist in this project, and not be in force already."""

from dataclasses import replace

import pytest

from mnist_dist.benchmarks.analysis.attribution import Part, PartName, attribute
from mnist_dist.benchmarks.analysis.scaling import find_curves
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.report.explanation import explain, explain_briefly
from mnist_dist.benchmarks.statistics.stats import Estimate
from tests.benchmarks.planted import CAUSES, Truth, find, plant, point_cases, train


def test_communication() -> None:
    alone = explain(find(plant(point_cases(), CAUSES["communication"])))
    assert "training.batch_size" in alone and "gradient_compression" not in alone
    far = explain(find(plant(point_cases(hosts=2), CAUSES["communication"])))
    assert "optimizer.gradient_compression=float16" in far


def test_setting_that_is_in_force_is_not_advised() -> None:
    def cases(**settings: object) -> list[Case]:
        changed = {"runtime.precision": "float32"} | settings
        return [case.model_copy(update={"settings": changed}) for case in point_cases(hosts=2)]

    few = explain(find(plant(cases(**{"runtime.steps_per_call": 5}), CAUSES["communication"])))
    assert "runtime.steps_per_call=50" in few
    compressed = {"optimizer.gradient_compression": "float16", "runtime.steps_per_call": 50}
    text = explain(find(plant(cases(**compressed), CAUSES["communication"])))
    assert "gradient_compression" not in text and "steps_per_call" not in text


@pytest.mark.parametrize(
    ("loss", "parts", "said"),
    [
        (0.26, {"communication": 0.18, "unexplained": 0.08}, "26 %, including 18 points to exposed communication; try"),
        (0.24, {"stragglers": 0.43, "unexplained": -0.19}, "24 %, with no certain cause and -19 points unexplained."),
        (0.24, {"stragglers": 0.01, "unexplained": 0.23}, "24 %, with no certain cause and 23 points unexplained."),
        (
            0.24,
            {"stragglers": 0.3, "contention": -0.06, "unexplained": 0.0},
            "24 %, including 30 points to stragglers and -6 to all else; try keeping other work off the hosts",
        ),
    ],
)
def test_no_part_is_said_to_be_larger_than_the_whole(loss: float, parts: dict[PartName, float], said: str) -> None:
    def estimate(value: float) -> Estimate:
        return Estimate(value, value - 0.02, value + 0.02, 3)

    shown = tuple(Part(name, estimate(share), estimate(share)) for name, share in parts.items())
    found = find(plant(point_cases(), CAUSES["communication"]))
    text = explain_briefly(replace(found, loss=estimate(loss), parts=shown, slowest=None))
    assert text.startswith(f"horovod on 2 devices, weak scaling: {said}")


def test_a_faster_strategy_is_named() -> None:
    slow, fast = plant(point_cases("multiworker"), CAUSES["communication"]), plant([train("horovod")], Truth())
    (curve,) = (each for each in find_curves(slow + fast) if each.strategy == "multiworker")
    (found,) = attribute(curve, slow + fast)
    assert found.faster_strategy == ("horovod", pytest.approx(1.15, abs=0.04))
    assert "try the strategy horovod, here 1.1" in explain(found)
    (alone,) = attribute(curve, slow)
    assert alone.faster_strategy is None


def test_no_strategy_is_advised_that_was_measured_and_is_no_faster() -> None:
    mirrored = plant(point_cases("mirrored"), CAUSES["contention"])
    (curve,) = find_curves(mirrored)
    (alone,) = attribute(curve, mirrored)
    assert "or multiworker or horovod, which give each rank cores of its own" in explain(alone)
    both = mirrored + plant([train("horovod")], CAUSES["contention"])
    (found,) = attribute(next(each for each in find_curves(both) if each.strategy == "mirrored"), both)
    assert found.faster_strategy is None and "or multiworker, which give" in explain(found)


def test_stragglers() -> None:
    on_two_hosts = explain(find(plant(point_cases(hosts=2), CAUSES["stragglers"], hosts=["n1", "n2"])))
    assert "sbatch --exclude=n2" in on_two_hosts
    on_one = explain(find(plant(point_cases(), CAUSES["stragglers"], hosts=["n1", "n1"])))
    assert "--exclude" not in on_one and "what else runs on its cores" in on_one


def test_contention() -> None:
    assert "--cpus-per-task" in explain(find(plant(point_cases(), CAUSES["contention"])))
    crowded = point_cases(cores_per_device=1)
    assert "share cores" not in explain(find(plant(crowded, CAUSES["contention"])))
    assert "give each rank cores of its own" in explain(find(plant(point_cases("mirrored"), CAUSES["contention"])))


def test_input() -> None:
    assert "data.shift_pixels" not in explain(find(plant(point_cases(), CAUSES["input"])))
    shifted = {"runtime.precision": "float32", "data.shift_pixels": 2}
    cases = [case.model_copy(update={"settings": shifted}) for case in point_cases()]
    assert "data.shift_pixels=0" in explain(find(plant(cases, CAUSES["input"])))
