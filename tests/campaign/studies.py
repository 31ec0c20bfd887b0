"""Faults that hit a study: records, its report, and a round in which cases take turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.benchmarks.records.store import Store
from tests.benchmarks import factory, harness
from tests.campaign.checks import check_end, check_nothing_left
from tests.campaign.damage import damage
from tests.campaign.trial import Trial
from tests.processes.conftest import Run, wait_until

if TYPE_CHECKING:
    from tests.campaign.checks import Reference

PLACES = ("os.rename report.md", "os.rename report.csv", "os.rename report.html", "os.rename *.png")


class Bench(Run):
    """A `mnist-dist bench` of a trial."""

    def __init__(self, trial: Trial, *arguments: str | Path, place: str = "") -> None:
        self.workdir, self.lines = trial.folder / "study", []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mnist_dist", "bench", *map(str, arguments)],
            env=os.environ | trial.environment(place),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        trial.runs.append(self)


def make_records(trial: Trial) -> Store:
    """Writes the records of a study as it might be, and its plan."""
    store = Store(trial.folder / "study")
    cases = factory.quick_cases()
    plan = {"name": "example", "suite": "quick", "seed": 0, "repeats": 2}
    store.write_study({**plan, "cases": [json.loads(case.model_dump_json()) for case in cases]})
    for record in factory.make_study(cases, 2, seed=trial.plan.seed % 1000):
        store.add(record)
    return store


def damage_records(trial: Trial, reference: Reference | None) -> None:
    """The report is written of what is intact, and says what is not."""
    store = make_records(trial)
    records = sorted(store.records_folder.iterdir())
    for victim in trial.rng.sample(records, 3) if trial.plan.place == "record" else [store.study_file]:
        how = trial.rng.choice(["truncate", "flip", "swap"])
        damage(victim, how, trial.rng, trial.rng.choice(records))
    intact = [json.loads(record.model_dump_json()) for record in Store(store.folder).records()]
    assert len(intact) >= len(records) - 6  # Swapping damages two.
    run = Bench(trial, "report", store.folder)
    check_end(trial, run, {0})
    assert (store.folder / "report.html").stat().st_size
    left_out = len(records) - len(intact)
    assert not left_out or f"{left_out} of the files in records/" in (store.folder / "report.md").read_text(), (
        run.output
    )
    check_nothing_left(trial, store.folder)


def kill_in_report(trial: Trial, reference: Reference | None) -> None:
    """What was there before stays whole, and the next report is that of nobody who was disturbed."""
    store = make_records(trial)
    files = sorted(store.records_folder.iterdir())
    run = Bench(trial, "report", store.folder, place=trial.plan.place)
    trial.wait_held(run)
    trial.kill(signal.SIGKILL)
    check_end(trial, run, {-signal.SIGKILL})
    assert sorted(store.records_folder.iterdir()) == files
    again = Bench(trial, "report", store.folder)
    check_end(trial, again, {0})
    assert (store.folder / "report.html").read_text().rstrip().endswith("</html>")
    check_nothing_left(trial, store.folder)


def kill_in_round(trial: Trial, reference: Reference | None) -> None:
    """The harness, a rank, or all, while cases take turns or their records are written."""
    block = {"images_per_device": harness.BATCH_SIZE, "measure_seconds": 2.0}
    changes = {"strategies": ["single", "multiworker"], "devices": [1, 2], "block": block, "timeout_seconds": 400.0}
    suite = harness.write_suite(trial.folder / "suite.yaml", trial.data, **changes)
    arguments = ["run", suite, "--results", trial.folder / "study", "--no-report"]
    victim = trial.rng.choice(["harness", "rank", "all"])
    store = Store(trial.folder / "study")
    if trial.plan.place == "record":
        run = Bench(trial, *arguments, place="os.rename *-r0-*.json")
        trial.wait_held(run)
        victim = "all"  # Whoever measured has ended.
    else:
        run = Bench(trial, *arguments)
        assert wait_until(lambda: len(harness.ranks_of(trial.mark)) == 2 or run.process.poll() is not None, 400)
        time.sleep(trial.rng.uniform(0, 20))
    if victim == "harness":
        run.process.kill()
    elif victim == "rank":
        for process in [*harness.ranks_of(trial.mark).values()][:1]:
            os.kill(process, signal.SIGKILL)
    else:
        trial.kill(signal.SIGKILL)
    # Of a rank that dies a record tells, and the others are measured.
    code = check_end(trial, run, {0, 1} if victim == "rank" else {0, -signal.SIGKILL}, one_error=False)
    trial.late = code == 0 and victim != "rank"
    before = {record.record_id for record in store.records()}
    assert not store.left_out, store.left_out
    again = Bench(trial, *arguments, *(["--resume"] if store.study_file.exists() else []))
    check_end(trial, again, {0}, one_error=False)
    after = store.records()
    assert before <= {record.record_id for record in after}, "records were lost"
    done = {record.case_id for record in after if record.status in ("ok", "skipped")}
    assert len(done) == len(store.study()["cases"]), "not all cases were measured"
    check_nothing_left(trial, store.folder)
    assert not any((store.folder / "scratch").glob("*")), "left in scratch/"
