"""What was recorded is measured again: what is refused before it runs, and each verdict on what has run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.benchmarks.command import main
from mnist_dist.benchmarks.measure.reproduce import _settings, compare_again, reproduce
from mnist_dist.benchmarks.records.environment import identity
from mnist_dist.benchmarks.records.published import Published
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.report.comparison import render_reproduction
from tests.benchmarks.factory import make_study, train
from tests.benchmarks.harness import run, write_suite
from tests.benchmarks.simulation import make_runs

QUIET: dict[str, Any] = {"between": 0.003, "within": 0.01, "outlier_share": 0.0}
GPU = {"name": "H", "memory_bytes": 1}


def answer(base: list[Record], new: list[Record]) -> tuple[int, str]:
    found = compare_again(base, new, [], 0.05)
    return found.exit_code, render_reproduction(found)


@pytest.mark.parametrize(
    ("slower", "runs", "code", "first", "word"),
    [
        (1.0, 5, 0, "Reproduced: of 1 case 1 reproduced.", "reproduced"),
        (0.7, 5, 0, "Reproduced: of 1 case 1 faster.", "faster"),
        (1.4, 5, 1, "Not reproduced: of 1 case 1 slower.", "slower"),
        (1.4, 1, 3, "Undecided: of 1 case 1 undecided.", "undecided"),
    ],
)
def test_each_verdict(slower: float, runs: int, code: int, first: str, word: str) -> None:
    rng = np.random.default_rng(1)
    base, new = make_runs(rng, runs, **QUIET), make_runs(rng, runs, slower=slower, first_minute=1000, **QUIET)
    found, text = answer(base, new)
    lines = text.splitlines()
    assert (found, lines[0]) == (code, first)
    assert lines[1].startswith(f"{word}: single, ")
    if runs > 1:
        value, low, high = map(float, re.findall(r"[0-9]\.[0-9]+", lines[1])[-3:])
        assert low < value < high and value == pytest.approx(1 / slower, rel=0.03)


def changed(record: Record, **measured: Any) -> Record:
    return record.model_copy(update={"measurements": (record.measurements or {}) | measured})


def test_accuracy_and_the_time_to_it_have_verdicts() -> None:
    base = make_study([train("single", 1)], 5)
    evaluation = {"step": 1, "evaluation_seconds": 1.0, "split": "test", "accuracy": 0.991, "loss": 0.1}

    def runs(seconds: float, accuracy: float) -> list[Record]:
        timed = [[evaluation | {"training_seconds": seconds + 0.01 * record.repeat}] for record in base]
        accuracies = [accuracy + 1e-4 * record.repeat for record in base]
        return [
            changed(record, evaluations=each, test_accuracy=value)
            for record, each, value in zip(base, timed, accuracies, strict=True)
        ]

    before = runs(9.0, 0.991)
    for new, code, words in (
        (runs(9.0, 0.991), 0, ["reproduced", "reproduced"]),
        (runs(19.0, 0.991), 1, ["reproduced", "slower"]),
        (runs(4.0, 0.991), 0, ["reproduced", "faster"]),
        (runs(9.0, 0.97), 1, ["less accurate", "reproduced"]),
    ):
        found, text = answer(before, new)
        assert found == code
        assert [line.partition(":")[0] for line in text.splitlines()[1:3]] == words
        assert "pace to 99 % test accuracy" in text.splitlines()[2]


def test_another_form_of_the_network_is_not_comparable() -> None:
    base = make_study([train("single", 1)], 3)
    for name, before, after in (("kernels", "fused", "plain"), ("precision", "float32", "mixed_bfloat16")):
        sides = ([changed(record, **{name: value}) for record in base] for value in (before, after))
        found, text = answer(*sides)
        assert found == 3
        assert text.splitlines()[0] == "Undecided: of 1 case 1 not comparable."
        assert f"{name}: recorded {before}, here {after}" in text


def recorded(case: dict[str, Any], **there: Any) -> Record:
    """A record as if it came from this machine, but for what is given."""
    case = case | {"settings": {"runtime.precision": "float32"} | case.get("settings", {})}
    content = make_study([train("single", 1, cores_per_device=1).model_copy(update=case)], 1)[0].to_json()
    content["identity"] = identity({}).model_dump(mode="json") | there
    return Record.model_validate(content)


REFUSED: dict[str, tuple[Record, str]] = {
    "GPUs": (
        recorded({}, hardware=identity({}).hardware.model_dump(mode="json") | {"gpus": [GPU]}),
        "recorded on GPUs, but GPUs here: none",
    ),
    "devices": (recorded({"strategy": "mirrored", "devices": 10**6}), "1000000 devices on a host, but room for"),
    "data": (recorded({"settings": {"data.path": "/etc/passwd"}}), "no path of a record is opened"),
    "variables": (recorded({}, environment={"OMP_NUM_THREADS": "77"}), "OMP_NUM_THREADS: base 77, new none"),
    "launcher": (recorded({}, launcher="srun"), "launcher: base srun, new mnist-dist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_repeated_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    record, reason = REFUSED[name]
    found = reproduce([record], tmp_path / "new", None, 0.05)
    assert found.exit_code == 3
    assert reason in render_reproduction(found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"runtime.shell": "rm"}, "runtime.shell: no such setting"),
        ({"runtime.precision": "rm"}, "runtime.precision: received 'rm'"),
        ({"seed": 1}, "seed: received as a setting of a case"),
    ],
)
def test_settings_of_strangers_are_checked(settings: dict[str, Any], said: str, user_error: Callable[..., str]) -> None:
    assert said in user_error(reproduce, [recorded({"settings": settings})], None, None, 0.05)


def test_a_stranger_cannot_ask_for_a_million_repeats(user_error: Callable[..., str]) -> None:
    record = recorded({}).model_copy(update={"repeat": 10**9})
    assert "repeat: received 1000000000" in user_error(reproduce, [record], None, None, 0.05)


def test_bad_input_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    for arguments in (["publish", "nowhere"], ["reproduce", "nowhere"], ["reproduce", str(tmp_path / "x.json")]):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mnist-dist: error: ")


@pytest.mark.slow
def test_a_study_is_run_published_and_reproduced(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "small.yaml", tmp_path, block={"settings": SETTINGS})
    assert run("run", suite, "--results", tmp_path / "study", "--no-report").returncode == 0
    published = run("publish", tmp_path / "study", "--out", tmp_path / "p.json.gz")
    assert published.returncode == 0 and "left out: names of hosts" in published.stdout
    again = run("reproduce", tmp_path / "p.json.gz", "--time", "1", "--results", tmp_path / "new")
    assert again.returncode == 3, again.stderr  # A single run of each decides nothing.
    answer = again.stdout[again.stdout.index("Undecided: of 1 case 1 undecided.") :].splitlines()
    assert answer[1].startswith("undecided: single, ")
    (record,) = Published(tmp_path / "p.json.gz").records()
    (file,) = (tmp_path / "new" / "records").iterdir()
    new = json.loads(file.read_text())
    assert (new["case_id"], new["seed"], new["status"]) == (record.case_id, record.seed, "ok")
    assert new["identity"]["config"] == record.identity.config, "the configuration is the recorded one"
    resumed = run("reproduce", tmp_path / "p.json.gz", "--time", "1", "--results", tmp_path / "new", "--resume")
    assert resumed.returncode == 3 and resumed.stdout.endswith("\n".join(answer) + "\n"), "what was measured stays"
    assert list((tmp_path / "new" / "records").iterdir()) == [file]


SETTINGS = {
    "model.filters": [4, 8],
    "model.dense_units": 16,
    "runtime.precision": "float32",
    "runtime.steps_per_call": 10,
}


def test_what_was_a_default_then_is_set_now() -> None:
    """The configuration is the recorded one, but for what follows from the case."""
    config = {"optimizer": {"learning_rate": 0.001}, "seed": 9, "runtime": {"devices": 7}, "gone": {"x": 1}}
    assert _settings(recorded({}, config=config)) == {"optimizer.learning_rate": 0.001}
