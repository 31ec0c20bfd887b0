"""What a study says: everything that the report shows, drawn from the records, in no particular format yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_dist.benchmarks.analysis.attribution import Attribution, attribute
from mnist_dist.benchmarks.analysis.collectives import AllReduce, measured_all_reduces
from mnist_dist.benchmarks.analysis.prediction import Prediction, predict
from mnist_dist.benchmarks.analysis.scaling import Curve, find_curves
from mnist_dist.benchmarks.analysis.summary import CaseSummary, summarize
from mnist_dist.benchmarks.records.record import Hardware, Record
from mnist_dist.benchmarks.report.labels import TIMES, common_settings, label_bytes, label_with_kind, on_gpus
from mnist_dist.benchmarks.report.rows import Row, build_rows, main_rows
from mnist_dist.errors import one_line

FEWEST_REPEATS = 3
MOST_NAMES = 6  # Hosts or cases that are listed by name; of more, the number.
MOST_LETTERS = 1000  # Of one text.
STATUS_WORDS = {"failed": "failed", "timeout": "timed out", "out_of_memory": "ran out of memory"}


@dataclass(frozen=True)
class Caveat:
    """What a reader must know before believing a number. `details` are lines of output, folded away."""

    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """The content of the report.

    Attributes:
        facts: name and value of what was measured, when, where and with what.
        common_settings: those that all cases that train have.
        rows: the cases that train, with the ablations.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    caveats: tuple[Caveat, ...]
    common_settings: Mapping[str, Any]
    summaries: tuple[CaseSummary, ...]
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    attributions: tuple[Attribution, ...]
    predictions: tuple[Prediction, ...]
    all_reduces: tuple[AllReduce, ...]

    @property
    def main_rows(self) -> list[Row]:
        return main_rows(self.rows)


def find_out(records: Sequence[Record], warnings: Sequence[str] = ()) -> Findings:
    """Analyses the records of one study, of which there must be one at least.

    Args:
        warnings: further caveats, which stand first.
    """
    summaries = summarize_cases(records)
    curves = tuple(find_curves(summaries))
    rows = tuple(build_rows(summaries, curves))
    caveats = (*map(Caveat, warnings), *_caveats(records, summaries, rows))
    return Findings(
        title=one_line(f"Benchmark {_names(record.study for record in records)}"),
        facts=tuple((name, one_line(value, MOST_LETTERS)) for name, value in _facts(records)),
        caveats=tuple(map(_printable, caveats)),
        common_settings=common_settings(record.case for record in records),
        summaries=summaries,
        rows=rows,
        curves=curves,
        attributions=tuple(each for curve in curves for each in attribute(curve, summaries)),
        predictions=tuple(predict(curve, summaries) for curve in curves),
        all_reduces=tuple(measured_all_reduces(summaries)),
    )


def summarize_cases(records: Iterable[Record]) -> tuple[CaseSummary, ...]:
    by_case: dict[str, list[Record]] = {}
    for record in records:
        by_case.setdefault(record.case_id, []).append(record)
    return tuple(map(summarize, by_case.values()))


def _printable(caveat: Caveat) -> Caveat:
    """Takes out what a terminal would obey: the text comes from programs that failed."""
    lines = ("".join(letter if letter.isprintable() else "?" for letter in line) for line in caveat.details)
    return Caveat(one_line(caveat.text, MOST_LETTERS), tuple(lines))


def _facts(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Yields name and value."""
    times = sorted(record.started_at for record in records)
    first, last = (time[:16].replace("T", " ") for time in (times[0], times[-1]))
    yield "Suite", _names(record.suite for record in records)
    yield "Date", f"{first} UTC" if first == last else f"{first} to {last} UTC"
    yield "Measured", _counts(records)
    common = common_settings(record.case for record in records)
    if common:
        yield "Settings", ", ".join(f"{key}={value}" for key, value in sorted(common.items()))
    yield "Hardware", "; ".join(sorted({describe_hardware(record.identity.hardware) for record in records}))
    yield "Hosts", _names(host for record in records for host in record.identity.hosts)
    software = sorted({_software(record) for record in records})
    yield "Software", "; ".join(software)
    yield "Commit", "; ".join(sorted({_commit(record) for record in records}))
    jobs = [record.identity.job_id for record in records if record.identity.job_id]
    if jobs:
        yield "Slurm jobs", _names(jobs)
    busy = sum(record.seconds for record in records)
    if busy:
        share = sum(record.harness_cpu_seconds for record in records) / busy
        yield "Harness", f"used {100 * share:.2g} % of one core while the cases ran"


def _counts(records: Sequence[Record]) -> str:
    statuses = Counter(record.status for record in records)
    cases, minutes = len({record.case_id for record in records}), sum(record.seconds for record in records) / 60
    bad = [f"{count} {STATUS_WORDS.get(status, status)}" for status, count in statuses.items() if status != "ok"]
    runs = ", ".join([f"{statuses['ok']} measured", *sorted(bad)])
    return f"{cases} cases in {len(records)} runs ({runs}), {minutes:,.0f} minutes together"


def describe_hardware(hardware: Hardware) -> str:
    """Returns, for example, `8 cores of AMD EPYC 9654, x86_64, 32 GiB, no GPU`."""
    gpus = Counter(f"{gpu.name} ({label_bytes(gpu.memory_bytes)})" for gpu in hardware.gpus)
    driver = f", driver {hardware.gpu_driver}" if hardware.gpu_driver else ""
    cores = f"{hardware.cores} core{'s' if hardware.cores > 1 else ''}"
    machine = f"{cores} of {hardware.cpu_model}, {hardware.architecture}, {label_bytes(hardware.memory_bytes)}"
    return machine + ", " + (", ".join(f"{count} {TIMES} {name}" for name, count in gpus.items()) or "no GPU") + driver


def _software(record: Record) -> str:
    versions = record.identity.software
    return ", ".join(version if name == "os" else f"{name} {version}" for name, version in versions.items())


def _commit(record: Record) -> str:
    git = record.identity.git
    if git is None:
        return "unknown"
    return git.commit[:12] + (" with changes that were not committed" if git.dirty else "")


def _names(names: Iterable[str]) -> str:
    each = list(dict.fromkeys(names))
    more = f" and {len(each) - MOST_NAMES} more" if len(each) > MOST_NAMES else ""
    return ", ".join(each[:MOST_NAMES]) + more


def _caveats(records: Sequence[Record], summaries: Sequence[CaseSummary], rows: Sequence[Row]) -> Iterator[Caveat]:
    name = _Namer(common_settings(record.case for record in records))
    yield from _identity_caveats(records)
    for summary in summaries:
        yield from _failure_caveats(summary, name)
    yield from _unstable_caveats(summaries, name)
    few = [each for each in summaries if 0 < len(each.records) < FEWEST_REPEATS and each.case.kind == "train"]
    if few:
        most = max(len(each.records) for each in few)
        yield Caveat(
            f"{_count(few, 'case')} with {'one run' if most == 1 else 'one or two runs'} each: their intervals say "
            "little about how much another run would differ. Use --repeats 3 or more."
        )
    crowded = [row.summary for row in rows if row.oversubscribed and not row.case.is_ablation]
    if crowded:
        yield Caveat(
            f"Oversubscribed, with more cores promised to the devices than a host has: {name.list(crowded)}. "
            "They say nothing about how the strategy scales."
        )
    alone = [
        row.summary
        for row in main_rows(rows)
        if row.case.devices > 1 and row.summary.images_per_second and row.weak is None and row.strong is None
    ]
    if alone:
        yield Caveat(
            f"No scaling efficiency for {name.list(alone)}: the study has no steady run of `single` on one device "
            "with the same cores, batch and settings."
        )


@dataclass(frozen=True)
class _Namer:
    """Names cases by what tells them apart in their study."""

    without: Collection[str]

    def __call__(self, summary: CaseSummary) -> str:
        return label_with_kind(summary.case, on_gpus(summary.records), self.without)

    def list(self, summaries: Sequence[CaseSummary]) -> str:
        return "; ".join(map(self, summaries)) if len(summaries) <= MOST_NAMES else _count(summaries, "case")


def _unstable_caveats(summaries: Sequence[CaseSummary], name: _Namer) -> Iterator[Caveat]:
    unstable = [each for each in summaries if each.unstable]
    for summary in unstable:
        if not summary.case.is_ablation:
            yield Caveat(f"Unstable, so without a throughput: {name(summary)}: {summary.unstable}.")
    ablations = tuple(f"{name(each)}: {each.unstable}" for each in unstable if each.case.is_ablation)
    if ablations:
        text = f"{_count(ablations, 'ablation run')} unstable, so less can be said of where the time goes."
        yield Caveat(text, ablations)
    for summary in summaries:
        if summary.unsettled_repeats and not summary.unstable:
            runs = f"{summary.unsettled_repeats} of {len(summary.records)} runs"
            yield Caveat(f"{runs} did not settle, and count all the same: {name(summary)}.")


def _identity_caveats(records: Sequence[Record]) -> Iterator[Caveat]:
    studies = {record.study for record in records}
    if len(studies) > 1:
        yield Caveat(f"Records of {len(studies)} studies are mixed: {_names(sorted(studies))}.")
    hardware = {describe_hardware(record.identity.hardware) for record in records}
    if len(hardware) > 1:
        yield Caveat("Different hardware is mixed, so cases may differ for that reason alone.", tuple(sorted(hardware)))
    software = {_software(record) for record in records}
    if len(software) > 1:
        yield Caveat("Different versions of software are mixed.", tuple(sorted(software)))
    commits = {_commit(record) for record in records}
    if len(commits) > 1:
        yield Caveat(f"Different commits are mixed: {_names(sorted(commits))}.")
    if any(record.identity.git and record.identity.git.dirty for record in records):
        yield Caveat(
            "Measured with changes that were not committed: the commit alone does not reproduce these numbers."
        )


def _failure_caveats(summary: CaseSummary, name: _Namer) -> Iterator[Caveat]:
    """Yields one caveat for each reason for which runs of the case did not succeed."""
    runs = len(summary.records) + len(summary.failures)
    by_reason: dict[tuple[str, str], list[Record]] = {}
    for record in summary.failures:
        by_reason.setdefault((record.status, record.reason or ""), []).append(record)
    for (status, reason), failures in by_reason.items():
        if status == "skipped":
            yield Caveat(f"Not measured: {name(summary)}: {reason}.")
        else:
            times = f"{len(failures)} of {runs} runs {STATUS_WORDS[status]}"
            yield Caveat(f"{name(summary)}: {times}: {reason}.", failures[-1].output_tail)


def _count(items: Sequence[object], name: str) -> str:
    return f"{len(items)} {name}{'s' if len(items) != 1 else ''}"
