"""What slows two ranks down is planted in real runs, and has to be named; causes.py does so again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnist_dist.benchmarks.measure.suite import PlannedCase
from mnist_dist.benchmarks.report.explanation import explain
from tests.benchmarks import causes
from tests.benchmarks.hindered import DELAY_SECONDS, SLOW_RANK

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(tiny_mnist: Path) -> list[PlannedCase]:
    return causes.plan(tiny_mnist)


def test_the_variants_are_what_attribution_needs(cases: list[PlannedCase]) -> None:
    assert {item.case.devices: item.variants for item in cases} == {
        1: ("full", "resident"),
        2: ("full", "resident", "unreduced", "resident-unreduced"),
    }


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("what", "cause", "label"),
    [
        ("input", "input", "To counter input, try "),
        ("all-reduce", "communication", "To counter exposed communication, try "),
        ("rank", "stragglers", "To counter stragglers, try "),
    ],
)
def test_what_is_planted_is_named(what: str, cause: str, label: str, cases: list[PlannedCase], tmp_path: Path) -> None:
    attribution = causes.measure(what, cases, tmp_path)
    assert attribution, "nothing whole, three times"
    assert attribution.is_significant
    assert attribution.biggest and attribution.biggest.name == cause
    assert label in explain(attribution)
    found = attribution.biggest.step_seconds
    is_close = 0.8 * DELAY_SECONDS < found.value < 1.3 * DELAY_SECONDS
    # A busy machine lengthens single steps of either side, and the interval has to know of it.
    assert is_close or found.low < DELAY_SECONDS < found.high, f"{found}: about as much as was planted"
    lost = attribution.step_seconds.value - attribution.ideal_step_seconds.value
    # The parts are means within cycles; the step times are those of all windows.
    assert sum(part.step_seconds.value for part in attribution.parts) == pytest.approx(lost, rel=0.05)
    if what == "rank":
        assert attribution.slowest and attribution.slowest.ranks == (SLOW_RANK,)
        assert f"rank {SLOW_RANK} on host " in explain(attribution)
