"""What holds for every kind, and that a new one takes nothing but its module and its line in the registry."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from mnist_dist.benchmarks import kinds
from mnist_dist.benchmarks.command import main
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import KINDS, kind
from mnist_dist.benchmarks.records.record import json_schema
from mnist_dist.benchmarks.records.store import Store
from tests.benchmarks.kinds import sleep

FOLDER = Path(kinds.__file__).parent
# A cause of loss, and a key of what pydantic says.
OTHER_INPUTS = {"attribution.py", "explanation.py", "record.py"}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_what_its_line_says(name: str) -> None:
    found = kind(name)
    assert found.name == name == Path(KINDS[name].replace(".", "/")).name
    assert found.description and bool(found.prefix) == (name != "train")
    assert found.estimate_seconds(Case(kind=name)) > 0
    assert any(found.fits(strategy, devices) for strategy in ("single", "horovod") for devices in (1, 2))


@pytest.mark.parametrize("file", sorted(FOLDER.parent.rglob("*.py")), ids=lambda file: file.name)
def test_no_other_module_knows_a_kind_by_its_name(file: Path) -> None:
    if FOLDER in file.parents or file == FOLDER.parent / "records" / "kinds.py":
        return
    texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
    allowed = {"train"} | ({"input"} if file.name in OTHER_INPUTS else set())
    assert not texts & (KINDS.keys() - allowed)


@pytest.mark.slow
def test_a_new_kind_goes_from_a_suite_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "sleep", sleep.__name__)
    suite = {"description": "d", "minutes": 1, "repeats": 1, "devices": [1, 2], "blocks": [{"kind": "sleep"}]}
    (tmp_path / "own.yaml").write_text(json.dumps(suite | {"strategies": ["single", "mirrored"]}))
    assert main(["run", str(tmp_path / "own.yaml"), "--results", str(tmp_path / "base")]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^\[run \d of 2\] naps: (?:single|mirrored), .*: \d+ naps, \d+ s$", said, re.M)) == 2
    records = Store(tmp_path / "base").records()
    assert {(record.case.kind, record.case.devices) for record in records} == {("sleep", 1)}
    for record in records:
        assert all(sleep.SECONDS < seconds < 1 for seconds in sleep.naps(record))
    assert "## Naps" in (tmp_path / "base" / "report.md").read_text()
    shutil.copytree(tmp_path / "base", tmp_path / "new")
    assert main(["compare", str(tmp_path / "base"), str(tmp_path / "new"), "--smallest-effect", "90"]) in (0, 3)
    said = capsys.readouterr().out
    assert "naps: single" in said and re.search(r" [01]\.\d\d\d ", said), said
    assert "#/$defs/Naps" in str(json_schema()["properties"]["measurements"])
    assert main(["run", str(tmp_path / "own.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("2 cases, 2 runs in 1 round, about 0:18\n")
