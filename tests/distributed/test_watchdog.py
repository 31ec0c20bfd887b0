"""Who waits too long is ended, unless the wait is one that may last."""

import subprocess
import sys

import pytest

from mnist_dist.distributed.watchdog import EXIT_LOST_RANKS

RANK = """
import time
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.watchdog import Watchdog

with Watchdog(Cluster(1, 2, 1, 2, ("n1", "n1")), timeout_seconds=0.5) as watchdog:
    with watchdog.without_limit("waiting for its turn"):
        time.sleep(2.5)
    print("it had its turn", flush=True)
    time.sleep(60)  # As one whose partner is stuck.
"""


@pytest.mark.slow
def test_after_a_wait_without_a_limit_the_limit_counts_again() -> None:
    done = subprocess.run([sys.executable, "-c", RANK], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (EXIT_LOST_RANKS, "it had its turn\n"), done.stderr
    assert "rank 1 waited" in done.stderr and "in the phase 'after waiting for its turn'" in done.stderr
