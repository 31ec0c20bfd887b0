"""The table of peers."""

import json
from pathlib import Path

import pytest

from mnist_dist.benchmarks.labels import MISSING
from mnist_dist.benchmarks.peers.contestants import OURS
from mnist_dist.benchmarks.peers.table import make_rows, write_table
from tests.benchmarks.peers.made import CONTESTANTS, bad_record, rate_record, rate_records, time_record

FAST = "speedrun"
RUNS = [
    *rate_records(OURS, [4000] * 3),
    *rate_records("keras-fit", [1000] * 3),
    *(time_record(FAST, repeat, (2.0, 0.991)) for repeat in range(3)),
    *(time_record("keras-fit", repeat, (20.0, 0.981), (60.0, 0.99)) for repeat in range(2)),
    time_record("keras-fit", 2, (20.0, 0.981), (60.0, 0.989)),
    bad_record("pytorch-float32", "throughput", 0, "skipped"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(tmp_path_factory.mktemp("peers"), "a command", RUNS, make_rows(CONTESTANTS, RUNS))


def cells(name: str, text: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_compares_a_peer_with_ours(text: str) -> None:
    _, network, rate, ratio, to_98, to_99, to_995, times, accuracy, runs = cells("keras-fit", text)
    assert network == "its own"
    assert 980 < float(rate.split(" ")[0].replace(",", "")) < 1020
    assert ratio.startswith(("4", "3.9")) and "(" in ratio
    assert to_98 == "20.0 s"
    assert to_99 == "90.0 s (2 of 3)", "180 s for two successes"
    assert times.startswith("45 (")
    assert to_995 == accuracy == MISSING, "it ended at 99 %"
    assert runs == "3 + 3"


def test_ours_is_not_compared_with_itself_and_what_is_unknown_is_a_dash(text: str) -> None:
    assert cells(OURS, text)[3] == cells(FAST, text)[7] == MISSING
    assert cells(FAST, text)[6] == "never (0 of 3)"
    assert cells(FAST, text)[8] == "99.10 % (99.10 to 99.10)"
    assert cells("pytorch-float32", text)[2:] == [MISSING] * 7 + ["0 + 0"]
    assert "pytorch-float32: skipped: exit code 1: SomeError: of its own" in text
    assert "independent" not in text, "serves the goals alone"


def test_the_head_says_when_where_and_with_what(tmp_path: Path) -> None:
    text = write_table(tmp_path, "mnist-dist bench peers", RUNS, [])
    assert text.startswith("Measured with `mnist-dist bench peers` on 2026-01-01, on Example CPU, 2 cores, no GPU;")
    assert "tensorflow 2.21.0" in text.splitlines()[0]
    variables = {"OMP_NUM_THREADS": "1", "SLURM_JOB_PARTITION": "cpu"}
    changed = [rate_record("pytorch-float32", 0, 1000.0, environment=variables)]
    first = write_table(tmp_path, "a", changed, []).splitlines()[0]
    assert first.endswith("python 3.11.7, tensorflow 2.21.0, torch 2.13.0; OMP_NUM_THREADS=1."), "the peer's PyTorch"


def test_json_holds_the_numbers(tmp_path: Path) -> None:
    write_table(tmp_path, "a command", RUNS, make_rows(CONTESTANTS, RUNS))
    content = json.loads((tmp_path / "peers.json").read_text())
    row = next(row for row in content["rows"] if row["name"] == "keras-fit")
    assert row["seconds_to_accuracy"]["0.99"] == {"reached": 2, "runs": 3, "expected_seconds": 90.0}
    assert row["ours_over_peer"]["repeats"] == 3
    assert (tmp_path / "peers.md").is_file()
