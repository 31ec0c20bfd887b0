"""What is worth saying of a study besides its numbers: what came out and was measured, and what casts doubt on it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_dist.benchmarks.analysis.in_turns import met_others
from mnist_dist.benchmarks.analysis.scaling import rate_ratio
from mnist_dist.benchmarks.analysis.study import Analysis
from mnist_dist.benchmarks.analysis.summary import CaseSummary
from mnist_dist.benchmarks.analysis.trained import TrainedCase
from mnist_dist.benchmarks.labels import (
    TIMES,
    label_briefly,
    label_bytes,
    label_count,
    label_others,
    label_records,
    warn_of_short_runs,
)
from mnist_dist.benchmarks.records.record import Hardware, Record
from mnist_dist.benchmarks.report.explanation import explain_briefly
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.stats import Estimate, find_clusters
from mnist_dist.errors import counted, one_line

FEWEST_REPEATS = 3
MOST_EQUALS = 2  # Cases that are as fast, named beside the fastest.
NEAR = 0.9  # Of the fastest rate: a run without a rate that is slower is no rival.
MOST_NAMES = 6  # Hosts or cases that are listed by name; of more, the number.
MOST_WAITING_CORES = 0.05  # That a case may use while others have the turn.
MOST_LETTERS = 1000  # Of one text.
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
Namer = Callable[[CaseSummary], str]
STATUS_WORDS = {"failed": "failed", "timeout": "timed out", "out_of_memory": "ran out of memory"}


@dataclass(frozen=True)
class Caveat:
    """What a reader must know before believing a number. `details` are lines of output, folded away."""

    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """What frames the report's tables."""

    title: str
    origin: str  # Machine, time and versions in one line.
    result: tuple[str, ...]  # Sentences that say what came out.
    facts: tuple[tuple[str, str], ...]  # Name and value of what was measured, when, where and with what.
    caveats: tuple[Caveat, ...]


def collect_findings(analysis: Analysis, warnings: Sequence[str] = ()) -> Findings:
    """Returns what to say of a study, of which there must be one record at least; further warnings stand first."""
    facts = {name: one_line(value, MOST_LETTERS) for name, value in _facts(analysis)}
    return Findings(
        title=one_line(f"Benchmark {_names(record.study for record in analysis.records)}"),
        origin=one_line(
            f"{facts['Hardware']}; started {facts['Started']}; {_versions(analysis.records)}", MOST_LETTERS
        ),
        result=tuple(_describe_result(analysis)),
        facts=tuple(facts.items()),
        caveats=tuple(map(_printable, (*map(Caveat, warnings), *_caveats(analysis)))),
    )


def _describe_result(analysis: Analysis) -> Iterator[str]:
    """Yields whether the machine was busy, what was fastest, the efficiency on most devices, the accuracy, and the
    largest loss with its remedy."""
    yield from _busy(analysis.records)
    cases = [each for each in analysis.main_cases if not each.oversubscribed]
    yield from _fastest(cases)
    yield from _efficiency(cases)
    means = [100 * each.summary.test_accuracy.value for each in cases if each.summary.test_accuracy]
    if means:
        low, high = f"{min(means):.2f}", f"{max(means):.2f}"
        yield f"Test accuracy is {low} %." if low == high else f"Test accuracy is {low} to {high} %."
    told = [each for each in analysis.attributions if each.is_significant and not each.oversubscribed]
    if any(each.biggest for each in told):
        yield f"The largest loss is with {explain_briefly(max(told, key=lambda each: each.loss.value))}"


def _busy(records: Sequence[Record]) -> Iterator[str]:
    rounds = {record.turns.round_id: record for record in records if record.turns}
    busy = [record for record in rounds.values() if met_others(record)]
    if busy:
        where = "" if len(rounds) == 1 else f" in {len(busy)} of {len(rounds)} rounds, at worst"
        yield (
            f"The machine was busy:{where} other programs used {label_others(busy)}. Images/s are too low, "
            "and other programs may cause part of the losses. Measure again when the machine is idle."
        )


def _fastest(cases: Sequence[TrainedCase]) -> Iterator[str]:
    summaries = [each.summary for each in cases]
    _, labels = label_briefly([(each.case, each.on_gpus) for each in cases]) if cases else ("", [])
    names = dict(zip(summaries, labels, strict=True))
    rates = {each: each.images_per_second for each in summaries if each.images_per_second}
    if len(rates) < 2:
        if len(summaries) - len(rates) > 1:
            number = len(rates) or "none"
            yield f"The fastest case is unknown: {number} of {len(summaries)} cases has a rate; see the warnings."
        return
    common = max(rates, key=lambda each: len(each.records))  # A round without the baseline measures that once more.
    rounds = {each: {run.turns.round_id for run in each.records if run.turns} for each in rates}
    together = set.intersection(*rounds.values())  # Else the paces of several times would be compared.
    known = rates if together else {each: rate_ratio(each, common, common) for each in rates}
    best, *others = sorted(rates, key=lambda each: -known[each].value)
    doubtful = [each.runs for each in summaries if each not in rates]
    rivals = sum(any(math.exp(run.series.log_rate) > NEAR * rates[best].value for run in runs) for runs in doubtful)
    if rivals:
        verb = "trainings that may be as fast have" if rivals > 1 else "training that may be as fast has"
        yield f"The fastest case is unknown: {rivals} {verb} no rate yet: too short, or not settled."
        return
    ratios = {each: rate_ratio(each, best, common) for each in others}
    equals = [names[each] for each in others if not ratios[each].high < 1]  # Also where no bound is known.
    beside = f"; equally fast within noise: {'; '.join(equals[:MOST_EQUALS])}" if equals else ""
    more = f" and {len(equals) - MOST_EQUALS} more" if len(equals) > MOST_EQUALS else ""
    slowest = names[others[-1]]
    factor = "" if slowest in equals else f", {1 / ratios[others[-1]].value:.2g} times the slowest ({slowest})"
    yield f"Fastest is {names[best]}, with {label_count(rates[best].value)} images/s{factor}{beside}{more}."
    apart = [names[each] for each in others if rounds[each] & rounds[common] and not rounds[each] & rounds[best]]
    yield from _changes(best, others, common)
    if apart and rounds[best] & rounds[common]:
        yield (
            f"Not measured beside the fastest: {_names(apart, '; ')}. Compare their efficiency, not their "
            f"images/s; they are ranked by their ratio to {names[common]}, which was measured beside all."
        )


def _changes(best: CaseSummary, others: Sequence[CaseSummary], common: CaseSummary) -> Iterator[str]:
    """Says what precision, batch and XLA make of the fastest case, if all are of one device and differ in nothing else.

    Args:
        common: took turns with all of them.
    """

    def computed(summary: CaseSummary) -> dict[str, str]:
        measured = {name: summary.measured_setting(name) for name in ("precision", "xla", "kernels")}
        return measured | {"batch": f"{label_count(summary.case.images_per_device)} images"}

    def fixed(summary: CaseSummary) -> tuple[Any, ...]:
        case = summary.case
        settings = {key: value for key, value in case.settings.items() if key.removeprefix("runtime.") not in own}
        return case.strategy, case.devices, case.cores_per_device, settings

    def compared(new: CaseSummary, base: CaseSummary) -> str:
        ratio = rate_ratio(new, base, common)
        return f"{ratio.value:.2g} times as fast{' (within noise)' * (ratio.low <= 1 <= ratio.high)}"

    own, cases = computed(best), [best, *others]
    if best.case.devices > 1 or any(fixed(each) != fixed(best) for each in others):
        return
    changes = [(each, {name for name, value in computed(each).items() if value != own[name]}) for each in others]
    told = [
        f"{compared(each, best)} with {computed(each)[changed.pop()].removeprefix('mixed_')}"
        for each, changed in changes
        if len(changed) == 1 and changed <= {"precision", "batch"}
    ]
    if told:
        yield f"With one thing changed, it is {', '.join(told)}."
    by_xla = [
        f"{compared(each, twin)} in {computed(each)['precision'].removeprefix('mixed_')} with {computed(each)['batch']}"
        for each in cases
        for twin in cases  # Of the same kernels: on a CPU, XLA takes TensorFlow's layers along.
        if computed(each)["xla"] == "on" and computed(twin) == computed(each) | {"xla": "off"}
    ]
    if by_xla:
        yield f"XLA makes the same kernels {', '.join(by_xla)}."


def _efficiency(cases: Sequence[TrainedCase]) -> Iterator[str]:
    for scaling in ("weak", "strong"):
        found = [(each.case, getattr(each, scaling)) for each in cases if each.case.devices > 1]
        known: list[tuple[int, str, Estimate]] = [
            (case.devices, case.strategy, share) for case, share in found if share
        ]
        most = max((devices for devices, *_ in known), default=0)
        largest = sorted((pair for pair in known if pair[0] == most), key=lambda each: -each[2].value)
        if largest:
            shares = ", ".join(f"{name} {100 * share.value:.0f} %" for _, name, share in largest)
            yield f"Efficiency on {most} devices, {scaling} scaling: {shares}."


def _printable(caveat: Caveat) -> Caveat:
    """Takes out what a terminal would obey: the text comes from programs that failed."""
    lines = ("".join(letter if letter.isprintable() else "?" for letter in line) for line in caveat.details)
    return Caveat(one_line(caveat.text, MOST_LETTERS), tuple(lines))


def _facts(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """Yields name and value."""
    records, common = analysis.records, analysis.common_settings
    times = sorted(record.started_at for record in records)
    first, last = (time[:16].replace("T", " ") for time in (times[0], times[-1]))
    yield "Suite", _names(record.suite for record in records)
    # When the last one ended is in no record: others had turns in between.
    yield "Started", f"{first} UTC" if first == last else f"{first} UTC, the last run at {last} UTC"
    yield "Measured", _counts(records)
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
    return f"{counted(cases, 'case')} in {counted(len(records), 'run')} ({runs}), {minutes:,.0f} min together"


def describe_hardware(hardware: Hardware) -> str:
    """Returns, for example, `8 cores of AMD EPYC 9654, x86_64, 32 GiB, no GPU`."""
    gpus = Counter(f"{gpu.name} ({label_bytes(gpu.memory_bytes)})" for gpu in hardware.gpus)
    driver = f", driver {hardware.gpu_driver}" if hardware.gpu_driver else ""
    threads = f", {count} hardware threads per physical core" if (count := hardware.threads_per_core or 1) > 1 else ""
    processor = f"{counted(hardware.cores, 'core')} of {hardware.cpu_model}{threads}, {hardware.architecture}"
    devices = ", ".join(f"{count} {TIMES} {name}" for name, count in gpus.items()) or "no GPU"
    return f"{processor}, {label_bytes(hardware.memory_bytes)}, {devices}{driver}"


def _software(record: Record) -> str:
    versions = record.identity.software
    return ", ".join(version if name == "os" else f"{name} {version}" for name, version in versions.items())


def _versions(records: Sequence[Record]) -> str:
    pairs = ((name, record.identity.software.get(name)) for name in ("mnist_dist", "tensorflow") for record in records)
    return ", ".join(dict.fromkeys(f"{name} {version}" for name, version in pairs if version))


def _commit(record: Record) -> str:
    git = record.identity.git
    if git is None:
        return "unknown"
    return git.commit[:12] + (" with uncommitted changes" if git.dirty else "")


def _names(names: Iterable[str], comma: str = ", ") -> str:
    each = list(dict.fromkeys(names))
    more = f" and {len(each) - MOST_NAMES} more" if len(each) > MOST_NAMES else ""
    return comma.join(each[:MOST_NAMES]) + more


def _caveats(analysis: Analysis) -> Iterator[Caveat]:
    summaries = analysis.summaries

    def name(summary: CaseSummary) -> str:
        """Names a case by what tells it apart in its study."""
        return label_records(summary.records or summary.failures, analysis.common_settings)

    yield from _identity_caveats(analysis.records)
    yield from _failure_caveats(summaries, name)
    yield from _unstable_caveats(summaries, name)
    yield from _cluster_caveats(summaries, name)
    runs = [(each, run) for each in summaries if each.images_per_second for run in each.runs]
    blind = [(each, run) for each, run in runs if not run.record.took_turns and run.series.may_miss_stretches]
    if blind:
        warning = warn_of_short_runs([run.series.seconds.sum() for _, run in blind])
        yield Caveat(f"{warning} Affected: {_list([*dict.fromkeys(each for each, _ in blind)], name)}.")
    yield from _gpu_caveats(summaries, name)
    restless = [each for each in summaries if any(map(_is_restless, each.records))]
    if restless:
        yield Caveat(
            f"Disturbed rounds: {_list(restless, name)} used more than {MOST_WAITING_CORES:g} of a core while others "
            f"had the turn. Cases in the same rounds may be measured too slow."
        )
    trained = [each for each in summaries if each.case.kind == "train" and not each.case.is_ablation]
    few = [each for each in trained if 0 < len(each.records) < FEWEST_REPEATS]
    if few:
        most = max(len(each.records) for each in few)
        yield Caveat(
            f"{counted(len(few), 'case')} of {'one run' if most == 1 else 'one or two runs'} each: their intervals of "
            "images/s hardly cover run-to-run variation. Use --repeats 3 or more."
        )
    crowded = [each.summary for each in analysis.main_cases if each.oversubscribed]
    if crowded:
        yield Caveat(
            f"Oversubscribed, with more cores assigned to the devices than a host has: {_list(crowded, name)}. "
            "They say nothing about how the strategy scales."
        )
    alone = [
        each.summary
        for each in analysis.main_cases
        if each.case.devices > 1 and each.summary.images_per_second and each.weak is None and each.strong is None
    ]
    if alone:
        yield Caveat(
            f"No scaling efficiency for {_list(alone, name)}: the study has no steady run of `single` on one device "
            "with the same cores, batch and settings."
        )


def _is_restless(record: Record) -> bool:
    """Whether a case computed while others of its round had the turn."""
    turns = record.turns
    return turns is not None and turns.contenders > 1 and turns.waiting_cores > MOST_WAITING_CORES


def _gpu_caveats(summaries: Sequence[CaseSummary], name: Namer) -> Iterator[Caveat]:
    """Names the GPUs that were not as fast, or as sound, as they could be."""
    found: dict[str, list[CaseSummary]] = {}
    for summary in summaries:
        telemetry = [record.telemetry for record in summary.records if record.telemetry]
        for gpu in (gpu for each in telemetry for gpu in each.gpus):
            problems = [f"was throttled by {cause}" for cause in gpu.throttled_by]
            problems += ["had uncorrected ECC errors"] if gpu.ecc_errors else []
            for problem in problems:
                of_gpu = found.setdefault(f"{gpu.uuid or 'of unknown UUID'} {problem}", [])
                of_gpu += [summary] if summary not in of_gpu else []
    for text, affected in found.items():
        yield Caveat(f"GPU {text} in {_list(affected, name)}.")


def _list(summaries: Sequence[CaseSummary], name: Namer) -> str:
    return "; ".join(map(name, summaries)) if len(summaries) <= MOST_NAMES else counted(len(summaries), "case")


def _unstable_caveats(summaries: Sequence[CaseSummary], name: Namer) -> Iterator[Caveat]:
    unstable = [each for each in summaries if each.unstable]
    main = [each for each in unstable if not each.case.is_ablation]
    for alike in group_by(main, lambda each: NUMBER.sub("", str(each.unstable))).values():
        # By its last number, which is how long to measure or how far it drifts.
        worst = max((str(each.unstable) for each in alike), key=lambda reason: abs(float(NUMBER.findall(reason)[-1])))
        reason = worst if len(alike) == 1 else f"at worst {worst}"
        yield Caveat(f"Unstable, so without a throughput: {_list(alike, name)}: {reason}.")
    ablations = tuple(f"{name(each)}: {each.unstable}" for each in unstable if each.case.is_ablation)
    if ablations:
        text = f"{counted(len(ablations), 'ablation run')} unstable, so the losses are only partly explained."
        yield Caveat(text, ablations)
    unsettled = [each for each in summaries if each.unsettled_repeats and not each.unstable]
    if unsettled:
        runs = sum(each.unsettled_repeats for each in unsettled)
        all_runs = sum(len(each.records) for each in unsettled)
        yield Caveat(
            f"In {runs} of {all_runs} runs the step time drifted to the end; they still count: "
            f"{_list(unsettled, name)}."
        )


def _cluster_caveats(summaries: Sequence[CaseSummary], name: Namer) -> Iterator[Caveat]:
    """An interval takes the runs for draws from one distribution without gaps."""
    found: dict[frozenset[str], list[tuple[CaseSummary, int, list[float]]]] = {}
    for summary in summaries:
        runs = sorted(summary.runs, key=lambda run: run.series.log_rate) if summary.images_per_second else []
        rates = [run.series.log_rate for run in runs]
        if slower := find_clusters(rates):
            slow = frozenset(
                run.record.turns.round_id if run.record.took_turns and run.record.turns else run.record.record_id
                for run in runs[:slower]
            )
            found.setdefault(slow, []).append((summary, slower, rates))
    for cases in found.values():
        summary, slower, rates = cases[0]
        if len(cases) > 1:
            yield Caveat(
                f"The machine was slow in {slower} of {counted(len(rates), 'round')}, for "
                f"{_list([each for each, *_ in cases], name)}. Intervals of images/s may cover neither pace; ratios "
                "within rounds, such as efficiency, are not affected."
            )
        else:
            shown = [label_count(math.exp(rate)) for rate in rates]
            yield Caveat(
                f"Runs fall into two clusters: {name(summary)}: {slower} of {len(rates)} at {shown[0]} to "
                f"{shown[slower - 1]} images/s, the others at {shown[slower]} to {shown[-1]}. Its interval may "
                "cover neither these nor their mean: find out what differs between the runs."
            )


def _identity_caveats(records: Sequence[Record]) -> Iterator[Caveat]:
    studies = {record.study for record in records}
    if len(studies) > 1:
        yield Caveat(f"Records of {len(studies)} studies are mixed: {_names(sorted(studies))}.")
    hardware = {describe_hardware(record.identity.hardware) for record in records}
    if len(hardware) > 1:
        yield Caveat("Different hardware is mixed, so cases may differ for that reason alone.", tuple(sorted(hardware)))
    software = {_software(record) for record in records}
    versions = {pair for record in records for pair in record.identity.software.items()}
    # What is only missing elsewhere, such as Horovod before its build, is no other.
    if len(versions) > len(dict(versions)):
        yield Caveat("Different versions of software are mixed.", tuple(sorted(software)))
    commits = {_commit(record) for record in records}
    if len(commits) > 1:
        yield Caveat(f"Different commits are mixed: {_names(sorted(commits))}.")
    if any(record.identity.git and record.identity.git.dirty for record in records):
        yield Caveat("Measured with uncommitted changes: the commit alone does not reproduce these numbers.")


def _failure_caveats(summaries: Sequence[CaseSummary], name: Namer) -> Iterator[Caveat]:
    """Yields one caveat for each reason why cases were skipped, and for each for which the runs of a case failed."""
    unmeasured = [each for each in summaries if not each.records]
    skipped = [(each, record.reason) for each in unmeasured for record in each.failures if record.status == "skipped"]
    for reason, of_reason in group_by(skipped, lambda pair: pair[1]).items():
        cases = {each.case_id: each for each, _ in of_reason}
        yield Caveat(f"Not measured: {_list(list(cases.values()), name)}: {reason}.")
    for summary in summaries:
        runs = len(summary.records) + len(summary.failures)
        failed = [record for record in summary.failures if record.status != "skipped"]
        for (status, reason), failures in group_by(failed, lambda record: (record.status, record.reason)).items():
            times = f"{len(failures)} of {counted(runs, 'run')} {STATUS_WORDS[status]}"
            yield Caveat(f"{name(summary)}: {times}: {reason}.", failures[-1].output_tail)
