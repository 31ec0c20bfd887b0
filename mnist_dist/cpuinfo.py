"""What Linux says of this CPU. Standard library only."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FLOAT16_FLAGS = frozenset({"avx512_fp16", "amx_fp16"})  # Of CPUs that compute with it.
MOST_OTHERS = 0.1  # Share of the cores that other programs may use while something is measured.


def cpu_name(file: Path = CPUINFO) -> str:
    """Returns the processor's name; on ARM, whose kernels tell none, its implementer and part."""
    fields = _fields(file)
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:
        return f"implementer {fields.get('CPU implementer', '?')}, part {fields['CPU part']}"
    return platform.processor() or platform.machine()


def cpu_flags(file: Path = CPUINFO) -> frozenset[str]:
    """Returns what the CPU can, by Linux' names; nothing where that is not told."""
    fields = _fields(file)
    return frozenset(fields.get("flags", fields.get("Features", "")).split())


def cpu_has_float16() -> bool:
    """Tells whether this CPU computes with float16."""
    return bool(cpu_flags() & FLOAT16_FLAGS)


def thread_siblings(core: int, folder: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Returns the logical cores that are hardware threads of the same physical core, this one among them."""
    try:
        text = (folder / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
        ranges = [[int(number) for number in part.split("-")] for part in text.split(",")]
    except (OSError, ValueError):
        return [core]
    return [number for ends in ranges for number in range(ends[0], ends[-1] + 1)]


def busy_cpu_seconds(file: Path = Path("/proc/stat")) -> float:
    """Returns the processor time that the cores of this process have spent on whatever runs, since the host started.

    It is 0 where the kernel or a sandbox does not tell.
    """
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0.0
    # User, nice and system; idle and waiting are left out; then interrupts, and what other guests of the host took.
    ticks = [int(each) for name, *fields in lines if name in cores for each in (*fields[:3], *fields[5:8])]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _fields(file: Path) -> dict[str, str]:
    """Returns what the file says of the first core that says it."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields
