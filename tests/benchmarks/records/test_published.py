"""Published studies: nothing of who measured them survives, all that repeating takes does, and no file does harm."""

from __future__ import annotations

import getpass
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnist_dist.benchmarks.records import published
from mnist_dist.benchmarks.records.published import FORMAT, MAX_BYTES, Published, publish, scrubbed
from mnist_dist.benchmarks.records.record import Record
from tests.benchmarks.factory import collectives, make_study, matmul, train

PLANTED = ["node-x7q", "zoë.example.org", "10.20.30.40", "4711_3", "alicia", "bob-cluster", "harness-q9"]
HOSTS, JOB, USER = PLANTED[:3], PLANTED[3], PLANTED[4]
TEXT = f"of {USER} on {HOSTS[0]} and {HOSTS[1]}, {HOSTS[2]}, job 4711, in /home/{USER}/x and ~/{USER} from harness-q9"
CASES = [train("single", 1), train("horovod", 4), collectives("mirrored", 2), matmul(1)]


@pytest.fixture(autouse=True)
def this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: USER)
    monkeypatch.setattr("platform.node", lambda: PLANTED[-1])


def planted(record: Record) -> Record:
    """Returns a record that has names wherever its schema takes a text."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: each if name in CLOSED else fill(each) for name, each in value.items()}
        if isinstance(value, list):
            return [fill(each) for each in value]
        return f"{value} {TEXT}" if isinstance(value, str) else value

    content = fill(record.to_json())
    gpu = {"name": f"GPU {TEXT}", "memory_bytes": 1, "uuid": f"GPU-{USER}", "pci_id": TEXT}
    content["identity"]["hardware"] |= {"gpus": [gpu], "gpu_driver": TEXT}
    content["identity"] |= {"hosts": [HOSTS[n % 3] for n in range(len(record.identity.hosts))], "job_id": JOB}
    variables = {"LD_PRELOAD": f"/home/{USER}/a.so", "OMP_NUM_THREADS": "4711", "SLURM_CLUSTER_NAME": "bob-cluster"}
    content["identity"] |= {"environment": variables | {"KMP_BLOCKTIME": "0", "XLA_FLAGS": TEXT}}
    content["identity"]["config"] = {"data": {"path": TEXT}, USER: {"x": TEXT}, "runtime": {"xla": TEXT, USER: 1}}
    content["case"]["settings"] |= {"data.path": f"/home/{USER}", USER: 1, "training.epochs": 2}
    content["telemetry"] = {
        **{"source": "nvml", "seconds": 1.0, "energy_joules": 1.0, "power_watts": 1.0, "gpu_utilisation_percent": None},
        "gpus": [
            {"uuid": TEXT, "sm_clock_mhz": 1.0, "temperature_celsius": 1.0, "throttled_by": [TEXT], "ecc_errors": 0}
        ],
    }
    content["case_id"] = record.case.model_copy(update={"settings": content["case"]["settings"]}).case_id
    return Record.model_validate_json(json.dumps(content))


CLOSED = {"case", "case_id", "record_id", "started_at", "status", "hosts", "launcher", "split", "round_id", "reason"}


def test_no_name_survives_wherever_it_was(tmp_path: Path) -> None:
    records = [planted(record) for record in make_study(CASES, 2)]
    failed = make_study(CASES[:1], 1, failing=CASES[:1], seed=5)[0]
    records += [failed.model_copy(update={"reason": TEXT, "output_tail": (TEXT,)})]
    publish(records, tmp_path / "study.json")
    text = (tmp_path / "study.json").read_text().lower()
    for name in (*PLANTED, "x7q", "zo", "example.org", "4711", "/home", "~/", str(Path.home())):
        assert json.dumps(name.lower()).strip('"') not in text, name
    publish(records, tmp_path / "names.json", with_names=True)
    named = (tmp_path / "names.json").read_text()
    assert all(json.dumps(name).strip('"') in named for name in PLANTED)


def test_what_repeating_takes_is_kept(tmp_path: Path) -> None:
    records = make_study(CASES, 2)
    publish(records, tmp_path / "study.json.gz")
    found = Published(tmp_path / "study.json.gz").records()
    for before, after in zip(sorted(records, key=lambda each: (each.started_at, each.record_id)), found, strict=True):
        assert (after.case, after.case_id, after.repeat, after.seed) == (
            (before.case, before.case_id, before.repeat, before.seed)
        )
        assert after.identity.hardware == before.identity.hardware
        assert (after.identity.software, after.identity.git) == (before.identity.software, before.identity.git)
        assert after.identity.config == before.identity.config
        assert after.measurements and after.measurements.keys() == (before.measurements or {}).keys()
    ranks = [record.identity.hosts for record in found if record.case.strategy == "horovod"]
    assert {*ranks} == {("host-1",) * 4}


def test_a_user_who_is_called_as_a_word_of_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the record damaged, nor are other numbers than the job's taken for it."""
    record = make_study(CASES[:1], 1)[0]
    for name in ("single", "train", "seconds", "float32", "2026", "12"):
        monkeypatch.setattr("getpass.getuser", lambda name=name: name)
        assert scrubbed(record).case == record.case
        publish([record], tmp_path / "study.json")
        assert Published(tmp_path / "study.json").records()[0].identity.software["tensorflow"] == "2.21.0"


def test_a_name_that_slips_through_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    """The last check does not rest on the rules that take names out."""
    monkeypatch.setattr(published.Scrubber, "_clean", lambda self, value, field="": value)
    said = user_error(publish, [planted(make_study(CASES[:1], 1)[0])], tmp_path / "study.json")
    assert "so nothing was written; see --with-names" in said
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_is_thinned_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., str]
) -> None:
    record = make_study(CASES[:1], 1)[0]
    measured = record.measurements or {}
    wide = {"window_seconds": [row * 20 for row in measured["window_seconds"]]}
    wide["window_steps"] = measured["window_steps"] * 20
    record = record.model_copy(update={"measurements": measured | wide})
    monkeypatch.setattr(published, "MAX_BYTES", 7000)
    assert "all but one in" in publish([record], tmp_path / "study.json")[-1]
    (found,) = Published(tmp_path / "study.json").records()
    kept = (found.measurements or {})["window_steps"]
    assert published.FEWEST_WINDOWS <= len(kept) < len(wide["window_steps"])
    monkeypatch.setattr(published, "MAX_BYTES", 100)
    assert "expected at most 100" in user_error(publish, [record], tmp_path / "small.json")


HEAD = f'{{"format": "{FORMAT}", "left_out": [], "records": '
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not intact JSON"),
    "binary": (bytes(range(256)), "not intact JSON"),
    "a list": (b"[1]", "expected a JSON object"),
    "too large": (b" " * (MAX_BYTES + 1), "has more than 1048576 bytes"),
    "a bomb": (gzip.compress(b" " * (32 * 2**20)), "at most 16777216 bytes"),
    "cut off": (gzip.compress(b"{}")[:-9], "not intact JSON"),
    "not deflated": (b"\x1f\x8b" + b"x" * 50, "not intact JSON"),
    "another format": (b'{"format": "x", "left_out": [], "records": []}', "records with the format"),
    "no list": (f"{HEAD} 3}}".encode(), "records with the format"),
    "no record": (f"{HEAD} [3]}}".encode(), "not a record: schema_version"),
    "deep": (f"{HEAD} {'[' * 100_000}".encode(), "nested too deeply"),
    "not a number": (f"{HEAD} [NaN]}}".encode(), "NaN is not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line(name: str, tmp_path: Path, user_error: Callable[..., str]) -> None:
    data, said = HOSTILE[name]
    (tmp_path / "study.json.gz").write_bytes(data)
    assert said in user_error(Published(tmp_path / "study.json.gz").records)


def test_this_user_is_looked_up() -> None:
    assert getpass.getuser() == USER
