"""The address of its own by which a rank meets the others, and ranks that would share a GPU."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.membership import make_secret
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.errors import TrainingError
from tests import nvml
from tests.ports import free_port


def test_all_ranks_come_and_learn_an_address_of_their_own_family() -> None:
    """Also where the chief listens to IPv6 as well, in whose form IPv4's addresses would name no interface."""
    hosts, port = ("localhost",) * 2, free_port(4)
    ranks = [Cluster(rank, 2, rank, 2, hosts, port, "srun", ("127.0.0.2",) * 2) for rank in range(2)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda cluster: roll_call(cluster, 30), ranks)) == ["127.0.0.2", "127.0.0.1"]


def test_the_shell_of_a_step_that_has_ended_is_told_what_to_unset() -> None:
    with pytest.raises(TrainingError) as caught:
        roll_call(Cluster(0, 2, 0, 2, ("n1",) * 2, free_port(4), "srun", ("127.0.0.1",) * 2), 0.2)
    assert str(caught.value).endswith(" within 0.2 s. If srun has not started them, unset SLURM_STEP_NUM_TASKS.")


@pytest.mark.parametrize(
    ("gpus", "shared"),
    [
        (["GPU-a", "GPU-b", "GPU-c"], None),
        (["", "", ""], None),  # Nobody knows any.
        (["GPU-a", "", ""], None),
        (["GPU-a", "GPU-b", "GPU-b"], "rank 2 and rank 1 (n2) would share the GPU GPU-b, expected one for each"),
        (["MIG-GPU-" + 52 * "a"] * 3, f"rank 1 and rank 0 (n1) would share the GPU MIG-GPU-{52 * 'a'}, expected"),
        (["x" * 100 + str(rank) for rank in range(3)], "would share the GPU " + "x" * 64),  # No longer than a UUID.
    ],
)
def test_ranks_that_would_share_a_gpu_are_named(gpus: list[str], shared: str | None) -> None:
    port, secret = free_port(5), make_secret()

    def call(rank: int) -> str:
        place = Cluster(rank, 3, rank % 2, 2, ("n1", "n1", "n2"), port, "srun", ("127.0.0.1",) * 3, secret)
        try:
            return roll_call(place, 30, gpus[rank] if rank else gpus[0][:64])
        except TrainingError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        chief, *others = pool.map(call, range(3))
    if shared is None:
        assert [chief, *others] == ["127.0.0.1"] * 3
    else:
        assert chief.startswith("launch: ") and shared in chief
        assert all("was turned away by rank 0 (n1" in line for line in others)


@pytest.mark.parametrize(("visible", "expected"), [(None, ["GPU-0", "GPU-1"]), ("1", ["GPU-1"] * 2), ("", ["", ""])])
def test_the_gpu_of_a_rank(driver: Path, visible: str | None, expected: list[str]) -> None:
    code = "from mnist_dist.gpus import own_gpu; print([own_gpu(rank) for rank in range(2)])"
    environment = nvml.environment(driver, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == repr(expected)
