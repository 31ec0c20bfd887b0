"""Each strategy on two devices learns the full MNIST as well as one device does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.conftest import STRATEGIES

pytestmark = pytest.mark.slow


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accuracy_on_two_devices(tmp_path: Path, strategy: str) -> None:
    command = [sys.executable, "-m", "mnist_dist", "train", "--workdir", str(tmp_path / "run")]
    subprocess.run([*command, "--strategy", strategy, "--devices", "2"], check=True, stdout=subprocess.DEVNULL)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["strategy"], result["replicas"]) == (strategy, 2)
    assert result["test_accuracy"] >= 0.990
