"""What documents tell people to type is understood, and where they point to is there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from mnist_dist.__main__ import GROUPS, make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "slurm" / "README.md"]


def commands(document: Path) -> list[str]:
    """Returns each command of the code blocks whose program is ours, lines that go on in the next joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"^(\$ |time |srun .*?(?=mnist-dist)|(horovodrun|mpirun) -np \d+ )", "", line) for line in lines]
    return [line for line in found if line.startswith("mnist-dist ")]


@pytest.mark.parametrize(
    "command", [pytest.param(each, id=f"{file.name}: {each}") for file in DOCUMENTS for each in commands(file)]
)
def test_commands_are_understood(command: str) -> None:
    _, *arguments = shlex.split(re.split(r" [|&>]", command)[0], comments=True)
    parser = make_parser()
    if arguments[0] in GROUPS:
        parser = importlib.import_module(GROUPS[arguments.pop(0)][0]).make_parser()
    assert parser.parse_args(arguments)


def test_the_readme_has_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 6


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not heading or heading in _anchors(file.read_text()), f"{target}#{heading}"


def _anchors(text: str) -> set[str]:
    """Returns the names by which a page of GitHub's knows its headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_row_of_the_surroundings_has_its_test() -> None:
    rows = re.findall(
        r"^\| (?!what one sees)(.*) \|$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE
    )
    names = [re.search(r"\| `(test_\w+)`$", row) for row in rows]
    assert len(rows) > 30 and all(names), [row for row, name in zip(rows, names, strict=True) if not name]
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name[1] for name in names if name and f"def {name[1]}(" not in sources] == []
