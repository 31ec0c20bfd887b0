"""Bad input of every kind, drawn by Hypothesis and given to the command in this process, as starting Python costs more.

What a command accepts would train or measure. So each example has in it what has to be refused behind everything else,
such as a batch that is larger than the data, or asks for a plan only.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import SearchStrategy
from PIL import Image

import mnist_dist
from mnist_dist.__main__ import FLAGS, main
from mnist_dist.benchmarks.measure.suite import Block, Suite
from mnist_dist.benchmarks.records.store import file_name
from mnist_dist.config import parse_config, setting_descriptions
from mnist_dist.slurm.site import Site
from mnist_dist.strategies import STRATEGIES
from tests.benchmarks import factory

LONGEST_LINE = 1200  # Letters, of which a user reads the beginning; paths have their part in it.
TOO_LARGE = 2**40  # A batch that no data fill.
# Lines on stderr that are no error: which files a result leaves out, and what to do about a doubtful digit.
BESIDE_RESULTS = ("left out: ", "Where a digit is uncertain: ")


@dataclass(frozen=True)
class Example:
    """A command line, in which {folder} stands for a folder with these files.

    Attributes:
        codes: that are right; 2 goes with one line of error, and any other with none but `BESIDE_RESULTS`.
    """

    kind: str
    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    codes: tuple[int, ...] = (2,)


# --- Values ---

# fmt: off
NASTY = st.sampled_from([
    "", " ", "\n", "\x00", "\x1b[2J", "\u202e", "\udcff", "a" * 5000, "%s", "%(prog)s", "{}", "~", "~nobody", "..", "/",
    "-", "--", "-1", "0", "1e400", "nan", "inf", "\u0663", "\xb2", "1_000", "0x10", "9" * 400, "9" * 5000, "null",
    "true", "gs://bucket/x", "[" * 2000, "{a: *b}", "!!python/object:os.system", "&a [*a]", "1:30", "2020-01-01", "on",
])
# fmt: on
WORDS = st.one_of(NASTY, st.text(st.characters(), max_size=12), st.sampled_from(list(STRATEGIES)))
NUMBERS = st.one_of(
    st.integers(-2, 200),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, 10**400, -0.0, 1e-320, 1.7e308, float("nan"), float("inf")]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
KEYS = st.one_of(st.sampled_from(list(setting_descriptions())), WORDS)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_argument(text: str) -> str:
    """Returns what of a text can be given to a program, as Python then reads it."""
    return os.fsdecode(text.replace("\x00", "").encode("utf-8", "surrogatepass"))


ARGUMENTS = WORDS.map(as_argument)


def mutated(content: bytes) -> SearchStrategy[bytes]:
    """Draws what is left of some bytes: cut off, with some of them changed, or with a part doubled."""

    def change(where: int, how: str, values: bytes) -> bytes:
        place = where % max(len(content), 1)
        if how == "cut":
            return content[:place]
        if how == "replace":
            return content[:place] + values + content[place + len(values) :]
        return content[:place] + values + content[max(place - 40, 0) :]

    return st.builds(
        change, st.integers(0, 2**20), st.sampled_from(["cut", "replace", "insert"]), st.binary(max_size=8)
    )


def as_yaml(content: Any) -> bytes:
    try:
        return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return json.dumps(content).encode()


@st.composite
def trees(draw: st.DrawFn, content: Any) -> Any:
    """Draws a tree like another one, of which some parts have been replaced, removed or added."""
    tree = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        place = tree
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
                place = place[key]
                continue
            how = draw(st.sampled_from(["replace", "replace", "number", "remove", "add"]))
            if how == "remove":
                del place[key]
            elif how == "add" and isinstance(place, dict):
                place[draw(WORDS)] = draw(JSON)
            else:
                place[key] = draw(NUMBERS if how == "number" else JSON)
            break
    return tree


# --- Kinds of input ---

REFUSED = ["--workdir", "{folder}/run", "--set", "data.path={tiny}", "--set", f"training.batch_size={TOO_LARGE}"]


@st.composite
def of_settings(draw: st.DrawFn) -> Example:
    arguments = ["train"]
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            arguments += ["--set", as_argument(f"{draw(KEYS)}={as_text(draw(JSON))}")]
        else:
            arguments += [draw(st.sampled_from(list(FLAGS))), as_argument(as_text(draw(st.one_of(NUMBERS, WORDS))))]
    return Example("settings", [*arguments, *REFUSED])


@st.composite
def of_configs(draw: st.DrawFn) -> Example:
    content = as_yaml(draw(trees(parse_config({}).model_dump(mode="json"))))
    content = draw(st.one_of(st.just(content), mutated(content)))
    return Example("configurations", ["train", "--config", "{folder}/config.yaml", *REFUSED], {"config.yaml": content})


SUITE = {
    "description": "small",
    "minutes": 1,
    "repeats": 2,
    "strategies": ["single", "mirrored"],
    "devices": [1, 2],
    "blocks": [
        {"images_per_device": [64], "settings": {"model.dropout": 0.1}, "vary": {"runtime.xla": ["on", "off"]}},
        {"kind": "matmul", "strategies": ["single"], "repeats": 1},
        dict.fromkeys(["global_batch_size", "measure_seconds"], 8) | {"ablations": True, "whole_machine": False},
    ],
}


@st.composite
def of_suites(draw: st.DrawFn) -> Example:
    assert {*SUITE} <= {*Suite.model_fields} and {*SUITE["blocks"][0]} <= {*Block.model_fields}  # type: ignore[index]
    content = as_yaml(draw(trees(SUITE)))
    content = draw(st.one_of(st.just(content), mutated(content)))
    arguments = ["bench", "run", "{folder}/suite.yaml", "--dry-run", *draw(st.lists(of_narrowing(), max_size=2))]
    return Example("suites", arguments, {"suite.yaml": content}, codes=(0, 2))


def of_narrowing() -> SearchStrategy[str]:
    flags = st.sampled_from(["--devices", "--strategies", "--repeats", "--cores-per-device", "--only", "--set"])
    return st.tuples(flags, ARGUMENTS).map(lambda pair: f"{pair[0]}={pair[1]}")


RECORDS = factory.make_study(factory.quick_cases(), 2)


@st.composite
def of_records(draw: st.DrawFn) -> Example:
    """Of a study of which some records are damaged, or say what no machine can have measured."""
    files = {f"records/{file_name(record)}": json.dumps(record.to_json()).encode() for record in RECORDS}
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=3, unique=True)):
        tree = draw(trees(json.loads(files[name]))) if draw(st.integers(0, 3)) else None
        files[name] = draw(mutated(files[name])) if tree is None else json.dumps(tree).encode()
    if draw(st.booleans()):
        return Example("records", ["bench", "predict", "{folder}"], files, codes=(0, 2))
    return Example("records", ["bench", "compare", "{folder}", "{study}"], files, codes=(0, 1, 2, 3))


@st.composite
def of_archives(draw: st.DrawFn) -> Example:
    types = st.sampled_from(["u1", "i8", "f4", "f8", "?", "U3", "c8", "M8[s]"])
    shapes = st.sampled_from([(), (0,), (8,), (8, 28, 28), (8, 28, 28, 1), (0, 28, 28), (3, 5)])
    good = {"x_train": (8, 28, 28), "y_train": (8,), "x_test": (8, 28, 28), "y_test": (8,)}
    arrays = {}
    for name, shape in good.items():
        if draw(st.integers(0, 3)):
            arrays[name] = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) % (10 if name[0] == "y" else 255)
        elif draw(st.booleans()):
            arrays[name] = np.zeros(draw(shapes), draw(types))
    file = io.BytesIO()
    np.savez(file, **{draw(st.sampled_from([*good, "a/b"])): np.arange(3), **arrays})
    content = draw(st.one_of(st.just(file.getvalue()), mutated(file.getvalue()), st.binary(max_size=40)))
    arguments = ["train", *REFUSED, "--set", "data.path={folder}/data.npz"]
    return Example("archives", arguments, {"data.npz": content})


def pictures() -> list[bytes]:
    with np.load(Path(mnist_dist.__file__).parent / "data" / "mnist.npz") as archive:
        digit = Image.fromarray(255 - archive["x_test"][0]).resize((64, 64))
    files = []
    for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        digit.save(file, name)
        files.append(file.getvalue())
    return files


@st.composite
def of_images(draw: st.DrawFn) -> Example:
    content = draw(st.sampled_from(pictures()).flatmap(mutated))
    if draw(st.booleans()):
        content = draw(mutated(content))
    return Example("images", ["predict", "{model}", "{folder}/picture"], {"picture": content}, codes=(0, 2))


@st.composite
def of_slurm(draw: st.DrawFn) -> Example:
    flags = ["--partition", "--account", "--qos", "--time", "--cpus-per-task", "--container", "--suite", "--repeats"]
    flags += ["--strategies", "--set", "--results", "--devices", "--devices-per-node", "--gpus", "--gpus-per-node"]
    given = draw(st.lists(st.tuples(st.sampled_from(flags), ARGUMENTS), min_size=0, max_size=3))
    arguments = ["slurm", "scaling", "--dry-run", "--devices=1,2", "--devices-per-node=2", "--suite=quick"]
    arguments += [f"{flag}={value}" for flag, value in given]
    site = dict.fromkeys(Site.model_fields) | {"time": "01:00:00", "modules": ["cuda"], "sbatch_flags": []}
    content = as_yaml(draw(trees({key: value for key, value in site.items() if value is not None})))
    if draw(st.booleans()):
        arguments.append("--site={folder}/site.yaml")
    return Example("Slurm flags", arguments, {"site.yaml": content}, codes=(0, 2))


COMMANDS = ["train", "evaluate", "predict", "export", "doctor", "install-horovod", "bench", "slurm", "run", "report"]
COMMANDS += ["compare", "peers", "perf", "scaling", "status", "cancel", "quick"]
OPTIONS = ["--workdir", "--resume", "--config", "--json", "--format", "--output", "--mpi", "--wheel-dir", "--devices"]
OPTIONS += [
    "--results",
    "--suite",
    "--interleave",
    "--only",
    "--smallest-effect",
    "--allow",
    "--site",
    "--array",
    *FLAGS,
]


@st.composite
def of_command_lines(draw: st.DrawFn) -> Example:
    parts = draw(st.lists(st.one_of(st.sampled_from(COMMANDS), st.sampled_from(OPTIONS), ARGUMENTS), max_size=6))
    # Nothing is called so, and what stands behind a -- is no option.
    return Example("command lines", [draw(st.sampled_from(COMMANDS)), "--no-such-option", *parts])


KINDS: dict[str, Callable[[], SearchStrategy[Example]]] = {
    "settings": of_settings,
    "configurations": of_configs,
    "suites": of_suites,
    "records": of_records,
    "archives": of_archives,
    "images": of_images,
    "Slurm flags": of_slurm,
    "command lines": of_command_lines,
}


# --- Running them ---


class Place:
    """A folder for the files of examples, beside what all of them may name."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder / "example"
        self.names = {name: str(folder / name) for name in ("tiny", "study", "model")}
        self.names |= {"tiny": f"{folder / 'tiny'}.npz", "folder": str(self.folder)}
        images = np.arange(8 * 28 * 28, dtype=np.uint8).reshape(8, 28, 28)
        labels = np.arange(8, dtype=np.uint8)
        np.savez(self.names["tiny"], x_train=images, y_train=labels, x_test=images, y_test=labels)
        for record in RECORDS:
            write(folder / "study" / "records" / file_name(record), json.dumps(record.to_json()).encode())
        small = {"training.steps": 1, "training.batch_size": 8, "model.filters": [4, 8], "model.dense_units": 8}
        small |= {"data.path": self.names["tiny"], "logging.tensorboard": False, "evaluation.every_epochs": 0}
        arguments = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
        with captured() as (said, errors):
            code = main(["train", "--workdir", self.names["model"], *arguments])
        assert code == 0, errors.getvalue() + said.getvalue()

    def check(self, example: Example) -> None:
        """Runs an example, which must end with one of its codes, say one line if it is refused, and write nothing."""
        for name, content in example.files.items():
            write(self.folder / name, content)
        self.folder.mkdir(exist_ok=True)
        before = snapshot(self.folder.parent)
        with moved_to(self.folder), captured() as (said, errors):
            try:
                code = main([self._filled_in(argument) for argument in example.arguments])
            except SystemExit as ended:  # Of the parser.
                code = int(ended.code or 0)
        text = errors.getvalue()
        assert snapshot(self.folder.parent) == before, "something was written"
        assert code in example.codes, f"it ended with {code}: {text}"
        lines = [line for line in text.split("\n")[:-1] if not line.startswith(BESIDE_RESULTS)]
        assert text == "" or text.endswith("\n"), f"no whole line: {text!r}"
        assert len(lines) == (code == 2), f"not one line with code {code}: {text!r}"
        for line in text.split("\n")[:-1]:
            assert line.isprintable(), f"not printable: {line!r}"
            assert len(line) < LONGEST_LINE, f"{len(line)} letters: {line!r}"
        if code == 2:
            assert lines[0].startswith("mnist-dist: error: "), lines
            assert said.getvalue() == "", f"it began: {said.getvalue()!r}"

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _filled_in(self, argument: str) -> str:
        for name, path in self.names.items():
            argument = argument.replace(f"{{{name}}}", path)
        return argument


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns time and length of every file; an empty folder counts as nothing."""
    stats = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


@contextlib.contextmanager
def moved_to(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Yields what is printed, on stdout and on stderr, the latter also by libraries of C."""
    said, errors = io.StringIO(), io.StringIO()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
                yield said, errors
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            errors.write(file.read().decode(errors="replace"))


def run(examples: int, first_seed: int) -> int:
    """Runs so many examples, an equal share of each kind; prints what went wrong, once for each place, and a table.

    Returns:
        1 if anything went wrong, or else 0.
    """
    good, bad = Counter[str](), Counter[str]()
    known: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        set_hypothesis_home_dir(Path(folder) / "hypothesis")
        place = Place(Path(folder) / "place")

        def try_out(example: Example) -> None:
            try:
                place.check(example)
                good[example.kind] += 1
            except Exception as error:  # Whatever it is: it is what this looks for.
                bad[example.kind] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                name = f"{example.kind}: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                if name not in known:
                    known[name] = str(error)
                    print(f"{name}: {str(error)[:1500]}\n  {shortened(example)}", flush=True)
            finally:
                place.clear()

        for number, make in enumerate(KINDS.values()):
            share = examples * (number + 1) // len(KINDS) - examples * number // len(KINDS)
            no_checks = list(HealthCheck)
            chosen = settings(
                max_examples=share,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=no_checks,
            )
            seed(first_seed)(chosen(given(make())(try_out)))()
    print(f"{'kind':20}{'right':>8}{'wrong':>8}")
    for kind in KINDS:
        print(f"{kind:20}{good[kind]:8}{bad[kind]:8}")
    print(f"{'all':20}{sum(good.values()):8}{sum(bad.values()):8}")
    return 1 if bad else 0


def shortened(example: Example) -> str:
    files = {name: content[:300] for name, content in list(example.files.items())[:1]}
    return f"{[argument[:200] for argument in example.arguments]} {files}"
