"""The `mnist-dist bench` command: parse, then one call. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.command import Parser, add_command, folder_argument, integer, integers, run_command
from mnist_dist.distributed.signals import ending_cleanly
from mnist_dist.errors import EXIT_BAD_INPUT, EXIT_FAILED, UserError, counted, not_among, one_line
from mnist_dist.gpus import of_gpus

if TYPE_CHECKING:
    from mnist_dist.benchmarks.records.record import Record
    from mnist_dist.benchmarks.records.store import Store

KEPT = "what has been measured is kept; continue with the same command and --results DIR --resume"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 a case failed or is slower, 2 bad input, 3 cannot tell."""
    with ending_cleanly(KEPT):
        return run_command(make_parser(), arguments)


def make_parser() -> Parser:
    from mnist_dist.benchmarks.peers.command import add_peers, add_perf

    parser = Parser(
        prog="mnist-dist bench",
        description="Measure throughput and accuracy on 1 to N devices, and explain them.",
        epilog="Start with: mnist-dist bench run quick. Then: mnist-dist bench COMMAND --help.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_run, add_report, add_compare, add_predict, add_trend, add_publish, add_reproduce):
        add(commands)
    for add in (add_peers, add_perf):
        add(commands)
    return parser


def add_run(commands: Any) -> None:
    # Not by shipped_suites, whose module takes long to import.
    suites = sorted(file.stem for file in (Path(__file__).parent / "measure" / "suites").glob("*.yaml"))
    parser = add_command(
        commands,
        run_run,
        "measure the cases of a suite and write a report",
        epilog=(
            "Examples: `mnist-dist bench run quick`; `mnist-dist bench run scaling --devices 1,2,4 "
            "--strategies horovod --repeats 5 --results results/node7`; the same with --resume after an interruption."
        ),
    )
    parser.add_argument(
        "suite",
        nargs="?",
        metavar="SUITE",
        help=f"{', '.join(suites)}, or a YAML file like those in benchmarks/measure/suites; without: a list",
    )
    add_results(parser)
    add_narrowing(parser)
    parser.add_argument(
        "--only", type=integers, metavar="N,...", help="measure only the study's cases on these numbers of devices now"
    )
    parser.add_argument(
        "--devices-per-host", type=integer, metavar="N", help="in a Slurm job (default: its GPUs, else its cores)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the study in DIR; finished cases stay")
    parser.add_argument("--dry-run", action="store_true", help="list the cases and the estimated time, run nothing")
    parser.add_argument("--no-report", action="store_true", help="only measure; `report DIR` writes it later")


def add_results(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--results", type=folder_argument, metavar="DIR", help="folder of the study (default: results/SUITE-DATE-TIME)"
    )


def add_narrowing(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--devices", type=integers, metavar="N,...", help="numbers of devices (default: the suite's)")
    parser.add_argument(
        "--gpus", dest="devices", type=of_gpus(integers), metavar="N,...", help="--devices that must be GPUs"
    )
    parser.add_argument("--strategies", type=names, metavar="NAME,...", help="a part of the suite's strategies")
    parser.add_argument("--repeats", type=integer, metavar="N", help="fresh processes per case (default: the suite's)")
    parser.add_argument(
        "--cores-per-device", type=integer, metavar="N", help="CPUs only (default: cores / most devices)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of mnist-dist train, of all cases"
    )


def percent(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"received '{text}', expected a number between 0 and 100")
    return number


def names(text: str) -> list[str]:
    from mnist_dist.strategies import STRATEGIES

    parts = text.split(",")
    for part in parts:
        if part not in STRATEGIES:
            raise argparse.ArgumentTypeError(not_among(part, STRATEGIES))
    return parts


def run_run(args: argparse.Namespace) -> int:
    """Measure the cases of a suite in turns: alive at once, one computing at a time. Repeat that with fresh processes,
    and write a record of each, then a report. Within a Slurm job the ranks are started by srun. Exits with 1 when a
    case failed, ran out of time or memory; the others are measured all the same.
    """
    from mnist_dist.benchmarks.measure.progress import exit_code, render_cases
    from mnist_dist.benchmarks.measure.runner import Study, find_machine
    from mnist_dist.benchmarks.measure.study import (
        choose,
        estimate_seconds,
        naming_the_rest,
        open_study,
        plan_rounds,
        results_folder,
        run_rounds,
    )
    from mnist_dist.benchmarks.measure.suite import load_suite, plan_cases, shipped_suites
    from mnist_dist.benchmarks.records.store import Store

    if args.suite is None:
        suites = {name: load_suite(name) for name in shipped_suites()}
        print("\n".join(f"{name:<12} {each.description}" for name, each in suites.items()))
        print("\nMeasure one of them: mnist-dist bench run SUITE")
        return EXIT_BAD_INPUT
    suite = load_suite(args.suite)
    machine = find_machine(args.devices_per_host)
    cases = plan_cases(suite, machine, read_narrowing(args))
    if args.dry_run:
        chosen = choose(cases, args.only)
        study = Study("", "", suite.timeout_seconds, machine, Path())
        rounds = plan_rounds([(study, Store(Path()))], chosen)
        print(render_cases(chosen, machine, len(rounds), estimate_seconds(rounds)))
        return 0
    with results_folder(args.results, Path(args.suite).stem, args.resume) as folder:
        study, store = open_study(folder, Path(args.suite).stem, suite, machine, cases, args.resume)
    sides = [(study, store)]
    with naming_the_rest(folder):
        known = store.records()
        run_rounds(plan_rounds(sides, choose(cases, args.only), known), sides, known=known)
    records = store.records()
    if not args.no_report:
        show_report(store, records)
        name_the_next(folder)
    return exit_code(records, args.only)


def name_the_next(folder: Path) -> None:
    """Prints two commands that can be pasted: this one once more, and the comparison."""
    from mnist_dist.benchmarks.measure.study import command_again, program

    after = folder.with_name(f"{folder.name}-after")
    print("next, after a change, to measure again and compare:")
    print(f"  {command_again(after)}\n  {program()} bench compare {shlex.join(map(str, (folder, after)))}")


def read_narrowing(args: argparse.Namespace) -> Any:
    from mnist_dist.benchmarks.measure.suite import Narrowing
    from mnist_dist.config import parse_assignment

    settings = dict(parse_assignment(text) for text in args.set)
    return Narrowing(args.devices, args.strategies, args.repeats, args.cores_per_device, settings)


def show_report(store: Store, records: Sequence[Record]) -> None:
    from mnist_dist.benchmarks.report.write import write_report

    report = write_report(store.folder, records, store.gaps(records))
    print(report.terminal_text)
    print(f"report: {report.html}")


def add_report(commands: Any) -> None:
    parser = add_command(commands, run_report, "write report.md, report.csv, report.html and figures of a study")
    parser.add_argument("results", type=folder_argument, metavar="DIR", help="folder of the study")
    parser.add_argument("--mlperf", action="store_true", help="also MLPerf log lines, in DIR/mlperf")
    parser.add_argument("--tensorboard", action="store_true", help="also TensorBoard scalars, in DIR/tensorboard")


def run_report(args: argparse.Namespace) -> int:
    """Write the report of the records in a folder, complete or not, and print its table."""
    store, records = read_study(args.results)
    show_report(store, records)
    if args.mlperf:
        from mnist_dist.benchmarks.report.exports import write_mlperf_log

        logs = write_mlperf_log(records, args.results / "mlperf")
        print(f"MLPerf logs: {len(logs)} in {args.results / 'mlperf'}")
    if args.tensorboard:
        from mnist_dist.benchmarks.report.exports import write_tensorboard

        runs = write_tensorboard(records, args.results / "tensorboard")
        print(
            f"TensorBoard: {counted(len(runs), 'run')}; look with: tensorboard --logdir {args.results / 'tensorboard'}"
        )
    return 0


def read_study(folder: Path, argument: str = "DIR") -> tuple[Store, list[Record]]:
    from mnist_dist.benchmarks.records.published import Published
    from mnist_dist.benchmarks.records.store import Store

    store = Published(folder) if folder.is_file() else Store(folder)
    records = store.records()
    if not records:
        what = "holds no records" if folder.exists() else "does not exist"
        raise UserError(f"{argument}: '{folder}' {what}; expected the folder of `mnist-dist bench run`.")
    return store, records


def read_records(folder: Path, argument: str = "DIR") -> list[Record]:
    return read_study(folder, argument)[1]


def add_compare(commands: Any) -> None:
    parser = add_command(
        commands,
        run_compare,
        "say of each case whether NEW is faster, slower or the same as BASE",
        epilog=(
            "Examples: `mnist-dist bench compare results/monday results/tuesday`; "
            "`mnist-dist bench compare --interleave v0.1 HEAD --suite quick --repeats 5`; "
            "`mnist-dist bench compare --interleave runtime.xla=off runtime.xla=on --suite single`."
        ),
    )
    parser.add_argument("base", metavar="BASE", help="folder of a study, or with --interleave what to measure")
    parser.add_argument("new", metavar="NEW", help="the same")
    add_smallest_effect(parser)
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=("hardware", "software", "config"),
        help="compare although this differs, being the subject; may be given several times",
    )
    parser.add_argument(
        "--judge",
        choices=("all",),
        help="also ablations, matrix products, all-reduces and inputs (default: only where nothing else was measured)",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a page or a pull request")
    parser.add_argument("--interleave", action="store_true", help="measure both now, in turns")
    measured = parser.add_argument_group("with --interleave")
    measured.add_argument("--suite", metavar="SUITE", help="what is measured (default: quick)")
    add_results(measured)
    add_narrowing(measured)
    measured.add_argument("--resume", action="store_true", help="go on with the comparison in DIR; finished cases stay")


def run_compare(args: argparse.Namespace) -> int:
    """Compare two studies case by case. Exits with 0 when every case of BASE was judged and none is worse, 1 when one
    is slower, less accurate or fails more often, 3 when that cannot be told. With --interleave, BASE and NEW are
    measured here, in turns: each is a commit, or a configuration (a YAML file, or KEY=VALUE).
    """
    from mnist_dist.benchmarks.analysis.compare import compare
    from mnist_dist.benchmarks.report.comparison import render_comparison, render_comparison_markdown

    allow = set(args.allow)
    if args.interleave:
        from mnist_dist.benchmarks.measure.interleave import measure_both

        suite, narrowing = args.suite or "quick", read_narrowing(args)
        *folders, subject = measure_both(args.base, args.new, suite, args.results, narrowing, args.resume)
        allow |= subject
    else:
        for name in ("suite", "results", "devices", "strategies", "repeats", "cores_per_device", "set", "resume"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')}: received without --interleave, expected only with it.")
        folders = [Path(args.base), Path(args.new)]
    base, new = (read_records(folder, name) for folder, name in zip(folders, ("BASE", "NEW"), strict=True))
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(f"BASE, NEW: received '{args.base}' twice, expected the folders of two studies.")
    effect, judge_all = args.smallest_effect / 100, args.judge == "all"
    comparison = compare(base, new, smallest_effect=effect, allow=frozenset(allow), judge_all=judge_all)
    # Commits or settings, or folders such as results/monday/quick and results/tuesday/quick.
    if args.interleave or comparison.base_name == comparison.new_name:
        sides = ((args.base, comparison.base_name), (args.new, comparison.new_name))
        base_name, new_name = (one_line(f"{given}: {name}") for given, name in sides)
        comparison = replace(comparison, base_name=base_name, new_name=new_name)
    if args.markdown:
        text = render_comparison_markdown(comparison)
    else:
        text = render_comparison(comparison, shutil.get_terminal_size((120, 0)).columns, sys.stdout.isatty())
    print(text, end="")
    if args.interleave and not args.markdown:
        from mnist_dist.benchmarks.measure.study import program

        words = [*map(str, folders), *(f"--allow={what}" for what in sorted(allow))]
        print(f"next, to see this again: {program()} bench compare {shlex.join(words)}")
    return comparison.exit_code


def add_predict(commands: Any) -> None:
    parser = add_command(commands, run_predict, "predict throughput at numbers of devices that were not measured")
    parser.add_argument(
        "results", type=folder_argument, metavar="DIR", help="folder of a study with several numbers of devices"
    )


def run_predict(args: argparse.Namespace) -> int:
    """Fit scaling models to a study and print throughput and efficiency, with intervals, far beyond it."""
    from mnist_dist.benchmarks.report.write import render_predictions

    print(render_predictions(read_records(args.results), sys.stdout.isatty()))
    return 0


def add_trend(commands: Any) -> None:
    parser = add_command(commands, run_trend, "say when a case became slower, and what else changed")
    parser.add_argument("folders", nargs="+", type=folder_argument, metavar="DIR", help="hold studies, at any depth")


def run_trend(args: argparse.Namespace) -> int:
    """Follow the cases of all studies in and below some folders, and write trend.html into the first. Exits with 1 when
    a case is slower than at its fastest lasting level, 0 when none is, 3 when undecided.
    """
    from mnist_dist.benchmarks.analysis.trend import find_trends, keep, read_studies
    from mnist_dist.benchmarks.report.trend import render_trends

    trends = find_trends(read_studies(args.folders))
    text, page = render_trends(trends)
    print(text)
    file = args.folders[0] / "trend.html"
    if keep(file, page):
        print(f"page: {file}")
    outcomes = {trend.outcome for trend in trends}
    return EXIT_FAILED if "slower" in outcomes else 3 * (outcomes <= {"too few"})


def add_smallest_effect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--smallest-effect",
        type=percent,
        default=5.0,
        metavar="PERCENT",
        help="smallest change that matters, in percent (default: %(default)g)",
    )


def add_publish(commands: Any) -> None:
    parser = add_command(commands, run_publish, "make one file of a study, without names")
    parser.add_argument("study", type=folder_argument, metavar="STUDY", help="folder of the study")
    parser.add_argument(
        "--out", type=folder_argument, metavar="FILE", help="ends with .json or .json.gz (default: STUDY.json.gz, here)"
    )
    parser.add_argument("--with-names", action="store_true", help="leave everything in, for colleagues")


def run_publish(args: argparse.Namespace) -> int:
    """Write one file of at most 1 MiB with all that repeating a study takes: records, configuration, versions, commit
    and hardware; without users, hosts, paths, addresses and job numbers.
    """
    from mnist_dist.benchmarks.records.published import publish

    file = args.out or Path(f"{args.study.resolve().name}.json.gz")
    left_out = publish(read_records(args.study, "STUDY"), file, args.with_names)
    print(f"published: {file}, {file.stat().st_size:,} bytes", *(f"left out: {text}" for text in left_out), sep="\n")
    print(f"next, on another machine: mnist-dist bench reproduce {shlex.quote(file.name)}")
    return 0


def add_reproduce(commands: Any) -> None:
    parser = add_command(commands, run_reproduce, "measure recorded cases here, and compare")
    parser.add_argument("study", type=folder_argument, metavar="STUDY", help="a published file, a record or a folder")
    parser.add_argument(
        "--time",
        type=integer,
        metavar="SECONDS",
        help="to measure each case that is not trained to its end (default: as recorded)",
    )
    add_results(parser)
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds; finished cases stay")
    add_smallest_effect(parser)


def run_reproduce(args: argparse.Namespace) -> int:
    """Measure here what records describe, in their configuration, and say of each case whether it is reproduced,
    faster, slower or not comparable. Exits as `compare` does.
    """
    from mnist_dist.benchmarks.measure.reproduce import reproduce
    from mnist_dist.benchmarks.report.comparison import render_reproduction

    store, records = read_study(args.study, "STUDY")
    for note in getattr(store, "notes", ()):
        print(f"left out of the published file: {note}")
    found = reproduce(records, args.results, args.time, args.smallest_effect / 100, args.resume)
    print(render_reproduction(found))
    return found.exit_code
