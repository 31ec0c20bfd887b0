"""Holds what the code's documentation says about who imports whom."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnist_dist

PACKAGE = Path(mnist_dist.__file__).parent
MODULES = sorted(file.stem for file in PACKAGE.glob("*.py") if file.stem != "__init__")
# A module imports from its own layer or one above it in this list, never from one below.
LAYERS = (
    {"errors"},
    {"command", "files", "config", "cluster", "preemption", "watchdog", "rollcall", "horovod_build", "kernel_build"},
    {
        "cpu_kernels",
        "loops",
        "flops",
        "runtime",
        "dataset",
        "model",
        "schedule",
        "optimizers",
        "strategies",
        "launch",
        "workdir",
        "writers",
        "plan",
    },
    {"step_times", "steps", "checkpoint", "evaluate", "predict", "plots", "export", "guard", "results"},
    {"actions"},
    {"trainer", "doctor"},
    {"__main__"},
)
LAYER = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
KNOW_HOROVOD = {"strategies", "launch", "horovod_build", "doctor"}
SLOW_TO_IMPORT = ("tensorflow", "keras", "matplotlib", "PIL", "horovod", "rich", "tensorboard")


def imports(module: str) -> Iterator[str]:
    """Yields the full name of everything that a module imports, at its top or within functions."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    parts = (name.split(".") for name in imports(module))
    return {names[1] for names in parts if names[0] == "mnist_dist" and len(names) > 1 and names[1] in MODULES}


def test_imports_are_found() -> None:
    assert {"actions", "checkpoint", "config", "dataset", "model", "optimizers"} <= own_imports("trainer")
    assert "trainer" in own_imports("__main__"), "imports within functions count"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert module in LAYER, f"give {module} a place in LAYERS"
    upwards = sorted(other for other in own_imports(module) if LAYER[other] > LAYER[module])
    assert not upwards, f"{module} is below {upwards} and imports from them"


def test_imports_have_no_cycle() -> None:
    list(graphlib.TopologicalSorter({module: own_imports(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_the_package_knows_nothing_of_what_is_built_on_it(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"benchmarks", "slurm", "tests"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - KNOW_HOROVOD))
def test_few_know_horovod(module: str) -> None:
    assert "horovod" not in {name.split(".")[0] for name in imports(module)}


def test_importing_any_module_is_quick() -> None:
    """The command line and the login node's tools import these; what takes seconds waits until it is used."""
    script = f"import importlib, sys\nfor module in {MODULES}: importlib.import_module(f'mnist_dist.{{module}}')\n"
    script += f"print(*(name for name in {SLOW_TO_IMPORT} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
