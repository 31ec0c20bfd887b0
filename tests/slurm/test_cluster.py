"""The test cluster itself leaves nothing behind, whatever ends the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, environments, start_cluster, wait_until
from tests.slurm.conftest import ROOT


def processes_of(folder: Path) -> list[int]:
    return [pid for pid, values in environments() if str(folder) in values.get("SLURM_CONF", "")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_tests(slurm: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    """A job is running in it, too, which would go on for long."""
    script = (
        "import sys, time; from pathlib import Path; from tests.slurm.cluster import start_cluster\n"
        "with start_cluster(Path(sys.argv[1])) as cluster:\n"
        "    cluster.run('sbatch', '--output=/dev/null', '--wrap', 'srun sleep 1000')\n"
        "    while 'RUNNING' not in cluster.state('1'): time.sleep(0.1)\n"
        "    time.sleep(1); print('ready', flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as tests:
        assert tests.stdout and tests.stdout.readline() == b"ready\n"
        assert len(processes_of(tmp_path)) > 10
        os.kill(tests.pid, number)
    assert wait_until(lambda: not processes_of(tmp_path), 60), processes_of(tmp_path)


def test_a_node_that_lost_its_power_comes_back(slurm: Cluster, tmp_path: Path) -> None:
    with start_cluster(tmp_path) as cluster:
        cluster.cut_power("n9")
        assert cluster.run("srun", "--nodelist=n9", "--immediate=3", "true", check=False).returncode != 0
        cluster.restore_power("n9")
        assert wait_until(
            lambda: cluster.run("srun", "--nodelist=n9", "hostname", check=False).returncode == 0, seconds=30
        )
