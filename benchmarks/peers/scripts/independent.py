"""Several trainings of ours at once that know nothing of one another: what ranks could reach if talking cost nothing.

Each process is bound to its own equal share of the cores. They take their turns together, as if they were ranks.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_dist.benchmarks.peers.scripts.script import make_parser
from mnist_dist.distributed.cluster import cores_of
from mnist_dist.distributed.turns import RANK_VARIABLE, RANKS_VARIABLE
from mnist_dist.files import write_json

PROCESSES = 2
BATCH_SIZE, STEPS_PER_CALL = 256, 20  # Of each.


def main() -> int:
    parser = make_parser(__doc__)
    args = parser.parse_args()
    if args.mode == "accuracy":
        parser.error("--mode accuracy: several models have no accuracy in common, expected throughput")
    workdirs = [args.out / f"process-{number}" for number in range(PROCESSES)]
    if not train_all(workdirs, args):
        return 1
    times = [json.loads((workdir / "step_times.json").read_text()) for workdir in workdirs]
    result = json.loads((workdirs[0] / "result.json").read_text())
    write_json(
        args.out / "0.json",
        add_up(times)
        | {"evaluations": [], "device": result["device"], "precision": result["precision"]}
        | {"versions": result["versions"]},
    )
    return 0


def train_all(workdirs: Sequence[Path], args: argparse.Namespace) -> bool:
    """Runs one training in each folder, all at once, each on its own cores; returns whether all ended well."""
    settings = {
        "data.path": args.data,
        "seed": args.seed,
        "training.batch_size": BATCH_SIZE,
        "training.epochs": 1000,
        "training.measure_seconds": 1,  # Or longer: in turns, until there is none any more.
        "runtime.strategy": "single",
        "runtime.steps_per_call": STEPS_PER_CALL,
        "logging.tensorboard": "false",
    }
    flags = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    cores = sorted(os.sched_getaffinity(0))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, workdir in enumerate(workdirs):
            os.sched_setaffinity(0, cores_of(number, len(workdirs), cores))  # For the child to inherit.
            command = [sys.executable, "-m", "mnist_dist", "train", "--workdir", str(workdir), *flags]
            place = {RANK_VARIABLE: str(number), RANKS_VARIABLE: str(len(workdirs))}
            processes.append(subprocess.Popen(command, env={**os.environ, **place}))
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.5)
        return not any(codes)
    finally:
        os.sched_setaffinity(0, cores)
        for process in processes:
            process.kill()
            process.wait()


def add_up(times: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Adds up the rates of several processes in each of their common turns.

    Args:
        times: content of the step_times.json of each.

    Returns:
        Their windows as those of one: the images of all, in the time that they take at the sum of their rates.
    """
    seconds = np.array([each["window_seconds"][0] for each in times])
    rates = (1 / seconds).sum(axis=0)
    steps = times[0]["window_steps"]
    return {
        "window_steps": steps,
        "window_images": [BATCH_SIZE * len(times) * each for each in steps],
        "window_cycles": times[0]["window_cycles"],
        "window_seconds": (len(times) / rates).tolist(),
        "first_step_seconds": max(each["first_step_seconds"][0] for each in times),
    }


if __name__ == "__main__":
    sys.exit(main())
