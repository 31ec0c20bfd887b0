"""Measures the node of a job, device by device and then all at once, or the network between two nodes.

    python -m mnist_dist.slurm.surveyor RESULTS SUITE DEVICES

A measurement sees its device alone: a GPU, or else a share of the node's cores.
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
    if len(nodes) > 1:
        measure(folder / WHOLE, suite, "multiworker", 2 * devices, os.environ, "--devices-per-host", str(devices))
    else:
        # Without Slurm's variables, it is a machine of its own.
        alone = {key: value for key, value in os.environ.items() if not key.startswith(OF_SLURM)}
        cores = sorted(os.sched_getaffinity(0))
        for device in range(devices):
            os.sched_setaffinity(0, cores[device % len(cores) :: devices])
            measure(folder / str(device), suite, "single", 1, alone | visible(device, devices, alone))
        os.sched_setaffinity(0, cores)
        if devices > 1:
            measure(folder / WHOLE, suite, "mirrored", devices, alone)
    return 0 if any(part.log_rates for part in summarize(folder).parts.values()) else 1


def visible(device: int, devices: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variable that shows a single GPU, where Slurm has given as many as there are devices."""
    gpus = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": gpus[device]} if gpus[0] and len(gpus) == devices else {}


def measure(folder: Path, suite: str, strategy: str, count: int, environment: Mapping[str, str], *options: str) -> None:
    """Runs the part of a suite that is of one strategy and number of devices; its records say how it ended."""
    folder.mkdir(parents=True, exist_ok=True)  # Which says that it has begun; --resume would not make it.
    command = [sys.executable, "-m", "mnist_dist", "bench", "run", suite, "--strategies", strategy, *options]
    command += ["--devices", str(count), "--only", str(count), "--results", str(folder), "--resume", "--no-report"]
    subprocess.run(command, env=environment, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
