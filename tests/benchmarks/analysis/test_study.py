"""The analysis of a whole study."""

import time
from pathlib import Path

import pytest

from tests.benchmarks.large_study import analyse, write_records


@pytest.mark.thorough
def test_many_records_take_as_much_longer_as_there_are_more(tmp_path: Path) -> None:
    """By processor time: four times as many take four times as long, and sixteen times if each looked at all."""
    seconds = []
    for count in (50, 300, 1200):  # The first imports what is needed.
        store = write_records(tmp_path / str(count), count)
        began = time.process_time()
        analyse(store)
        seconds.append(time.process_time() - began)
    assert seconds[2] < 8 * seconds[1]
