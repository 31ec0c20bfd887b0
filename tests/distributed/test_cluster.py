import os
import socket
from collections.abc import Callable, Sequence

import pytest

from mnist_dist.distributed.cluster import (
    FIRST_PORT,
    LAST_PORT,
    Cluster,
    cores_near,
    cores_of,
    find_cluster,
    free_ports,
    job_port,
)
from mnist_dist.distributed.membership import listen
from mnist_dist.distributed.strategies.horovod import horovod_environment
from mnist_dist.distributed.strategies.multiworker import tf_config

OWN = {
    "MNIST_DIST_RANK": "2",
    "MNIST_DIST_SIZE": "4",
    "MNIST_DIST_LOCAL_RANK": "0",
    "MNIST_DIST_LOCAL_SIZE": "2",
    "MNIST_DIST_HOSTS": "n9,n9,n10,n10",
    "MNIST_DIST_PORT": "20112",
}
HOROVODRUN = {
    "HOROVOD_RANK": "1",
    "HOROVOD_SIZE": "2",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_GLOO_RENDEZVOUS_PORT": "43017",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-4711@1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OLD_MPIRUN = {name: value for name, value in MPIRUN.items() if name != "PMIX_NAMESPACE"} | {
    "OMPI_MCA_ess_base_jobid": "1234567"
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Cluster()),
        ({"PATH": "/usr/bin", "SLURM_JOB_ID": "17"}, Cluster()),
        (OWN, Cluster(2, 4, 0, 2, ("n9", "n9", "n10", "n10"), 20112, "mnist-dist")),
        (HOROVODRUN, Cluster(1, 2, 1, 2, ("127.0.0.1",) * 2, job_port("43017"), "horovodrun")),
        (MPIRUN, Cluster(3, 4, 1, 2, ("127.0.0.1",) * 4, job_port("prterun-host-4711@1"), "mpirun")),
        (OLD_MPIRUN, Cluster(3, 4, 1, 2, ("127.0.0.1",) * 4, job_port("1234567"), "mpirun")),
        # Its daemons on several nodes are tasks of srun.
        (
            MPIRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
            Cluster(3, 4, 1, 2, ("127.0.0.1",) * 4, job_port("prterun-host-4711@1"), "mpirun"),
        ),
        (MPICH, Cluster(1, 2, 1, 2, ("127.0.0.1",) * 2, job_port(str(os.getppid())), "mpirun")),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"}, Cluster()),
        ({"WORLD_SIZE": "4"}, Cluster()),  # Of one's own, without a RANK.
        ({"WORLD_SIZE": "1", "RANK": "0", "TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, Cluster()),
        ({"TF_CONFIG": "nonsense"}, Cluster()),
        (OWN | {"WORLD_SIZE": "4", "RANK": "1"}, Cluster(2, 4, 0, 2, ("n9", "n9", "n10", "n10"), 20112, "mnist-dist")),
        (MPIRUN | HOROVODRUN, Cluster(1, 2, 1, 2, ("127.0.0.1",) * 2, job_port("43017"), "horovodrun")),
        (OWN | MPIRUN | HOROVODRUN, Cluster(2, 4, 0, 2, ("n9", "n9", "n10", "n10"), 20112, "mnist-dist")),
        (
            OWN
            | {"MNIST_DIST_RANK": "0", "MNIST_DIST_SIZE": "1", "MNIST_DIST_LOCAL_SIZE": "1", "MNIST_DIST_HOSTS": "n1"},
            Cluster(0, 1, 0, 1, ("n1",), 20112, "mnist-dist"),
        ),
    ],
)
def test_the_place_that_a_launcher_tells(environment: dict[str, str], expected: Cluster) -> None:
    assert find_cluster(environment) == expected


@pytest.mark.parametrize("rank", range(4))
def test_what_this_launcher_tells_is_understood(rank: int) -> None:
    cluster = Cluster(rank, 4, rank % 2, 2, ("n9", "n9", "n10", "n10"), 20112, "mnist-dist")
    assert find_cluster(cluster.to_environment()) == cluster
    assert cluster.is_chief == (rank == 0)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (OWN | {"MNIST_DIST_RANK": "two"}, "MNIST_DIST_RANK: received 'two', expected a whole number"),
        (OWN | {"MNIST_DIST_RANK": ""}, "MNIST_DIST_RANK: received '', expected a whole number"),
        (OWN | {"MNIST_DIST_PORT": "http"}, "MNIST_DIST_PORT: received 'http', expected a whole number"),
        (HOROVODRUN | {"HOROVOD_LOCAL_RANK": "1.0"}, "HOROVOD_LOCAL_RANK: received '1.0', expected a whole number"),
        (
            OWN | {"MNIST_DIST_RANK": "4"},
            "mnist-dist: received rank 4 of 4 and local rank 0 of 2, expected ranks from 0",
        ),
        (OWN | {"MNIST_DIST_RANK": "-1"}, "mnist-dist: received rank -1 of 4"),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, "mpirun: received rank 3 of 4 and local rank 2 of 2"),
        (HOROVODRUN | {"HOROVOD_SIZE": "0"}, "horovodrun: received rank 1 of 0"),
        (OWN | {"MNIST_DIST_HOSTS": "n9,n10"}, "mnist-dist: received hosts: 2, expected one for each of 4 ranks."),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2"},
            "PMI_SIZE: received 2 processes of an mpirun that sets no MPI_LOCALRANKID",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "4"},
            "WORLD_SIZE: received 4 processes of torchrun, which is not supported; start them with "
            "--devices 4, srun, or Open MPI's, MPICH's or Intel MPI's mpirun, or unset WORLD_SIZE.",
        ),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "3"}, "FLUX_JOB_SIZE: received 3 processes of flux run"),
        (
            {"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}'},
            "TF_CONFIG: received 2 processes of another launcher, which is not supported",
        ),
        (OWN | {"MNIST_DIST_HOSTS": ""}, "mnist-dist: received hosts: 1, expected one for each of 4 ranks."),
    ],
)
def test_contradictions(environment: dict[str, str], line: str, user_error: Callable[..., str]) -> None:
    assert user_error(find_cluster, environment).startswith(line)


@pytest.mark.parametrize("launcher", [OWN, HOROVODRUN, MPIRUN, MPICH])
def test_a_missing_variable_is_named(launcher: dict[str, str], user_error: Callable[..., str]) -> None:
    required = [name for name in launcher if name.endswith(("SIZE", "LOCAL_RANK", "LOCALRANKID", "MNIST_DIST_PORT"))]
    assert len(required) >= 2
    for missing in required:
        environment = {name: value for name, value in launcher.items() if name != missing}
        assert user_error(find_cluster, environment).startswith(f"{missing}: received None, expected a whole number")


# --- Ports ---


def test_the_ranks_of_a_job_derive_the_same_port_and_other_jobs_another() -> None:
    ports = [job_port(str(job)) for job in range(1000)]
    assert ports == [job_port(str(job)) for job in range(1000)]
    assert all(port >= FIRST_PORT and port + 16 <= LAST_PORT for port in ports)
    assert len(set(ports)) > 400, "jobs would often meet"
    assert min(abs(one - other) for one in set(ports) for other in set(ports) if one != other) >= 16


@pytest.mark.parametrize("count", [1, 5, 40])
def test_neighbouring_ports_are_held_for_those_who_are_told_them(count: int) -> None:
    with free_ports(count) as first:
        assert first >= FIRST_PORT and first + count <= LAST_PORT
        for port in range(first, first + count):
            with pytest.raises(OSError, match="in use"), socket.socket() as another:
                another.bind(("", port))  # As whoever looks for a free port does.
            for host in ("127.0.0.1", ""):
                listen(host, port, 1).close()  # As a rank does.
    with socket.socket() as another:
        another.bind(("", first))


# --- Cores ---


@pytest.mark.parametrize(
    ("ranks", "cores", "shares"),
    [
        (1, [0, 1, 2, 3], [[0, 1, 2, 3]]),
        (2, [0, 1, 2, 3], [[0, 1], [2, 3]]),
        (2, [1, 3, 4, 6, 7], [[1, 3], [4, 6, 7]]),
        (3, [0, 1, 2, 3, 4, 5, 6, 7], [[0, 1], [2, 3, 4], [5, 6, 7]]),
        (2, [5], [[5], [5]]),
        (4, [0, 1], [[0], [0], [1], [1]]),
        (3, [0, 1], [[0], [0], [1]]),
    ],
)
def test_shares_of_cores(ranks: int, cores: list[int], shares: list[list[int]]) -> None:
    assert [cores_of(rank, ranks, cores, siblings=lambda core: [core]) for rank in range(ranks)] == shares


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("count", [1, 2, 6, 16, 61])
def test_all_cores_are_used_and_shared_only_when_they_are_few(ranks: int, count: int) -> None:
    shares = [cores_of(rank, ranks, range(count), siblings=lambda core: [core]) for rank in range(ranks)]
    used = [core for share in shares for core in share]
    assert set(used) == set(range(count))
    assert all(share == list(range(share[0], share[-1] + 1)) for share in shares), "not neighbours"
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert len(used) == max(count, ranks)


@pytest.mark.parametrize(
    ("ranks", "cores", "shares"),
    [
        (1, range(4), [[0, 1, 2, 3]]),
        (2, range(4), [[0, 2], [1, 3]]),
        (2, range(8), [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (3, range(8), [[0, 4], [1, 5], [2, 3, 6, 7]]),
        (2, [0, 1, 4], [[0, 4], [1]]),  # Of a job that has not all threads.
        (4, range(4), [[0], [1], [2], [3]]),  # More ranks than physical cores: each has a thread.
    ],
)
def test_ranks_share_no_physical_core_while_there_are_enough(
    ranks: int, cores: Sequence[int], shares: list[list[int]]
) -> None:
    """Linux numbers the second threads behind all first ones."""
    half = 2 if cores == range(4) else 4
    got = [
        cores_of(rank, ranks, cores, siblings=lambda core: [core % half, core % half + half]) for rank in range(ranks)
    ]
    assert got == shares


LEFT, RIGHT = frozenset(range(4)), frozenset(range(4, 8))


@pytest.mark.parametrize(
    ("near", "cores", "shares"),
    [
        ([RIGHT, LEFT], range(8), [[4, 5, 6, 7], [0, 1, 2, 3]]),
        ([LEFT, LEFT, RIGHT, RIGHT], range(8), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ([LEFT, RIGHT, LEFT], range(8), [[0, 1], [4, 5, 6, 7], [2, 3]]),
        ([RIGHT, LEFT], [1, 5, 6], [[5, 6], [1]]),
        ([LEFT | RIGHT] * 2, range(8), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([RIGHT, LEFT], [0, 1], [[0], [1]]),  # A job that may use one node only.
        ([LEFT | RIGHT, LEFT], range(8), [[0, 1, 2, 3], [4, 5, 6, 7]]),  # Else ranks would share cores.
        ([LEFT, RIGHT, RIGHT], [0, 1, 4], [[0], [1], [4]]),  # So would two on core 4.
        ([frozenset(), frozenset()], range(4), [[0, 1], [2, 3]]),  # The driver does not tell.
    ],
)
def test_ranks_compute_near_their_gpus(near: list[frozenset[int]], cores: list[int], shares: list[list[int]]) -> None:
    places = [cores_near(rank, len(near), cores, near) for rank in range(len(near))]
    assert [cores_of(*place, siblings=lambda core: [core]) for place in places] == shares


def test_gpus_that_ranks_do_not_take_count_for_nothing() -> None:
    assert cores_near(0, 1, range(8), [RIGHT, LEFT]) == (0, 1, [4, 5, 6, 7])
    assert cores_near(1, 2, range(8), [RIGHT]) == (1, 2, range(8))


def test_what_strategies_make_of_ipv6_addresses(user_error: Callable[..., str]) -> None:
    cluster = Cluster(0, 2, 0, 1, ("n1", "n2"), 20112, "srun", ("2001:db8::1", "n2"))
    assert tf_config(cluster)["cluster"]["worker"] == ["[2001:db8::1]:20113", "n2:20114"]
    assert user_error(horovod_environment, cluster, "lo", 5.0) == (
        "node n1: no IPv4 address is known for '2001:db8::1', which Horovod needs; take --strategy multiworker."
    )
