"""Reads the container files as far as the tests need it; no more of their grammar than these files use."""

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"


def instructions(text: str) -> list[tuple[str, list[str]]]:
    """Returns a Dockerfile's instructions with their words, without options such as --chmod."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    split = [shlex.split(line) for line in lines if line.strip()]
    return [(words[0], [word for word in words[1:] if not word.startswith("--")]) for words in split]


def copied_from_context(text: str) -> list[tuple[list[str], str]]:
    """Returns the sources and the destination of every COPY of a Dockerfile that is not --from another stage."""
    text = re.sub(r"(?m)^COPY --from=.*\n", "", text)
    return [(words[:-1], words[-1]) for name, words in instructions(text) if name == "COPY"]


def sections(text: str) -> dict[str, str]:
    """Returns the sections of an Apptainer recipe: "build %post" is that of the stage named build."""
    found: dict[str, str] = {}
    stage = section = ""
    for line in text.splitlines():
        if line.startswith("Bootstrap:"):
            section = ""
        elif line.startswith("Stage:"):
            stage = line.split()[1]
        elif line.startswith("%"):
            section = f"{stage} {line.strip()}"
            found[section] = ""
        elif section:
            found[section] += line.strip() + "\n"
    return found
