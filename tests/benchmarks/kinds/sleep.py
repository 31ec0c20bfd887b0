"""A made-up kind of measurement: how long a process that asks to sleep a hundredth of a second really does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mnist_dist.benchmarks.measure.timing import take_timings
from mnist_dist.benchmarks.measure.worker import main
from mnist_dist.benchmarks.records.kinds import KINDS, Measurements, WorkerKind
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.sections import Section
from mnist_dist.benchmarks.report.table import Column, make_table
from mnist_dist.benchmarks.statistics.stats import Series
from mnist_dist.config import PositiveFloat
from mnist_dist.distributed.turns import FULL

SECONDS = 0.01


class Naps(Measurements):
    nap_seconds: list[PositiveFloat]


class Sleep(WorkerKind):
    name = "sleep"
    description = "naps"
    prefix = "naps: "
    measurements = Naps
    seconds = 1.0
    worker = __spec__.name if __spec__ else ""

    def fits(self, strategy: str, devices: int) -> bool:
        return devices == 1

    def measure(self, config: Any, strategy: Any, runtime: Any, turns: Any) -> dict[str, Any]:
        timings = take_timings({FULL: lambda count: time.sleep(count * SECONDS)}, turns)
        return {"nap_seconds": [each.seconds / each.count for each in timings[FULL]]}

    def describe(self, record: Record) -> Sequence[str]:
        return [f"{len(naps(record))} naps"]

    def series(self, records: Sequence[Record], both: Sequence[Record]) -> list[Series]:
        return [Series(np.ones(len(naps(record))), np.array(naps(record))) for record in records]

    def sections(self, summaries: Sequence[Any], analysis: Any) -> Iterator[Section]:
        records = [record for each in summaries for record in each.records]
        columns: list[Column[Record]] = [
            Column("strategy", lambda record: record.case.strategy, numeric=False),
            Column("nap", lambda record: f"{np.median(naps(record)):.4f}", "s"),
        ]
        if records:
            yield Section("sleep", "Naps", tables=[make_table(columns, records, "Naps")])


def naps(record: Record) -> list[float]:
    return (record.measurements or {})["nap_seconds"]


KIND = Sleep()

if __name__ == "__main__":
    KINDS["sleep"] = Sleep.worker
    sys.exit(main())
