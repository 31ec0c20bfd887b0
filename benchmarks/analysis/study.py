"""The analysis of one study: everything that its records say, each part computed when it is first asked for, once."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mnist_dist.benchmarks.analysis.attribution import Attribution, attribute
from mnist_dist.benchmarks.analysis.limits import AllReduce, MatmulRate, measured_all_reduces, measured_rates
from mnist_dist.benchmarks.analysis.prediction.predict import Prediction, predict
from mnist_dist.benchmarks.analysis.scaling import Curve, find_curves
from mnist_dist.benchmarks.analysis.summary import CaseSummary, summarize_variants
from mnist_dist.benchmarks.analysis.trained import TrainedCase, relate_cases
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.grouping import group_by

MOST_PREDICTED = 40  # Curves; each takes hundreds of fits.


@dataclass(frozen=True, eq=False)
class Analysis:
    """What the records of one study say, from the records to what is lost and what can be foretold."""

    records: Sequence[Record]

    @cached_property
    def common_settings(self) -> dict[str, Any]:
        """The settings that all cases that train have, with equal values."""
        settings = [record.case.settings for record in self.records if record.case.kind == "train"]
        items = settings[0].items() if settings else ()
        return {key: value for key, value in items if all(each.get(key) == value for each in settings)}

    @cached_property
    def summaries(self) -> tuple[CaseSummary, ...]:
        by_case = group_by(self.records, lambda record: record.case_id)
        rounds = group_by(self.records, lambda record: record.turns.round_id if record.turns else "")
        return tuple(each for of_case in by_case.values() for each in summarize_variants(of_case, rounds))

    @cached_property
    def all_reduces(self) -> tuple[AllReduce, ...]:
        return tuple(measured_all_reduces(self.summaries))

    @cached_property
    def matmul_rates(self) -> tuple[MatmulRate, ...]:
        return tuple(measured_rates(self.summaries))

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        return tuple(find_curves(self.summaries))

    @cached_property
    def attributions(self) -> tuple[Attribution, ...]:
        return tuple(each for curve in self.curves for each in attribute(curve, self.summaries, self.all_reduces))

    @cached_property
    def predictions(self) -> tuple[Prediction, ...]:
        """Of the fastest curves."""
        fastest = heapq.nlargest(
            MOST_PREDICTED, self.curves, key=lambda curve: max(point.throughput.value for point in curve.points)
        )
        chosen = (curve for curve in self.curves if curve in fastest)
        return tuple(predict(curve, self.summaries, self.all_reduces) for curve in chosen)

    @cached_property
    def trained(self) -> tuple[TrainedCase, ...]:
        """The cases that train, with the ablations."""
        return tuple(relate_cases(self.summaries, self.curves, self.matmul_rates))

    @property
    def main_cases(self) -> tuple[TrainedCase, ...]:
        """The cases that train, without the ablations."""
        return tuple(each for each in self.trained if not each.case.is_ablation)
