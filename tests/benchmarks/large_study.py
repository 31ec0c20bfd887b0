"""How long a study of many records takes to be read, summarised and reported: `python -m tests.benchmarks.large_study`.

Prints seconds of processor time for 1,000 and 10,000 records, and the most memory that was in use by then.
"""

from __future__ import annotations

import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.benchmarks.report.write import write_report
from mnist_dist.strategies import STRATEGIES
from tests.benchmarks.factory import ablations, make_study, train

REPEATS = 5


def cases_of_many_settings() -> Iterator[Case]:
    """Every strategy on 1 to 8 devices with its ablations, at one learning rate after another."""
    for number in itertools.count(1):
        settings = {"runtime.precision": "float32", "optimizer.learning_rate": 0.001 * number}
        for name, row in STRATEGIES.items():
            for devices in (1, 2, 4, 8) if row.several_devices else (1,):
                case = train(name, devices, settings=settings)
                yield from (case, *ablations(case))


def write_records(folder: Path, count: int) -> Store:
    store = Store(folder)
    for record in make_study(itertools.islice(cases_of_many_settings(), count // REPEATS), REPEATS):
        store.add(record)
    return store


def analyse(store: Store) -> Analysis:
    """Reads and explains all that a report needs besides its pictures and predictions."""
    analysis = Analysis(store.records())
    assert analysis.attributions and analysis.trained
    return analysis


def main() -> None:
    for count in map(int, sys.argv[1:] or ("1000", "10000")):
        with tempfile.TemporaryDirectory() as folder:
            store = write_records(Path(folder), count)
            began = time.process_time()
            analyse(store)
            explained = time.process_time()
            write_report(store.folder, store.records())
            ended = time.process_time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{count:,} records: read and explained in {explained - began:.1f} s, then read and reported in "
            f"{ended - explained:.1f} s of one core; at most {memory:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
