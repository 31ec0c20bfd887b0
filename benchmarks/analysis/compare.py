"""Which cases of one study are faster or slower than in another, and which cannot be told.

The effect is the log ratio of the rates, with its 95 % interval. With d the smallest effect that matters, a case is

- slower or faster, if its point lies beyond d and its whole interval beyond 0, once Holm's correction over all cases
  has widened that: else the more cases, the more of them would seem slower by chance;
- the same, if its whole interval lies within d to both sides: shown to be equal, not just no difference found. This
  takes no correction, as "nothing changed" needs all cases to pass (the intersection-union test: Berger, Technometrics
  24, 1982);
- else inconclusive.

Accuracy must not pay for speed: a case that became less accurate than seeds explain counts like a slower one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mnist_dist.benchmarks.analysis.in_turns import paired_ratio
from mnist_dist.benchmarks.analysis.matching import Difference, find_differences, match_cases, show_value
from mnist_dist.benchmarks.analysis.summary import (
    mean_test_accuracy,
    split_by_success,
)
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import NoRateError, kind
from mnist_dist.benchmarks.records.record import Record, on_gpus
from mnist_dist.benchmarks.statistics.stats import (
    CONFIDENCE,
    Accuracy,
    Estimate,
    LogEstimate,
    accuracy_p_value,
    estimate_ratio,
    holm_levels,
    repeats_needed,
)
from mnist_dist.errors import UserError, one_line

Outcome = Literal["slower", "inconclusive", "faster", "same"]

OUTCOMES: tuple[Outcome, ...] = ("slower", "inconclusive", "faster", "same")  # In the order of the table.
SIGNIFICANCE = 0.05  # Of the whole comparison, however many cases it has.
SMALLEST_ACCURACY_DROP = 0.0005  # Five of the 10,000 test images.


@dataclass(frozen=True)
class Verdict:
    """What the two studies say of one case.

    Attributes:
        case: as measured in the new study.
        on_gpus: whether its devices are GPUs.
        ratio: the rate in the new study over that in the base, with its 95 % interval: of images per second of all
            devices, of FLOPs per second, or of all-reduces per second as the geometric mean over message sizes. None
            if one of them is not known; with nan bounds if both come from a single run.
        corrected: the same with the interval that Holm's correction leaves to it; None where nothing could be tested.
        in_turns: both sides took turns, so that they are compared within each cycle.
        more_runs: of each study, after which an inconclusive case would probably be decided; None if not known, or not
            within reason as the effect is about as large as the smallest that matters.
        remark: what else a reader must know, for example why the case is inconclusive.
        less_accurate: the test accuracies, if the new one is lower by more than seeds explain.
    """

    case: Case
    on_gpus: bool
    outcome: Outcome
    ratio: Estimate | None
    corrected: Estimate | None
    base_runs: int
    new_runs: int
    in_turns: bool
    more_runs: int | None
    remark: str
    less_accurate: tuple[Accuracy, Accuracy] | None


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

    @property
    def exit_code(self) -> int:
        """0: nothing is slower or less accurate; 1: something is; 3: that cannot be told of every matched case."""
        if any(verdict.outcome == "slower" or verdict.less_accurate for verdict in self.verdicts):
            return 1
        undecided = any(verdict.outcome == "inconclusive" for verdict in self.verdicts)
        return 3 if undecided or self.incomparable or not self.verdicts else 0


@dataclass(frozen=True)
class _Measured:
    """A matched case in both studies. `remark` says why there is no estimate, or what it assumes."""

    case: Case
    base: tuple[Record, ...]
    new: tuple[Record, ...]
    on_gpus: bool
    estimate: LogEstimate | None
    in_turns: bool
    remark: str


def compare(
    base: Sequence[Record],
    new: Sequence[Record],
    *,
    smallest_effect: float = 0.05,
    allow: Collection[Difference] = frozenset(),
) -> Comparison:
    """Compares the cases that both studies measured.

    Args:
        smallest_effect: a share; smaller differences do not matter.
        allow: what may differ between the studies, being the subject. The commit always may. With `config`, cases
            match although settings differ that have no value in common between the studies.

    Raises:
        UserError: `smallest_effect` is not a share between 0 and 1.
    """
    if not 0 < smallest_effect < 1:
        raise UserError(
            f"--smallest-effect: received {100 * smallest_effect:g} percent, expected between 0 and 100, such as 5."
        )
    base, new = ([record for record in side if record.status != "skipped"] for side in (base, new))
    pairs, only_in_base, only_in_new = match_cases(_by_case(base), _by_case(new), "config" in allow)
    incomparable: list[Incomparable] = []
    measured: list[_Measured] = []
    for base_records, new_records in sorted(pairs, key=lambda pair: pair[1][0].case.order):
        differing = [text for kind, text in find_differences(base_records, new_records) if kind not in allow]
        if differing:
            incomparable.append(Incomparable(tuple(new_records), "; ".join(differing)))
        else:
            measured.append(_measure(base_records, new_records))
    verdicts = _decide(measured, math.log1p(smallest_effect))
    return Comparison(
        _name(base),
        _name(new),
        smallest_effect,
        tuple(sorted(verdicts, key=lambda verdict: OUTCOMES.index(verdict.outcome))),
        tuple(incomparable),
        _in_order(only_in_base),
        _in_order(only_in_new),
    )


def _by_case(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case_id, []).append(record)
    return found


def _in_order(cases: Sequence[Sequence[Record]]) -> tuple[tuple[Record, ...], ...]:
    return tuple(sorted(map(tuple, cases), key=lambda records: records[0].case.order))


def _measure(base: Sequence[Record], new: Sequence[Record]) -> _Measured:
    """Estimates the ratio of a matched case's rates."""
    case, gpus = new[0].case, on_gpus(new)
    (base_ok, base_failed), (new_ok, new_failed) = split_by_success(base), split_by_success(new)
    for name, ok, last in (("base", base_ok, base[-1]), ("new", new_ok, new[-1])):
        if not ok:
            reason = f"no run of {name} ended well: {last.status}: {last.reason}"
            return _Measured(case, base_ok, new_ok, gpus, None, False, reason)
    estimate = paired_ratio(new_ok, base_ok)
    in_turns, series = estimate is not None, []
    for name, ok in (("base", base_ok), ("new", new_ok)) if estimate is None else ():
        try:
            series.append(kind(case.kind).series(ok, base_ok + new_ok))
        except NoRateError as error:
            return _Measured(case, base_ok, new_ok, gpus, None, False, f"{name}: {error}")
    remarks = (
        _changed_settings(base[0].case, case),
        f"failed runs: {len(base_failed)}, {len(new_failed)}" if base_failed or new_failed else "",
        "" if in_turns else _assumption(len(base_ok), len(new_ok)),
    )
    estimate = estimate or estimate_ratio(*series, paired=False)
    return _Measured(case, base_ok, new_ok, gpus, estimate, in_turns, "; ".join(filter(None, remarks)))


def _changed_settings(base: Case, new: Case) -> str:
    names = sorted(base.settings.keys() | new.settings.keys())
    changes = [(name, show_value(base.settings.get(name)), show_value(new.settings.get(name))) for name in names]
    return ", ".join(f"{name}: {before} became {after}" for name, before, after in changes if before != after)


def _assumption(base_runs: int, new_runs: int) -> str:
    if base_runs == new_runs == 1:
        return "one run of each: how much runs differ is not known"
    if min(base_runs, new_runs) == 1:
        return f"one run of {'base' if base_runs == 1 else 'new'}: the spread of the other's runs is taken for both"
    return ""


def _decide(measured: Sequence[_Measured], smallest_effect: float) -> list[Verdict]:
    """Tests all hypotheses of a comparison as one family; `smallest_effect` is a log ratio."""
    levels = _levels([each.estimate.p_value() if each.estimate else math.nan for each in measured])
    drops = _accuracy_drops(measured)
    verdicts = []
    for each, level, drop in zip(measured, levels, drops, strict=True):
        outcome: Outcome = "inconclusive"
        ratio, corrected, more_runs = None, None, None
        if each.estimate:
            ratio = each.estimate.at_level(CONFIDENCE)
        if each.estimate and not math.isnan(level):
            corrected = each.estimate.at_level(1 - level)
            outcome = _outcome(each.estimate, 1 - level, smallest_effect)
            more_runs = _more_runs(each, 1 - level, smallest_effect) if outcome == "inconclusive" else None
        runs = len(each.base), len(each.new)
        verdicts.append(
            Verdict(
                each.case, each.on_gpus, outcome, ratio, corrected, *runs, each.in_turns, more_runs, each.remark, drop
            )
        )
    return verdicts


def _levels(p_values: Sequence[float]) -> list[float]:
    """Returns the level at which Holm decides each hypothesis; nan, outside of the family, where there is no test."""
    levels = np.full(len(p_values), math.nan)
    tested = ~np.isnan(p_values)
    levels[tested] = holm_levels(np.asarray(p_values)[tested], SIGNIFICANCE)
    return levels.tolist()


def _outcome(estimate: LogEstimate, corrected_confidence: float, smallest_effect: float) -> Outcome:
    effect = estimate.value
    if abs(effect) > max(smallest_effect, estimate.half_width(corrected_confidence)):
        return "faster" if effect > 0 else "slower"
    return "same" if abs(effect) + estimate.half_width(CONFIDENCE) <= smallest_effect else "inconclusive"


def _more_runs(measured: _Measured, corrected_confidence: float, smallest_effect: float) -> int | None:
    """Returns how many more runs of each study would decide, were effect and spread to stay as they are."""
    estimate = measured.estimate
    if estimate is None:
        return None
    effect = abs(estimate.value)
    counts = len(measured.base), len(measured.new)
    variance = estimate.variance * 2 / sum(1 / count for count in counts)
    arms = 1 if measured.in_turns else 2
    if effect > smallest_effect:
        needed = repeats_needed(variance, effect, corrected_confidence, arms)
    else:
        needed = repeats_needed(variance, smallest_effect - effect, CONFIDENCE, arms)
    return None if needed is None else max(needed - min(counts), 1)


def _accuracy_drops(measured: Sequence[_Measured]) -> list[tuple[Accuracy, Accuracy] | None]:
    """Returns the accuracies of the cases that lost more than chance explains, by Welch's t-test and Holm's levels."""
    accuracies = [(mean_test_accuracy(each.base), mean_test_accuracy(each.new)) for each in measured]
    p_values = [accuracy_p_value(base, new) if base and new else math.nan for base, new in accuracies]
    drops: list[tuple[Accuracy, Accuracy] | None] = []
    for (base, new), p_value, level in zip(accuracies, p_values, _levels(p_values), strict=True):
        lower = base and new and base.mean - new.mean >= SMALLEST_ACCURACY_DROP
        drops.append((base, new) if base and new and lower and p_value <= level else None)
    return drops


def _name(records: Sequence[Record]) -> str:
    """Returns the studies and commits of one side."""
    studies = sorted({record.study for record in records})
    commits = sorted({_commit(record) for record in records})
    return one_line(f"{', '.join(studies) or 'no records'} ({', '.join(commits) or 'nothing'})")


def _commit(record: Record) -> str:
    git = record.identity.git
    return "no commit known" if git is None else f"commit {git.commit[:10]}{', changed' if git.dirty else ''}"
