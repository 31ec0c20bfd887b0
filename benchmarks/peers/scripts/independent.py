"""Several trainings of ours at once that know nothing of one another: what ranks could reach if talking cost nothing.

Each process is bound to its own equal share of the cores. As they start and end at slightly different times, their
steady windows are laid beside one another from the first on, cut into equal stretches of time, and added up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_dist.benchmarks.peers.scripts.script import make_parser
from mnist_dist.distributed.cluster import cores_of
from mnist_dist.files import write_json

STRETCH_SECONDS = 0.1


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True, help="of each process")
    parser.add_argument("--steps-per-call", type=int, required=True, help="of each process")
    args = parser.parse_args()
    if args.mode == "accuracy":
        parser.error("--mode accuracy: several models have no accuracy in common, expected throughput")
    with tempfile.TemporaryDirectory(prefix="independent-", dir=args.out.parent) as folder:
        workdirs = [Path(folder) / str(number) for number in range(args.processes)]
        if not train_all(workdirs, args):
            return 1
        times = [json.loads((workdir / "step_times.json").read_text()) for workdir in workdirs]
        result = json.loads((workdirs[0] / "result.json").read_text())
    images = [args.batch_size * np.asarray(each["window_steps"]) for each in times]
    window_images, window_seconds = add_up(images, [np.asarray(each["window_seconds"][0]) for each in times])
    write_json(
        args.out,
        {
            "window_work": window_images.tolist(),
            "window_seconds": [window_seconds.tolist()],
            "first_step_seconds": max(each["first_step_seconds"][0] for each in times),
            "images_trained": sum(int(each.sum()) for each in images),
            "evaluations": [],
            "device": result["device"],
            "precision": result["precision"],
            "versions": result["versions"],
        },
    )
    return 0


def train_all(workdirs: Sequence[Path], args: argparse.Namespace) -> bool:
    """Runs one training in each folder, all at once, each on its own cores; returns whether all ended well."""
    settings = {
        "data.path": args.data,
        "seed": args.seed,
        "training.batch_size": args.batch_size,
        "training.epochs": 1000,
        "training.measure_seconds": args.seconds,
        "runtime.strategy": "single",
        "runtime.steps_per_call": args.steps_per_call,
        "logging.tensorboard": "false",
    }
    flags = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    try:
        for number, workdir in enumerate(workdirs):
            os.sched_setaffinity(0, cores_of(number, len(workdirs), cores))  # For the child to inherit.
            command = [sys.executable, "-m", "mnist_dist", "train", "--workdir", str(workdir), *flags]
            processes.append(subprocess.Popen(command))
        codes = [process.wait() for process in processes]
        return not any(codes)
    finally:
        os.sched_setaffinity(0, cores)
        for process in processes:
            process.kill()
            process.wait()


def add_up(images: Sequence[np.ndarray], seconds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Adds the windows of several processes up over their common time.

    Args:
        images: of each process, integers [windows].
        seconds: of each process, float64 [windows].

    Returns:
        The images of all, int64 [stretches], in stretches of equal length: float64 [stretches], each at least as long
        as the longest window, within which nothing is known of the progress.
    """
    common = min(float(each.sum()) for each in seconds)
    longest = max(STRETCH_SECONDS, *(float(each.max()) for each in seconds))
    edges = np.linspace(0, common, max(int(common / longest), 1) + 1)
    done = np.zeros(len(edges))
    for of_process, lasted in zip(images, seconds, strict=True):
        done += np.interp(edges, np.append(0.0, np.cumsum(lasted)), np.append(0.0, np.cumsum(of_process)))
    return np.diff(np.round(done).astype(np.int64)), np.diff(edges)


if __name__ == "__main__":
    sys.exit(main())
