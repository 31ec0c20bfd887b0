"""The power that a case draws on the harness's host, from the GPUs' counters (NVML) or the processors' (RAPL).

Counters of energy are read, not momentary power, at the start and the end of each turn of the case. Other hosts, and
other jobs on the same processors or GPUs, cannot be told apart: record telemetry for cases on one host that is not
shared.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mnist_dist.benchmarks.records.record import GpuTelemetry, Telemetry
from mnist_dist.gpus import Nvml, open_nvml

POWERCAP = Path("/sys/class/powercap")
COUNTED = re.compile(r"package-\d+|dram")  # Of its zones.

POLICIES = {  # Counters of the time for which something has held a GPU's clock down.
    "power": "NVML_PERF_POLICY_POWER",
    "temperature": "NVML_PERF_POLICY_THERMAL",
    "board limit": "NVML_PERF_POLICY_BOARD_LIMIT",
    "reliability": "NVML_PERF_POLICY_RELIABILITY",
}
THROTTLED_SHARE = 0.01  # Of the time, below which a counter does not matter.


@dataclass(frozen=True)
class GpuSample:
    """A reading of one GPU; `joules`, `throttled_seconds` and `ecc_errors` are counters."""

    uuid: str | None
    joules: float | None
    utilisation_percent: float | None
    sm_clock_mhz: float | None
    temperature_celsius: float | None
    throttled_by: frozenset[str]
    throttled_seconds: Mapping[str, float]
    ecc_errors: int | None


@dataclass(frozen=True)
class Sample:
    """A reading.

    Attributes:
        seconds: of a monotonic clock.
        joules: since an arbitrary moment; None where a GPU does not tell.
        utilisation_percent: of the GPUs' mean in the time before; None where it is not known.
    """

    source: Literal["nvml", "rapl"]
    seconds: float
    joules: float | None
    utilisation_percent: float | None = None
    gpus: tuple[GpuSample, ...] = ()

    def of_first(self, gpus: int | None) -> Sample:
        """Returns the reading of the first GPUs alone, where it is one of GPUs."""
        return _sum_up(self.seconds, self.gpus[:gpus]) if self.gpus else self


def _sum_up(seconds: float, gpus: Sequence[GpuSample]) -> Sample:
    joules = [each.joules for each in gpus if each.joules is not None]
    total = sum(joules) if len(joules) == len(gpus) else None
    return Sample("nvml", seconds, total, _mean([each.utilisation_percent for each in gpus]), tuple(gpus))


class Rapl:
    """The energy counters of the processors and, where they are apart, of their memory.

    See https://docs.kernel.org/power/powercap/powercap.html. Of the zones in the folder, packages and their `dram` are
    counted; cores are part of a package, `psys` holds all of them, and intel-rapl-mmio repeats the packages.

    Raises:
        OSError: no counter may be read; since Linux 5.10 only root may.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._zones = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if COUNTED.fullmatch((zone / "name").read_text().strip())
        ]
        if not self._zones:
            raise FileNotFoundError(f"no RAPL package in {powercap}")
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = self._counters()
        self._microjoules = 0

    def read(self) -> Sample:
        counters, seconds = self._counters(), time.perf_counter()
        for now, before, largest in zip(counters, self._last, self._ranges, strict=True):
            self._microjoules += now - before if now >= before else now - before + largest
        self._last = counters
        return Sample("rapl", seconds, self._microjoules / 1e6)

    def _counters(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


class Gpus:
    """The GPUs' counters; before Volta, which counts no energy, it is the momentary power times the time."""

    def __init__(self, nvml: Nvml, handles: Sequence[Any]) -> None:
        self._nvml, self._handles = nvml, handles
        self._integrated = [0.0] * len(handles)
        self._seconds = time.perf_counter()
        self.read()

    def read(self) -> Sample:
        seconds = time.perf_counter()
        joules = [self._joules(index, handle, seconds) for index, handle in enumerate(self._handles)]
        self._seconds = seconds
        return _sum_up(seconds, list(map(self._read_gpu, self._handles, joules)))

    def _joules(self, index: int, handle: Any, seconds: float) -> float | None:
        millijoules = self._nvml.ask("DeviceGetTotalEnergyConsumption", handle)
        if millijoules is not None:
            return millijoules / 1e3
        milliwatts = self._nvml.ask("DeviceGetPowerUsage", handle)
        if milliwatts is None:
            return None
        self._integrated[index] += milliwatts / 1e3 * (seconds - self._seconds)
        return self._integrated[index]

    def _read_gpu(self, handle: Any, joules: float | None) -> GpuSample:
        ask = self._nvml.ask
        rates = ask("DeviceGetUtilizationRates", handle)
        violations = {name: ask("DeviceGetViolationStatus", handle, policy) for name, policy in POLICIES.items()}
        return GpuSample(
            ask("DeviceGetUUID", handle),
            joules,
            None if rates is None else rates.gpu,
            ask("DeviceGetClockInfo", handle, "NVML_CLOCK_SM"),
            ask("DeviceGetTemperature", handle, "NVML_TEMPERATURE_GPU"),
            self._nvml.throttled_by(handle),
            {name: each.violationTime / 1e9 for name, each in violations.items() if each is not None},
            self._nvml.ecc_errors(handle),
        )


@contextlib.contextmanager
def open_meter(gpus: int | None = None, powercap: Path = POWERCAP) -> Iterator[Callable[[], Sample | None] | None]:
    """Yields a function that reads the energy used so far; None where it cannot be read.

    Args:
        gpus: how many of the visible GPUs are used, the first ones; None: all.
    """
    source: Gpus | Rapl | None = None
    with open_nvml() as nvml:
        if nvml is not None and nvml.handles:
            source = Gpus(nvml, nvml.handles[:gpus])
        else:
            with contextlib.suppress(OSError, ValueError):
                source = Rapl(powercap)

        def read() -> Sample | None:
            try:
                return source.read() if source else None
            except Exception:  # A lost GPU, or a counter that went away: whatever the library raises.
                return None

        yield read if source else None


def summarize(turns: Sequence[tuple[Sample, Sample]], gpus: int | None = None) -> Telemetry | None:
    """Turns readings at the start and the end of turns into telemetry; None without any.

    Args:
        gpus: how many the case used, the first ones; None: all. Others of its round may use more.

    A counter that is renewed ten times a second, as of some GPUs, is off by as much at either end, which evens out.
    """
    turns = [(before.of_first(gpus), after.of_first(gpus)) for before, after in turns]
    seconds = sum(after.seconds - before.seconds for before, after in turns)
    if not seconds:
        return None
    told = [(before.joules, after.joules) for before, after in turns]
    spent = [after - before for before, after in told if before is not None and after is not None]
    joules = sum(spent) if len(spent) == len(turns) else None
    return Telemetry(
        source=turns[0][0].source,
        seconds=seconds,
        energy_joules=joules,
        power_watts=None if joules is None else joules / seconds,
        gpu_utilisation_percent=_mean([after.utilisation_percent for _, after in turns]),
        gpus=tuple(
            _summarize_gpu([(before.gpus[index], after.gpus[index]) for before, after in turns], seconds)
            for index in range(len(turns[0][0].gpus))
        ),
    )


def _summarize_gpu(turns: Sequence[tuple[GpuSample, GpuSample]], seconds: float) -> GpuTelemetry:
    ends = [after for _, after in turns]
    temperatures = [each.temperature_celsius for each in ends if each.temperature_celsius is not None]
    first, last = turns[0][0].ecc_errors, ends[-1].ecc_errors
    counters = [(before.throttled_seconds, after.throttled_seconds) for before, after in turns]
    times = {name: sum(after.get(name, 0) - before.get(name, 0) for before, after in counters) for name in POLICIES}
    held = {name for name, time_held in times.items() if time_held > THROTTLED_SHARE * seconds}
    return GpuTelemetry(
        uuid=ends[-1].uuid,
        sm_clock_mhz=_mean([each.sm_clock_mhz for each in ends]),
        temperature_celsius=max(temperatures, default=None),
        throttled_by=tuple(sorted(held.union(*(each.throttled_by for each in ends)))),
        ecc_errors=None if first is None or last is None else max(last - first, 0),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
