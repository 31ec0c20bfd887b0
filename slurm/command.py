"""`mnist-dist slurm`: submits scaling studies, shows how far they are, and ends them."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_dist.command import Parser, folder_argument, integer, integers, run_command
from mnist_dist.errors import UserError
from mnist_dist.strategies import BASELINE, beside_the_baseline


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 Slurm refused, 2 bad input."""
    return run_command(make_parser(), arguments)


def make_parser() -> Parser:
    parser = Parser(prog="mnist-dist slurm", description="Scaling studies on a Slurm cluster.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_scaling(commands)
    for name, function, text in (
        ("status", run_status, "show the points of a study, their state and results so far"),
        ("cancel", run_cancel, "cancel a study's remaining jobs"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("study", type=Path, metavar="STUDY", help="its results folder, or the name below results/")
        command.set_defaults(command=function)
    return parser


def add_scaling(commands: Any) -> None:
    parser = commands.add_parser(
        "scaling",
        help="submit a scaling study (all of it or nothing) and a job for its report",
        description=(
            "Submit one job for each number of devices, which measures all strategies, and a last job, which writes "
            "the report. All requests are checked before the first job is submitted."
        ),
        epilog=(
            "Examples: `mnist-dist slurm scaling --gpus 1,2,4,8 --gpus-per-node 4 --partition a100 --account physics`; "
            "on CPUs, `mnist-dist slurm scaling --devices 1,2,4 --devices-per-node 2 --cpus-per-task 8`. "
            "slurm/site.yaml lists what a site may set once for all studies."
        ),
    )
    gpus_or_cores = parser.add_mutually_exclusive_group(required=True)
    gpus_or_cores.add_argument(
        "--gpus", type=integers, metavar="N,N,...", help="numbers of GPUs to measure on, besides the baseline on one"
    )
    gpus_or_cores.add_argument(
        "--devices",
        type=integers,
        metavar="N,N,...",
        help="instead: numbers of CPU devices, each a share of the cores",
    )
    gpus_or_cores.add_argument("--nodes", type=integers, metavar="N,N,...", help="instead: numbers of whole nodes")
    per_node = parser.add_mutually_exclusive_group(required=True)
    per_node.add_argument("--gpus-per-node", type=integer, metavar="N", help="GPUs that a node has")
    per_node.add_argument("--devices-per-node", type=integer, metavar="N", help="CPU devices that share a node")
    parser.add_argument(
        "--strategies",
        type=names,
        default=beside_the_baseline(),
        metavar="NAME,NAME,...",
        help=f"besides `{BASELINE}`, the baseline (default: {','.join(beside_the_baseline())})",
    )
    parser.add_argument("--suite", default="scaling", metavar="SUITE", help="what is measured (default: scaling)")
    parser.add_argument("--repeats", type=integer, metavar="N", help="instead of the suite's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the trainings")
    parser.add_argument("--results", type=folder_argument, metavar="DIR", help="default: results/scaling-DATE-TIME")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--array", action="store_true", help="one array instead, whose members all get the nodes of the largest"
    )
    mode.add_argument("--nested", action="store_true", help="one job instead, in which all points use the same nodes")
    site = parser.add_argument_group("site", "override the site's file")
    for flag in ("--partition", "--account", "--qos", "--constraint", "--time"):
        site.add_argument(flag, metavar=flag.removeprefix("--").upper())
    site.add_argument("--cpus-per-task", type=integer, metavar="N", help="cores of each device")
    site.add_argument("--container", metavar="IMAGE", help="run the tasks in this image")
    site.add_argument("--site", type=Path, metavar="FILE", help="a YAML file like slurm/site.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; needs no Slurm")
    parser.set_defaults(command=run_scaling)


def run_scaling(args: argparse.Namespace) -> int:
    from mnist_dist.slurm.site import job_environment
    from mnist_dist.slurm.study import describe_study, plan_jobs, render_commands
    from mnist_dist.slurm.submission import check_submission, submit_study

    request = make_request(args)
    jobs = plan_jobs(request)
    variables = job_environment(request.site, args.container, [str(request.results)])
    script = f"{describe_study(request, jobs)}\n{render_commands(request, jobs, variables)}"
    if args.dry_run:
        print(script)
        return 0
    environment = os.environ | variables
    check_submission(request, jobs, environment)
    print(script, flush=True)
    submitted = submit_study(request, jobs, environment)
    print(f"\njobs:    {', '.join(submitted.ids[:-1])}, and {submitted.report_job} for the report")
    print(f"report:  {request.results / 'report.html'}, when they have ended")
    print(f"status:  mnist-dist slurm status {request.results}")
    return 0


def make_request(args: argparse.Namespace) -> Any:
    from mnist_dist.slurm.site import load_site
    from mnist_dist.slurm.study import Request, check_strategies

    check_strategies(args.strategies)
    if not args.nodes and bool(args.gpus) != bool(args.gpus_per_node):
        raise UserError("--gpus goes with --gpus-per-node, and --devices with --devices-per-node; received a mixture.")
    flags = {name: getattr(args, name) for name in ("partition", "account", "qos", "constraint", "time")}
    site = load_site(args.site, {**flags, "cpus_per_task": args.cpus_per_task}, os.environ)
    results = args.results or Path("results") / f"scaling-{time.strftime('%Y%m%d-%H%M%S')}"
    options = ["--repeats", str(args.repeats)] if args.repeats else []
    for setting in args.set:
        options += ["--set", setting]
    devices_per_node = args.gpus_per_node or args.devices_per_node
    chosen = set(args.gpus or args.devices or [nodes * devices_per_node for nodes in args.nodes])
    points = points_of(args, sorted(chosen | {1}), devices_per_node, site.cpus_per_task or 1)
    devices = sorted(chosen | {1} if (BASELINE, 1) in points else chosen)
    return Request(
        devices=devices,
        devices_per_node=devices_per_node,
        gpus=bool(args.gpus_per_node),
        points=points,
        strategies=args.strategies,
        suite=args.suite,
        results=results.absolute(),
        mode="array" if args.array else "nested" if args.nested else "jobs",
        site=site,
        options=options,
    )


def points_of(
    args: argparse.Namespace, devices: Sequence[int], devices_per_node: int, cores: int
) -> set[tuple[str, int]]:
    """Plans the suite as the jobs will, in which each device has so many cores.

    Raises:
        UserError: they would refuse the suite or a setting.
    """
    from mnist_dist.benchmarks.measure.suite import Machine, Narrowing, load_suite, plan_cases
    from mnist_dist.config import parse_assignment

    nodes = -(-max(devices) // devices_per_node)
    machine = Machine(cores * devices_per_node, args.gpus_per_node or 0, devices_per_node, nodes)
    settings = dict(parse_assignment(setting) for setting in args.set)
    narrowing = Narrowing(devices, [BASELINE, *args.strategies], args.repeats, cores, settings)
    return {
        (planned.case.strategy, planned.case.devices)
        for planned in plan_cases(load_suite(args.suite), machine, narrowing)
    }


def run_status(args: argparse.Namespace) -> int:
    from mnist_dist.slurm.scheduler import job_states
    from mnist_dist.slurm.status import render_status
    from mnist_dist.slurm.submission import read_submitted

    results = find_study(args.study)
    submitted = read_submitted(results)
    print(render_status(submitted, job_states(submitted.ids), results))
    return 0


def run_cancel(args: argparse.Namespace) -> int:
    from mnist_dist.slurm.scheduler import cancel, job_states
    from mnist_dist.slurm.submission import ENDED_OR_ENDING, read_submitted

    submitted = read_submitted(find_study(args.study))
    active = [state.job for state in job_states(submitted.ids) if state.state not in ENDED_OR_ENDING]
    if active:
        cancel(list(dict.fromkeys(job.split("_")[0] for job in active)))
    print(f"cancelled: {', '.join(active)}" if active else "nothing to cancel: all jobs have ended or are ending")
    return 0


def find_study(study: Path) -> Path:
    below = Path("results") / study
    return below if not study.exists() and below.exists() else study


def names(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))
