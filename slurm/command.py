"""`mnist-dist slurm`: submits scaling studies and surveys, shows how far they are, and ends them."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_dist.command import Parser, add_command, folder_argument, integer, integers, run_command
from mnist_dist.distributed.signals import ending_cleanly
from mnist_dist.errors import EXIT_FAILED, UserError
from mnist_dist.strategies import BASELINE, beside_the_baseline


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 Slurm refused, 2 bad input."""
    with ending_cleanly():
        return run_command(make_parser(), arguments)


def make_parser() -> Parser:
    parser = Parser(
        prog="mnist-dist slurm",
        description="Scaling studies and surveys on a Slurm cluster.",
        epilog="Start with: mnist-dist slurm scaling --help. It prepares and shows a study with --dry-run.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_scaling(commands)
    add_survey(commands)
    for function, text in (
        (run_status, "show the points of a study, their state and results so far"),
        (run_cancel, "cancel a study's remaining jobs"),
    ):
        command = add_command(commands, function, text)
        command.add_argument("study", type=Path, metavar="STUDY", help="its results folder, or the name below results/")
    return parser


def add_scaling(commands: Any) -> None:
    parser = add_command(
        commands,
        run_scaling,
        "submit a scaling study (all of it or nothing) and a job for its report",
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


def add_survey(commands: Any) -> None:
    parser = add_command(
        commands,
        run_survey,
        "find the device, node or link of a partition that is slower than the others",
        epilog=(
            "Examples: `mnist-dist slurm survey --partition a100`; then, at any time, "
            "`mnist-dist slurm survey --report results/survey-a100`."
        ),
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--partition", metavar="PARTITION", help="whose nodes are measured")
    what.add_argument("--report", type=folder_argument, metavar="DIR", help="instead: name what stands out so far")
    parser.add_argument("--devices-per-node", type=integer, metavar="N", help="shares of a node's cores, not its GPUs")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="of each node, 0 for none (default: 3)")
    parser.add_argument("--wait", type=integer, default=60, metavar="MINUTES", help="for busy nodes (default: 60)")
    parser.add_argument("--suite", default="survey", metavar="SUITE", help="what is measured (default: survey)")
    parser.add_argument("--results", type=folder_argument, metavar="DIR", help="default: results/survey-PARTITION")
    for flag in ("--account", "--qos", "--time", "--container"):
        parser.add_argument(flag, metavar=flag.removeprefix("--").upper(), help="instead of the site's")
    parser.add_argument("--site", type=Path, metavar="FILE", help="a YAML file like slurm/site.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; asks Slurm which nodes there are")


def run_survey(args: argparse.Namespace) -> int:
    """Submit a small job to each node of a partition, then to pairs of nodes, and after them one that names what
    stands out. In the same folder, continue with what is missing. Exits with 0 when nothing stands out, 1 when
    something does, 3 when nothing can be judged.
    """
    from mnist_dist.benchmarks.measure.suite import load_suite
    from mnist_dist.slurm import scheduler
    from mnist_dist.slurm.site import job_environment, load_site
    from mnist_dist.slurm.submission import check_results
    from mnist_dist.slurm.survey import Request, plan_jobs, submit_survey

    if args.report:
        return report_survey(args.report)
    load_suite(args.suite)  # A mistake in it shows before anything is submitted.
    flags = {name: getattr(args, name) for name in ("partition", "account", "qos", "time")}
    site = load_site(args.site, flags, os.environ)
    results = (args.results or Path("results") / f"survey-{args.partition}").absolute()
    request = Request(args.partition, results, args.suite, args.devices_per_node, args.pairs, args.wait, site)
    scheduler.require_sbatch()
    scheduler.check_partition(args.partition, 0)
    nodes = scheduler.nodes_of(args.partition)
    jobs = plan_jobs(request, nodes)
    if args.dry_run or not jobs:
        print(*([shlex.join(job.command) for job in jobs] or ["nothing is left to be measured"]), sep="\n")
        return 0
    environment = os.environ | job_environment(site, args.container, [str(results)])
    check_results(results)
    scheduler.test_submission(jobs[0].command, environment)
    submitted = submit_survey(request, nodes, environment)
    print(f"jobs:    {len(submitted.jobs)}, {submitted.jobs[0].job} to {submitted.jobs[-1].job}, and the report")
    print(f"report:  mnist-dist slurm survey --report {results}")
    return 0


def report_survey(results: Path) -> int:
    from mnist_dist.benchmarks.analysis.survey import PAIR, find, judge, read_surveyed, units_of
    from mnist_dist.files import write_json, write_text
    from mnist_dist.slurm.scheduler import JobState, job_states
    from mnist_dist.slurm.survey import follow, read_plan, submitted_jobs
    from mnist_dist.slurm.survey_report import render_survey

    plan, jobs, surveyed = read_plan(results), submitted_jobs(results), read_surveyed(results)
    states: dict[str, JobState] | None = {}
    try:
        states = {state.job: state for state in job_states(list(jobs.values()))} if jobs else {}
    except UserError as error:  # What was measured is there without Slurm.
        print(f"{error} What is under way is not known.", file=sys.stderr)
        states = None
    lost, missing = follow(results, plan, states)
    judged = judge(units_of(surveyed))
    findings = find(surveyed, judged, lost)
    pairs = sum(PAIR in name for name in {*jobs, *map(PAIR.join, surveyed)})
    text, page, told = render_survey(plan.partition, list(plan.nodes), list(surveyed), pairs, missing, judged, findings)
    write_text(results / "survey.html", page)
    write_json(results / "verdict.json", told)
    print(f"{text}\npage: {results / 'survey.html'}, for tools: {results / 'verdict.json'}")
    return EXIT_FAILED if findings else 0 if judged else 3


def run_scaling(args: argparse.Namespace) -> int:
    """Submit one job for each number of devices, which measures all strategies, and a last job, which writes the
    report. All requests are checked before the first job is submitted.
    """
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
    """Plans the suite as the jobs will, with so many cores a device; raises UserError where they would refuse it."""
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
    """Show the points of a study, their state and results so far; of a survey, what stands out so far."""
    from mnist_dist.slurm.scheduler import job_states
    from mnist_dist.slurm.status import render_status
    from mnist_dist.slurm.submission import read_submitted

    results = find_study(args.study)
    if (results / "survey.json").exists():
        return report_survey(results)
    submitted = read_submitted(results)
    print(render_status(submitted, job_states(submitted.ids), results))
    return 0


def run_cancel(args: argparse.Namespace) -> int:
    """Cancel a study's remaining jobs."""
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
