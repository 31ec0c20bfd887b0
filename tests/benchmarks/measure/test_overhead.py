import re
import subprocess
import sys

import pytest

from tests.benchmarks.harness import REPOSITORY, environment


@pytest.mark.thorough
@pytest.mark.slow
def test_measuring_costs_less_than_one_percent_of_a_core() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.measure.overhead"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    harness, *trainings = done.stdout.splitlines()[-3:]
    beside = re.fullmatch(r"harness: ([\d.]+) % of one core while the cases ran \(([\d.]+) s of ([\d.]+) s\)", harness)
    assert beside and 0 < float(beside[1]) < 1, done.stdout
    for name, line in zip(("single", "mirrored"), trainings, strict=True):
        pattern = r"(\w+): ([\d.]+) % of its turns not counted \((\d+) turns, .*\); ([\d.]+) cores while it waited"
        found = re.fullmatch(pattern, line)
        assert found and found[1] == name, done.stdout
        assert 0 < float(found[2]) < 100 and int(found[3]) >= 10
        assert float(found[4]) < 0.05
