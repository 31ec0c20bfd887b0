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

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np

from benchmarks.case import Case
from benchmarks.labels import label_case, on_gpus
from benchmarks.record import Record, one_line
from benchmarks.stats import (
    CONFIDENCE,
    Accuracy,
    Estimate,
    LogEstimate,
    Series,
    accuracy_p_value,
    estimate_ratio,
    holm_levels,
    repeats_needed,
)
from benchmarks.summary import (
    has_windows,
    mean_test_accuracy,
    split_by_success,
    steady_series,
    steady_state_of,
    why_unstable,
)
from mnist_dist.errors import UserError

Outcome = Literal["slower", "inconclusive", "faster", "same"]
Difference = Literal["hardware", "software", "config"]

OUTCOMES: tuple[Outcome, ...] = ("slower", "inconclusive", "faster", "same")  # In the order of the table.
SIGNIFICANCE = 0.05  # Of the whole comparison, however many cases it has.
SMALLEST_ACCURACY_DROP = 0.0005  # Five of the 10,000 test images.
FEWEST_PAIRS = 3
MEMORY_TOLERANCE = 0.02  # Of the same memory a kernel leaves a little more or less at each boot.
MOST_RUNS_TOLD = 100
KINDS = {"input": "input alone: ", "matmul": "matrix products: ", "collectives": "all-reduce: "}
WHICH_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # A scheduler gives whichever are free.


@dataclass(frozen=True)
class Verdict:
    """What the two studies say of one case.

    Attributes:
        case: as measured in the new study.
        label: what was measured, in words.
        ratio: the rate in the new study over that in the base, with its 95 % interval: of images per second of all
            devices, of FLOPs per second, or of all-reduces per second as the geometric mean over message sizes. None
            if one of them is not known; with nan bounds if both come from a single run.
        corrected: the same with the interval that Holm's correction leaves to it; None where nothing could be tested.
        paired: the studies were interleaved, so runs measured one right after the other are compared.
        more_runs: of each study, after which an inconclusive case would probably be decided; None if not known, or not
            within reason as the effect is about as large as the smallest that matters.
        remark: what else a reader must know, for example why the case is inconclusive.
        less_accurate: the test accuracies, if the new one is lower by more than seeds explain.
    """

    case: Case
    label: str
    outcome: Outcome
    ratio: Estimate | None
    corrected: Estimate | None
    base_runs: int
    new_runs: int
    paired: bool
    more_runs: int | None
    remark: str
    less_accurate: tuple[Accuracy, Accuracy] | None


@dataclass(frozen=True)
class Incomparable:
    label: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    base_name: str
    new_name: str
    smallest_effect: float
    verdicts: tuple[Verdict, ...]
    incomparable: tuple[Incomparable, ...]
    only_in_base: tuple[str, ...]
    only_in_new: tuple[str, ...]

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
    label: str
    estimate: LogEstimate | None
    paired: bool
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
    pairs, only_in_base, only_in_new = _match(_by_case(base), _by_case(new), "config" in allow)
    incomparable: list[Incomparable] = []
    measured: list[_Measured] = []
    for base_records, new_records in sorted(pairs, key=lambda pair: _label(pair[1])):
        differing = [text for kind, text in _differences(base_records, new_records) if kind not in allow]
        if differing:
            incomparable.append(Incomparable(_label(new_records), "; ".join(differing)))
        else:
            measured.append(_measure(base_records, new_records))
    verdicts = _decide(measured, math.log1p(smallest_effect))
    return Comparison(
        _name(base),
        _name(new),
        smallest_effect,
        tuple(sorted(verdicts, key=lambda verdict: OUTCOMES.index(verdict.outcome))),
        tuple(incomparable),
        tuple(sorted(map(_label, only_in_base))),
        tuple(sorted(map(_label, only_in_new))),
    )


def render(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    lines = [f"Base: {comparison.base_name}", "", f"New: {comparison.new_name}", "", _headline(comparison), ""]
    if comparison.verdicts:
        lines += [
            "| case | new / base | 95 % interval | corrected | verdict | runs, base and new | remark |",
            "|---|---:|---:|---:|---|---:|---|",
            *(_row(verdict) for verdict in comparison.verdicts),
            "",
            _explanation(comparison),
            "",
        ]
    for title, texts in (
        ("Not comparable", [f"{each.label}: {each.reason}" for each in comparison.incomparable]),
        ("Only in the base", comparison.only_in_base),
        ("Only in the new study", comparison.only_in_new),
    ):
        if texts:
            lines += [f"{title}:", "", *(f"- {_cell(text)}" for text in texts), ""]
    return "\n".join(lines).rstrip() + "\n"


def _by_case(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case_id, []).append(record)
    return found


def _match(
    base: dict[str, list[Record]], new: dict[str, list[Record]], across_settings: bool
) -> tuple[list[tuple[list[Record], list[Record]]], list[list[Record]], list[list[Record]]]:
    """Returns the records of matching cases, and those of cases of only one study."""
    pairs = [(base.pop(case_id), new.pop(case_id)) for case_id in sorted(base.keys() & new.keys())]
    if across_settings:
        subject = _subject(
            [records[0].case for records in base.values()], [records[0].case for records in new.values()]
        )
        base_keys, new_keys = _by_rest(base, subject), _by_rest(new, subject)
        for key in sorted(base_keys.keys() & new_keys.keys()):
            if len(base_keys[key]) == len(new_keys[key]) == 1:
                pairs.append((base.pop(base_keys[key][0]), new.pop(new_keys[key][0])))
    return pairs, list(base.values()), list(new.values())


def _subject(base: Sequence[Case], new: Sequence[Case]) -> set[str]:
    """Returns the settings of which the studies have no value in common."""
    names = {name for case in (*base, *new) for name in case.settings}
    return {name for name in names if not _values(base, name) & _values(new, name)}


def _values(cases: Sequence[Case], name: str) -> set[str]:
    return {json.dumps(case.settings.get(name)) for case in cases}


def _by_rest(cases: dict[str, list[Record]], subject: set[str]) -> dict[str, list[str]]:
    """Returns the identifiers of cases by everything else that they are."""
    found: dict[str, list[str]] = {}
    for case_id, records in cases.items():
        case = records[0].case
        rest = {name: value for name, value in case.settings.items() if name not in subject}
        found.setdefault(case.model_copy(update={"settings": rest}).case_id, []).append(case_id)
    return found


def _differences(base: Sequence[Record], new: Sequence[Record]) -> Iterator[tuple[Difference, str]]:
    """Yields what is not the same in all runs of a case, in words."""
    runs = (*base, *new)
    settings = set.intersection(*(set(_settings(record)) for record in runs))  # A commit may add some or drop some.
    aspects: list[tuple[Difference, Callable[[Record], dict[str, Any]]]] = [
        ("hardware", _hardware),
        ("software", _software),
        ("config", lambda record: {name: _settings(record)[name] for name in settings}),
        ("config", _surroundings),
    ]
    for kind, aspect in aspects:
        sides = [[aspect(record) for record in side] for side in (base, new)]
        for name in sorted({name for side in sides for values in side for name in values}):
            found = [sorted({_shown(values.get(name)) for values in side}) for side in sides]
            if len(set(found[0] + found[1])) > 1:
                yield kind, f"{kind} differs: {name}: base {' and '.join(found[0])}, new {' and '.join(found[1])}"
    memory = [record.identity.hardware.memory_bytes for record in runs]
    if max(memory) > (1 + MEMORY_TOLERANCE) * min(memory):
        yield "hardware", f"hardware differs: memory: from {min(memory) / 2**30:.1f} to {max(memory) / 2**30:.1f} GiB"


def _hardware(record: Record) -> dict[str, Any]:
    hardware = record.identity.hardware
    return {
        "architecture": hardware.architecture,
        "processor": hardware.cpu_model,
        "cores": hardware.cores,
        "GPUs": [f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in hardware.gpus],
    }


def _software(record: Record) -> dict[str, Any]:
    """The package's own version belongs to the commit; a library that does not run does not matter."""
    unused = {"mnist_dist"} | ({"horovod"} if record.case.strategy != "horovod" else set())
    versions = {name: version for name, version in record.identity.software.items() if name not in unused}
    return versions | {"GPU driver": record.identity.hardware.gpu_driver}


def _settings(record: Record) -> dict[str, Any]:
    """Returns the settings of the training run by dotted key, without the seed, which repeats vary."""
    return {name: value for name, value in _flat(record.identity.config) if name != "seed"}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _surroundings(record: Record) -> dict[str, Any]:
    environment = record.identity.environment
    variables = {name: value for name, value in environment.items() if name not in WHICH_DEVICES}
    return variables | {"launcher": record.identity.launcher}


def _shown(value: Any) -> str:
    return "none" if value in (None, []) else one_line(value if isinstance(value, str) else json.dumps(value), 80)


def _measure(base: Sequence[Record], new: Sequence[Record]) -> _Measured:
    """Estimates the ratio of a matched case's rates."""
    case, label = new[0].case, _label(new)
    (base_ok, base_failed), (new_ok, new_failed) = split_by_success(base), split_by_success(new)
    for name, ok, last in (("base", base_ok, base[-1]), ("new", new_ok, new[-1])):
        if not ok:
            reason = f"no run of {name} ended well: {last.status}: {last.reason}"
            return _Measured(case, base_ok, new_ok, label, None, False, reason)
    pairs = _pairs(base_ok, new_ok)
    if pairs:
        base_ok, new_ok = zip(*pairs, strict=True)
    try:
        series = _series(base_ok, base_ok + new_ok, "base"), _series(new_ok, base_ok + new_ok, "new")
    except _NoRateError as error:
        return _Measured(case, base_ok, new_ok, label, None, bool(pairs), str(error))
    remarks = (
        _changed_settings(base[0].case, case),
        f"failed runs: {len(base_failed)}, {len(new_failed)}" if base_failed or new_failed else "",
        _assumption(len(base_ok), len(new_ok)),
    )
    estimate = estimate_ratio(*series, paired=bool(pairs))
    return _Measured(case, base_ok, new_ok, label, estimate, bool(pairs), "; ".join(filter(None, remarks)))


def _pairs(base: Sequence[Record], new: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Returns the runs of each repeat that followed one another, if the studies were interleaved; else nothing.

    They were if, in the order of time, both runs of one repeat always come before those of another.
    """
    base_by_repeat, new_by_repeat = ({record.repeat: record for record in side} for side in (base, new))
    repeats = sorted(base_by_repeat.keys() & new_by_repeat.keys())
    runs = [side[repeat] for repeat in repeats for side in (base_by_repeat, new_by_repeat)]
    in_time = [run.repeat for run in sorted(runs, key=lambda run: (datetime.fromisoformat(run.started_at), run.repeat))]
    unique = len(base_by_repeat) == len(base) and len(new_by_repeat) == len(new)
    if len(repeats) < FEWEST_PAIRS or not unique or in_time[::2] != in_time[1::2]:
        return []
    return [(base_by_repeat[repeat], new_by_repeat[repeat]) for repeat in repeats]


class _NoRateError(Exception):
    """Why a case has no rate, in words for a report."""


def _series(records: Sequence[Record], both: Sequence[Record], name: str) -> list[Series]:
    """Returns what each run of one side did; `both` are the runs of both sides, `name` is that of this one."""
    if has_windows(records):
        states = [steady_state_of(record) for record in records]
        unstable = why_unstable(states)
        if unstable:
            raise _NoRateError(f"{name} is unstable: {unstable}")
        return [steady_series(record, state) for record, state in zip(records, states, strict=True)]
    measured = [record.measurements or {} for record in records]
    if records[0].case.kind == "matmul":
        rates = [np.asarray(each["flops_per_second"]) for each in measured]
        return [Series(np.ones(len(rate)), 1 / rate) for rate in rates]
    sizes = set.intersection(*(set(_all_reduce_seconds(record)) for record in both))
    if not sizes:
        raise _NoRateError("no message size was measured in all runs")
    means = [np.mean([math.log(_all_reduce_seconds(record)[size]) for size in sizes]) for record in records]
    return [Series(np.ones(1), np.exp([mean])) for mean in means]


def _all_reduce_seconds(record: Record) -> dict[int, float]:
    """Returns the median time of one all-reduce on the slowest rank, by the bytes of its message."""
    messages = (record.measurements or {})["messages"]
    return {each["bytes"]: float(np.median(np.max(each["seconds"], axis=0))) / each["calls"] for each in messages}


def _changed_settings(base: Case, new: Case) -> str:
    names = sorted(base.settings.keys() | new.settings.keys())
    changes = [(name, _shown(base.settings.get(name)), _shown(new.settings.get(name))) for name in names]
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
            Verdict(each.case, each.label, outcome, ratio, corrected, *runs, each.paired, more_runs, each.remark, drop)
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
    arms = 1 if measured.paired else 2
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


def _headline(comparison: Comparison) -> str:
    if not comparison.verdicts:
        return "**Nothing could be compared.**"
    counts = {name: sum(each.outcome == name for each in comparison.verdicts) for name in OUTCOMES}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    lost = sum(each.less_accurate is not None for each in comparison.verdicts)
    parts += [f"{lost} less accurate"] if lost else []
    parts += [f"{len(comparison.incomparable)} not comparable"] if comparison.incomparable else []
    cases = len(comparison.verdicts) + len(comparison.incomparable)
    return f"**Of {cases} case{'s' * (cases != 1)}: {', '.join(parts)}.**"


def _row(verdict: Verdict) -> str:
    ratio = verdict.ratio
    outcome = verdict.outcome if verdict.outcome in ("same", "inconclusive") else f"**{verdict.outcome}**"
    cells = (
        verdict.label,
        f"{ratio.value:.3f}" if ratio else "unknown",
        _interval(ratio),
        _interval(verdict.corrected),
        outcome + (", **less accurate**" if verdict.less_accurate else ""),
        f"{verdict.base_runs}, {verdict.new_runs}" + (" paired" if verdict.paired else ""),
        "; ".join(filter(None, _remarks(verdict))),
    )
    return f"| {' | '.join(map(_cell, cells))} |"


def _interval(ratio: Estimate | None) -> str:
    return "unknown" if ratio is None or math.isnan(ratio.low) else f"{ratio.low:.3f} to {ratio.high:.3f}"


def _remarks(verdict: Verdict) -> Iterator[str]:
    yield verdict.remark
    if verdict.less_accurate:
        base, new = verdict.less_accurate
        yield f"test accuracy {100 * base.mean:.2f} % became {100 * new.mean:.2f} % ({base.seeds}, {new.seeds} seeds)"
    if verdict.outcome != "inconclusive" or verdict.corrected is None:
        return
    if verdict.more_runs is None or verdict.more_runs > MOST_RUNS_TOLD:
        yield f"more than {MOST_RUNS_TOLD} further runs of each needed"
    else:
        yield f"about {verdict.more_runs} further run{'s' * (verdict.more_runs > 1)} of each needed"


def _explanation(comparison: Comparison) -> str:
    """Says how to read the table."""
    tested = sum(verdict.corrected is not None for verdict in comparison.verdicts)
    effect = f"{100 * comparison.smallest_effect:g} %"
    return (
        "new / base: ratio of the rates, above 1 where new is faster. Corrected: the interval after Holm's correction "
        f"for {tested} test{'s' * (tested != 1)}. Slower or faster: the ratio is off by more than {effect} and the "
        f"corrected interval leaves out 1. Same: the whole 95 % interval is within {effect}."
    )


def _label(records: Sequence[Record]) -> str:
    label = label_case(records[0].case, on_gpus(records))
    return KINDS.get(records[0].case.kind, "") + label


def _name(records: Sequence[Record]) -> str:
    """Returns the studies and commits of one side."""
    studies = sorted({record.study for record in records})
    commits = sorted({_commit(record) for record in records})
    return one_line(f"{', '.join(studies) or 'no records'} ({', '.join(commits) or 'nothing'})")


def _commit(record: Record) -> str:
    git = record.identity.git
    return "no commit known" if git is None else f"commit {git.commit[:10]}{', changed' if git.dirty else ''}"


def _cell(text: str) -> str:
    """Labels and reasons hold what files say, which must not end a cell or a line."""
    return one_line(text).replace("|", "\\|")
