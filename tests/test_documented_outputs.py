"""Outputs that documents show have the form of what the product prints today: the same lines but for their numbers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.benchmarks.command import main, name_the_next
from mnist_dist.benchmarks.measure.reproduce import compare_again
from mnist_dist.benchmarks.measure.suite import Machine, load_suite, plan_cases
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.records.store import Store
from mnist_dist.benchmarks.report.comparison import render_reproduction
from mnist_dist.training.variants import VARIANTS
from tests.benchmarks import rounds
from tests.benchmarks.adversary_trend import write_studies
from tests.benchmarks.simulation import make_record

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120  # Of the terminal.
LEFT_OUT = "..."  # A line of a document that stands for any number of lines.


def block(document: str, first: str) -> str:
    """Returns the block of code whose first line this is."""
    found = re.search(rf"^```\w*\n({re.escape(first)}.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{document} shows no '{first}'"
    return found[1]


def form(text: str) -> list[str]:
    """Returns the lines without numbers, but for numbers of devices as in 2x1, and without the width of columns.

    Lines that were too long for the terminal are whole again: where they were cut depends on the numbers. So does which
    cases are the slowest, or as fast as the fastest.
    """
    lines = [""]
    for line in filter(None, text.splitlines()):
        first, _, _ = line.partition(" ")
        if len(lines[-1]) <= WIDTH < len(lines[-1]) + 1 + len(first) and first != "report:":
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    without = (re.sub(r"(?<![×\d.,])\d+(?:[,.]\d+)*(?![×\d])", "N", line) for line in lines[1:])  # noqa: RUF001
    of_noise = r"(?<=the slowest )\(.*?\)|(?<=equally fast within noise: ).*(?=\.$)"
    return [re.sub(of_noise, "CASES", re.sub("─+", "─", " ".join(line.split()))) for line in without]


def assert_shows(shown: str, printed: str) -> None:
    """Compares a document's block, commands left out, with what was printed."""
    lines, is_gap = form(printed), False
    answers = re.sub(r"^\$ .*\n", "", shown, flags=re.MULTILINE)
    for part in re.split(rf"^({re.escape(LEFT_OUT)})\n", answers, flags=re.MULTILINE):
        if part == LEFT_OUT:
            is_gap = True
        elif expected := form(part):
            start = lines.index(expected[0]) if is_gap and expected[0] in lines else 0
            assert lines[start : start + len(expected)] == expected
            lines, is_gap = lines[start + len(expected) :], False
    assert is_gap or not lines, "more is printed than the document shows"


def study_of_readme(table: str) -> list[Record]:
    """Returns what the suite `quick` would have left on two cores, in one round, at the rates of README's table.

    Two devices of multiworker lose the most, and most of it to the all-reduce.
    """
    rows = re.findall(r"^(\w+) +(\d).*? 128 +([\d,]+) ±\S+ +[\d,]+ +(\S+)(?: ±\S+)? +(99\.\d+) ", table, re.MULTILINE)
    rates = {(row[0], int(row[1]), place == 0): row[2:] for place, row in enumerate(rows)}
    planned = plan_cases(load_suite("quick"), Machine(cores=2, gpus=0, devices_per_host=2))
    contenders = []
    for case in (each for each in planned if each.case.kind == "train"):
        rate, efficiency, accuracy = rates[case.case.strategy, case.case.devices, case.case.cores_per_device is None]
        step_seconds = case.case.global_batch_size / float(rate.replace(",", ""))
        reached = [
            {"step": 100 * part, "training_seconds": 5.0 * part, "evaluation_seconds": 0.1 * part, "split": "test"}
            | {"accuracy": share, "loss": 0.1}
            for part, share in ((1, 0.985), (2, float(accuracy) / 100))
        ]
        ranks = case.case.devices if case.case.strategy in ("multiworker", "horovod") else 1
        exchange = 0.9 - 0.9 * float(efficiency) / 100 if case.case.strategy == "multiworker" else 0.05
        shares = {name: 1.0 if VARIANTS[name].reduced else 1 - exchange for name in case.variants}
        trained = {"kernels": "fused", "evaluations": reached, "test_accuracy": float(accuracy) / 100}
        fields = {"measurements": trained, "suite": "quick", "study": "quick"}
        contenders.append((case.case, {name: [share * step_seconds] * ranks for name, share in shares.items()}, fields))
    return rounds.make_round(np.random.default_rng(0), contenders, machine=rounds.Machine(throttled=0.0, stalls=0.0))


@pytest.mark.slow
def test_the_study_that_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command trains for minutes; here the product renders simulated records of the same cases."""
    shown = block("README.md", "$ make bench")
    (folder,) = re.findall("^report: (.*)/report.html$", shown, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # As for make, which calls the program by its path.
    monkeypatch.setattr("sys.argv", [".venv/bin/mnist-dist", "bench", "run", "quick", "--results", folder, "--resume"])
    for record in study_of_readme(shown):
        Store(Path(folder)).add(record)
    assert main(["report", folder]) == 0
    name_the_next(Path(folder))
    assert_shows(shown[shown.index(LEFT_OUT) :], capsys.readouterr().out)


def test_what_make_says_first() -> None:
    command = ["make", "--dry-run", "--always-make", ".venv/.installed"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said = re.findall(r'echo "((?!make: ).*?)"', planned)
    first, _, _ = block("README.md", "$ make bench").partition(LEFT_OUT)
    assert_shows(first, "\n".join(said))


@pytest.mark.slow
def test_the_trend_that_the_cluster_page_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of fewer nights than there."""
    write_studies(tmp_path / "nightly", 100, change=70)
    assert main(["trend", str(tmp_path / "nightly")]) == 1
    shown = block("docs/cluster.md", "1 of 3 cases").replace("/tmp", str(tmp_path))  # noqa: S108 - only a text.
    assert_shows(shown, capsys.readouterr().out)


def test_the_reproduction_that_the_page_on_benchmarks_shows() -> None:
    settings = {"model.dense_units": 16, "model.filters": [4, 8], "runtime.precision": "float32", "training.epochs": 1}
    timed = Case(
        global_batch_size=32,
        cores_per_device=2,
        measure_seconds=1,
        settings=settings | {"runtime.steps_per_call": 10},
    )
    whole = Case(global_batch_size=1000, cores_per_device=2, measure_seconds=None, settings=settings)
    trained = make_record(whole, measurements={"test_accuracy": 0.9497})
    base = [make_record(timed), trained]
    new = [make_record(timed, status="timeout", reason="not ready after 600 s", minute=900)]
    found = compare_again(base, [*new, trained.model_copy(update={"study": "new"})], [], 0.05)
    assert_shows(block("docs/benchmarks.md", "Not reproduced: "), render_reproduction(found))


@pytest.mark.parametrize(
    "printed",
    [
        "case  images/s\n──────────────\na 2×1      300\n\nAs fast.\n",  # noqa: RUF001
        "case  images/s\n──────────────\na 2×1       77\n\nIt is fast.\nMore of it.\n",  # noqa: RUF001
        "case     rate\n──────────────\na 2×1       77\n\nIt is fast.\n",  # noqa: RUF001
        "case  images/s\n──────────────\na 4×1       77\n\nIt is fast.\n",  # noqa: RUF001
        "case  images/s\n──────────────\na 2×1       77\nb 2×1    78\n\nIt is fast.\n",  # noqa: RUF001
    ],
    ids=["a sentence", "one more sentence", "a head", "devices", "one more case"],
)
def test_another_form_is_found(printed: str) -> None:
    shown = "$ command\ncase  images/s\n─────────────────\na 2×1      1,234\n\nIt is fast.\n"  # noqa: RUF001
    assert_shows(shown, shown.removeprefix("$ command\n").replace("1,234", "9"))
    with pytest.raises(AssertionError):
        assert_shows(shown, printed)
