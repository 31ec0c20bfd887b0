"""The GPUs that this process may use, as NVIDIA's driver tells of them (NVML): each by itself, each field by itself.

What the driver forbids or does not know costs nothing else. Imports no TensorFlow, and pynvml only when asked.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DEVICES = Path("/dev")
CORE_BITS = 4096  # Of the driver's answer.
# What holds a clock down at the moment, as bits of nvmlClocksThrottleReason...
THROTTLE_REASONS = {"power": 0x04, "hardware slowdown": 0x08, "temperature": 0x60, "power brake": 0x80}


class Nvml:
    """NVML while it is open; `handles` are those of the visible GPUs, or of their parts (MIG)."""

    def __init__(self, pynvml: Any, environment: Mapping[str, str]) -> None:
        self._pynvml = pynvml
        handles = list(self._devices())
        uuids = [self.ask("DeviceGetUUID", handle) or "" for handle in handles]
        self.handles = [handles[index] for index in visible_gpus(uuids, environment)]

    def ask(self, question: str, *arguments: Any) -> Any:
        """Returns the answer of a function of NVML, or None where it is forbidden or not known.

        Args:
            question: the name of the function, without `nvml`.
            arguments: of which texts are names of NVML's constants.
        """
        try:
            values = [getattr(self._pynvml, each) if isinstance(each, str) else each for each in arguments]
            answer = getattr(self._pynvml, f"nvml{question}")(*values)
        except (self._pynvml.NVMLError, AttributeError):  # The latter of a pynvml that is older.
            return None
        return answer.decode() if isinstance(answer, bytes) else answer  # As pynvml returned until version 11.5.

    def throttled_by(self, handle: Any) -> frozenset[str]:
        """Returns what holds the clock of a GPU down now."""
        bits = self.ask("DeviceGetCurrentClocksThrottleReasons", handle) or 0
        return frozenset(name for name, mask in THROTTLE_REASONS.items() if bits & mask)

    def ecc_errors(self, handle: Any) -> int | None:
        """Returns how many errors of its memory could not be corrected since the driver was loaded."""
        kind = ("NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_VOLATILE_ECC")
        return self.ask("DeviceGetTotalEccErrors", handle, *kind)

    def near_cores(self, handle: Any) -> frozenset[int]:
        """Returns the host's cores on the GPU's NUMA node; nothing where the driver does not tell."""
        words = self.ask("DeviceGetCpuAffinity", handle, CORE_BITS // 64) or ()
        return frozenset(core for core in range(64 * len(words)) if words[core // 64] >> core % 64 & 1)

    def troubles(self, handle: Any) -> Iterator[str]:
        """Says what is wrong with a GPU before anything runs on it; that power limits its clock under load is not."""
        if errors := self.ecc_errors(handle):
            yield f"its memory had {errors} uncorrected ECC errors; reset it, or exclude its node"
        if causes := sorted(self.throttled_by(handle) - {"power"}):
            yield f"its clock is throttled by {' and '.join(causes)} before anything runs; see its cooling and power"

    def _devices(self) -> Iterator[Any]:
        """Yields what CUDA would count: GPUs that this user may use, or, of one that is divided, its parts."""
        for index in range(self.ask("DeviceGetCount") or 0):
            gpu = self.ask("DeviceGetHandleByIndex", index)
            if gpu is None:
                continue
            if (self.ask("DeviceGetMigMode", gpu) or [0])[0]:
                most = self.ask("DeviceGetMaxMigDeviceCount", gpu) or 0
                parts = (self.ask("DeviceGetMigDeviceHandleByIndex", gpu, place) for place in range(most))
                yield from (part for part in parts if part is not None)
            else:
                yield gpu


@contextlib.contextmanager
def open_nvml(environment: Mapping[str, str] = os.environ) -> Iterator[Nvml | None]:
    """Yields NVML while it is open, or None where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # The package or the driver is missing, or they do not fit together.
        yield None
        return
    try:
        yield Nvml(pynvml, environment)
    finally:
        pynvml.nvmlShutdown()


def visible_gpus(uuids: Sequence[str], environment: Mapping[str, str]) -> list[int]:
    """Returns the indices of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; all without it.

    Of parts of GPUs (MIG), CUDA uses the first one alone, and beside it no whole GPU:
    https://docs.nvidia.com/datacenter/tesla/mig-user-guide/

    Args:
        uuids: of all GPUs of the host, by index.
    """
    names = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(uuids)))))
    visible: list[int] = []
    for name in (part.strip() for part in names.split(",")):
        found = [index for index, uuid in enumerate(uuids) if name == str(index) or (name and uuid.startswith(name))]
        if not found:  # CUDA, too, ignores what follows a name that it does not know.
            break
        visible += found[:1]
    return [index for index in visible if uuids[index].startswith("MIG-")][:1] or visible


def driver_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the UUIDs of the GPUs that the driver would let this process use, "" where it does not tell one.

    Without NVML they are the devices that can be opened, which a job that has asked for none may not.
    """
    with open_nvml(environment) as nvml:
        if nvml is not None:
            return [nvml.ask("DeviceGetUUID", handle) or "" for handle in nvml.handles]
    uuids = [""] * sum(map(_opens, DEVICES.glob("nvidia[0-9]*")))
    return [uuids[index] for index in visible_gpus(uuids, environment)]


def of_gpus(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns the type of a flag that names GPUs, where `parse` is that of the one that names any devices."""

    def parse_with_gpus(text: str) -> Any:
        value = parse(text)
        if not driver_gpus():
            raise argparse.ArgumentTypeError(
                f"received '{text}', expected a machine with GPUs, found none; "
                f"`--devices {text}` takes shares of the CPU's cores"
            )
        return value

    return parse_with_gpus


def least_capability() -> tuple[int, int] | None:
    """Returns the compute capability of the GPU that has the least, or None without one that tells it."""
    with open_nvml() as nvml:
        told = [nvml.ask("DeviceGetCudaComputeCapability", each) for each in nvml.handles] if nvml else []
    return min((tuple(each) for each in told if each), default=None)


def own_gpu(local_rank: int) -> str:
    """Returns the UUID of the GPU that a rank will take, as `runtime.choose_gpus` has it; "" where it is not known."""
    uuids = driver_gpus()
    return uuids[local_rank % len(uuids)] if uuids else ""


def cores_near_gpus() -> list[frozenset[int]]:
    """Returns `Nvml.near_cores` of each GPU, in the order in which ranks take them."""
    with open_nvml() as nvml:
        return [nvml.near_cores(handle) for handle in nvml.handles] if nvml else []


def _opens(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
