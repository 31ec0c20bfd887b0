"""Does accuracy stay level when replicas are added? Prints a Markdown table of test accuracy against replicas.

Each replica keeps its batch, so the global batch grows with the number of replicas and the number of steps shrinks;
the learning rate follows by the configuration's rule. Each run is a process of its own:

    python -m mnist_dist.benchmarks.replica_accuracy --strategy mirrored --replicas 1,2,4,8 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    lines = [
        "| replicas | global batch | steps | learning-rate rule | test accuracy: mean of seeds | lowest | highest |",
        "|---:|---:|---:|---|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory(prefix="replica-accuracy-") as folder:
        for replicas in args.replicas:
            runs = []
            for seed in range(args.seeds):
                print(f"{replicas} replicas, seed {seed}", file=sys.stderr, flush=True)
                runs.append(train(Path(folder) / f"{replicas}-{seed}", replicas, seed, args))
            lines.append(render_row(replicas, args.scaling, runs))
    print("\n".join(lines))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mnist_dist.benchmarks.replica_accuracy", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--replicas", type=numbers, default=[1, 2, 4, 8], metavar="N,N,...", help="default: 1,2,4,8")
    parser.add_argument("--strategy", default="mirrored", help="mirrored, multiworker or horovod (default: mirrored)")
    parser.add_argument("--batch-per-replica", type=int, default=128, metavar="IMAGES", help="default: 128")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each size (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="of every run (default: 3)")
    parser.add_argument("--scaling", default="linear", help="none, sqrt or linear (default: linear)")
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def train(workdir: Path, replicas: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one training and returns its result.json."""
    command = [sys.executable, "-m", "mnist_dist", "train", "--workdir", str(workdir)]
    command += ["--strategy", args.strategy if replicas > 1 else "single", "--devices", str(replicas)]
    command += ["--batch-size", str(args.batch_per_replica * replicas), "--epochs", str(args.epochs)]
    command += ["--seed", str(seed), "--set", f"schedule.scaling={args.scaling}", "--set", "evaluation.every_epochs=0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((workdir / "result.json").read_text())


def render_row(replicas: int, scaling: str, runs: Sequence[dict[str, Any]]) -> str:
    accuracies = [run["test_accuracy"] for run in runs]
    batch, steps = runs[0]["global_batch_size"], runs[0]["steps"]
    return (
        f"| {replicas} | {batch:,} | {steps:,} | {scaling} | {statistics.mean(accuracies):.4f} | "
        f"{min(accuracies):.4f} | {max(accuracies):.4f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
