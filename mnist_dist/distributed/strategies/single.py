"""One replica in one process."""

from mnist_dist.distributed.strategies.interface import Strategy


class Single(Strategy):
    """What the interface is without a word of its own."""
