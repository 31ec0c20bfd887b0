"""How cases, their devices and their settings are called in tables and pictures."""

import math
from collections.abc import Callable, Collection, Sequence

from mnist_dist.benchmarks.analysis.attribution import PartName
from mnist_dist.benchmarks.analysis.in_turns import other_cores
from mnist_dist.benchmarks.records.case import Case
from mnist_dist.benchmarks.records.kinds import kind
from mnist_dist.benchmarks.records.record import Record, on_gpus
from mnist_dist.benchmarks.statistics.stats import FEWEST_SECONDS, Estimate
from mnist_dist.errors import counted, one_line

FEW_RUNS = (2, 3)  # Of which Student's t is more than twice as wide as of many.
WIDE_INTERVAL = 0.5  # Of the value.
TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
MISSING = DASH
SHOWN_APART = ("runtime.precision", "runtime.xla")  # Settings that have a column of their own.


def label_case(case: Case, gpus: bool = False, without: Collection[str] = ()) -> str:
    """Returns, for example, `horovod, 4 x 2 cores, 128 images per device, without all-reduce`.

    It is `without` settings that are not worth naming, as all cases around have them.
    """
    return ", ".join(_label_parts(case, gpus, without))


def _label_parts(case: Case, gpus: bool, without: Collection[str] = ()) -> list[str]:
    parts = [case.strategy, label_devices(case, gpus), f"{label_number(case.images_per_device)} images per device"]
    telling = [(key, value) for key, value in sorted(case.settings.items()) if key not in without]
    parts += [one_line(f"{key.rpartition('.')[2]} {value}", 60) for key, value in telling]
    parts += ["synthetic input"] if case.synthetic_input else []
    parts += [] if case.all_reduce else ["without all-reduce"]
    parts += [f"trained {label_duration(case)}"] if case.kind == "train" and not case.is_ablation else []
    return parts


def label_briefly(cases: Sequence[tuple[Case, bool]]) -> tuple[str, list[str]]:
    """Returns what the cases of each kind share, each with whether it runs on GPUs, and of each what tells it apart."""
    labels = [_label_parts(case, gpus) for case, gpus in cases]
    kinds = [case.kind for case, _ in cases]
    everywhere, said = _shared(labels), [", ".join(_shared(labels))]
    telling = []
    for label, name in zip(labels, kinds, strict=True):
        shared = _shared([each for each, of_kind in zip(labels, kinds, strict=True) if of_kind == name])
        brief = [part for part in label if part not in (*everywhere, *shared)] or label[:1]
        short = [part.removesuffix(" per device").removeprefix("precision ").replace("xla ", "XLA ") for part in brief]
        telling.append(kind(name).prefix + ", ".join(short))
        if own := ", ".join(part for part in shared if part not in everywhere):
            said.append(f"{kind(name).description}: {own}")
    return "; ".join(filter(None, dict.fromkeys(said))), telling


def _shared(labels: Sequence[Sequence[str]]) -> list[str]:
    return [part for part in labels[0] if all(part in label for label in labels)] if len(labels) > 1 else []


def label_records(records: Sequence[Record], without: Collection[str] = ()) -> str:
    """Returns the label of the case of which these are records, among those of other kinds."""
    return label_with_kind(records[0].case, on_gpus(records), without)


def label_with_kind(case: Case, gpus: bool = False, without: Collection[str] = ()) -> str:
    """Returns the label of a case among those of other kinds, for example `input alone: single, 1 x 2 cores, ...`."""
    return kind(case.kind).prefix + label_case(case, gpus, without)


def label_devices(case: Case, gpus: bool = False) -> str:
    """Returns, for example, `4 x 2 cores`, `8 GPUs on 2 hosts` or `1 (all cores)`."""
    if gpus:
        devices = counted(case.devices, "GPU")
    elif case.cores_per_device is None:
        devices = f"{case.devices} (all cores)"
    else:
        devices = f"{case.devices} {TIMES} {counted(case.cores_per_device, 'core')}"
    return devices + (f" on {case.hosts} hosts" if case.hosts > 1 else "")


def label_duration(case: Case) -> str:
    """Returns for how long the case trains."""
    return "to the end" if case.measure_seconds is None else f"{case.measure_seconds:g} s"


def label_other_settings(case: Case) -> str:
    """Returns the settings that have no column of their own, for example `training.epochs=5`."""
    others = sorted((key, value) for key, value in case.settings.items() if key not in SHOWN_APART)
    return ", ".join(one_line(f"{key}={value}", 60) for key, value in others)


def label_number(value: float) -> str:
    """Returns `128` or, where a batch does not divide, `42.7`."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def label_count(value: float) -> str:
    """Returns `1,234` or, of small numbers, three digits as in `42.7`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def label_percent(share: float) -> str:
    """Returns, for example, `93.5` for 0.935."""
    return f"{round(100 * share, 1) + 0.0:.1f}"  # Adding zero takes the sign from -0.0.


def label_part(name: PartName) -> str:
    """Returns what a part of the lost time is called in a sentence."""
    names: dict[PartName, str] = {
        "small batches": "smaller batches",
        "communication": "exposed communication",
        "interaction": "input beside communication",
    }
    return names.get(name, name)


def label_three_digits(value: float) -> str:
    """Returns `0.123`, `12.0` or `1,234`."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def label_bytes(size: float) -> str:
    """Returns, for example, `4 KiB` or `1.5 GiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(size, 1)) // 10), len(units) - 1)
    return f"{label_count(size / 1024**power)} {units[power]}"


def label_range(low: float, high: float, form: Callable[[float], str]) -> str:
    """Returns both ends, with a word between where a dash could be a sign; or nothing where one is not known."""
    between = DASH if low >= 0 else " to "
    return f"{form(low)}{between}{form(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def says_little(rate: Estimate | None) -> bool:
    """Whether an interval is wide because so few runs hardly tell how much they deviate."""
    return rate is not None and rate.repeats in FEW_RUNS and rate.high - rate.low > WIDE_INTERVAL * rate.value


def warn_of_short_runs(seconds: Sequence[float]) -> str:
    """Returns what to say of the intervals of runs that took no turns, by the seconds that each was measured."""
    lengths = " to ".join(dict.fromkeys(f"{length:.0f}" for length in (min(seconds), max(seconds))))
    return (
        f"Intervals of runs of {lengths} s without turns may miss slow spells that no run met, and covered the truth "
        f"in as few as 64 % of simulated studies: measure in turns, or for {FEWEST_SECONDS:g} s a run."
    )


def label_others(records: Sequence[Record]) -> str:
    """Returns the most that other programs used while one of some records was measured: `1.2 of 2 cores`."""
    worst = max(records, key=other_cores)
    return f"{other_cores(worst):.1f} of {counted(worst.identity.hardware.cores, 'core')}"


def label_point(case: Case) -> str:
    """Returns strategy and number of devices, as short as pictures need."""
    return f"{case.strategy} {TIMES} {case.devices}"
