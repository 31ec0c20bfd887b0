"""Trends over folders of studies: what is lined up, what changed, what else did, and what is read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.analysis import trend
from mnist_dist.benchmarks.analysis.trend import CACHE, Trend, find_trends, read_studies
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.errors import UserError
from tests.benchmarks.simulation import CASE, IDENTITY, make_record

START = datetime(2025, 12, 1, 2, tzinfo=timezone.utc)
OTHER = Case(global_batch_size=200, cores_per_device=1, measure_seconds=5)


def write_nights(
    folder: Path, levels: Sequence[float], *, case: Case = CASE, first: int = 0, noise: float = 0.01, **later: Any
) -> None:
    """Writes a study for each night; of `later`, an identity, each value holds from the first other level on."""
    rng = np.random.default_rng(first)
    for number, level in enumerate(levels):
        moment = START + timedelta(days=first + number)
        identity = later if level != levels[0] else {}
        seconds = 0.12 * level * np.exp(noise * rng.standard_normal())
        record = make_record(case, window_seconds=[[seconds] * 40], identity=identity, started_at=moment.isoformat())
        Store(folder / f"{moment:%Y}" / f"{moment:%m-%d}").add(record)


def trends_of(*folders: Path) -> list[Trend]:
    return find_trends(read_studies(folders))


def software(**versions: str) -> dict[str, str]:
    return IDENTITY["software"] | versions


def test_since_when_by_how_much_and_what_else(tmp_path: Path) -> None:
    """Over the turn of a year, in two folders; the other case has not changed."""
    new = {"software": software(kernel="6.2"), "hosts": ["n2"], "environment": {"NCCL_ALGO": "Ring"}}
    write_nights(tmp_path, [1.0] * 40 + [1.1] * 10, **new)
    write_nights(tmp_path, [1.0] * 50, case=OTHER)
    changed, other = trends_of(tmp_path / "2025", tmp_path / "2026")
    assert (changed.outcome, other.outcome) == ("slower", "unchanged")
    (change,) = changed.changes
    assert change.since == "2026-01-10" and change.between == (change.since, change.since)
    assert change.ratio.value == pytest.approx(1 / 1.1, abs=0.012)
    assert change.ratio.low < change.ratio.value < change.ratio.high < change.ratio.low + 0.03
    assert dict(change.differences) == {
        "NCCL_ALGO none → Ring": True,
        "kernel none → 6.2": True,
        "node n1 → n2": True,
    }


def test_what_comes_and_goes_is_told_apart(tmp_path: Path) -> None:
    write_nights(tmp_path, [1.0] * 40 + [1.2] * 10, hosts=["n2"])
    write_nights(tmp_path, [1.2], first=50, hosts=["n1"])
    (changed,) = trends_of(tmp_path)
    assert changed.changes[0].differences == (("node n1 → n2", False),)


def test_only_the_same_machine_is_lined_up(tmp_path: Path) -> None:
    """Twice as fast on twice the cores is no change; another version of something is no other machine."""
    write_nights(tmp_path, [1.0] * 25)
    faster = {"hardware": IDENTITY["hardware"] | {"cores": 4}, "software": software(tensorflow="2.22.0")}
    write_nights(tmp_path, [1.0] + [0.5] * 24, first=25, **faster)
    found = {len(each.days): each for each in trends_of(tmp_path)}
    assert sorted(found) == [24, 26] and {each.outcome for each in found.values()} == {"unchanged"}


@pytest.mark.parametrize(
    ("levels", "outcome", "changes"),
    [
        ([1.0] * 15, "too few", 0),
        ([1.0] * 40 + [0.8] * 10, "faster", 1),
        ([1.0] * 40 + [1.2] * 20 + [1.0] * 20, "faster", 2),  # All is well again.
        ([1.0] * 40 + [1.2] * 20 + [1.1] * 20, "slower", 2),  # Half of it is.
        ([1.0] * 40 + [1.012] * 40, "unchanged", 0),  # It is there, and does not matter.
        ([1.0] * 40 + [1.014] * 40 + [1.028] * 40, "slower", 1),  # Together it does.
    ],
)
def test_outcomes(levels: list[float], outcome: str, changes: int) -> None:
    rng = np.random.default_rng(0)
    rates = -np.log(levels) + 0.003 * rng.standard_normal(len(levels))
    setting = trend.Setting(case=CASE, gpus=False, machine="m", facts={})
    points = [((START + timedelta(days=day)).isoformat()[:10], ("key", rate, "n1")) for day, rate in enumerate(rates)]
    found = trend._follow(points, {"key": setting})
    assert (found.outcome, len(found.changes)) == (outcome, changes)


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of it after damage, which is told of; a copy in another place is another study."""
    write_nights(tmp_path, [1.0] * 4)
    read = []
    records = Store.records
    monkeypatch.setattr(Store, "records", lambda store: read.append(store.folder.name) or records(store))
    first = read_studies([tmp_path])
    assert len(read) == 4
    assert read_studies([tmp_path]) == first and len(read) == 4
    write_nights(tmp_path, [1.0], first=4)
    second = read_studies([tmp_path, tmp_path / "2025"])
    assert read[4:] == ["12-05"] and len(second.studies) == 5
    file = next((tmp_path / "2025" / "12-02" / "records").iterdir())
    file.unlink()
    assert read_studies([tmp_path]).studies["2025/12-02"].points == [] and read[5:] == ["12-02"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "[]",
        lambda text: text.replace('"version":1', '"version":2'),
        lambda text: text.replace('"points":[[', '"points":[[1,'),
        lambda text: json.dumps(json.loads(text) | {"settings": {}}),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: Any) -> None:
    write_nights(tmp_path, [1.0] * 3)
    intact = read_studies([tmp_path])
    file = tmp_path / CACHE
    file.write_text(damage(file.read_text()))
    assert read_studies([tmp_path]) == intact
    assert trend.Summaries.model_validate_json(file.read_text()) == intact


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nights(tmp_path, [1.0] * 3)
    (tmp_path / CACHE).mkdir()
    assert len(read_studies([tmp_path]).studies) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"{tmp_path / CACHE}: not written: ")


def test_failed_and_retired_cases(tmp_path: Path) -> None:
    write_nights(tmp_path, [1.0] * 3, case=OTHER)
    write_nights(tmp_path, [1.0] * 31, first=3)
    failed = make_record(status="failed", reason="died", started_at=(START + timedelta(days=40)).isoformat())
    Store(tmp_path / "broken").add(failed)
    (only,) = trends_of(tmp_path)
    assert (only.setting.case, len(only.days), only.without_rate) == (CASE, 31, 1)


def test_folders_without_studies_are_bad_input(tmp_path: Path) -> None:
    write_nights(tmp_path / "some", [1.0])
    (tmp_path / "none").mkdir()
    for empty in ("none", "nowhere"):
        with pytest.raises(UserError, match=f"DIR: '.*{empty}' holds no studies"):
            read_studies([tmp_path / "some", tmp_path / empty])
