"""Who waits too long, or for a harness that is gone, is ended, unless the wait is one that may last."""

import contextlib
import os
import subprocess
import sys

import pytest

from mnist_dist.benchmarks.measure.turns import Harness
from mnist_dist.distributed.turns import Turn
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


@pytest.mark.slow
def test_the_end_does_not_depend_on_who_reads_of_it() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", RANK], stdout=subprocess.PIPE, stderr=write, timeout=300, check=False)
    os.close(write)
    assert done.returncode == EXIT_LOST_RANKS


RANK_WITH_TURNS = """
import os, time
from mnist_dist.distributed import watchdog
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.turns import Turns

watchdog.LOST_SECONDS = 3.0
with watchdog.Watchdog(Cluster(0, 1, 0, 1, ("n1",)), timeout_seconds=300) as watched:
    turns = Turns(os.environ, 0, 1, watched)
    while turns.wait():
        watched.enter("a turn")
        time.sleep(300)
    watched.enter("writing")
    time.sleep(6)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dismissed", "lost"), [(False, True), (True, True), (True, False)])
def test_a_rank_that_has_lost_its_harness(dismissed: bool, lost: bool) -> None:
    """One that was dismissed has the time that the harness gives it."""
    with contextlib.ExitStack() as stack:
        harness = stack.enter_context(Harness())
        variables = os.environ | harness.variables("a")
        command = [sys.executable, "-c", RANK_WITH_TURNS]
        rank = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
        stack.enter_context(rank)
        stack.callback(rank.kill)
        group = harness.wait_until_ready("a", 300, lambda: rank.poll() is None)
        assert group
        if dismissed:
            harness.dismiss(group)
        else:
            harness.give(group, Turn(1), 0.5)
        if lost:
            harness.hang_up("a")
        _, said = rank.communicate(timeout=300)
    assert rank.returncode == (EXIT_LOST_RANKS if lost else 0), said
    if lost:
        phase = "writing" if dismissed else "a turn"
        assert said.startswith("mnist-dist: error: rank 0 lost the harness at '127.0.0.1:")
        assert said.endswith(f"and had not ended 3 s later; it was in the phase '{phase}'.\n")
