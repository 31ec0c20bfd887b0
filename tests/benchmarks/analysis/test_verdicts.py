"""Rates of right and wrong verdicts, by tests.benchmarks.adversary_compare; docs/benchmarks.md states them."""

import pytest

from tests.benchmarks.adversary_compare import MACHINES, Machine, measure_accuracy, measure_speed


@pytest.mark.slow
@pytest.mark.parametrize("way", ["apart", "in turns"])
def test_ten_equal_cases_end_with_0(way: str) -> None:
    found = measure_speed(Machine(), way, [1.0] * 10, studies=10)
    assert found["exit 0"] >= 0.9 and ("same" in found) == (way == "in turns")


def test_ten_percent_are_found_in_turns() -> None:
    assert measure_speed(Machine(), "in turns", [1.10], studies=40)["slower"] >= 0.95


@pytest.mark.slow
def test_ten_equal_cases_end_with_0_although_their_seeds_differ() -> None:
    assert measure_accuracy(5, 0.0, 10, studies=20)["exit 0"] >= 0.9


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["apart", "in turns"])
@pytest.mark.parametrize("name", MACHINES)
def test_equal_cases_are_seldom_called_slower(name: str, way: str) -> None:
    assert measure_speed(MACHINES[name], way, [1.0] * 2).get("slower", 0.0) <= 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_accuracies_are_seldom_called_lower(seeds: int) -> None:
    assert measure_accuracy(seeds, 0.0, studies=200).get("less accurate", 0.0) <= 0.05
