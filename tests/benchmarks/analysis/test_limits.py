import pytest

from mnist_dist.benchmarks.analysis.compare import compare
from mnist_dist.benchmarks.analysis.limits import measured_rates
from mnist_dist.benchmarks.analysis.summary import summarize
from mnist_dist.benchmarks.measure.progress import describe
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from tests.benchmarks.simulation import make_record


def products(*flops_per_second: float) -> list[Record]:
    measured = {"size": 64, "dtype": "float32", "flops_per_second": list(flops_per_second)}
    return [make_record(Case(kind="matmul"), repeat, measurements=measured) for repeat in range(2)]


def test_the_rate_is_the_same_everywhere_total_work_over_total_time() -> None:
    """Of two timings of equal work, the second takes a third of the time of the first."""
    records = products(10e9, 30e9)
    (rate,) = measured_rates([summarize(records)])
    assert rate.value == pytest.approx(15e9)
    assert describe(records[0]) == "15 GFLOP/s in float32, 20 s"
    (verdict,) = compare(records, products(15e9, 15e9), judge_all=True).verdicts
    assert verdict.ratio is not None and verdict.ratio.value == pytest.approx(1.0)
