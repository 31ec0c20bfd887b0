"""The `mnist-dist` command: parse, then one call. Heavy imports wait until a command needs them."""

import argparse
import contextlib
import functools
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mnist_dist import __version__
from mnist_dist.command import EXIT_INTERRUPTED, Parser, add_command, folder_argument, outlive_reader, run_command
from mnist_dist.errors import UserError
from mnist_dist.strategies import STRATEGIES

# Flags for the settings that most runs change; --set reaches all of them.
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--strategy": (
        "runtime.strategy",
        {"metavar": "NAME", "help": "; ".join(f"{row.name}: {row.summary}" for row in STRATEGIES.values())},
    ),
    "--devices": ("runtime.devices", {"type": int, "metavar": "N"}),
    "--epochs": ("training.epochs", {"type": int, "metavar": "N"}),
    "--steps": ("training.steps", {"type": int, "metavar": "N"}),
    "--batch-size": ("training.batch_size", {"type": int, "metavar": "IMAGES"}),
    "--precision": ("runtime.precision", {"metavar": "NAME"}),
    "--xla": ("runtime.xla", {"metavar": "WHEN"}),
    "--optimizer": ("optimizer.name", {"metavar": "NAME"}),
    "--learning-rate": ("optimizer.learning_rate", {"type": float, "metavar": "RATE"}),
    "--dropout": ("model.dropout", {"type": float, "metavar": "FRACTION"}),
    "--batch-norm": ("model.batch_norm", {"action": argparse.BooleanOptionalAction}),
    "--profile": ("logging.profile", {"action": argparse.BooleanOptionalAction}),
    "--seed": ("seed", {"type": int, "metavar": "N"}),
}
# What people type who come from other programs.
ALIASES = {
    "--batch-size": ("--batchsize",),
    "--learning-rate": ("--lr",),
}
CHANCE_ACCURACY = 0.15  # Up to which a model knows no more than how frequent the digits are.
# Commands that have commands of their own: the module that parses them, and what they are for.
GROUPS = {
    "bench": ("mnist_dist.benchmarks.command", "measure suites on 1 to N devices, report, compare, predict"),
    "slurm": ("mnist_dist.slurm.command", "submit scaling studies and surveys to a cluster, and look after them"),
}
SHELLS = ("bash", "zsh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 the run failed, 2 bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in GROUPS:
        module, _ = GROUPS[arguments[0]]
        code: int = importlib.import_module(module).main(arguments[1:])
        return code
    return run_command(make_parser(*arguments[:1]), arguments)


def make_parser(chosen: str = "train") -> Parser:
    """Returns a parser of all commands; the flags of `train`, which name every setting, take long unless left out."""
    parser = Parser(
        prog="mnist-dist",
        description="Train, evaluate and use a CNN on MNIST, on one device or many.",
        epilog="Start with: mnist-dist train. Then: mnist-dist COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=f"mnist-dist {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_train(commands, with_flags=chosen == "train")
    add_evaluate(commands)
    add_predict(commands)
    add_export(commands)
    add_doctor(commands)
    add_install_horovod(commands)
    for name, (_, text) in GROUPS.items():
        commands.add_parser(name, help=text)
    completion = add_command(commands, run_completion, "print a shell completion script")
    completion.add_argument("shell", choices=SHELLS)
    return parser


def add_train(commands: Any, with_flags: bool) -> None:
    parser = add_command(
        commands,
        run_train,
        "train a model and leave metrics, plots and model.keras in a folder",
        epilog=(
            "Examples: `mnist-dist train` (the defaults: 3 epochs, above 99 %); "
            "`mnist-dist train --epochs 1 --optimizer sgd --learning-rate 0.05 --workdir runs/sgd`; "
            "`mnist-dist train --workdir runs/sgd --resume` after it was interrupted. "
            "mnist_dist/configs/default.yaml lists every setting for --set."
        ),
    )
    if not with_flags:
        return
    from mnist_dist.command import integer
    from mnist_dist.config import CONFIGS, names_in, setting_descriptions
    from mnist_dist.gpus import of_gpus

    parser.add_argument(
        "--config", metavar="FILE", help=f"a YAML file, or one of: {', '.join(names_in(CONFIGS))} (default: default)"
    )
    parser.add_argument(
        "--workdir", type=folder_argument, metavar="DIR", help="folder of the run (default: runs/CONFIG-DATE-TIME)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --workdir with its settings; start it if it is new"
    )
    for flag, (key, options) in FLAGS.items():
        default, description = setting_descriptions()[key]
        help_text = description.rstrip(".") + ("" if default == "null" else f" (default: {default})")
        help_text = f"{help_text}. {options['help']}" if "help" in options else help_text
        names = (flag, *ALIASES.get(flag, ()))
        parser.add_argument(*names, dest=key, default=None, **options | {"help": help_text.replace("%", "%%")})
    gpus, dest = ("--gpus", "--num-gpus"), FLAGS["--devices"][0]
    parser.add_argument(*gpus, dest=dest, type=of_gpus(integer), metavar="N", help="--devices that must be GPUs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. model.filters=[16,32]"
    )


def run_train(args: argparse.Namespace) -> int:
    """Train the CNN. Settings come from the defaults, then --config, then flags."""
    from mnist_dist.config import load_config, parse_assignment

    flags = {key: getattr(args, key) for key, _ in FLAGS.values() if getattr(args, key) is not None}
    source = args.config or "default"
    if args.resume and args.config is None and args.workdir and (args.workdir / "config.yaml").is_file():
        source = str(args.workdir / "config.yaml")  # A run goes on with its own settings.
    settings = flags | dict(parse_assignment(text) for text in args.set)
    config = load_config(source, settings)
    row = STRATEGIES.get(config.runtime.strategy)
    if args.resume and row and not row.several_devices and config.runtime.devices > 1:
        # Recorded of a run on one device, which had not named it either.
        config = load_config(source, {"runtime.strategy": "auto"} | settings)
    if args.resume and args.workdir is None:
        raise UserError("--resume: no --workdir was given, expected the folder of the run to continue.")

    from mnist_dist.distributed.cluster import find_cluster
    from mnist_dist.files import named_or_dated
    from mnist_dist.training.ranks import train_here_or_in_ranks
    from mnist_dist.training.workdir import Workdir

    outlive_reader()
    cluster = find_cluster(os.environ)
    named = args.workdir or (None if cluster.is_chief else Path("runs"))  # Only the chief touches the folder.
    with named_or_dated(named, "runs", Path(source).stem) as workdir:
        before = Workdir(workdir).read_result() if args.resume and workdir.is_dir() else None
        result = train_here_or_in_ranks(config, workdir, args.resume, cluster)
    if cluster.launcher == "mnist-dist":  # It says once for all ranks how they ended.
        return 0
    if cluster.is_chief:
        print(("nothing left to train; " if result == before else "") + describe_result(result, workdir))
    return EXIT_INTERRUPTED if result.get("signal") == "SIGINT" else 0


def describe_result(result: dict[str, Any], workdir: Path) -> str:
    if result["status"] == "completed":
        return (
            f"completed: test accuracy {100 * result['test_accuracy']:.2f} % (saved model, float32) after "
            f"{result['epochs']:.2f} epochs; {result['images_per_second']:,.0f} images/s of all devices in training "
            f"steps, {result['seconds']:.1f} s from start to end; see {workdir}"
            + ("; it only guesses" if result["epochs"] >= 1 and result["test_accuracy"] < CHANCE_ACCURACY else "")
            + f"\nnext: mnist-dist evaluate {shlex.quote(str(workdir))}"
        )
    if result["status"] == "measured":
        return (
            f"measured: {result['images_per_second']:,.0f} images/s of all devices in {result['steps']:,} steps; the "
            f"first took {result['first_step_seconds']:.1f} s with compiling; see {workdir}"
        )
    return (
        f"{result['status']} by {result['signal']} after step {result['steps']}; "
        f"continue with `mnist-dist train --workdir {shlex.quote(str(workdir))} --resume`"
    )


def add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=folder_argument, metavar="WORKDIR", help="folder of a finished run")


def add_evaluate(commands: Any) -> None:
    parser = add_command(
        commands, run_evaluate, "accuracy, precision/recall/F1 per digit and confusion matrix of a trained model"
    )
    add_workdir(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate the model of a finished run on the run's test set."""
    import json

    from mnist_dist.inference import evaluate

    model, arrays = load_run(args.workdir)
    evaluation = evaluate.summarize(arrays.test_labels, evaluate.predict(model, arrays.test_images))
    following = (
        f"\nnext, with a picture of your own digit: mnist-dist predict {shlex.quote(str(args.workdir))} photo.png"
    )
    print(json.dumps(evaluate.to_json(evaluation)) if args.json else evaluate.render(evaluation) + following)
    return 0


def add_predict(commands: Any) -> None:
    parser = add_command(commands, run_predict, "read the digit on your own pictures")
    add_workdir(parser)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="picture files, one at least")
    parser.add_argument(
        "--json", action="store_true", help='print lines of {"file", "digit", "probability", "uncertain"}'
    )


def run_predict(args: argparse.Namespace) -> int:
    """Read one digit per picture: PNG, JPEG and others, any size, grey, colour or transparent, dark on light or light
    on dark. Pictures are cropped, scaled and centred as MNIST's makers did; a digit that is unlike MNIST's, or less
    probable than 0.95, is called uncertain.
    """
    from mnist_dist.inference import predict

    if not args.images:
        is_run = args.workdir.is_dir()
        example = f"{args.workdir} photo.png" if is_run else f"WORKDIR {args.workdir}"
        raise UserError(
            f"IMAGE: received only '{args.workdir}', expected the folder of a run and pictures: mnist-dist predict "
            f"{example}"
        )

    @functools.cache
    def load() -> Any:
        """Takes seconds, and so waits until there is a picture to read."""
        from mnist_dist.network.model import load_model
        from mnist_dist.runtime import select_devices

        select_devices()
        return load_model(args.workdir)

    lazy = SimpleNamespace(predict=lambda digits, **options: load().predict(digits, **options))
    return predict.run(lazy, args.images, as_json=args.json)


def add_export(commands: Any) -> None:
    parser = add_command(commands, run_export, "write the model as a SavedModel or TensorFlow Lite file")
    add_workdir(parser)
    parser.add_argument("--format", required=True, choices=["savedmodel", "tflite", "tflite-int8"])
    parser.add_argument(
        "--output", type=folder_argument, metavar="DIR", help="folder to write into (default: WORKDIR/export)"
    )


def run_export(args: argparse.Namespace) -> int:
    """Export the model of a finished run and measure, by running the exported file, the accuracy it keeps. All formats
    take raw pixels (0 to 255).
    """
    from mnist_dist.inference import export

    model, arrays = load_run(args.workdir)
    print(export.render(export.export(model, arrays, args.output or args.workdir / "export", args.format)))
    return 0


def add_doctor(commands: Any) -> None:
    parser = add_command(
        commands, run_doctor, "check this machine: versions, devices, what `auto` picks, Horovod, Slurm, disk"
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="check GPUs instead, in at most five minutes: driver, CUDA, arithmetic, links, strategies, step times; "
        "leaves one file to send",
    )


def run_doctor(args: argparse.Namespace) -> int:
    """Check what this machine offers. Exits with 1 when something that training needs is broken."""
    from mnist_dist import doctor

    if args.gpu:
        from mnist_dist.gpu_doctor import run as gpu_doctor

        return gpu_doctor.run()
    return doctor.run()


def add_install_horovod(commands: Any) -> None:
    parser = add_command(
        commands, run_install_horovod, "build Horovod for the installed TensorFlow, and test it with two ranks"
    )
    parser.add_argument("--mpi", action="store_true", help="build the MPI operations as well (needs mpicxx)")
    parser.add_argument(
        "--wheel-dir", type=folder_argument, metavar="DIR", help="where wheels are kept (default: user's cache)"
    )
    parser.add_argument("--force", action="store_true", help="build even if a matching wheel exists")


def run_install_horovod(args: argparse.Namespace) -> int:
    """Build Horovod 0.28.1 for the TensorFlow of this environment, which upstream does not offer, with NCCL where CUDA
    is found and Gloo otherwise. The wheel is kept, so that a second time takes seconds.
    """
    from mnist_dist.distributed import horovod_build
    from mnist_dist.distributed.signals import ending_cleanly

    with ending_cleanly():  # Compilers run on, else.
        horovod_build.install(mpi=args.mpi, wheel_dir=args.wheel_dir, force=args.force)
    return 0


def run_completion(args: argparse.Namespace) -> int:
    """Print a script for a shell: `eval "$(mnist-dist completion bash)"` in ~/.bashrc."""
    import shtab

    parser = make_parser()
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for name, (module, _) in GROUPS.items():
        commands.choices[name] = importlib.import_module(module).make_parser()
    print(shtab.complete(parser, args.shell))
    return 0


def load_run(workdir: Path) -> tuple[Any, Any]:
    """Loads the model of a finished run and the data it was trained on."""
    from mnist_dist.config import load_config
    from mnist_dist.data.dataset import load_arrays
    from mnist_dist.network.model import load_model
    from mnist_dist.runtime import select_devices

    select_devices()
    model = load_model(workdir)
    return model, load_arrays(load_config(str(workdir / "config.yaml")).data)


def run() -> None:
    """Runs a command as a process of its own."""
    code = main()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Taking TensorFlow apart takes seconds and saves nothing: all files are written and closed by now.
    os._exit(code)


if __name__ == "__main__":
    run()
