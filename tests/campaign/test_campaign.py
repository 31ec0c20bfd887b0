"""Both campaigns, as far as there is time for them in the tests; `python -m tests.campaign` goes on from there."""

from pathlib import Path

import pytest

from tests.campaign import faults
from tests.campaign.__main__ import run_faults

pytestmark = pytest.mark.slow

# Of each kind one fault or two, mostly on one device, where they take least.
SEEDS = (
    *(2, 5, 8, 10, 11, 14, 18, 20, 26, 28, 29, 37, 39, 42, 43, 55, 57, 58, 67, 70, 72),
    *(53, 104, 139, 164, 241, 255, 287, 516, 633),
)


def test_a_seed_stands_for_one_fault() -> None:
    plans = [faults.make_plan(seed) for seed in range(100)]
    assert plans == [faults.make_plan(seed) for seed in range(100)]
    assert {plan.kind for plan in plans[: len(faults.KINDS)]} == {kind.name for kind in faults.KINDS}


@pytest.mark.thorough
@pytest.mark.timeout(3000)
def test_faults(tmp_path: Path) -> None:
    assert run_faults(SEEDS, tmp_path) == []


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_bad_input() -> None:
    from tests.campaign import inputs  # Hypothesis takes its time, and all runs of the tests collect this.

    assert inputs.run(200, 0) == 0
