"""From what a user and the launcher say to the strategy of a run."""

from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.errors import UserError
from mnist_dist.strategies import STRATEGIES, choose, either, with_processes


def resolve_strategy(config: RuntimeConfig, cluster: Cluster) -> RuntimeConfig:
    """Replaces `auto` and completes the number of devices; raises UserError where these and the launcher disagree."""
    several = cluster.launcher != "none"
    name = config.strategy
    if name == "auto":
        name = choose(config.devices, launched=several)
    row = STRATEGIES[name]
    if several and row.one_process and cluster.size > 1:
        raise UserError(
            f"runtime.strategy: received '{name}', which is one process, but {cluster.launcher} started "
            f"{cluster.size}; expected {either(with_processes())}."
        )
    knows_hosts = cluster.launcher in ("mnist-dist", "srun", row.launcher)
    if several and cluster.local_size < cluster.size and not knows_hosts:
        others = either(f"`{other.launcher}` with {other.name}" for other in STRATEGIES.values() if other.launcher)
        raise UserError(
            f"runtime.strategy: received '{name}' on several hosts under {cluster.launcher}, which does not tell a "
            f"rank the hosts of the others; expected one host, srun, or {others}."
        )
    devices = config.devices
    if several and devices == 1:
        devices = cluster.size
    if several and devices != cluster.size:
        raise UserError(
            f"runtime.devices: received {devices}, but {cluster.launcher} started {cluster.size} processes; "
            "leave it out."
        )
    if devices != 1 and not row.several_devices:
        raise UserError(f"runtime.devices: received {devices}, expected 1 with the strategy '{name}'.")
    return config.model_copy(update={"strategy": name, "devices": devices})


def make_strategy(config: RuntimeConfig, cluster: Cluster) -> Strategy:
    """Returns the resolved strategy; see `Strategy.make`."""
    strategy: type[Strategy] = STRATEGIES[config.strategy].load()
    return strategy.make(config, cluster)
