"""Accuracies of two studies: what seeds explain is no loss, and what they do not rule out is not passed."""

from collections.abc import Sequence

import pytest

from mnist_dist.benchmarks.analysis.compare import Comparison, compare
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.comparison import render_comparison, render_comparison_markdown
from tests.benchmarks.simulation import CASE, WINDOW_SECONDS, make_record

BASE = [0.9921, 0.9924, 0.9919, 0.9923]


def study(accuracies: Sequence[float], first_seed: int = 0) -> list[Record]:
    return [
        make_record(
            CASE.model_copy(update={"measure_seconds": None}),
            repeat,
            seed=first_seed + repeat,
            window_seconds=[[WINDOW_SECONDS * (1 + 0.001 * repeat)] * 40],
            measurements={"test_accuracy": accuracy},
        )
        for repeat, accuracy in enumerate(accuracies)
    ]


def compared(base: Sequence[float], new: Sequence[float]) -> Comparison:
    return compare(study(base), study(new))


@pytest.mark.parametrize(
    ("new", "outcome"),
    [
        ([0.9922, 0.9919, 0.9924, 0.9920], "kept"),  # As before.
        ([0.9940, 0.9943, 0.9941, 0.9939], "kept"),  # Better.
        ([0.99185, 0.99215, 0.99165, 0.99205], "kept"),  # Lower by less than matters.
        ([0.9918], "kept"),  # A single seed like the others.
        ([0.9900, 0.9931, 0.9898, 0.9912], "unclear"),  # Lower; seeds explain it, and do not rule out more.
        ([0.9880, 0.9884, 0.9878, 0.9883], "lower"),
        ([0.9908, 0.9906, 0.9909, 0.9911], "lower"),  # By half of the margin, but beyond doubt.
        ([0.95], "lower"),  # A single seed: Crawford and Howell.
        ([0.95, 0.9922, 0.9921, 0.9920], "lower"),  # One among several, that makes the mean look noisy.
    ],
)
def test_accuracy_is_lower_kept_or_unclear(new: list[float], outcome: str) -> None:
    comparison = compared(BASE, new)
    (verdict,) = comparison.verdicts
    assert verdict.accuracy is not None and verdict.accuracy.outcome == outcome
    spoken = {"kept": "alike", "unclear": "undecided", "lower": "less accurate"}[outcome]
    assert verdict.outcome == spoken
    assert comparison.exit_code == {"kept": 0, "unclear": 3, "lower": 1}[outcome]


def test_one_seed_of_each_tells_nothing_unless_it_trains_the_same_model() -> None:
    unclear, again = compared([0.99], [0.98]), compared([0.99], [0.99])
    assert [each.verdicts[0].accuracy.outcome for each in (unclear, again) if each.verdicts[0].accuracy] == [
        "unclear",
        "kept",
    ]
    others = compare(study([0.99]), study([0.99], first_seed=7)).verdicts[0].accuracy
    assert others is not None and others.outcome == "unclear"


def test_the_report_says_what_was_lost_and_what_would_have_been_found() -> None:
    text = render_comparison_markdown(compared(BASE, [0.95, 0.9922, 0.9921, 0.9920]))
    assert text.startswith("**New is worse: of 1 case 1 less accurate.**")
    assert "test accuracy 99.22 % became 98.16 % (4, 4 seeds, the lowest 95.00 %)" in text
    text = " ".join(render_comparison(compared([0.9915, 0.9929, 0.9922], [0.9922, 0.9915, 0.9929])).split())
    assert "with such seeds, about 27 % of drops by 0.1 points are found" in text


def test_more_cases_make_chance_drops_no_likelier() -> None:
    """A drop that one case alone would show is, among ten, one that chance brings."""
    base, new = study(BASE), study([0.9917, 0.9912, 0.9916, 0.9911])
    (alone,) = compare(base, new).verdicts
    others = [CASE.model_copy(update={"measure_seconds": None, "global_batch_size": 200 + n}) for n in range(9)]

    def more(side: list[Record]) -> list[Record]:
        return side + [
            make_record(case, each.repeat, measurements={"test_accuracy": accuracy})
            for case in others
            for each, accuracy in zip(base, BASE, strict=True)
        ]

    among = next(each for each in compare(more(base), more(new)).verdicts if each.case == alone.case)
    assert alone.outcome == "less accurate" and among.outcome != "less accurate"
