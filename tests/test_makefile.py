"""What `make` would install, by its dry run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import mnist_dist
from mnist_dist.strategies import STRATEGIES

REPOSITORY = Path(mnist_dist.__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None or Path("/dev/nvidia0").exists(), reason="needs make, and no GPU")
@pytest.mark.parametrize(
    ("has_driver", "settings", "extras"),
    [(False, [], ""), (True, [], "[gpu]"), (True, ["EXTRAS="], "")],
)
def test_libraries_of_cuda_are_installed_where_a_driver_is(
    tmp_path: Path, has_driver: bool, settings: list[str], extras: str
) -> None:
    if has_driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "--dry-run", "--always-make", ".venv/.installed", *settings]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert f"--editable '.{extras}'" in done.stdout


def test_bench_measures_first_what_needs_no_build() -> None:
    (first,) = re.findall(r"--strategies (\S+)", (REPOSITORY / "Makefile").read_text())
    assert first.split(",") == [name for name, row in STRATEGIES.items() if row.package is None]
