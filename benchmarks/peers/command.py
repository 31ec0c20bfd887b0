"""The commands `mnist-dist bench peers` and `mnist-dist bench perf`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.command import folder_argument
from mnist_dist.errors import EXIT_FAILED

if TYPE_CHECKING:
    from mnist_dist.benchmarks.peers.contestants import Contestant, Environment
    from mnist_dist.benchmarks.peers.runs import Folder, Mode, Run

DEFAULT_SECONDS, DEFAULT_REPEATS = 10, 3


def add_peers(commands: Any) -> None:
    parser = commands.add_parser(
        "peers",
        help="measure what users would otherwise run, beside ours, and write one table",
        description=(
            "Measure throughput and time to accuracy of Keras' fit, Horovod's example, PyTorch and the fast-MNIST "
            "recipe beside ours: in fresh processes, interleaved over the repeats in a random order. Peers whose "
            "environment is not there are skipped. Exits with 1 when a run failed."
        ),
        epilog=(
            "Examples: `mnist-dist bench peers`; `mnist-dist bench peers --only keras-fit-seed --mode "
            "throughput --repeats 5`; `make peers`, which installs PyTorch first."
        ),
    )
    _add_common(parser, "NAME", "a part of the peers; ours is always measured")
    parser.add_argument(
        "--mode", choices=("throughput", "accuracy", "both"), default="both", help="(default: %(default)s)"
    )
    parser.set_defaults(command=run_peers)


def add_perf(commands: Any) -> None:
    parser = commands.add_parser(
        "perf",
        help="say whether our speed relative to peers and limits reaches its goals",
        description=(
            "Measure both sides of every goal of benchmarks/peers/goals.yaml, interleaved, and judge the ratios by "
            "their intervals. Exits with 0 when all are reached, 1 when one is not or a run failed, 3 when the "
            "intervals cannot tell; more repeats narrow them."
        ),
        epilog="Examples: `mnist-dist bench perf`; `mnist-dist bench perf --only keras-fit --repeats 10`.",
    )
    _add_common(parser, "GOAL", "a part of the goals")
    parser.set_defaults(command=run_perf)


def _add_common(parser: argparse.ArgumentParser, name: str, only: str) -> None:
    parser.add_argument("--results", type=folder_argument, metavar="DIR", help="(default: results/COMMAND-DATE-TIME)")
    parser.add_argument(
        "--repeats",
        type=_at_least_one,
        default=DEFAULT_REPEATS,
        metavar="N",
        help="fresh processes (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=_at_least_one,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="of training in each measurement of throughput (default: %(default)s)",
    )
    parser.add_argument("--only", type=lambda text: text.split(","), metavar=f"{name},...", help=only)
    parser.add_argument(
        "--pytorch-python", type=Path, metavar="PATH", help="a Python with PyTorch (default: .venv-peers/bin/python)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds; finished runs stay")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received '{text}', expected a whole number from 1 on")
    return int(text)


def run_peers(args: argparse.Namespace) -> int:
    from mnist_dist.benchmarks.peers.contestants import choose
    from mnist_dist.benchmarks.peers.run import MODES, wanted_runs
    from mnist_dist.benchmarks.peers.table import make_rows, write_table

    environment, contestants = _prepare(args)
    modes = MODES if args.mode == "both" else (args.mode,)
    rows = choose(contestants, args.only, modes)
    folder, runs = _measure(args, "peers", wanted_runs(rows, modes), environment)
    print(write_table(folder.path, _command(), folder.study(), make_rows(rows, runs)), end="")
    return _exit_code([run for run in runs if run.contestant in rows and run.mode in modes])


def run_perf(args: argparse.Namespace) -> int:
    from mnist_dist.benchmarks.peers import goals

    environment, contestants = _prepare(args)
    chosen, on_gpus = goals.load_goals(args.only), environment.machine.gpus > 0
    needed = goals.needed_runs(chosen, contestants, on_gpus=on_gpus)
    folder, runs = _measure(args, "perf", needed, environment)
    judged = [goals.judge(goal, contestants, runs, on_gpus=on_gpus) for goal in chosen]
    print(goals.write_goals(folder.path, _command(), folder.study(), judged), end="")
    return goals.exit_code(judged)


def _prepare(args: argparse.Namespace) -> tuple[Environment, dict[str, Contestant]]:
    from mnist_dist.benchmarks.measure.runner import find_machine
    from mnist_dist.benchmarks.peers.contestants import find_environment, make_contestants

    machine = find_machine()
    return find_environment(machine, args.pytorch_python), make_contestants(args.seconds, machine)


def _measure(
    args: argparse.Namespace, command: str, wanted: list[tuple[Contestant, Mode]], environment: Environment
) -> tuple[Folder, list[Run]]:
    from mnist_dist.benchmarks.peers.run import measure_peers
    from mnist_dist.benchmarks.peers.runs import Folder

    folder = Folder(args.results or Path("results") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}")
    runs = measure_peers(
        wanted, environment, folder, repeats=args.repeats, seconds=float(args.seconds), resume=args.resume
    )
    return folder, runs


def _exit_code(runs: list[Run]) -> int:
    bad = [run for run in runs if run.status not in ("ok", "skipped")]
    for run in bad:
        print(f"{run.status}: {run.contestant}, {run.mode}, repeat {run.repeat + 1}: {run.reason}", file=sys.stderr)
    return EXIT_FAILED if bad else 0


def _command() -> str:
    return shlex.join(["mnist-dist", *sys.argv[1:]])
