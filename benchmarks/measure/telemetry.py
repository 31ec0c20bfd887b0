"""The power that a case draws on the harness's host, from the GPUs' counters (NVML) or the processors' (RAPL).

Counters of energy are read, not momentary power, at the start and the end of each turn of the case. Other hosts, and
other jobs on the same processors or GPUs, cannot be told apart: record telemetry for cases on one host that is not
shared.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mnist_dist.benchmarks.records.environment import open_nvml
from mnist_dist.benchmarks.records.record import Telemetry

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Sample:
    """A reading.

    Attributes:
        source: of what.
        seconds: of a monotonic clock.
        joules: since an arbitrary moment.
        utilisation_percent: of the GPUs' mean in the time before; None where it is not known.
    """

    source: Literal["nvml", "rapl"]
    seconds: float
    joules: float
    utilisation_percent: float | None = None


class Rapl:
    """The energy counters of the processors and, where they are apart, of their memory.

    See https://docs.kernel.org/power/powercap/powercap.html. Of the zones in the folder, packages and their `dram` are
    counted; cores are part of a package, `psys` holds all of them, and intel-rapl-mmio repeats the packages.

    Raises:
        OSError: no counter may be read; since Linux 5.10 only root may.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _counts(zone)]
        if not self._zones:
            raise FileNotFoundError(f"no RAPL package in {powercap}")
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = self._counters()
        self._microjoules = 0

    def read(self) -> Sample:
        counters, seconds = self._counters(), time.perf_counter()
        for now, before, largest in zip(counters, self._last, self._ranges, strict=True):
            self._microjoules += now - before if now >= before else now - before + largest
        self._last = counters
        return Sample("rapl", seconds, self._microjoules / 1e6)

    def _counters(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]


class Nvml:
    """The energy counters of GPUs; before Volta, which has none, their momentary power times the time since.

    Args:
        pynvml: the module, initialised.
        handles: of the GPUs.
    """

    def __init__(self, pynvml: Any, handles: Sequence[Any]) -> None:
        self._pynvml = pynvml
        self._handles = handles
        self._integrated = 0.0
        self._seconds = time.perf_counter()
        self.read()

    def read(self) -> Sample:
        seconds = time.perf_counter()
        try:
            joules = sum(self._pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles) / 1e3
        except self._pynvml.NVMLError_NotSupported:
            watts = sum(self._pynvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles) / 1e3
            self._integrated += watts * (seconds - self._seconds)
            joules = self._integrated
        self._seconds = seconds
        return Sample("nvml", seconds, joules, self._utilisation_percent())

    def _utilisation_percent(self) -> float | None:
        try:
            rates = [self._pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]
        except self._pynvml.NVMLError_NotSupported:
            return None
        return sum(rates) / len(rates)


@contextlib.contextmanager
def open_meter(gpus: int | None = None, powercap: Path = POWERCAP) -> Iterator[Callable[[], Sample | None] | None]:
    """Yields a function that reads the energy used so far; None where it cannot be read.

    Args:
        gpus: how many of the visible GPUs are used, the first ones; None: all.
        powercap: where Linux shows the counters of RAPL, used on hosts without GPUs.
    """
    with contextlib.ExitStack() as stack:
        source = _open_source(stack, gpus, powercap)

        def read() -> Sample | None:
            try:
                return source.read() if source else None
            except Exception:  # A lost GPU, or a counter that went away: whatever the library raises.
                return None

        yield read if source else None


def summarize(turns: Sequence[tuple[Sample, Sample]]) -> Telemetry | None:
    """Turns readings at the start and the end of turns into telemetry; None without any.

    A counter that is renewed ten times a second, as of some GPUs, is off by as much at either end, which evens out.
    """
    seconds = sum(after.seconds - before.seconds for before, after in turns)
    if not seconds:
        return None
    joules = sum(after.joules - before.joules for before, after in turns)
    busy = [after.utilisation_percent for _, after in turns if after.utilisation_percent is not None]
    return Telemetry(
        source=turns[0][0].source,
        seconds=seconds,
        energy_joules=joules,
        power_watts=joules / seconds,
        gpu_utilisation_percent=sum(busy) / len(busy) if busy else None,
    )


def _open_source(stack: contextlib.ExitStack, gpus: int | None, powercap: Path) -> Nvml | Rapl | None:
    nvml = stack.enter_context(open_nvml())
    if nvml is not None and nvml[1]:
        pynvml, handles = nvml
        with contextlib.suppress(pynvml.NVMLError):
            return Nvml(pynvml, handles[:gpus])
        return None
    with contextlib.suppress(OSError, ValueError):
        return Rapl(powercap)
    return None


def _counts(zone: Path) -> bool:
    name = (zone / "name").read_text().strip()
    return bool(re.fullmatch(r"package-\d+", name)) or name == "dram"


def _number(path: Path) -> int:
    return int(path.read_text())
