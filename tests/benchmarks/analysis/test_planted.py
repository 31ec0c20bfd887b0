"""What slows two ranks down is planted in real runs, and has to be named by what is read from their records.

Nothing is simulated: the harness starts the processes, which train with Horovod, measure themselves and are attributed
as any study is. Only what is planted is known beforehand; see hindered.py. It spares runs of a single device, against
which the others are judged, and with which they take turns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mnist_dist.benchmarks.analysis.attribution import Attribution
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.measure.suite import Block, Narrowing, PlannedCase, Suite, plan_cases
from mnist_dist.benchmarks.report.explanation import explain
from tests.benchmarks.harness import BATCH_SIZE, MACHINE, make_study, run_cases, small_settings
from tests.benchmarks.hindered import DELAY_SECONDS, SLOW_RANK

pytestmark = pytest.mark.slow

MEASURE_SECONDS = 6.0  # Of each variant: about fifteen cycles of turns, each of a hindered step or two.


@pytest.fixture(scope="module")
def cases(tiny_mnist: Path) -> list[PlannedCase]:
    block = Block(
        images_per_device=[BATCH_SIZE],
        measure_seconds=MEASURE_SECONDS,
        ablations=True,
        settings=small_settings(tiny_mnist) | {"runtime.steps_per_call": 1},
    )
    suite = Suite(
        description="d", minutes=1.0, repeats=1, strategies=["single", "horovod"], devices=[1, 2], blocks=[block]
    )
    planned = plan_cases(suite, MACHINE, Narrowing())
    return [item for item in planned if item.case.strategy == "single" or item.case.devices == 2]


def attribute_planted(what: str, cases: list[PlannedCase], folder: Path) -> Attribution:
    program = (sys.executable, str(Path(__file__).parents[1] / "hindered.py"), what)
    for attempt in range(3):  # A busy machine may leave too few cycles to explain anything; it is then measured again.
        records = run_cases(make_study(folder / f"scratch-{attempt}", program=program), *cases)
        for record in records:
            assert record.status == "ok", record.output_tail
        if attributions := Analysis(records).attributions:
            break
    (attribution,) = attributions
    print("\n" + explain(attribution))
    for part in attribution.parts:
        print(f"  {part.name:15} {1e3 * part.step_seconds.value:7.2f} ms, {100 * part.share.value:5.1f} %")
    return attribution


def test_the_variants_are_what_attribution_needs(cases: list[PlannedCase]) -> None:
    assert {item.case.devices: item.variants for item in cases} == {
        1: ("full", "resident"),
        2: ("full", "resident", "unreduced", "resident-unreduced"),
    }


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("what", "cause", "label"),
    [
        ("input", "input", "Against input, try "),
        ("all-reduce", "communication", "Against exposed communication, try "),
        ("rank", "stragglers", "Against stragglers, try "),
    ],
)
def test_what_is_planted_is_named(what: str, cause: str, label: str, cases: list[PlannedCase], tmp_path: Path) -> None:
    attribution = attribute_planted(what, cases, tmp_path)
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
