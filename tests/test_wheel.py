"""The installed package, away from every checkout."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import mnist_dist

REPOSITORY = Path(mnist_dist.__file__).resolve().parents[1]
SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "benchmarks", "mnist_dist", "pyproject.toml", "setup.cfg", "slurm")
DATA = (".yaml", ".json", ".css", ".js", ".j2", ".npz", ".cc", ".h", ".sbatch", "lib.sh")
DATA += ("requirements-pytorch.txt", "environment_variables.txt")

pytestmark = pytest.mark.slow


def outside() -> dict[str, str]:
    """The environment, but for what leads to this checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=outside(), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """Builds with what is installed, so that it needs no network."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, source, cwd=folder.parent)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, as building leaves files in it."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "compiled")
            shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel") / "built")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which sees what the running one has, but for its editable packages."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    run(sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that has packages of the same names as the folders of the checkout."""
    for name in ("benchmarks", "slurm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the package of another project')\n")
    return tmp_path


def test_a_wheel_holds_one_package_and_all_its_data(source: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"mnist_dist"}
    files = [file for folder in ("benchmarks", "mnist_dist", "slurm") for file in (source / folder).rglob("*")]
    needed = {str(file.relative_to(source)) for file in files if file.name.endswith((".py", *DATA))}
    in_wheel = {re.sub(r"^(?=benchmarks/|slurm/)", "mnist_dist/", name) for name in needed}
    assert len(in_wheel) > 150 and in_wheel <= set(names)
    assert sum(name.endswith(".py") for name in names) == sum(name.endswith(".py") for name in in_wheel)


def test_a_source_distribution_holds_the_code_once_and_builds_the_same(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    run("tar", "--extract", "--file", archive, cwd=tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert {path.relative_to(folder).parts[0] for path in folder.rglob("*.py")} == {"mnist_dist"}
    again = build_wheel(folder, tmp_path / "built")
    contents = [{item.filename: item.CRC for item in zipfile.ZipFile(each).infolist()} for each in (wheel, again)]
    assert contents[0] == contents[1]


def test_it_measures_submits_and_trains(installed: Path, elsewhere: Path) -> None:
    command, python = installed / "bin" / "mnist-dist", installed / "bin" / "python"
    found = Path(run(python, "-c", "import mnist_dist; print(mnist_dist.__file__)", cwd=elsewhere))
    assert found.is_relative_to(installed)
    assert "horovod" in run(command, "bench", "run", "quick", "--dry-run", cwd=elsewhere)

    study = ("--devices", "1,2", "--devices-per-node", "2", "--dry-run")
    script = run(command, "slurm", "scaling", *study, cwd=elsewhere)
    batch_files = {Path(word) for word in script.split() if word.endswith(".sbatch")}
    assert {file.name for file in batch_files} == {"bench.sbatch", "report.sbatch"}
    assert all(file.is_relative_to(installed) and file.is_file() for file in batch_files)
    # What these begin with, where the jobs run.
    exports = "\n".join(line for line in script.splitlines() if line.startswith("export "))
    task = '"${python[@]}" -m mnist_dist.slurm.preflight --help'
    begin = f'{exports}\nsource "$MNIST_DIST_HOME/slurm/lib.sh" && {task}'
    assert run("bash", "-c", begin, cwd=elsewhere).startswith("usage: ")

    run(command, "train", "--steps", "50", "--workdir", "run", cwd=elsewhere)
    assert (elsewhere / "run" / "model.keras").is_file()
