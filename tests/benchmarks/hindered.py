"""`mnist-dist` with something that is slow in runs of several ranks: python hindered.py WHAT train ...

WHAT is input, rank, all-reduce or nothing.

The launcher starts its ranks as `python -m mnist_dist`. What this program changes in its own process would not reach
them, so it makes the launcher start its ranks through this program as well, and leaves all else as it is.

Every step, that of a single device too, takes a little longer, as with a larger network. The few milliseconds of the
tests' small one would otherwise drown in the noise of a machine that does other work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

STEP_SECONDS = 0.05  # Of each step on each rank, at least.
DELAY_SECONDS = 0.1  # Of what is hindered, in each step.
SLOW_RANK = 1


def main() -> None:
    what = sys.argv.pop(1)

    from mnist_dist.__main__ import run
    from mnist_dist.distributed import launch
    from mnist_dist.distributed.cluster import find_cluster
    from mnist_dist.distributed.strategies.horovod import Horovod
    from mnist_dist.distributed.strategies.single import Single

    original = launch.run_ranks

    def run_hindered_ranks(command: Sequence[str], ranks: int, **options: Any) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "mnist_dist"], command
        original([sys.executable, __file__, what, *command[3:]], ranks, **options)

    launch.run_ranks = run_hindered_ranks
    lengthen_steps(Single)
    lengthen_steps(Horovod)
    cluster = find_cluster(os.environ)
    if cluster.size > 1:
        HINDERED[what](cluster.rank)
    run()


def hinder_input(rank: int) -> None:
    """Each batch comes late."""
    import tensorflow as tf

    from mnist_dist.data import dataset

    original = dataset.make_train_dataset

    def make_slow_dataset(*arguments: Any, **options: Any) -> Any:
        batches = original(*arguments, **options)
        slow = batches.map(lambda images, labels: tuple(late([images, labels], DELAY_SECONDS)))
        pipeline = tf.data.Options()
        pipeline.experimental_optimization.inject_prefetch = False  # It would hide the delay behind the step.
        return slow.with_options(pipeline)

    dataset.make_train_dataset = make_slow_dataset


def hinder_rank(rank: int) -> None:
    """One rank computes each step for longer."""
    from mnist_dist.distributed.strategies.horovod import Horovod

    if rank == SLOW_RANK:
        lengthen_steps(Horovod, DELAY_SECONDS)


def hinder_all_reduce(rank: int) -> None:
    """The gradients travel for longer, on all ranks."""
    from mnist_dist.distributed.strategies.horovod import Horovod

    original = Horovod.reduce
    Horovod.reduce = lambda self, tensor: original(self, *late([tensor], DELAY_SECONDS))


HINDERED: dict[str, Callable[[int], None]] = {
    "input": hinder_input,
    "rank": hinder_rank,
    "all-reduce": hinder_all_reduce,
    "nothing": lambda rank: None,
}


def lengthen_steps(strategy: type, seconds: float = STEP_SECONDS) -> None:
    original = strategy.run

    def run(self: Any, step: Callable[..., Any], batch: Any, **options: Any) -> Any:
        return original(self, step, late(batch, seconds), **options)

    strategy.run = run


def late(tensors: Sequence[Any], seconds: float) -> list[Any]:
    """Returns the tensors, so many seconds after they are there."""
    import numpy as np
    import tensorflow as tf

    def wait() -> np.int32:
        time.sleep(seconds)
        return np.int32(0)

    with tf.control_dependencies(list(tensors)):
        waited = tf.numpy_function(wait, [], tf.int32)
    with tf.control_dependencies([waited]):
        return [tf.identity(tensor) for tensor in tensors]


if __name__ == "__main__":
    main()
