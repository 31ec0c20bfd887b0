import re
import subprocess
import sys

import pytest

from tests.benchmarks.harness import REPOSITORY, environment


@pytest.mark.slow
def test_measuring_costs_less_than_one_percent() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.measure.overhead"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    harness, loop = done.stdout.splitlines()[-2:]
    beside = re.match(r"harness: ([\d.]+) % of one core while the case ran \(([\d.]+) s of ([\d.]+) s\)$", harness)
    within = re.match(r"training loop: ([\d.]+) % of the windows \(medians of (\d+): (\d+) µs of (\d+) ms\)$", loop)
    assert beside and within, done.stdout
    assert 0 < float(beside[1]) < 1 and float(beside[3]) > 5
    assert 0 < float(within[1]) < 1 and int(within[3]) > 0
