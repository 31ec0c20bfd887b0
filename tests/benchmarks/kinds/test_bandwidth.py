"""What is measured of one device's memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mnist_dist.benchmarks.kinds.bandwidth import KIND
from tests.benchmarks.harness import make_study, run_case, small_case

FASTEST_MEMORY = 1e12  # Bytes per second, more than any processor of today moves.


@pytest.mark.slow
def test_memory_and_copies(tmp_path: Path, tiny_mnist: Path) -> None:
    case = small_case(tiny_mnist, kind="bandwidth", measure_seconds=None)
    record = run_case(make_study(tmp_path / "scratch"), case)
    assert record.status == "ok", record.output_tail
    rates = KIND.aspects(record)
    assert set(rates) == {"memory", "copies"}
    assert all(1e7 < math.exp(rate) < FASTEST_MEMORY for rate in rates.values())
    assert [series.log_rate for series in KIND.series([record], [record])] == pytest.approx([sum(rates.values()) / 2])
    (words,) = {" ".join(KIND.describe(record))}
    assert words.startswith("memory ") and words.endswith(" GB/s")
