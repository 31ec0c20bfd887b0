"""Where ranks run on a host with hardware threads, from a tree as Linux has it, and what a record says of it."""

import os
from pathlib import Path

import pytest

from mnist_dist.benchmarks.records.environment import find_hardware
from mnist_dist.benchmarks.report.findings import describe_hardware
from mnist_dist.config import RuntimeConfig
from mnist_dist.cpuinfo import thread_siblings
from mnist_dist.distributed import launch
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.launch import bind_cores

SHARED = "cores: {} ranks share 2 physical cores of this host and are slower for it; 2 would have one each.\n"


@pytest.mark.parametrize(
    ("siblings", "ranks", "bound", "line"),
    [
        (["0,2", "1,3", "0,2", "1,3"], 2, [{0, 2}, {1, 3}], ""),
        (["0-1", "0-1", "2-3", "2-3"], 2, [{0, 1}, {2, 3}], ""),
        (["0,2", "1,3", "0,2", "1,3"], 3, [{0}, {1}, {2, 3}], SHARED.format(3)),
        (["0-1", "0-1", "2-3", "2-3"], 5, [{0}, {0}, {1}, {2}, {3}], SHARED.format(5)),
        (["0", "1"], 2, [{0}, {1}], ""),
        (["0", "1"], 4, [{0}, {0}, {1}, {1}], SHARED.format(4)),
    ],
)
def test_hardware_threads_are_not_split_between_ranks(
    siblings: list[str],
    ranks: int,
    bound: list[set[int]],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for core, text in enumerate(siblings):
        (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(f"{text}\n")
    monkeypatch.setattr(thread_siblings, "__defaults__", (tmp_path,))
    monkeypatch.setattr(launch, "cores_near_gpus", lambda: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(len(siblings))))
    found: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: found.append(set(cores)))
    for rank in range(ranks):
        bind_cores(Cluster(rank, ranks, rank, ranks, ("n1",) * ranks, launcher="mnist-dist"))
    assert (found, capsys.readouterr().err) == (bound, line)
    hardware = find_hardware.__wrapped__()
    assert hardware.threads_per_core == len(thread_siblings(0))
    assert ("2 hardware threads per physical core" in describe_hardware(hardware)) == (len(siblings) == 4)


@pytest.mark.parametrize(("is_bound_by_slurm", "bound"), [(False, [{2, 3}, {0, 1}]), (True, [])])
def test_ranks_are_bound_near_their_gpus_unless_slurm_has_bound_them(
    is_bound_by_slurm: bool, bound: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPU_BIND_TYPE", "mask_cpu:" if is_bound_by_slurm else "none")
    monkeypatch.setattr(launch, "cores_near_gpus", lambda: [frozenset({2, 3, 9}), frozenset({0, 1, 8})])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    found: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: found.append(set(cores)))
    for rank in range(2):
        bind_cores(Cluster(rank, 2, rank, 2, ("n1", "n1"), launcher="srun"))
    assert found == bound


def test_a_rank_tells_which_gpu_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roll call compares them."""
    told: list[str] = []

    def hear(cluster: Cluster, seconds: float, gpu: str) -> str:
        told.append(gpu)
        return "127.0.0.1"

    monkeypatch.setattr(launch, "bind_cores", lambda cluster: None)
    monkeypatch.setattr(launch, "roll_call", hear)
    monkeypatch.setattr(launch, "own_gpu", lambda local_rank: f"GPU-{local_rank}")
    with launch.join_ranks(
        Cluster(3, 4, 1, 2, ("n1", "n1", "n2", "n2"), launcher="srun"), RuntimeConfig(strategy="multiworker")
    ):
        assert told == ["GPU-1"]
