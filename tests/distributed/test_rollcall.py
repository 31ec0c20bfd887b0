"""The address of its own by which a rank meets the others."""

from concurrent.futures import ThreadPoolExecutor

from mnist_dist.distributed.cluster import Cluster, free_port
from mnist_dist.distributed.rollcall import roll_call


def test_all_ranks_come_and_learn_an_address_of_their_own_family() -> None:
    """Also where the chief listens to IPv6 as well, in whose form IPv4's addresses would name no interface."""
    hosts, port = ("localhost",) * 2, free_port(4)
    ranks = [Cluster(rank, 2, rank, 2, hosts, port, "srun", ("127.0.0.2",) * 2) for rank in range(2)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda cluster: roll_call(cluster, 30), ranks)) == ["127.0.0.2", "127.0.0.1"]
