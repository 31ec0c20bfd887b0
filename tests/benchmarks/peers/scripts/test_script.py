"""The clock of the peers' scripts."""

import json
import time
from pathlib import Path

import pytest

from mnist_dist.benchmarks.peers.runs import read_measured
from mnist_dist.benchmarks.peers.scripts.script import Clock


def test_windows_count_every_image_once_but_those_of_the_first_step(tmp_path: Path) -> None:
    clock, synchronised = Clock("throughput", 1000.0), []
    clock.start()
    for step in range(25):
        assert not clock.after_step(100 + step, lambda: synchronised.append(clock.step))
    clock.write(tmp_path / "result.json", device="CPU", precision="float32", library="1.0")
    measured = read_measured(tmp_path / "result.json")
    assert synchronised == [1, 11, 21], "after the first step and at the end of each window"
    assert measured.window_work == [sum(range(101, 111)), sum(range(111, 121))]
    assert measured.images_trained == sum(range(100, 125))
    assert measured.versions["library"] == "1.0"


def test_windows_last_until_the_value_is_there_and_first_step_is_apart(tmp_path: Path) -> None:
    clock = Clock("throughput", 0.05)
    clock.start()
    clock.after_step(1, lambda: time.sleep(0.2))
    stopped = [clock.after_step(1, lambda: time.sleep(0.06)) for _ in range(10)]
    assert stopped == [False] * 9 + [True]
    clock.write(tmp_path / "result.json", device="CPU", precision="float32")
    measured = read_measured(tmp_path / "result.json")
    assert measured.first_step_seconds >= 0.2
    assert [0.06 <= seconds < 0.2 for seconds in measured.window_seconds[0]] == [True]


def test_time_to_an_accuracy_has_the_first_step_in_it(tmp_path: Path) -> None:
    clock = Clock("accuracy", 1000.0)
    clock.start()
    for _ in range(30):
        assert not clock.after_step(1, lambda: time.sleep(0.05)), "it waits after the first step only"
    assert not clock.after_evaluation(0.9899)
    assert clock.after_evaluation(0.99)
    clock.write(tmp_path / "result.json", device="CPU", precision="float32")
    measured = read_measured(tmp_path / "result.json")
    assert [each.step for each in measured.evaluations] == [30, 30]
    assert [each.accuracy for each in measured.evaluations] == [0.9899, 0.99]
    assert 0.05 <= measured.evaluations[0].seconds < 1
    assert measured.window_work == []


def test_an_accuracy_that_does_not_come_is_given_up() -> None:
    clock = Clock("accuracy", 0.01)
    clock.start()
    time.sleep(0.02)
    assert clock.after_evaluation(0.1)


@pytest.mark.parametrize(
    "change", [{"window_seconds": [[0.0]]}, {"evaluations": [{"step": 1, "seconds": 1.0}]}, {"more": 1}]
)
def test_a_result_that_is_not_whole_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "result.json"
    with pytest.raises(ValueError, match="no result"):
        read_measured(file)
    content = {"window_work": [1], "window_seconds": [[1.0]]}
    file.write_text(json.dumps(content))
    assert read_measured(file).window_work == [1]
    file.write_text(json.dumps(content | change))
    with pytest.raises(ValueError):
        read_measured(file)
