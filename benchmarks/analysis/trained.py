"""Each case that trains, with how it relates to the others of its study."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mnist_dist.benchmarks.analysis.limits import MatmulRate
from mnist_dist.benchmarks.analysis.scaling import Curve, efficiency, is_oversubscribed
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import on_gpus
from mnist_dist.benchmarks.statistics.stats import Estimate

MATMUL_DTYPES = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class TrainedCase:
    """One case with what relates it to the others. Efficiencies and `mfu` are shares: 1 is ideal."""

    summary: CaseSummary
    weak: Estimate | None
    strong: Estimate | None
    mfu: float | None
    oversubscribed: bool
    on_gpus: bool

    @property
    def case(self) -> Case:
        return self.summary.case

    @property
    def images_per_second_per_device(self) -> Estimate | None:
        total, n = self.summary.images_per_second, self.case.devices
        return Estimate(total.value / n, total.low / n, total.high / n, total.repeats) if total else None


def relate_cases(
    summaries: Sequence[CaseSummary], curves: Sequence[Curve], rates: Sequence[MatmulRate]
) -> list[TrainedCase]:
    """Returns the cases that train, ablations too: by strategy and devices, or the fastest first if all have one."""
    efficiencies = {
        (curve.scaling, point.summary.case_id): point.efficiency for curve in curves for point in curve.points
    }
    for curve in curves:
        efficiencies[curve.scaling, curve.baseline.case_id] = efficiency(curve.baseline, curve.baseline)
    cases = [
        TrainedCase(
            summary=each,
            weak=efficiencies.get(("weak", each.case_id)),
            strong=efficiencies.get(("strong", each.case_id)),
            mfu=_mfu(each, rates),
            oversubscribed=is_oversubscribed(each),
            on_gpus=on_gpus(each.records),
        )
        for each in sorted(summaries, key=lambda each: each.case.order)
        if each.case.kind == "train"
    ]
    if all(each.case.devices == 1 for each in cases):
        cases.sort(key=lambda each: rate.value if (rate := each.summary.images_per_second) else 0.0, reverse=True)
    return cases


def _mfu(summary: CaseSummary, rates: Iterable[MatmulRate]) -> float | None:
    precision, case = summary.measured_setting("precision"), summary.case
    dtype = MATMUL_DTYPES.get(precision, precision)
    by_place = {
        (each.case.devices, each.case.hosts): each.value
        for each in rates
        if (each.dtype, each.case.cores_per_device) == (dtype, case.cores_per_device)
    }
    rate = by_place.get((case.devices, case.hosts), case.devices * by_place.get((1, 1), 0.0))
    if not rate or summary.images_per_second is None or summary.model_flops_per_image is None:
        return None
    return summary.model_flops_per_image * summary.images_per_second.value / rate
