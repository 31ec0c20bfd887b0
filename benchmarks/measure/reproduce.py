"""Runs again, here, what records describe: each case in the configuration that they name, with the same seeds.

Records may be a stranger's. Their settings pass the checks of every configuration, no path of theirs is opened, and
their variables are compared with those here, never set.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnist_dist.benchmarks.analysis.compare import Comparison, Incomparable, compare, compare_times
from mnist_dist.benchmarks.analysis.matching import find_differences, flat, settings_of
from mnist_dist.benchmarks.measure.runner import find_machine
from mnist_dist.benchmarks.measure.study import naming_the_rest, open_study, plan_rounds, results_folder, run_rounds
from mnist_dist.benchmarks.measure.suite import (
    ABLATION_SECONDS,
    DECIDED,
    Limits,
    Machine,
    PlannedCase,
    skip_reason,
    training_settings,
)
from mnist_dist.benchmarks.records.environment import find_hardware, identity
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.published import scrubbed
from mnist_dist.benchmarks.records.record import Record
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.config import load_config
from mnist_dist.errors import UserError

LONGEST_SECONDS, MOST_REPEATS = 600.0, 1000  # Of measuring a variant, and of a case: a stranger may ask for anything.
DATA_PATH = "data.path"


def reproduce(
    records: Sequence[Record],
    results: Path | None,
    seconds: float | None,
    smallest_effect: float,
    resume: bool = False,
) -> Comparison:
    """Measures the cases of some records again and compares both, case by case.

    What differs between the records' machines and versions and those here is printed before anything runs.

    Args:
        results: gets the new study.
        seconds: for which each variant of a case is measured, at most; None: for as long as in the records.
        resume: go on with what `results` holds.

    Raises:
        UserError: a setting of the records is not accepted.
    """
    for case in {record.case_id: record.case for record in records}.values():
        training_settings(case, seed=0)  # Before what is not known is left out.
    machine, base = find_machine(), [scrubbed(record) for record in records if record.status == "ok"]
    planned: list[PlannedCase] = []
    settings: dict[str, dict[str, Any]] = {}
    refused: list[Incomparable] = []
    told: dict[str, None] = {}
    for case_id, of_case in group_by(base, lambda record: record.case_id).items():
        settings[case_id] = _settings(of_case[0])
        there = of_case[0].identity
        here = identity(there.config, there.hosts, "srun" if machine.hosts else "mnist-dist")
        differences = list(find_differences(of_case, [scrubbed(of_case[0].model_copy(update={"identity": here}))]))
        told |= {text: None for what, text in differences if what in ("hardware", "software")}
        obstacles = [_obstacle(of_case[0], machine), *(text for what, text in differences if what == "config")]
        if reason := "; ".join(filter(None, obstacles)):
            refused.append(Incomparable(tuple(of_case), reason))
        else:
            planned.append(_plan(of_case, seconds))
    for text in told:
        print(text)
    new: list[Record] = []
    if planned:
        with results_folder(results, "reproduce", resume) as folder:
            side = open_study(folder, "reproduce", Limits(), machine, planned, resume)
        store = side[1]
        known = store.records()
        runs = {(record.case_id, record.repeat) for record in base}
        rounds = [
            [replace(run, study=replace(run.study, under_test=settings[run.planned.case_id])) for run in each]
            for all_runs in plan_rounds([side], planned, known)
            if (each := [run for run in all_runs if (run.planned.case_id, run.repeat) in runs])
        ]
        with naming_the_rest(folder):
            run_rounds(rounds, [side], known=known)
        new = [scrubbed(each).model_copy(update={"reason": each.reason}) for each in store.records()]
    return compare_again(base, new, refused, smallest_effect)


def compare_again(
    base: Sequence[Record], new: Sequence[Record], refused: Sequence[Incomparable], smallest_effect: float
) -> Comparison:
    """Compares what was recorded with what was measured here, where `auto` became the same."""
    others = list(refused)
    for case_id, of_case in group_by(new, lambda record: record.case_id).items():
        before = [record for record in base if record.case_id == case_id]
        for name in ("precision", "xla", "resident", "kernels", "all_reduce_backend"):
            sides = [{each.measured[name] for each in side if each.measured.get(name)} for side in (before, of_case)]
            if all(sides) and sides[0] != sides[1]:
                there, here = (" and ".join(sorted(side)) for side in sides)
                others.append(Incomparable(tuple(of_case), f"{name}: recorded {there}, here {here}"))
                break
    left_out = {each.records[0].case_id for each in others}
    chosen = [[record for record in side if record.case_id not in left_out] for side in (base, new)]
    found = compare(*chosen, smallest_effect=smallest_effect, allow={"hardware", "software"})
    return compare_times(replace(found, incomparable=(*found.incomparable, *others)))


def _settings(record: Record) -> dict[str, Any]:
    """Returns what the recorded configuration has other than this version would choose for the case."""
    if record.repeat >= MOST_REPEATS:
        raise UserError(f"repeat: received {record.repeat}, expected less than {MOST_REPEATS}.")
    here = dict(flat(load_config("default", training_settings(record.case, record.repeat)).model_dump(mode="json")))
    follows = {*DECIDED, DATA_PATH}
    changed = {
        name: value
        for name, value in settings_of(record).items()
        if name in here.keys() - follows and value != here[name]
    }
    case = record.case.model_copy(update={"settings": record.case.settings | changed})
    load_config("default", training_settings(case, record.repeat))
    return changed


def _plan(records: Sequence[Record], seconds: float | None) -> PlannedCase:
    case, of_kind = records[0].case, kind(records[0].case.kind)
    took_turns = any(max(each.measured.get("window_cycles") or [-1]) >= 0 for each in records)
    variants = {name for each in records for name in each.measured.get("window_variants") or ()}
    names = (
        *of_kind.variants_on(bool(find_hardware().gpus)),
        *(name for name in of_kind.ablations(case) if name in variants),
    )
    each_seconds = of_kind.measuring_seconds(case) or ABLATION_SECONDS * took_turns
    each_seconds = min(seconds or each_seconds, LONGEST_SECONDS) if each_seconds else 0.0
    repeats = max(record.repeat for record in records) + 1
    return PlannedCase(case, repeats, None, names if each_seconds else (), each_seconds * len(names))


def _obstacle(record: Record, machine: Machine) -> str | None:
    """Says why a case of a record cannot run here, or would be another."""
    case, there = record.case, record.identity.hardware
    on_host = -(-case.devices // case.hosts)
    cores = on_host * (case.cores_per_device or 0)
    if case.settings.get(DATA_PATH) or settings_of(record).get(DATA_PATH):
        return "it trained on custom data (data.path), which is not here; no path of a record is opened"
    if bool(there.gpus) != bool(machine.gpus):
        return f"recorded on {'GPUs' if there.gpus else 'CPUs'}, but GPUs here: {machine.gpus or 'none'}"
    if on_host > machine.devices_per_host:
        return f"{on_host} devices on a host, but room for {machine.devices_per_host} here"
    if cores > machine.cores < there.cores:
        return f"{cores} cores on a host, but {machine.cores} here"
    return skip_reason(case, machine)
