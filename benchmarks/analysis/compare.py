"""Which cases of one study are worse or better than in another, and which cannot be told.

The effect is the log ratio of the rates. With d the smallest effect that matters, a case is

- slower or faster, if its point lies beyond d and its whole 95 % interval beyond 0, once Holm's correction over all
  cases has widened that: else the more cases, the more of them would seem slower by chance;
- the same, if its whole 90 % interval lies within d to both sides: shown to be equal, not just no difference found.
  That is two one-sided tests at 5 % (TOST: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987). It takes no
  correction, as "nothing changed" needs all cases to pass (intersection-union test: Berger, Technometrics 24, 1982);
- else undecided.

Only turns leave out what differs between two times of measuring. Studies that did not take turns differ by their days,
too, of which their runs say nothing: slower and faster must exceed what days may differ by, and what would be the same
is called alike, which claims nothing of the days. Nor is such a case called slower or faster if other programs used the
machine while one of its sides was measured. Likewise fresh processes of one program differ in their level, which
only several rounds can see; the interval of a single one includes what is assumed of it.

Windows are winsorised where there are no turns, as the trimmed mean of cycles does it where there are; but nothing
is the same or alike whose ratio with all windows lies beyond d. Neither accuracy nor failures may pay for speed.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.analysis.accuracy import AccuracyChange, compare_accuracies
from mnist_dist.benchmarks.analysis.in_turns import PROCESS_DEVIATION, met_others, of_fresh_processes, paired_ratio
from mnist_dist.benchmarks.analysis.matching import Difference, find_differences, match_cases, show_value
from mnist_dist.benchmarks.analysis.summary import ACCURACY_TARGETS, seconds_to_accuracy, split_by_success
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import NoRateError, kind
from mnist_dist.benchmarks.records.record import Record, on_gpus
from mnist_dist.benchmarks.statistics import stats
from mnist_dist.benchmarks.statistics.grouping import group_by
from mnist_dist.benchmarks.statistics.paired import TRIMMED
from mnist_dist.errors import one_line

Outcome = Literal["failing", "slower", "less accurate", "undecided", "faster", "same", "alike"]

OUTCOMES: tuple[Outcome, ...] = ("failing", "slower", "less accurate", "undecided", "faster", "same", "alike")
WORSE: tuple[Outcome, ...] = OUTCOMES[:3]
EQUAL: tuple[Outcome, ...] = OUTCOMES[-2:]
SIGNIFICANCE = 0.05  # Of the whole comparison, however many cases it has.
EQUIVALENCE_CONFIDENCE = 1 - 2 * SIGNIFICANCE
DAY_DEVIATION = 0.03  # Of the level of a study, where none took turns: an assumption, as no study can measure its own.
DAY_HALF_WIDTH = 1.96 * math.sqrt(2) * DAY_DEVIATION  # Of the 95 % interval of what two studies differ by.


@dataclass(frozen=True)
class Verdict:
    """What the two studies say of one case.

    Attributes:
        case: as measured in the new study.
        base, new: the runs that ended well.
        remark: what else a reader must know, for example why there is no estimate.
        estimate: of the log ratio of new over base: of images per second of all devices, of FLOPs per second, or of
            all-reduces per second as the geometric mean over message sizes. None if one of them is not known.
        total: the same ratio with every window in full, where the estimate winsorises.
        in_turns: both sides took turns, so that they are compared within each cycle.
        seconds_apart: of each run that took no turns, even with others, and may have met no slow stretch.
        outcome: the worst of its speed, its accuracy and its failures.
        corrected: the ratio with the 95 % interval that Holm's correction, and the days, leave to it; None where
            nothing could be tested.
        more_runs: of each study, after which an undecided case would probably be decided; None if not known, or not
            within reason as the effect is about as large as the smallest that matters.
        accuracy: None where a side left no model.
    """

    case: Case
    on_gpus: bool
    base: tuple[Record, ...]
    new: tuple[Record, ...]
    fails: bool
    remark: str
    estimate: stats.LogEstimate | None = None
    total: float = 0.0
    in_turns: bool = False
    seconds_apart: tuple[float, ...] = ()
    outcome: Outcome = "undecided"
    corrected: stats.Estimate | None = None
    more_runs: int | None = None
    accuracy: AccuracyChange | None = None

    @property
    def ratio(self) -> stats.Estimate | None:
        """The rate of new over that of base, with the interval on which its speed was judged.

        That is the one of 90 % where new is as fast, else the corrected one; nan bounds if both are from a single run.
        """
        if self.estimate is None or self.corrected is None or self.outcome in EQUAL:
            return self.estimate.at_level(EQUIVALENCE_CONFIDENCE) if self.estimate else None
        return self.corrected


@dataclass(frozen=True)
class Incomparable:
    """A case that both studies measured, but not alike."""

    records: tuple[Record, ...]
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Two studies, case by case. What could not be compared is given by its records."""

    base_name: str
    new_name: str
    smallest_effect: float
    verdicts: tuple[Verdict, ...]
    incomparable: tuple[Incomparable, ...]
    only_in_base: tuple[tuple[Record, ...], ...]
    only_in_new: tuple[tuple[Record, ...], ...]
    unjudged: tuple[Verdict, ...]  # On cases that only explain others, unless they are judged as well.

    @property
    def exit_code(self) -> int:
        """0: nothing is worse, and all of the base's cases were judged; 1: something is; 3: that cannot be told."""
        outcomes = {verdict.outcome for verdict in self.verdicts}
        if outcomes & {*WORSE}:
            return 1
        return 3 if "undecided" in outcomes or self.incomparable or self.only_in_base or not outcomes else 0


def compare(
    base: Sequence[Record],
    new: Sequence[Record],
    *,
    smallest_effect: float = 0.05,
    allow: Collection[Difference] = frozenset(),
    judge_all: bool = False,
) -> Comparison:
    """Compares the cases that both studies measured.

    Args:
        smallest_effect: a share between 0 and 1; smaller differences do not matter.
        allow: what may differ between the studies, being the subject. The commit always may. With `config`, cases
            match although settings differ that have no value in common between the studies.
        judge_all: also the cases that only explain others, where there are others: ablations, matrix products,
            all-reduces and inputs alone.
    """
    sides = [[record for record in side if record.status != "skipped"] for side in (base, new)]
    judge_all |= all(_explains(record.case) for side in sides for record in side)

    def is_judged(case: Case) -> bool:
        return judge_all or not _explains(case)

    families = []
    for judged in (True, False):
        of_family = ([run for run in side if is_judged(run.case) == judged] for side in sides)
        base_cases, new_cases = (group_by(side, lambda run: run.case_id) for side in of_family)
        pairs, *missing = match_cases(base_cases, new_cases, "config" in allow)
        incomparable, measured = [], []
        for base_records, new_records in sorted(pairs, key=lambda pair: pair[1][0].case.order):
            differing = [text for what, text in find_differences(base_records, new_records) if what not in allow]
            if differing:
                incomparable.append(Incomparable(tuple(new_records), "; ".join(differing)))
            else:
                measured.append(_measure(base_records, new_records))
        families.append((_decide(measured, math.log1p(smallest_effect)), incomparable, missing))
    (verdicts, incomparable, missing), (unjudged, *_) = families
    only_in_base, only_in_new = (sorted(map(tuple, side), key=lambda runs: runs[0].case.order) for side in missing)
    return Comparison(
        _name(sides[0]),
        _name(sides[1]),
        smallest_effect,
        verdicts,
        tuple(incomparable),
        tuple(only_in_base),
        tuple(only_in_new),
        unjudged,
    )


def _explains(case: Case) -> bool:
    return case.is_ablation or kind(case.kind).explains


def _measure(base: Sequence[Record], new: Sequence[Record]) -> Verdict:
    """Estimates the ratio of a matched case's rates."""
    (base_ok, base_failed), (new_ok, new_failed) = _split_by_end(base), _split_by_end(new)
    fails = new_failed * (len(base_ok) + base_failed) > base_failed * (len(new_ok) + new_failed)
    failures = f"failed runs: {base_failed}, {new_failed}" if base_failed or new_failed else ""
    found = Verdict(new[0].case, on_gpus(new), base_ok, new_ok, fails, failures)
    for name, ok, last in (("base", base_ok, base[-1]), ("new", new_ok, new[-1])):
        if not ok:
            return replace(found, remark=f"no run of {name} ended well: {last.status}: {last.reason}")
    remarks = [_changed_settings(base[0].case, found.case), failures]
    if estimate := paired_ratio(new_ok, base_ok):
        if estimate.repeats == 1:
            remarks.append(f"one round, in which processes are assumed to differ by {100 * PROCESS_DEVIATION:g} %")
        estimate = of_fresh_processes(estimate)
        return replace(found, estimate=estimate, in_turns=True, remark="; ".join(filter(None, remarks)))
    series = []
    for name, ok in (("base", base_ok), ("new", new_ok)):
        try:
            series.append(kind(found.case.kind).series(ok, base_ok + new_ok))
        except NoRateError as error:
            return replace(found, remark="; ".join(filter(None, [f"{name}: {error}", failures])))
    remarks.append(_assumption(len(base_ok), len(new_ok)))
    runs = zip(base_ok + new_ok, series[0] + series[1], strict=True)
    apart = tuple(float(each.seconds.sum()) for run, each in runs if not run.took_turns and each.may_miss_stretches)
    winsorized = ([each.winsorized(TRIMMED) for each in side] for side in series)
    return replace(
        found,
        estimate=stats.estimate_ratio(*winsorized),
        total=stats.log_total_rate(series[1]) - stats.log_total_rate(series[0]),
        seconds_apart=apart,
        remark="; ".join(filter(None, remarks)),
    )


def _split_by_end(records: Sequence[Record]) -> tuple[tuple[Record, ...], int]:
    """Returns the runs that ended well, and how many repeats never did."""
    ok, failed = split_by_success(records)
    return ok, len({record.repeat for record in failed} - {record.repeat for record in ok})


def _changed_settings(base: Case, new: Case) -> str:
    names = sorted(base.settings.keys() | new.settings.keys())
    changes = [(name, show_value(base.settings.get(name)), show_value(new.settings.get(name))) for name in names]
    return ", ".join(f"{name}: {before} became {after}" for name, before, after in changes if before != after)


def _assumption(base_runs: int, new_runs: int) -> str:
    if base_runs == new_runs == 1:
        return "one run of each: run-to-run variation is unknown"
    if min(base_runs, new_runs) == 1:
        return f"one run of {'base' if base_runs == 1 else 'new'}: the other side's spread is used for both"
    return ""


def _decide(measured: Sequence[Verdict], smallest_effect: float) -> tuple[Verdict, ...]:
    """Tests some cases as one family and returns them, the worst first; `smallest_effect` is a log ratio."""
    p_values = [each.estimate.p_value() if each.estimate else math.nan for each in measured]
    levels = stats.holm_levels(np.array(p_values), SIGNIFICANCE).tolist()
    accuracies = compare_accuracies([(each.base, each.new) for each in measured], SIGNIFICANCE)
    verdicts = []
    for each, level, accuracy in zip(measured, levels, accuracies, strict=True):
        decided = _decide_speed(each, level, smallest_effect)
        found: list[Outcome] = ["failing"] if each.fails else []
        if accuracy and accuracy.outcome != "kept":
            found.append("less accurate" if accuracy.outcome == "lower" else "undecided")
        outcome = min([*found, decided.outcome], key=OUTCOMES.index)
        verdicts.append(replace(decided, outcome=outcome, accuracy=accuracy))
    return tuple(sorted(verdicts, key=lambda verdict: OUTCOMES.index(verdict.outcome)))


def _decide_speed(each: Verdict, level: float, smallest_effect: float) -> Verdict:
    if each.estimate is None or math.isnan(level):
        return each
    effect, half = each.estimate.value, each.estimate.half_width(1 - level)
    with_day = half if each.in_turns else math.hypot(half, DAY_HALF_WIDTH)
    found = replace(each, corrected=each.estimate.with_half_width(with_day))
    if abs(effect) > max(smallest_effect, with_day):
        if not each.in_turns and any(map(met_others, each.base + each.new)):
            return replace(found, remark="; ".join(filter(None, [each.remark, "may be due to other programs"])))
        return replace(found, outcome="faster" if effect > 0 else "slower")
    is_equal = abs(effect) + each.estimate.half_width(EQUIVALENCE_CONFIDENCE) <= smallest_effect
    if is_equal and abs(each.total) <= smallest_effect:
        return replace(found, outcome="same" if each.in_turns else "alike")
    if is_equal:
        reason = f"with the slowest windows in full, the ratio is {math.exp(each.total):.3f}"
    elif abs(effect) > max(smallest_effect, half):
        reason = f"may be day-to-day variation, up to {100 * math.expm1(DAY_HALF_WIDTH):.0f} %"
    else:
        return replace(found, more_runs=_more_runs(each, each.estimate, level, smallest_effect))
    return replace(found, remark="; ".join(filter(None, [each.remark, reason])))


def compare_times(comparison: Comparison) -> Comparison:
    """Adds a verdict on the time to the highest target of accuracy that all runs of a case reach, on both sides."""
    found = list(comparison.verdicts)
    for verdict in comparison.verdicts:
        sides = (verdict.base, verdict.new)
        runs = [run for side in sides for run in side]
        if not all(sides) or not all(run.measured.get("evaluations") for run in runs):
            continue
        reached = [each for each in ACCURACY_TARGETS if all(seconds_to_accuracy(run, each)[1] for run in runs)]
        for target in reached[-1:]:
            seconds = [[seconds_to_accuracy(run, target)[0] for run in side] for side in sides]
            series = [[stats.Series(np.ones(1), np.array([each])) for each in side] for side in seconds]
            estimate = stats.estimate_ratio(*series)
            level = math.nan if math.isnan(estimate.variance) else SIGNIFICANCE
            remark = f"pace to {100 * target:g} % test accuracy, evaluations included"
            timed = Verdict(verdict.case, verdict.on_gpus, *sides, False, remark, estimate, estimate.value)
            found.append(_decide_speed(timed, level, math.log1p(comparison.smallest_effect)))
    return replace(comparison, verdicts=tuple(found))


def _more_runs(each: Verdict, estimate: stats.LogEstimate, level: float, smallest_effect: float) -> int | None:
    """Returns how many more runs of each study would decide, were effect and spread to stay as they are."""
    effect, arms = abs(estimate.value), 1 if each.in_turns else 2
    counts = len(each.base), len(each.new)
    variance = estimate.variance * 2 / sum(1 / count for count in counts)
    if effect > smallest_effect:
        of_days = 0.0 if each.in_turns else DAY_HALF_WIDTH
        needed = stats.repeats_needed(variance, math.sqrt(max(effect**2 - of_days**2, 0.0)), 1 - level, arms)
    else:  # By the 95 % interval, as one that is just narrow enough would be missed in every other study.
        needed = stats.repeats_needed(variance, smallest_effect - effect, stats.CONFIDENCE, arms)
    return None if needed is None else max(needed - min(counts), 1)


def _name(records: Sequence[Record]) -> str:
    """Returns the studies and commits of one side."""
    studies = sorted({record.study for record in records})
    commits = sorted({_commit(record) for record in records})
    return one_line(f"{', '.join(studies) or 'no records'} ({', '.join(commits) or 'nothing'})")


def _commit(record: Record) -> str:
    git = record.identity.git
    return "no commit known" if git is None else f"commit {git.commit[:10]}{', changed' if git.dirty else ''}"
