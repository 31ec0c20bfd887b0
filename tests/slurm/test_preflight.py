"""What is found before a job starts: by the rules on reports, and by real ranks under srun."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_dist.distributed.cluster import Cluster as Place
from mnist_dist.distributed.membership import make_secret
from mnist_dist.gpus import DEVICES
from mnist_dist.slurm.preflight import Clock, Report, ask_driver, check, compare, hidden_peers, measure_clock, ranges
from tests import nvml
from tests.ports import free_port
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import ROOT

VERSIONS = {"python": "3.11.7", "tensorflow": "2.21.0"}


def make_reports(**changes: object) -> list[Report]:
    """Four ranks on two nodes with two GPUs each, as they should be, but for changes to rank 3."""
    reports = [
        Report(
            rank=rank,
            node=f"n{9 + rank // 2}",
            cores=(4 * (rank % 2), 4 * (rank % 2) + 1),
            host_cores=8,
            asked_cores=2,
            bound=True,
            gpus=("GPU-a", "GPU-b"),
            promised_gpus=2,
            versions=VERSIONS,
        )
        for rank in range(4)
    ]
    return [*reports[:3], dataclasses.replace(reports[3], **changes)]  # type: ignore[arg-type]


CLOCKS = {rank: Clock() for rank in range(4)}


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"cores": (4,)}, "node n10: rank 3 may use 1 of the host's 8 cores (4), expected 2 (--cpus-per-task)"),
        ({"cores": (0, 1)}, "node n10: rank 2 and rank 3 are bound to the same cores (0-1); see --cpu-bind"),
        ({"gpus": ()}, "node n10: rank 3 sees no GPU, though Slurm allocated 2 to the job there"),
        ({"gpus": ("GPU-a",)}, "node n10: rank 3 would use the same GPU as rank 2 (GPU-a)"),
        (
            {"versions": {**VERSIONS, "tensorflow": "2.20.0"}},
            "node n10: rank 3 has tensorflow 2.20.0, but rank 0 on node n9 has 2.21.0",
        ),
        (
            {"versions": {"python": "3.11.7"}},
            "node n10: rank 3 has tensorflow none, but rank 0 on node n9 has 2.21.0",
        ),
        ({"troubles": ("node n10: cannot reach node n9",)}, "node n10: cannot reach node n9"),
    ],
)
def test_one_finding_for_one_fault(changes: dict[str, object], finding: str) -> None:
    assert compare(make_reports(), CLOCKS) == []
    assert compare(make_reports(**changes), CLOCKS) == [finding]


@pytest.mark.parametrize(
    ("clock", "finding"),
    [
        (Clock(0.9, 0.0), None),
        (Clock(3.0, 2.5), None),  # The way there and back may be all of it.
        (Clock(3.0, 0.1), "node n10: rank 3 has a clock 3.0 s ahead of rank 0's; start NTP there"),
        (Clock(-60.04, 0.1), "node n10: rank 3 has a clock 60.0 s behind rank 0's; start NTP there"),
    ],
)
def test_clocks(clock: Clock, finding: str | None) -> None:
    assert compare(make_reports(), CLOCKS | {3: clock}) == ([finding] if finding else [])


@pytest.mark.parametrize("ahead", [60.0, -60.0])
def test_the_clock_that_was_asked_fastest_is_what_counts(ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rank whose clock is ahead, or behind, and to which each question takes another time."""
    now, delays = 1000.0, iter([(0.5, 0.25), (0.125, 0.0625), (0.25, 4.0)])  # There, and back.

    class Far:
        def send(self, question: object) -> None:
            nonlocal now
            there, self.back = next(delays)
            now += there

        def receive(self) -> dict[str, float]:
            nonlocal now
            told = {"time": now + ahead}
            now += self.back
            return told

    monkeypatch.setattr(time, "time", lambda: now)
    clock = measure_clock(Far())  # type: ignore[arg-type]
    assert (clock.ahead_seconds, clock.error_seconds) == (ahead + 0.03125, 0.09375)


def test_gpus_shared_out_by_slurm() -> None:
    """Bound tasks see one GPU each, which without the driver's word has the same name in each task."""
    own = [dataclasses.replace(report, gpus=(f"GPU-{report.rank}",)) for report in make_reports()]
    assert compare(own, CLOCKS) == []
    nameless = [dataclasses.replace(report, gpus=("0",)) for report in make_reports()]
    assert compare(nameless, CLOCKS) == []
    expected = "each rank sees only its own GPU, so NCCL may have to go through host memory; see --gpu-bind=none"
    assert list(hidden_peers(own)) == [f"node {node}: {expected}" for node in ("n9", "n10")]
    assert list(hidden_peers(make_reports())) == []


def test_fewer_gpus_than_ranks() -> None:
    reports = [dataclasses.replace(report, node="n9", cores=(report.rank,), asked_cores=1) for report in make_reports()]
    findings = compare(reports, CLOCKS)
    assert len(findings) == 4
    assert findings[0].startswith("node n9: rank 0 sees 2 GPUs for the 4 ranks there, expected one each")


def test_cores_without_binding_may_be_shared() -> None:
    unbound = [dataclasses.replace(report, cores=tuple(range(8)), bound=False) for report in make_reports()]
    assert compare(unbound, CLOCKS) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ["GPU-0", "GPU-1"]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["GPU-1", "GPU-0"]),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, ["GPU-0"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, ["GPU-1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"FORBID": "nvmlDeviceGetUUID"}, ["0", "1"]),
    ],
)
def test_what_the_driver_tells(driver: Path, environment: dict[str, str], expected: list[str]) -> None:
    code = "import os; from mnist_dist.slurm.preflight import ask_driver; print(*ask_driver(os.environ))"
    command, surroundings = [sys.executable, "-c", code], nvml.environment(driver, **environment)
    done = subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"{expected} {{'NVIDIA driver': '550.54.15'}}"


@pytest.mark.parametrize(
    ("cuda", "variables", "expected"),
    [
        (True, {"HEALTHY": "1"}, []),
        (False, {"CUDA_VISIBLE_DEVICES": "-1"}, []),
        (False, {"HEALTHY": "1"}, ["libcudart.so.12, libcublas.so.12, libcudnn.so.9, libnccl.so.2, "]),
        (True, {"CUDA_VISIBLE_DEVICES": "0"}, ["GPU-0: its memory had 3 uncorrected ECC errors"]),
        (
            True,
            {"FORBID": "nvmlDeviceGetTotalEccErrors"},
            ["GPU-1: its clock is throttled by temperature before anything runs"],
        ),
    ],
)
def test_gpus_that_are_not_well(
    driver: Path, tmp_path: Path, cuda: bool, variables: dict[str, str], expected: list[str]
) -> None:
    """The driver answers in all cases; the libraries are those that the real loader finds."""
    environment = {name: each for name, each in os.environ.items() if not name.startswith("SLURM")}
    environment |= nvml.environment(driver, cuda=cuda, SLURMD_NODENAME="n7", **variables)
    command = [sys.executable, "-m", "mnist_dist.slurm.preflight", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == bool(expected) and len(lines) == len(expected), done
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith(f"pre-flight: node n7: {text}")


def test_cores_far_from_the_gpu_are_told_and_end_nothing(driver: Path, tmp_path: Path) -> None:
    """GPU 1 is near the first cores, GPU 0 near one that this process may not use."""
    first = min(os.sched_getaffinity(0))
    environment = {name: each for name, each in os.environ.items() if not name.startswith("SLURM")}
    code = f"import os; os.sched_setaffinity(0, [{first}]); from mnist_dist.slurm.preflight import main; exit(main())"
    said = []
    for gpu in ("0", "1"):
        environment |= nvml.environment(
            driver, cuda=True, HEALTHY="1", SLURMD_NODENAME="n7", NEAR="1", CUDA_VISIBLE_DEVICES=gpu
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done
        said.append(done.stderr)
    place = f"pre-flight: note: node n7: rank 0 is bound to cores {first}, but its GPU GPU-0 is near cores 70;"
    assert said[0] == f"{place} see --cpu-bind\n"
    assert said[1] == "" or first > 1


@pytest.mark.skipif(DEVICES.joinpath("nvidia0").exists(), reason="needs a machine without a driver")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, ["0", "1"]),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, ["0", "1"]),
    ],
)
def test_without_a_driver_variables_name_the_gpus(
    environment: dict[str, str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_driver(environment) == (expected, {})
    (tmp_path / "nvidia-smi").touch(0o755)
    assert ask_driver(environment) == ([], {}), "there should be a driver"


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")])
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.slow
def test_strangers_that_come_first(tmp_path: Path) -> None:
    """A hundred that say nothing at each port, and one that greets as rank 1 once did."""
    here = Place(hosts=("n9", "n10"), size=2, addresses=("127.0.0.1",) * 2, port=free_port(4), secret=make_secret())
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        rank_0 = pool.submit(check, here, tmp_path, 30)
        strangers = []
        for port in (here.port, here.port + 1):
            assert wait_until(lambda port=port: is_open(port), 20)
            strangers += [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(100)]
            strangers[-1].sendall(b'{"rank": 1}\n')
        rank_1 = pool.submit(check, dataclasses.replace(here, rank=1), tmp_path, 30)
        assert (rank_0.result(), rank_1.result()) == ([], [])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


PREFLIGHT = f"{sys.executable} -m mnist_dist.slurm.preflight"


# --- Under a real srun ---


def preflight(
    cluster: Cluster, folder: Path, *flags: str, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [
        "srun",
        "--mpi=none",
        "--distribution=block",
        *flags,
        *before,
        *PREFLIGHT.split(),
    ]
    return cluster.run(*command, str(folder), env={"PYTHONPATH": str(ROOT)}, check=False)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--nodes=2", "--ntasks=3"], "3 ranks on 2 nodes (n9 n10), no GPUs"),
        (["--nodelist=n9", "--ntasks=1"], "1 rank on 1 node (n9), no GPUs"),
        (
            ["--partition=gpu", "--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=2"],
            "8 ranks on 4 nodes (rack1n1 rack1n2 rack2n1 rack2n2), 8 GPUs",
        ),
    ],
)
def test_all_is_well(slurm: Cluster, tmp_path: Path, flags: list[str], line: str) -> None:
    done = preflight(slurm, tmp_path / "new folder", *flags)
    assert done.returncode == 0 and "pre-flight" not in done.stderr, done.stderr
    assert done.stdout.startswith(f"pre-flight: {line}; the folder is shared, versions are equal, clocks within 0.0")
    assert list((tmp_path / "new folder").iterdir()) == []


def test_gpus_that_slurm_gave_but_a_rank_does_not_see(slurm: Cluster, tmp_path: Path) -> None:
    flags = ["--partition=gpu", "--nodelist=rack1n[1-2]", "--ntasks-per-node=2", "--gpus-per-node=2"]
    done = preflight(slurm, tmp_path, *flags, before=("env", "CUDA_VISIBLE_DEVICES="))
    assert done.returncode == 1
    assert "pre-flight: node rack1n2: rank 3 sees no GPU, though Slurm allocated 2 to the job there" in done.stderr
    done = preflight(slurm, tmp_path, *flags[:2], "--ntasks-per-node=3", flags[3])
    assert "pre-flight: node rack1n1: rank 0 sees 2 GPUs for the 3 ranks there" in done.stderr


def test_tasks_that_slurm_has_bound(binding_slurm: Cluster, tmp_path: Path) -> None:
    done = preflight(binding_slurm, tmp_path, "--nodes=2", "--ntasks-per-node=2")
    assert done.returncode == 0, done.stderr
    done = preflight(binding_slurm, tmp_path, "--nodes=2", "--ntasks-per-node=2", "--cpu-bind=map_cpu:0,0")
    assert done.returncode == 1
    assert "pre-flight: node n10: rank 2 and rank 3 are bound to the same cores (0); see --cpu-bind" in done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_fewer_cores_than_asked_for(slurm: Cluster, tmp_path: Path) -> None:
    core = str(min(os.sched_getaffinity(0)))
    done = preflight(slurm, tmp_path, "--nodes=2", "--ntasks=2", "--cpus-per-task=2", before=("taskset", "-c", core))
    assert done.returncode == 1
    assert f"pre-flight: node n10: rank 1 may use 1 of the host's {os.cpu_count()} cores ({core})" in done.stderr


def test_a_folder_that_only_one_node_has(slurm: Cluster, tmp_path: Path) -> None:
    link = tmp_path / "results"
    node = f"mkdir -p {tmp_path}/$SLURMD_NODENAME && exec unshare --mount bash -c "
    mount = f'\'mkdir -p {link}; mount --bind {tmp_path}/$SLURMD_NODENAME {link} && exec "$0" "$@"\''
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a folder of each node's own needs the right to mount")
    done = preflight(slurm, link, "--nodes=2", "--ntasks=2", before=("bash", "-c", f'{node}{mount} "$0" "$@"'))
    assert done.returncode == 1
    assert (
        f"pre-flight: node n10: rank 1 cannot read in '{link}' what rank 0 on node n9 wrote "
        "(No such file or directory); expected a folder that all nodes share"
    ) in done.stderr


def test_a_folder_that_cannot_be_written(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = preflight(slurm, tmp_path / "file" / "results", "--nodes=2", "--ntasks=2")
    assert done.returncode == 1
    assert "pre-flight: node n9: rank 0 cannot write into the folder" in done.stderr


def test_another_version_on_one_node(slurm: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other" / "numpy-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    script = f'[ $SLURM_PROCID = 1 ] && export PYTHONPATH={other.parent}:$PYTHONPATH; exec "$0" "$@"'
    done = preflight(slurm, tmp_path, "--nodes=2", "--ntasks=2", before=("bash", "-c", script))
    assert done.returncode == 1
    assert "pre-flight: node n10: rank 1 has numpy 1.0, but rank 0 on node n9 has " in done.stderr


def test_a_rank_that_never_comes_is_named(slurm: Cluster, tmp_path: Path) -> None:
    script = f'[ $SLURM_PROCID = 2 ] && exec sleep 100; exec {PREFLIGHT} --join-seconds 15 "$0"'
    command = ["srun", "--mpi=none", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=3", "bash", "-c", script]
    begun = time.monotonic()
    done = slurm.run(*command, str(tmp_path), env={"PYTHONPATH": str(ROOT)}, check=False)
    assert time.monotonic() - begun < 90, "it waited for the sleeper"
    assert done.returncode in (1, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
    assert "pre-flight: rank 2 on node n10 did not reach node n9 within 15 s" in done.stderr


def test_a_rank_that_dies_in_between_is_named(slurm: Cluster, tmp_path: Path) -> None:
    """It has come, but ends before it has reported."""
    dies = "import os, mnist_dist.slurm.preflight as check; check.look_around = lambda *_: os._exit(0); check.main()"
    script = f"[ $SLURM_PROCID = 1 ] && exec {sys.executable} -c '{dies}' $0; exec {PREFLIGHT} $0"
    command = ["srun", "--mpi=none", "--nodes=2", "--ntasks=3", "bash", "-c", script, str(tmp_path)]
    done = slurm.run(*command, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 1
    assert "pre-flight: node n9: rank 1 stopped responding (connection closed)" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
