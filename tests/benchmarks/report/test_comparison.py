"""A comparison as people see it: the verdict first, a line for each case, and nothing said of every case anew."""

from typing import Any

import pytest

from mnist_dist.benchmarks.analysis.compare import compare
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.report.comparison import render_comparison
from tests.benchmarks.simulation import make_record

MATRIX = [
    {"runtime.precision": precision, "runtime.xla": xla, "training.epochs": 3}
    for precision in ("float32", "mixed_bfloat16", "mixed_float16")
    for xla in ("off", "on")
]


def scaled() -> list[Case]:
    """Seventeen trainings, as `bench run scaling` has them."""
    found = [
        Case(strategy=strategy, devices=devices, cores_per_device=1, global_batch_size=batch, measure_seconds=5)
        for strategy in ("mirrored", "multiworker", "horovod")
        for devices in (2, 4, 8)
        for batch in (256, 256 * devices)
    ]
    return [*found[:15], Case(global_batch_size=256, cores_per_device=1, measure_seconds=5), Case(measure_seconds=5)]


def tuned() -> list[Case]:
    """Seventeen cases of one device, as `bench run single` has them, and more."""
    sizes = (128, 512, 2048)
    return [Case(global_batch_size=size, settings=settings) for size in sizes for settings in MATRIX][:17]


def test_what_a_kind_shares_is_said_once() -> None:
    settings = {"training.epochs": 2}
    trained = [Case(strategy=strategy, cores_per_device=1, settings=settings) for strategy in ("mirrored", "horovod")]
    cases = [*trained, Case(kind="input", cores_per_device=1)]
    base, new = ([make_record(case, repeat) for case in cases for repeat in range(2)] for _ in range(2))
    lines = render_comparison(compare(base, new, judge_all=True), 140).splitlines()
    assert lines[4] == (
        "Compared: 1 × 1 core, 128 images per device; the training loop: epochs 2, trained to the end; "  # noqa: RUF001
        "2 runs of each; measured apart"
    )
    assert [line.split("  ")[0] for line in lines[8:11]] == ["mirrored", "horovod", "input alone: single"]


def test_studies_without_a_common_case_are_told_of_first() -> None:
    base = [make_record(Case(strategy=strategy, cores_per_device=1), 0) for strategy in ("single", "mirrored")]
    first, *_ = render_comparison(compare(base, [make_record(Case(cores_per_device=2), 0)]), 250).splitlines()
    assert first == (
        "Undecided: no case is in both studies. Base has 2 cases, such as single, 1 × 1 core, 128 images per device, "  # noqa: RUF001
        "trained to the end; new has 1 case, such as single, 1 × 2 cores, 128 images per device, trained to the end."  # noqa: RUF001
    )


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("cases", [scaled(), tuned()], ids=["scaling", "settings"])
def test_seventeen_cases_take_seventeen_lines(cases: list[Case], width: int) -> None:
    assert len(cases) == 17
    base, new = ([make_record(case, repeat) for case in cases for repeat in range(2)] for _ in range(2))
    failed: dict[str, Any] = {"status": "failed", "reason": "exit code 1"}
    new[-1] = make_record(cases[-1], 1, **failed)
    lines = render_comparison(compare(base, new), width).splitlines()
    assert lines[0] == "New is worse: of 17 cases 1 failing, 16 alike."
    assert max(map(len, lines)) <= width
    start = next(n for n, line in enumerate(lines) if set(line) == {"\N{BOX DRAWINGS LIGHT HORIZONTAL}"})
    rows = lines[start + 1 : start + 18]
    assert all(row.split()[-3] in ("failing", "alike") for row in rows) and not lines[start + 18].strip()
    assert len({row.split("  ")[0] for row in rows}) == 17, "labels tell the cases apart"
    assert not any("..." in row or "trained" in row or "epochs" in row for row in rows)
