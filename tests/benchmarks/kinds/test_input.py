from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.kinds import input as kind
from mnist_dist.benchmarks.kinds.input import KIND, fastest_training
from mnist_dist.benchmarks.labels import label_case
from mnist_dist.config import load_config
from mnist_dist.distributed.strategies.single import Single
from mnist_dist.distributed.turns import FULL
from mnist_dist.runtime import Decision, Runtime, find_device
from tests.benchmarks.factory import input_case, make_study, train


def test_the_pipeline_relates_to_the_fastest_training_on_the_same_devices() -> None:
    slow, fast = train("single", 1), train("single", 1, settings={"runtime.precision": "mixed_bfloat16"})
    more = train("mirrored", 2)
    analysis = Analysis(make_study([slow, fast, more, input_case()], 3))
    (pipeline,) = (each for each in analysis.summaries if each.case.kind == "input")
    training = fastest_training(pipeline, analysis.main_cases)
    assert training and training.case == fast
    (section,) = KIND.sections([pipeline], analysis)
    ((name, _, multiple, of),) = section.tables[0].rows
    assert (name.text, of.text) == (label_case(input_case()), label_case(fast))
    supplied, consumed = pipeline.images_per_second, training.summary.images_per_second
    assert supplied and consumed
    assert float(multiple.text) == pytest.approx(supplied.value / consumed.value, abs=0.05)
    assert not section.on_terminal, "only several pipelines are compared there"


def test_where_nothing_was_trained_it_relates_to_nothing() -> None:
    analysis = Analysis(make_study([input_case()], 3))
    (section,) = KIND.sections(analysis.summaries, analysis)
    assert len(section.tables[0].columns) == 2, "what says nothing has no column"


@pytest.mark.slow
def test_the_same_is_read_from_the_host_and_from_the_device(
    tf: ModuleType, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = []

    def read_five(runs: Mapping[str, Callable[[int], Any]], _: Any) -> dict[str, list[Any]]:
        sums.append(float(runs[FULL](5)))
        return {FULL: []}

    monkeypatch.setattr(kind, "take_timings", read_five)
    runtime = Runtime(find_device(), 1, Decision("float32", ""), Decision("off", ""))
    for where in ("off", "on"):
        settings = {"data.resident": where, "data.path": str(tiny_mnist), "data.shift_pixels": 2}
        KIND.measure(load_config("default", settings), Single(), runtime, None)
    assert sums[0] == sums[1] > 0
