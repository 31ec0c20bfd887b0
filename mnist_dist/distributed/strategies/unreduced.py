"""What a strategy is without its communication."""

from mnist_dist.distributed.strategies.interface import Strategy


class Unreduced(Strategy):
    """The steps of a strategy whose replicas keep gradients and metrics to themselves, and never wait for one another.

    What it trains is wrong; how long its steps take says what communication costs.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.shard, self.is_chief = strategy.shard, strategy.is_chief
        self.run, self.local_sum = strategy.run, strategy.local_sum  # type: ignore[method-assign]
