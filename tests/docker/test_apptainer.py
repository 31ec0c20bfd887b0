"""The Apptainer recipe: the Dockerfile's steps, files and bases, in sections that are valid shell."""

import re
import subprocess

import pytest

from tests.docker.recipe import DOCKER, copied_from_context, sections

DOCKERFILE = (DOCKER / "Dockerfile").read_text()
RECIPE = (DOCKER / "apptainer.def").read_text()
SECTIONS = sections(RECIPE)


@pytest.mark.parametrize(
    "section", ["build %post", "final %post", "final %environment", "final %runscript", "final %test"]
)
def test_sections_are_valid_shell(section: str) -> None:
    text = re.sub(r"{{ \w+ }}", "value", SECTIONS[section])
    assert text.strip()
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_same_steps_as_the_dockerfile() -> None:
    steps = re.compile(r"/(?:steps|tmp)/(\w+\.(?:sh|py))(?: |$)", re.MULTILINE)
    in_dockerfile = set(steps.findall("\n".join(line for line in DOCKERFILE.splitlines() if line.startswith("RUN"))))
    assert len(in_dockerfile) == 7
    assert (
        set(steps.findall(SECTIONS["build %post"]))
        == in_dockerfile
        == {path.name for path in (DOCKER / "steps").iterdir() if path.is_file()}
    )


def test_same_files_as_the_dockerfile() -> None:
    copies = [(source, to) for sources, to in copied_from_context(DOCKERFILE) for source in sources]
    package = {source for source, to in copies if to.startswith("/opt/mnist_dist")}
    lines = [line.split() for line in SECTIONS["build %files"].splitlines() if line]
    assert {source for source, to in lines if to.startswith("/opt/mnist_dist")} == package
    assert {"mnist_dist", "benchmarks", "slurm", "docker/entrypoint.sh"} < package


def test_same_bases_and_environment_as_the_dockerfile() -> None:
    (base,) = re.findall(r"^ARG BASE_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert f"BUILD_IMAGE={base}\n" in SECTIONS["build %arguments"]
    assert f"BASE_IMAGE={base}\n" in SECTIONS["final %arguments"]
    (environment,) = re.findall(r"^ENV (PATH=.*)", DOCKERFILE, re.MULTILINE)
    assert SECTIONS["final %environment"].split("export ")[1].strip().replace("$PATH", "${PATH}") == environment


def test_every_variable_has_a_default_in_its_stage() -> None:
    """Apptainer looks for defaults in the stage that uses them, and its older versions refuse empty ones."""
    for stage, text in zip(("build", "final"), RECIPE.split("Bootstrap:")[1:], strict=True):
        defaults = dict(line.split("=") for line in SECTIONS[f"{stage} %arguments"].splitlines() if line)
        assert set(re.findall(r"{{ (\w+) }}", text)) == set(defaults) and all(defaults.values())
