from collections.abc import Callable

import pytest

from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.strategies.resolve import make_strategy, resolve_strategy
from mnist_dist.distributed.strategies.single import Single

ALONE = Cluster()


def ranks(launcher: str, size: int = 2, local_size: int = 2) -> Cluster:
    hosts = tuple(f"n{rank // local_size}" for rank in range(size))
    return Cluster(0, size, 0, local_size, hosts, launcher=launcher)


@pytest.mark.parametrize(
    ("strategy", "devices", "cluster", "resolved"),
    [
        ("auto", 1, ALONE, ("single", 1)),
        ("auto", 4, ALONE, ("mirrored", 4)),
        ("auto", 1, ranks("srun"), ("horovod", 2)),
        ("auto", 2, ranks("mpirun"), ("horovod", 2)),
        ("multiworker", 1, ranks("srun", 4), ("multiworker", 4)),
        ("multiworker", 3, ALONE, ("multiworker", 3)),
        ("mirrored", 2, ALONE, ("mirrored", 2)),
        ("horovod", 1, ranks("horovodrun", 4), ("horovod", 4)),  # On two hosts.
        ("single", 1, ranks("mpirun", 1, 1), ("single", 1)),
    ],
)
def test_what_goes_together(strategy: str, devices: int, cluster: Cluster, resolved: tuple[str, int]) -> None:
    found = resolve_strategy(RuntimeConfig(strategy=strategy, devices=devices), cluster)
    assert (found.strategy, found.devices) == resolved


@pytest.mark.parametrize(
    ("strategy", "devices", "cluster", "line"),
    [
        (
            "mirrored",
            2,
            ranks("srun"),
            "runtime.strategy: received 'mirrored', which is one process, but srun started 2; "
            "expected multiworker or horovod.",
        ),
        (
            "multiworker",
            1,
            ranks("horovodrun", 4),
            "runtime.strategy: received 'multiworker' on several hosts under horovodrun, which does not tell a rank "
            "the hosts of the others; expected one host, srun, or `horovodrun` with horovod.",
        ),
        ("horovod", 3, ranks("srun"), "runtime.devices: received 3, but srun started 2 processes; leave it out."),
        ("single", 2, ALONE, "runtime.devices: received 2, expected 1 with the strategy 'single'."),
    ],
)
def test_what_contradicts(
    strategy: str, devices: int, cluster: Cluster, line: str, user_error: Callable[..., str]
) -> None:
    assert user_error(resolve_strategy, RuntimeConfig(strategy=strategy, devices=devices), cluster) == line


@pytest.mark.slow
def test_making_one() -> None:
    pytest.importorskip("tensorflow")
    assert type(make_strategy(RuntimeConfig(strategy="single"), ALONE)) is Single
