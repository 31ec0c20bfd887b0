"""What the tree promises. Who imports whom is held by the contracts in pyproject.toml (`make lint`)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_dist

PACKAGE = Path(mnist_dist.__file__).parent
# Through the links too, which a checkout has in the place of folders.
FOLDERS = [PACKAGE, *(folder for name in ("", "benchmarks", "slurm") for folder in (PACKAGE / name).glob("**/"))]
PACKAGES = sorted({folder for folder in FOLDERS if (folder / "__init__.py").exists()})
FILES = [file for folder in PACKAGES for file in sorted(folder.glob("*.py"))]
MOST_MODULES = 14  # In a folder, for it to be read at a glance.
SLOW_TO_IMPORT = (
    *("tensorflow", "keras", "matplotlib", "PIL", "horovod", "rich", "tensorboard"),
    *("scipy", "ruptures", "jinja2"),
)


def module_name(file: Path) -> str:
    return ".".join(("mnist_dist", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def shown(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def test_everything_is_looked_at() -> None:
    names = {module_name(file) for file in FILES}
    assert {
        "mnist_dist.__main__",
        "mnist_dist.network.cpu.build",
        "mnist_dist.benchmarks.report.figures.drawing",
        "mnist_dist.slurm.study",
    } <= names
    assert len(names) == len(FILES)


@pytest.mark.parametrize("folder", PACKAGES, ids=shown)
def test_a_folder_holds_few_modules(folder: Path) -> None:
    modules = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, f"{len(modules)} modules; find what some have in common"


@pytest.mark.parametrize("folder", PACKAGES, ids=shown)
def test_a_folder_says_in_a_sentence_what_lives_there(folder: Path) -> None:
    """And nothing else, so that importing one module imports no other."""
    tree = ast.parse((folder / "__init__.py").read_text())
    said = ast.get_docstring(tree) or ""
    assert said.endswith(".") and ". " not in said and "\n\n" not in said, f"not one sentence: {said!r}"
    statements = [ast.unparse(node).partition(" = ")[0] for node in tree.body[1:]]
    assert statements == (["__version__"] if folder == PACKAGE else [])


@pytest.mark.parametrize("file", FILES, ids=shown)
def test_imports_are_absolute(file: Path) -> None:
    assert not [node for node in ast.walk(ast.parse(file.read_text())) if getattr(node, "level", 0)]


def test_importing_any_module_is_quick() -> None:
    """The command line and the login node's tools import these; what takes seconds waits until it is used."""
    modules = [module_name(file) for file in FILES if "scripts" not in file.parts]  # Programs of their own.
    script = f"import importlib, sys\nfor module in {modules}: importlib.import_module(module)\n"
    script += f"print(*(name for name in {SLOW_TO_IMPORT} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
