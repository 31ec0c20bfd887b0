"""Where ranks run on a host with hardware threads, from a tree as Linux has it, and what is said of ranks that end."""

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_dist.benchmarks.records.environment import find_hardware
from mnist_dist.benchmarks.report.findings import describe_hardware
from mnist_dist.config import RuntimeConfig
from mnist_dist.cpuinfo import thread_siblings
from mnist_dist.distributed import launch
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.launch import bind_cores, run_ranks
from mnist_dist.distributed.watchdog import EXIT_LOST_RANKS
from mnist_dist.errors import EXIT_BAD_INPUT, EXIT_FAILED, TrainingError

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


@pytest.mark.parametrize(
    ("end", "ended", "exit_code"),
    [
        ("exit 2", "ended with code 2", EXIT_BAD_INPUT),
        ("exit 7", "ended with code 7", EXIT_FAILED),
        ("kill -KILL $$", "was killed by SIGKILL", EXIT_FAILED),
    ],
)
def test_who_ends_badly_ends_all_and_is_quoted(
    end: str, ended: str, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    script = f"[ $MNIST_DIST_RANK = 1 ] || exec sleep 100; echo why >&2; {end}"
    with pytest.raises(TrainingError) as caught:
        run_ranks(["sh", "-c", script], 3, strategy="multiworker")
    assert str(caught.value) == f"launch: rank 1 {ended}; all 3 ranks were stopped."
    assert (caught.value.exit_code, caught.value.quoted[-1]) == (exit_code, "  [1] why")
    assert capsys.readouterr().err == "[1] why\n"


def make_rank(number: int, phase: str, silent_seconds: float = 0.0, code: int | None = None) -> launch._Rank:
    process: Any = SimpleNamespace(returncode=code)
    return launch._Rank(number, process, phase=phase, heard=time.monotonic() - silent_seconds)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("step 20", 100.2), "rank 1 gave no sign of life for 100 s; all ranks were stopped"),
        (("step 10", 0.0), "rank 1 stayed in the phase 'step 10' while rank 0 waited in 'step 20'; all ranks were "),
        (("step 20", 0.0), "all ranks waited in the phase 'step 20' for longer than the time-out"),
    ],
)
def test_who_is_to_blame_for_a_wait_that_took_too_long(other: tuple[str, float], said: str) -> None:
    group = launch._Group([], Cluster(0, 2, 0, 2, ("n1", "n1")), None)
    group.ranks = [make_rank(0, "step 20", code=EXIT_LOST_RANKS), make_rank(1, *other)]
    error = group._explain(group.ranks[0], group._blame(group.ranks[0]))
    assert str(error).startswith(f"launch: {said}") and error.exit_code == EXIT_FAILED


def test_a_crash_says_more_than_the_complaint_of_a_rank_that_lost_its_partner() -> None:
    async def end(number: int, code: int) -> launch._Rank:
        return make_rank(number, "step 20", code=code)

    async def first_failure() -> launch._Rank | None:
        codes = [0, EXIT_LOST_RANKS, -signal.SIGSEGV, EXIT_LOST_RANKS]
        return await launch._first_failure({asyncio.create_task(end(*each)) for each in enumerate(codes)})

    failed = asyncio.run(first_failure())
    assert failed and failed.number == 2


@pytest.mark.timeout(300)
def test_ctrl_c_twice_ends_ranks_that_do_not_hear_it() -> None:
    """As while one waits, within TensorFlow, for another that is stuck."""
    deaf = ["bash", "-c", "trap '' INT; kill -INT $PPID; sleep 0.1; kill -INT $PPID; exec sleep 600"]
    with pytest.raises(KeyboardInterrupt):
        run_ranks(deaf, 1, strategy="multiworker")


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TrainingError)])
@pytest.mark.timeout(300)
def test_a_signal_reaches_ranks_that_start_after_it(
    number: signal.Signals, end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, while the first one starts: the launcher hears of it before it knows the process."""
    create, to_come = asyncio.create_subprocess_exec, [number]

    async def create_while_signalled(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*command, **options)
        if to_come:
            os.kill(os.getpid(), to_come.pop())
            await asyncio.sleep(0.05)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_while_signalled)
    with pytest.raises(end):
        run_ranks(["sleep", "600"], 2, strategy="multiworker")
