"""The result of a study in a few sentences, which stand before everything else. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mnist_dist.benchmarks.analysis.attribution import Attribution
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.report.explanation import explain_briefly
from mnist_dist.benchmarks.report.labels import label_briefly, label_count
from mnist_dist.benchmarks.statistics.stats import Estimate

MOST_EQUALS = 2  # Cases that are as fast, named beside the fastest.
NEAR = 0.9  # Of the fastest rate: what is slower is not as fast, however wide its interval.


def describe_result(analysis: Analysis) -> tuple[str, ...]:
    """Returns what was fastest, the efficiency on most devices, the accuracy, and the largest loss with its remedy."""
    cases = [each for each in analysis.main_cases if not each.oversubscribed]
    return (*_fastest(cases), *_efficiency(cases), *_accuracy(cases), *_largest_loss(analysis.attributions))


def _fastest(cases: Sequence[TrainedCase]) -> Iterator[str]:
    _, names = label_briefly([(each.case, each.on_gpus) for each in cases]) if cases else ("", [])
    rates = [(each.summary.images_per_second, name) for each, name in zip(cases, names, strict=True)]
    known = sorted(((rate, name) for rate, name in rates if rate), key=lambda pair: -pair[0].value)
    if len(known) < 2:
        return
    (best, fastest), *others = known
    equals = [name for rate, name in others if rate.high >= best.low and rate.value >= NEAR * best.value]
    beside = f"; as fast within noise: {'; '.join(equals[:MOST_EQUALS])}" if equals else ""
    more = f" and {len(equals) - MOST_EQUALS} more" if len(equals) > MOST_EQUALS else ""
    factor = best.value / known[-1][0].value
    yield (
        f"Fastest is {fastest}, with {label_count(best.value)} images/s, {factor:.2g} times the slowest "
        f"({known[-1][1]}){beside}{more}."
    )


def _efficiency(cases: Sequence[TrainedCase]) -> Iterator[str]:
    for scaling in ("weak", "strong"):
        found = [(each.case, getattr(each, scaling)) for each in cases if each.case.devices > 1]
        known: list[tuple[int, str, Estimate]] = [
            (case.devices, case.strategy, share) for case, share in found if share
        ]
        most = max((devices for devices, *_ in known), default=0)
        largest = sorted((pair for pair in known if pair[0] == most), key=lambda each: -each[2].value)
        if largest:
            shares = ", ".join(f"{name} {100 * share.value:.0f} %" for _, name, share in largest)
            yield f"Efficiency on {most} devices, {scaling} scaling: {shares}."


def _accuracy(cases: Sequence[TrainedCase]) -> Iterator[str]:
    means = [100 * each.summary.test_accuracy.mean for each in cases if each.summary.test_accuracy]
    if means:
        low, high = f"{min(means):.2f}", f"{max(means):.2f}"
        yield f"Test accuracy is {low} %." if low == high else f"Test accuracy is {low} to {high} %."


def _largest_loss(attributions: Sequence[Attribution]) -> Iterator[str]:
    told = [each for each in attributions if each.is_significant and each.biggest and not each.oversubscribed]
    if told:
        yield f"The largest loss is with {explain_briefly(max(told, key=lambda each: each.loss.value))}"
