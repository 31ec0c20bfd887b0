"""Measures the node of a job, device by device and then all at once, or the network between two nodes.

    python -m mnist_dist.slurm.surveyor RESULTS SUITE DEVICES

A device is seen by its measurement alone: a GPU, or else a share of the node's cores.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnist_dist.benchmarks.analysis.survey import PAIR, WHOLE, summarize
from mnist_dist.distributed.cluster import expand_node_list

OF_SLURM = ("SLURM_", "SLURMD_", "SRUN_", "PMI")


def main(arguments: Sequence[str]) -> int:
    results, suite, devices = Path(arguments[0]), arguments[1], int(arguments[2])
    nodes = sorted(expand_node_list(os.environ["SLURM_JOB_NODELIST"]))
    folder = results / ("pairs" if len(nodes) > 1 else "nodes") / PAIR.join(nodes)
    folder.mkdir(parents=True, exist_ok=True)  # Which says that it has begun.
    if len(nodes) > 1:
        count = devices * len(nodes)
        measure(folder / WHOLE, suite, "multiworker", count, ["--devices-per-host", str(devices)], os.environ)
    else:
        # Without Slurm's variables, it is a machine of its own.
        alone = {key: value for key, value in os.environ.items() if not key.startswith(OF_SLURM)}
        for device in range(devices):
            measure(folder / str(device), suite, "single", 1, [], *place_of(device, devices, alone))
        if devices > 1:
            measure(folder / WHOLE, suite, "mirrored", devices, [], alone)
    found = summarize(folder)
    return 0 if any(part.log_rates for part in found.parts.values()) else 1


def place_of(device: int, devices: int, environment: Mapping[str, str]) -> tuple[Mapping[str, str], set[int]]:
    """Returns the environment and the cores of one of several devices."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(len(cores) // devices, 1)
    own = {cores[(device * share + place) % len(cores)] for place in range(share)}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(visible) < devices:
        return environment, own
    return {**environment, "CUDA_VISIBLE_DEVICES": visible[device]}, own


def measure(
    folder: Path,
    suite: str,
    strategy: str,
    devices: int,
    options: Sequence[str],
    environment: Mapping[str, str],
    cores: set[int] | None = None,
) -> None:
    """Runs the part of a suite that is of one strategy and number of devices; its records say how it ended."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    command = [sys.executable, "-m", "mnist_dist", "bench", "run", suite, "--strategies", strategy]
    command += ["--devices", str(devices), "--only", str(devices), "--results", str(folder), "--resume", "--no-report"]
    try:
        subprocess.run([*command, *options], env=environment, check=False)
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
