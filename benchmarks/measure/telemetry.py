"""The power that a case draws on the harness's host, from the GPUs' counters (NVML) or the processors' (RAPL).

Counters of energy are read, not only momentary power, so sampling rarely loses nothing. Other hosts, and other jobs
on the same processors or GPUs, cannot be told apart: record telemetry for cases on one host that is not shared.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mnist_dist.benchmarks.records.environment import open_nvml
from mnist_dist.benchmarks.records.record import Telemetry

POWERCAP = Path("/sys/class/powercap")
PERIOD_SECONDS = 1.0  # A counter of RAPL overflows after minutes at the earliest.


@dataclass(frozen=True)
class Sample:
    """A reading.

    Attributes:
        seconds: of a monotonic clock.
        joules: since an arbitrary moment.
        utilisation_percent: of the GPUs' mean in the time before; None where it is not known.
    """

    seconds: float
    joules: float
    utilisation_percent: float | None = None


class Source(Protocol):
    @property
    def name(self) -> Literal["nvml", "rapl"]: ...

    def read(self) -> Sample: ...


class Rapl:
    """The energy counters of the processors and, where they are apart, of their memory.

    See https://docs.kernel.org/power/powercap/powercap.html. Of the zones in the folder, packages and their `dram` are
    counted; cores are part of a package, `psys` holds all of them, and intel-rapl-mmio repeats the packages.

    Raises:
        OSError: no counter may be read; since Linux 5.10 only root may.
    """

    name: Literal["rapl"] = "rapl"

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
        return Sample(seconds, self._microjoules / 1e6)

    def _counters(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]


class Nvml:
    """The energy counters of GPUs; before Volta, which has none, their momentary power times the time since.

    Args:
        pynvml: the module, initialised.
        handles: of the GPUs.
    """

    name: Literal["nvml"] = "nvml"

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
        return Sample(seconds, joules, self._utilisation_percent())

    def _utilisation_percent(self) -> float | None:
        try:
            rates = [self._pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]
        except self._pynvml.NVMLError_NotSupported:
            return None
        return sum(rates) / len(rates)


class Sampling:
    """Reads a source in a thread until it is stopped.

    Attributes:
        telemetry: once it is stopped; None where nothing could be read to the end.
    """

    def __init__(self, source: Source, period_seconds: float) -> None:
        self.telemetry: Telemetry | None = None
        self._source = source
        self._period_seconds = period_seconds
        self._samples = [source.read()]
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)  # A driver can hang; the measurement is worth more than its power.
        if not self._failed and not self._thread.is_alive():
            self.telemetry = summarize(self._source.name, self._samples)

    def _run(self) -> None:
        stopped = False
        try:
            while not stopped:
                stopped = self._stop.wait(self._period_seconds)
                self._samples.append(self._source.read())
        except Exception:  # A lost GPU, or a counter that went away: whatever the library raises.
            self._failed = True


class NoSampling:
    """Of a host whose power cannot be read."""

    telemetry: Telemetry | None = None


@contextlib.contextmanager
def sample_power(
    gpus: int | None = None, period_seconds: float = PERIOD_SECONDS, powercap: Path = POWERCAP
) -> Iterator[Sampling | NoSampling]:
    """Measures the power drawn while the block runs; its outcome is then in the yielded object's `telemetry`.

    Args:
        gpus: how many of the visible GPUs the case uses, the first ones; None: all.
        powercap: where Linux shows the counters of RAPL, used on hosts without GPUs.
    """
    with contextlib.ExitStack() as stack:
        source = _open_source(stack, gpus, powercap)
        if source is None:
            yield NoSampling()
            return
        sampling = Sampling(source, period_seconds)
        stack.callback(sampling.stop)
        yield sampling


def summarize(source: Literal["nvml", "rapl"], samples: Sequence[Sample]) -> Telemetry | None:
    """Turns at least two readings into telemetry, fewer into None.

    Power and utilisation are means over the busy part: the intervals with at least half of the largest utilisation,
    or of the largest power where utilisation is not known. Importing libraries and compiling are thereby left out
    as far as they draw less.
    """
    pairs = [(before, after) for before, after in itertools.pairwise(samples) if after.seconds > before.seconds]
    if not pairs:
        return None
    seconds = [after.seconds - before.seconds for before, after in pairs]
    joules = [after.joules - before.joules for before, after in pairs]
    utilisations = [after.utilisation_percent for _, after in pairs if after.utilisation_percent is not None]
    known = len(utilisations) == len(pairs)
    activity = utilisations if known else [energy / time for energy, time in zip(joules, seconds, strict=True)]
    busy = [index for index, value in enumerate(activity) if value >= max(activity) / 2]
    busy_seconds = sum(seconds[index] for index in busy)
    return Telemetry(
        source=source,
        seconds=sum(seconds),
        energy_joules=sum(joules),
        power_watts=sum(joules[index] for index in busy) / busy_seconds,
        gpu_utilisation_percent=(
            sum(utilisations[index] * seconds[index] for index in busy) / busy_seconds if known else None
        ),
    )


def _open_source(stack: contextlib.ExitStack, gpus: int | None, powercap: Path) -> Source | None:
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
