"""A driver's library for machines without a GPU: answers of NVML, for the real pynvml to load in another process.

Beside it, in a folder `cuda`, libraries by the names of CUDA's, which open and do nothing.

GPU i of two, or of GPUS, idles with 100 (i + 1) W, counts its energy, and is busy to 10 (i + 1) %. GPU 1 shares the
host's memory and is held down by its temperature; GPU 0 now and then by its power, as its counter says. Variables of
the environment: BROKEN: it does not start. FORBID: names of functions that this user may not call, of GPU 0 with OF0.
LOST: GPU 0 is. MIG: GPU 0 is divided into two parts. HEALTHY: no errors of memory, and nothing holds a clock down.
CAPABILITY: its major number. NEAR: GPU 0 is near core 70 only, GPU 1 near the cores 0 and 1.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mnist_dist.gpu_doctor.libraries import LIBRARIES

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef unsigned long long u64;
static int gpus[10] = {0, 1, 2, 3, 4, 5, 6, 7, 10, 11};
static int text(char *out, const char *format, int i) { sprintf(out, format, i); return 0; }
static int ask(const char *name, int gpu) {
    const char *forbidden = getenv("FORBID"), *found = forbidden ? strstr(forbidden, name + 4) : NULL;
    return found && (gpu == 0 || !getenv("OF0")) ? 4 : 0;
}
#define MAY(gpu) if (ask(__func__, gpu)) return ask(__func__, gpu)
static u64 nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ULL + now.tv_nsec;
}
int nvmlInit_v2(void) { return getenv("BROKEN") ? 9 : 0; }
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(out, "550.54.%d", 15); }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = getenv("GPUS") ? atoi(getenv("GPUS")) : 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, int **gpu) { *gpu = &gpus[i]; return getenv("LOST") && !i ? 15 : 0; }
int nvmlDeviceGetUUID(int *gpu, char *out, unsigned size) {
    MAY(*gpu);
    return *gpu < 10 ? text(out, "GPU-%d", *gpu) : text(out, "MIG-%d", *gpu);
}
int nvmlDeviceGetName(int *gpu, char *out, unsigned size) { MAY(*gpu); return text(out, "Stand-in %d", *gpu); }
int nvmlDeviceGetMemoryInfo(int *gpu, u64 *memory) {
    MAY(*gpu);
    memory[0] = 80ULL << 30;
    memory[2] = nanoseconds() / 1000 * (getenv("FILLS") ? 1000000 : 1);  // Of bytes, taken by others.
    return *gpu == 1 ? 3 : 0;
}
int nvmlDeviceGetCudaComputeCapability(int *gpu, int *major, int *minor) {
    MAY(*gpu);
    *major = getenv("CAPABILITY") ? atoi(getenv("CAPABILITY")) : 9;
    *minor = 0;
    return 0;
}
int nvmlDeviceGetPowerUsage(int *gpu, unsigned *mw) { MAY(*gpu); *mw = 100000 * (*gpu + 1); return 0; }
int nvmlDeviceGetEnforcedPowerLimit(int *gpu, unsigned *mw) { MAY(*gpu); *mw = 700000; return 0; }
int nvmlDeviceGetUtilizationRates(int *gpu, unsigned *rates) { MAY(*gpu); rates[0] = 10 * (*gpu + 1); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(int *gpu, u64 *mj) {
    MAY(*gpu);
    *mj = nanoseconds() / 10000 * (*gpu + 1);
    return getenv("OLD") ? 3 : 0;
}
int nvmlDeviceGetMaxClockInfo(int *gpu, int type, unsigned *mhz) { MAY(*gpu); *mhz = 1980 + type; return 0; }
int nvmlDeviceGetClockInfo(int *gpu, int type, unsigned *mhz) { MAY(*gpu); *mhz = 1200 + *gpu; return 0; }
int nvmlDeviceGetTemperature(int *gpu, int sensor, unsigned *degrees) { MAY(*gpu); *degrees = 60 + *gpu; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(int *gpu, u64 *bits) {
    MAY(*gpu);
    *bits = *gpu && !getenv("HEALTHY") ? 0x21 : 1;
    return 0;
}
int nvmlDeviceGetViolationStatus(int *gpu, int policy, u64 *times) {
    MAY(*gpu);
    times[1] = *gpu == 0 && policy == 0 ? nanoseconds() / 10 : 7;
    return 0;
}
int nvmlDeviceGetTotalEccErrors(int *gpu, int type, int counter, u64 *count) {
    MAY(*gpu);
    *count = getenv("HEALTHY") ? 0 : 3;
    return 0;
}
int nvmlDeviceGetEccMode(int *gpu, unsigned *now, unsigned *next) { MAY(*gpu); *now = *next = 1; return 0; }
int nvmlDeviceGetPciInfo_v3(int *gpu, char *info) { MAY(*gpu); return text(info + 36, "00000000:0%d:00.0", *gpu + 1); }
int nvmlDeviceGetCpuAffinity(int *gpu, unsigned words, unsigned long *bits) {
    MAY(*gpu);
    memset(bits, 0, 8 * words);
    bits[*gpu == 0] = *gpu ? 3 : 1UL << 6;
    return getenv("NEAR") ? 0 : 3;
}
int nvmlDeviceGetMigMode(int *gpu, unsigned *now, unsigned *next) {
    *now = *next = getenv("MIG") && *gpu == 0;
    return *gpu < 10 ? 0 : 2;
}
int nvmlDeviceGetMaxMigDeviceCount(int *gpu, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(int *gpu, unsigned i, int **part) {
    *part = &gpus[8 + i % 2];
    return i < 2 ? 0 : 6;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(int *part, int **gpu) { *gpu = &gpus[0]; return *part < 10 ? 2 : 0; }
"""


def build(folder: Path) -> Path | None:
    """Returns the folder with the library in it, or None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    (folder / "nvml.c").write_text(SOURCE)
    library = str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, str(folder / "nvml.c")], check=True)
    (folder / "cuda").mkdir()
    for name in LIBRARIES:
        shutil.copy(library, folder / "cuda" / name)
    return folder


def environment(driver: Path, *, cuda: bool = False, **variables: str) -> Mapping[str, str]:
    """Returns that of a process for which the driver's library stands in, and with `cuda` also CUDA's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    folders = [str(driver), *([str(driver / "cuda")] if cuda else [])]
    return inherited | {"LD_LIBRARY_PATH": os.pathsep.join(folders), **variables}
