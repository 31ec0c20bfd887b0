"""The analysis of a whole study."""

import time
from pathlib import Path

import pytest

from tests.benchmarks.large_study import analyse, write_records


@pytest.mark.thorough
def test_many_records_take_as_much_longer_as_there_are_more(tmp_path: Path) -> None:
    """By processor time: four times as many take four times as long, and sixteen times if each looked at all."""
    seconds: dict[int, list[float]] = {}
    stores = {count: write_records(tmp_path / str(count), count) for count in (300, 1200)}
    for _ in range(2):  # The first imports what is needed; the other may be held up.
        for count, store in stores.items():
            began = time.process_time()
            analyse(store)
            seconds.setdefault(count, []).append(time.process_time() - began)
    assert min(seconds[1200]) < 8 * min(seconds[300])
