from __future__ import annotations

import pytest

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.kinds.input import KIND, fastest_training
from mnist_dist.benchmarks.report.labels import label_case
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
