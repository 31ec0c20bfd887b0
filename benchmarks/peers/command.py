"""The commands `mnist-dist bench peers` and `mnist-dist bench perf`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mnist_dist.command import add_command, folder_argument, integer
from mnist_dist.errors import UserError

if TYPE_CHECKING:
    from mnist_dist.benchmarks.measure.runner import Run
    from mnist_dist.benchmarks.measure.study import Ratios, Side
    from mnist_dist.benchmarks.measure.suite import Machine, PlannedCase
    from mnist_dist.benchmarks.peers.contestants import Contestant, Mode
    from mnist_dist.benchmarks.records.record import Record

DEFAULT_SECONDS, DEFAULT_REPEATS = 10, 3
TIMEOUT_SECONDS = 300.0
FEWEST_ROUNDS = 2  # Before a goal is called decided: one tells nothing of how much fresh processes differ.


def add_peers(commands: Any) -> None:
    parser = add_command(
        commands,
        run_peers,
        "measure what users would otherwise run, beside ours, and write one table",
        epilog=(
            "Examples: `mnist-dist bench peers`; `mnist-dist bench peers --only keras-fit-seed --mode "
            "throughput --repeats 5`; `make peers`, which installs PyTorch first."
        ),
    )
    _add_common(parser, "NAME", "a part of the peers; ours is always measured")
    parser.add_argument(
        "--mode", choices=("throughput", "accuracy", "both"), default="both", help="(default: %(default)s)"
    )


def add_perf(commands: Any) -> None:
    parser = add_command(
        commands,
        run_perf,
        "say whether our speed relative to peers and limits reaches its goals",
        epilog="Examples: `mnist-dist bench perf`; `mnist-dist bench perf --only keras-fit --repeats 10`.",
    )
    _add_common(parser, "GOAL", "a part of the goals")


def _add_common(parser: argparse.ArgumentParser, name: str, only: str) -> None:
    parser.add_argument("--results", type=folder_argument, metavar="DIR", help="(default: results/COMMAND-DATE-TIME)")
    parser.add_argument(
        "--repeats",
        type=integer,
        default=DEFAULT_REPEATS,
        metavar="N",
        help="rounds of fresh processes, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=integer,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="of turns in each round, at most, for each whose throughput is measured (default: %(default)s)",
    )
    parser.add_argument("--only", type=lambda text: text.split(","), metavar=f"{name},...", help=only)
    parser.add_argument(
        "--pytorch-python", metavar="PATH", help="a Python with PyTorch (default: .venv-peers/bin/python)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds; finished runs stay")


def run_peers(args: argparse.Namespace) -> int:
    """Measure throughput and time to accuracy of Keras' fit, Horovod's example, PyTorch and the fast-MNIST recipe
    beside ours: in fresh processes that take turns of a fraction of a second. Peers whose environment is not there are
    skipped. Exits with 1 when a run failed.
    """
    from mnist_dist.benchmarks.measure.progress import exit_code
    from mnist_dist.benchmarks.measure.study import plan_rounds
    from mnist_dist.benchmarks.peers.contestants import MODES, OURS, choose, make_contestants, plan
    from mnist_dist.benchmarks.peers.table import make_rows, write_table

    machine = _prepare(args)
    contestants = make_contestants(args.seconds, machine)
    modes = MODES if args.mode == "both" else (args.mode,)
    rows = choose(contestants, args.only, modes)
    cases = {mode: plan(list(rows.values()), mode, args.repeats, machine) for mode in modes}
    side = _open(args, "peers", machine, [case for of_mode in cases.values() for case in of_mode])
    known = side[1].records()
    rounds = [runs for mode in modes for runs in plan_rounds([side], cases[mode], known)]
    ratios = _ratios([(contestants[OURS], row) for row in rows.values()], "throughput")
    records = _measure(rounds, side, ratios, known)
    print(write_table(side[1].folder, _command(), records, make_rows(rows, records)), end="")
    names = {
        case.case_id: f"{each.name}, {mode}" for each in rows.values() for mode in MODES if (case := each.case(mode))
    }
    return exit_code([each for each in records if each.case_id in names], name=lambda case: names[case.case_id])


def run_perf(args: argparse.Namespace) -> int:
    """Measure both sides of every goal of benchmarks/peers/goals.yaml in turns, round by round until the intervals of
    the ratios decide. Exits with 0 when all are reached, 1 when one is not or a run failed, 3 when the intervals cannot
    tell; more repeats narrow them.
    """
    from mnist_dist.benchmarks.measure.study import plan_rounds
    from mnist_dist.benchmarks.peers import goals
    from mnist_dist.benchmarks.peers.contestants import MODES, make_contestants, plan

    machine = _prepare(args)
    contestants, on_gpus = make_contestants(args.seconds, machine), machine.gpus > 0
    chosen = goals.load_goals(args.only)
    able = [goal for goal in chosen if not (goal.cpu_only and on_gpus)]
    if not able:
        raise UserError(f"--only: received '{','.join(args.only)}', for CPUs only, but this machine has GPUs.")

    def cases_of(some: Sequence[goals.Goal], mode: Mode) -> list[PlannedCase]:
        names = dict.fromkeys(name for goal in some if goal.mode == mode for name in goal.names)
        return plan([contestants[name] for name in names], mode, args.repeats, machine)

    side = _open(args, "perf", machine, [case for mode in MODES for case in cases_of(able, mode)])
    records = side[1].records()
    for repeat in range(args.repeats):
        judged = [goals.judge(goal, contestants, records, on_gpus=on_gpus) for goal in able]
        missing = {record.case_id for record in records if record.status == "skipped"}
        left = [
            each
            for each in judged
            if repeat < FEWEST_ROUNDS or each.outcome == "open"
            if repeat == 0 or not missing & {case.case_id for case in cases_of([each], each.mode)}
        ]
        for group in goals.groups(left):
            mode = group[0].mode
            rounds = plan_rounds([side], cases_of(group, mode), records)
            pairs = [(contestants[goal.numerator], contestants[name]) for goal in group for name in goal.denominators]
            records = _measure([runs for runs in rounds if runs[0].repeat == repeat], side, _ratios(pairs, mode))
    judged = [goals.judge(goal, contestants, records, on_gpus=on_gpus) for goal in chosen]
    print(goals.write_goals(side[1].folder, _command(), records, judged), end="")
    return goals.exit_code(judged)


def _prepare(args: argparse.Namespace) -> Machine:
    """Returns this host, without Slurm: a peer would not know what to do with `srun`.

    Raises:
        UserError: the Python that the user named does not have PyTorch.
    """
    from mnist_dist.benchmarks.kinds.peer import PYTHON_VARIABLE, find_pytorch
    from mnist_dist.benchmarks.measure.runner import find_machine

    if args.pytorch_python:
        if find_pytorch(args.pytorch_python) is None:
            raise UserError(
                f"--pytorch-python: received '{args.pytorch_python}', expected a Python that imports torch."
            )
        os.environ[PYTHON_VARIABLE] = args.pytorch_python
    return replace(find_machine(), hosts=None)


def _open(args: argparse.Namespace, command: str, machine: Machine, cases: Sequence[PlannedCase]) -> Side:
    from mnist_dist.benchmarks.measure.study import open_study, results_folder
    from mnist_dist.benchmarks.measure.suite import Limits

    limits = Limits(timeout_seconds=TIMEOUT_SECONDS)
    with results_folder(args.results, command, args.resume) as folder:
        return open_study(folder, command, limits, machine, cases, args.resume)


def _ratios(pairs: Sequence[tuple[Contestant, Contestant]], mode: Mode) -> Ratios:
    """Returns what finds the runs of a round whose ratios are asked for."""
    ids = [[case.case_id for each in pair if (case := each.case(mode))] for pair in pairs]

    def find(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
        measured = {run.planned.case_id: run for run in runs if run.planned.variants}
        there = [pair for pair in ids if len({*pair} & measured.keys()) == 2]
        return [(measured[numerator], measured[denominator]) for numerator, denominator in there]

    return find


def _measure(rounds: Sequence[Sequence[Run]], side: Side, ratios: Ratios, known: Sequence[Record] = ()) -> list[Record]:
    """Measures some rounds, and returns all records that there are then."""
    from mnist_dist.benchmarks.measure.study import naming_the_rest, run_rounds

    with naming_the_rest(side[1].folder):
        run_rounds(rounds, [side], ratios, known)
    return side[1].records()


def _command() -> str:
    return shlex.join(["mnist-dist", *sys.argv[1:]])
