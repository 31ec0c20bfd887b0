"""Checks the ranks of a job step against one another before anything heavy starts, in seconds and in plain words.

`srun ... python -m mnist_dist.slurm.preflight DIR` meets at rank 0 over plain sockets. Rank 0 prints one line for each
finding, naming the node, and exits with 1 where there is one. Imports no more than the standard library and pynvml.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mnist_dist
from mnist_dist.distributed.cluster import Cluster, find_cluster
from mnist_dist.distributed.membership import Gate, connect
from mnist_dist.errors import EXIT_FAILED, UserError
from mnist_dist.gpu_doctor.libraries import try_libraries
from mnist_dist.gpus import Nvml, open_nvml
from mnist_dist.packages import TENSORFLOW, find_package

JOIN_SECONDS = 60.0  # For all ranks to start: a shared disk may be slow to deliver Python to many nodes.
CONNECT_SECONDS = 5.0
LIBRARY_SECONDS = 30.0  # For CUDA's libraries to open: they are large, and a disk may be slow.
FILE_SECONDS = 5.0  # For a file to appear on another node.
CLOCK_SECONDS = 1.0  # Beyond it, times in logs and file dates mislead.
LIBRARIES = (TENSORFLOW, ("keras",), ("numpy",), ("horovod",))


@dataclass(frozen=True)
class Report:
    """What one rank has found out about its place.

    Attributes:
        cores: that the process may use.
        host_cores: that its host has.
        asked_cores: --cpus-per-task; 0 where it was not given.
        bound: whether Slurm says that it has bound the tasks to cores.
        gpus: names of the visible GPUs, by UUID where the driver tells it.
        promised_gpus: that Slurm has given to the job on this node.
        troubles: findings of this rank alone, each a line.
    """

    rank: int
    node: str
    cores: Sequence[int]
    host_cores: int
    asked_cores: int
    bound: bool
    gpus: Sequence[str]
    promised_gpus: int
    versions: Mapping[str, str]
    troubles: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"node {self.node}: rank {self.rank}"


@dataclass(frozen=True)
class Clock:
    """How far a rank's clock is ahead of rank 0's, give or take half of the way there and back."""

    ahead_seconds: float = 0.0
    error_seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mnist_dist.slurm.preflight", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the results, which all ranks must share")
    parser.add_argument(
        "--join-seconds", type=float, default=JOIN_SECONDS, metavar="S", help="longest wait for a rank (default: 60)"
    )
    args = parser.parse_args(arguments)
    try:
        findings = check(find_named_cluster(os.environ), args.folder, args.join_seconds)
    except UserError as error:
        findings = [str(error)]
    for finding in findings:
        print(f"pre-flight: {finding}", file=sys.stderr)
    return EXIT_FAILED if findings else 0


def place_of(cluster: Cluster, rank: int) -> str:
    return f"node {cluster.hosts[rank]}: rank {rank}"


def find_named_cluster(environment: Mapping[str, str]) -> Cluster:
    """Finds this process' place; one on its own learns the name of its node as well."""
    cluster = find_cluster(environment)
    if cluster.size > 1:
        return cluster
    return dataclasses.replace(cluster, hosts=(environment.get("SLURMD_NODENAME") or socket.gethostname(),))


def check(cluster: Cluster, folder: Path, join_seconds: float = JOIN_SECONDS) -> list[str]:
    """Runs this rank's part; rank 0 returns the findings of all, the others only that they could not meet it."""
    with answering(cluster) if cluster.size > 1 else contextlib.nullcontext():
        part = lead if cluster.is_chief else follow
        return part(cluster, folder, join_seconds)


# --- What all ranks do ---


def look_around(cluster: Cluster, environment: Mapping[str, str], troubles: Iterable[str]) -> Report:
    gpus, driver = ask_driver(environment)
    return Report(
        rank=cluster.rank,
        node=cluster.hosts[cluster.rank],
        cores=sorted(os.sched_getaffinity(0)),
        host_cores=os.cpu_count() or 1,
        asked_cores=int(environment.get("SLURM_CPUS_PER_TASK") or 0),
        bound=environment.get("SLURM_CPU_BIND_TYPE", "none") not in ("", "none"),
        gpus=gpus,
        promised_gpus=int(environment.get("SLURM_GPUS_ON_NODE") or 0),
        versions=versions() | driver,
        troubles=[*troubles, *gpu_troubles(cluster, environment)],
    )


def gpu_troubles(cluster: Cluster, environment: Mapping[str, str]) -> Iterator[str]:
    """Says what is wrong with this rank's GPUs, and the first rank of a node also which CUDA libraries do not open."""
    here = f"node {cluster.hosts[cluster.rank]}"
    with open_nvml(environment) as nvml:
        if nvml is None or not nvml.handles:
            return
        say_far_cores(cluster, nvml)
        for handle in nvml.handles:
            yield from (f"{here}: {nvml.ask('DeviceGetUUID', handle)}: {each}" for each in nvml.troubles(handle))
    if cluster.local_rank == 0:
        closed = [name for name, (opens, _) in try_libraries(LIBRARY_SECONDS).items() if not opens]
        if closed:
            yield f"{here}: {', '.join(closed)} cannot be opened; `pip install 'mnist-dist[gpu]'` has CUDA's libraries"


def say_far_cores(cluster: Cluster, nvml: Nvml) -> None:
    """Says where this rank may use no core near its GPU: a run works all the same, and its site decides of cores."""
    handle = nvml.handles[cluster.local_rank % len(nvml.handles)]
    near, mine = nvml.near_cores(handle), os.sched_getaffinity(0)
    if near and not near & mine:
        print(
            f"pre-flight: note: {place_of(cluster, cluster.rank)} is bound to cores {ranges(sorted(mine))}, but "
            f"its GPU {nvml.ask('DeviceGetUUID', handle)} is near cores {ranges(sorted(near))}; see --cpu-bind",
            file=sys.stderr,
        )


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "mnist_dist": mnist_dist.__version__}
    for names in LIBRARIES:
        if package := find_package(*names):
            found[names[0]] = package[1]
    return found


def ask_driver(environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Returns the GPUs that a process would use, by UUID, and the version of NVIDIA's driver.

    Without a driver to ask, GPUs are what CUDA's or ROCm's variable names; with one that is broken, there are none.
    """
    with open_nvml(environment) as nvml:
        if nvml is not None:
            uuids = [nvml.ask("DeviceGetUUID", handle) or str(index) for index, handle in enumerate(nvml.handles)]
            version = nvml.ask("SystemGetDriverVersion")
            return uuids, {"NVIDIA driver": version} if version else {}
    if shutil.which("nvidia-smi"):
        return [], {}
    names = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ""))
    return [name.strip() for name in names.split(",") if name.strip()], {}


@contextlib.contextmanager
def answering(cluster: Cluster) -> Iterator[None]:
    """Tells every rank that connects the name of this rank's node, from another thread."""
    is_over = threading.Event()

    def answer() -> None:
        while not is_over.is_set():
            if member := gate.admit(0.1):
                with member[1] as connection, contextlib.suppress(OSError):
                    connection.sendall(cluster.hosts[cluster.rank].encode())

    with open_gate(cluster, rank_port(cluster, cluster.rank)) as gate:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def open_gate(cluster: Cluster, port: int) -> Gate:
    try:
        return Gate(cluster, port)
    except OSError as error:
        raise UserError(
            f"{place_of(cluster, cluster.rank)} cannot listen on port {port} ({error.strerror}); another job may use "
            "it, submit again."
        ) from None


def rank_port(cluster: Cluster, rank: int) -> int:
    return cluster.port + 1 + rank


def unreachable_nodes(cluster: Cluster) -> Iterator[str]:
    """Connects to the first rank on every other node; only the first rank of a node does."""
    if cluster.local_rank:
        return
    here = cluster.hosts[cluster.rank]
    for node in dict.fromkeys(cluster.hosts):
        if node == here:
            continue
        first = cluster.hosts.index(node)
        address = (cluster.addresses[first], rank_port(cluster, first))
        try:
            with connect(cluster, first, address[1], CONNECT_SECONDS) as connection:
                answer = connection.recv(256).decode(errors="replace")
        except OSError as error:
            yield f"node {here}: cannot reach node {node} at {address[0]} port {address[1]} ({error})"
            continue
        if answer != node:
            yield f"node {here}: reached '{answer}' at {address[0]} port {address[1]}, expected node {node}"


# --- Rank 0 ---


def lead(cluster: Cluster, folder: Path, join_seconds: float) -> list[str]:
    """Meets the other ranks, collects their reports and returns all findings; says so when there is none."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        lines, missing = stack.enter_context(meeting(cluster, join_seconds))
        if missing:
            return [missing]
        clocks = {0: Clock()} | {rank: measure_clock(line) for rank, line in lines.items()}
        token, troubles = stack.enter_context(token_file(cluster, folder))
        for line in lines.values():
            line.send({"token": token})
        troubles += unreachable_nodes(cluster)
        reports = [look_around(cluster, os.environ, troubles)]
        reports += [Report(**line.receive()) for _, line in sorted(lines.items())]
        findings = compare(reports, clocks)
        for note in hidden_peers(reports):
            print(f"pre-flight: note: {note}", file=sys.stderr)
    if not findings:
        print(describe(reports, clocks, time.monotonic() - begun), flush=True)
    return findings


def describe(reports: Sequence[Report], clocks: Mapping[int, Clock], seconds: float) -> str:
    nodes = list(dict.fromkeys(report.node for report in reports))
    gpus = sum({report.node: report.promised_gpus for report in reports}.values())
    shown = " ".join(nodes) if len(nodes) <= 8 else f"{nodes[0]} ... {nodes[-1]}"
    apart = max(abs(clock.ahead_seconds) for clock in clocks.values())
    return (
        f"pre-flight: {len(reports)} rank{'s' * (len(reports) > 1)} on {len(nodes)} node{'s' * (len(nodes) > 1)} "
        f"({shown}), {gpus or 'no'} GPU{'s' * (gpus != 1)}; the folder is shared, versions are equal, clocks within "
        f"{apart:.3f} s; ready after {seconds:.1f} s"
    )


def compare(reports: Sequence[Report], clocks: Mapping[int, Clock]) -> list[str]:
    """Returns what is wrong in the ranks' reports, a line each."""
    findings = list(dict.fromkeys(trouble for report in reports for trouble in report.troubles))
    for report in reports:
        findings += wrong_cores(report)
        findings += wrong_clock(report, clocks[report.rank])
        findings += wrong_versions(report, reports[0])
    for _, on_node in itertools.groupby(reports, key=lambda report: report.node):
        together = list(on_node)
        findings += wrong_gpus(together)
        findings += shared_cores(together)
    return findings


def wrong_cores(report: Report) -> Iterator[str]:
    if len(report.cores) < report.asked_cores:
        yield (
            f"{report.name} may use {len(report.cores)} of the host's {report.host_cores} cores "
            f"({ranges(report.cores)}), expected {report.asked_cores} (--cpus-per-task)"
        )


def shared_cores(together: Sequence[Report]) -> Iterator[str]:
    """Compares the ranks of one node, where Slurm says that it has bound each to its own cores."""
    for one, other in itertools.combinations(together, 2):
        common = sorted(set(one.cores) & set(other.cores))
        if common and one.bound and other.bound:
            yield f"{one.name} and rank {other.rank} are bound to the same cores ({ranges(common)}); see --cpu-bind"


def wrong_gpus(together: Sequence[Report]) -> Iterator[str]:
    """Compares the ranks of one node: each takes its own GPU, or all see as many as they are."""
    several = len(together) > 1
    users: dict[str, Report] = {}
    for local_rank, report in enumerate(together):
        if report.promised_gpus and not report.gpus:
            yield f"{report.name} sees no GPU, though Slurm allocated {report.promised_gpus} to the job there"
        elif several and 1 < len(report.gpus) < len(together):
            yield (
                f"{report.name} sees {len(report.gpus)} GPUs for the {len(together)} ranks there, expected one each; "
                "give --ntasks-per-node and --gpus-per-node the same number"
            )
        elif not several and 0 < len(report.gpus) < report.promised_gpus:
            yield f"{report.name} sees {len(report.gpus)} of the {report.promised_gpus} GPUs that Slurm gave to the job"
        elif several and report.gpus:
            gpu = report.gpus[local_rank % len(report.gpus)]
            # Without the driver's word, a name is an index, which begins at 0 in each task's cgroup.
            first = users.setdefault(gpu, report) if not gpu.isdigit() else report
            if first is not report:
                yield f"{report.name} would use the same GPU as rank {first.rank} ({gpu})"


def hidden_peers(reports: Sequence[Report]) -> Iterator[str]:
    """Says on which nodes each rank sees its own GPU alone: memory of another's cannot be mapped then (CUDA IPC)."""
    for node, on_node in itertools.groupby(reports, key=lambda report: report.node):
        together = list(on_node)
        if len(together) > 1 and all(len(report.gpus) == 1 for report in together):
            yield (
                f"node {node}: each rank sees only its own GPU, so NCCL may have to go through host memory; "
                "see --gpu-bind=none"
            )


def wrong_clock(report: Report, clock: Clock) -> Iterator[str]:
    if abs(clock.ahead_seconds) - clock.error_seconds > CLOCK_SECONDS:
        direction = "ahead of" if clock.ahead_seconds > 0 else "behind"
        yield f"{report.name} has a clock {abs(clock.ahead_seconds):.1f} s {direction} rank 0's; start NTP there"


def wrong_versions(report: Report, first: Report) -> Iterator[str]:
    for name in sorted({*report.versions, *first.versions}):
        here, there = report.versions.get(name, "none"), first.versions.get(name, "none")
        if here != there:
            yield f"{report.name} has {name} {here}, but rank 0 on node {first.node} has {there}"


def ranges(numbers: Sequence[int]) -> str:
    """Shortens [0, 1, 2, 5] to "0-2,5"."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in group]
        parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ",".join(parts)


# --- The shared folder ---


@contextlib.contextmanager
def token_file(cluster: Cluster, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the name of a new file that holds it, and is there meanwhile; or else "", and what is wrong."""
    token, troubles = "", []
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".preflight-", delete=False) as file:
                stack.callback(Path(file.name).unlink, missing_ok=True)
                file.write(Path(file.name).name)
            token = Path(file.name).name
        except OSError as error:
            place = place_of(cluster, cluster.rank)
            troubles.append(f"{place} cannot write into the folder '{folder}' ({error.strerror})")
        yield token, troubles


def read_token(file: Path) -> str | None:
    """Reads what another rank has written; returns the reason when that fails."""
    deadline = time.monotonic() + FILE_SECONDS  # Another node may see a new file with delay.
    while True:
        try:
            os.listdir(file.parent)  # noqa: PTH208 - makes NFS look again.
            if file.read_text() == file.name:
                return None
            reason = "its content differs"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            return reason
        time.sleep(0.1)


def share_files(cluster: Cluster, folder: Path, token: str) -> list[str]:
    """Another rank's part: reads what rank 0 has written, and writes its own; returns what is wrong."""
    if reason := read_token(folder / token):
        return [
            f"{place_of(cluster, cluster.rank)} cannot read in '{folder}' what rank 0 on node {cluster.hosts[0]} "
            f"wrote ({reason}); expected a folder that all nodes share"
        ]
    with token_file(cluster, folder) as (_, troubles):
        return troubles


# --- How the ranks talk: lines of JSON ---


class Line:
    """A connection that carries a JSON object per line; `name` says who is at its other end."""

    def __init__(self, connection: socket.socket, timeout_seconds: float, name: str) -> None:
        connection.settimeout(timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = name
        self._connection = connection
        self._reader = connection.makefile("r")

    def send(self, message: Mapping[str, Any]) -> None:
        with self._errors_named():
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        with self._errors_named():
            text = self._reader.readline()
            if not text:
                raise ConnectionError("connection closed")
            return json.loads(text)

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name} stopped responding ({error})") from None


@contextlib.contextmanager
def meeting(cluster: Cluster, join_seconds: float) -> Iterator[tuple[dict[int, Line], str]]:
    """Waits for a line to every other rank; yields them by rank, and a finding when some did not come."""
    if cluster.size == 1:
        yield {}, ""
        return
    deadline = time.monotonic() + join_seconds
    lines: dict[int, Line] = {}
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(open_gate(cluster, cluster.port))
        while absent := [rank for rank in range(1, cluster.size) if rank not in lines]:
            if not (member := gate.admit(deadline - time.monotonic())):
                break
            rank, connection = member
            stack.enter_context(connection)
            lines[rank] = Line(connection, join_seconds, place_of(cluster, rank))
        names = ", ".join(f"rank {rank} on node {cluster.hosts[rank]}" for rank in absent)
        yield lines, f"{names} did not reach node {cluster.hosts[0]} within {join_seconds:g} s" if absent else ""


def measure_clock(line: Line) -> Clock:
    """Compares clocks as NTP does: of three questions, the one answered soonest."""
    clocks = []
    for _ in range(3):
        asked = time.time()
        line.send({"time": True})
        answer = float(line.receive()["time"])
        answered = time.time()
        clocks.append(Clock(answer - (asked + answered) / 2, (answered - asked) / 2))
    return min(clocks, key=lambda clock: clock.error_seconds)


def follow(cluster: Cluster, folder: Path, join_seconds: float) -> list[str]:
    """The part of every other rank: answers rank 0's questions about time, then reports, then waits for the end."""
    here = place_of(cluster, cluster.rank)
    chief = f"rank 0 on node {cluster.hosts[0]}"
    try:
        connection = connect_to_chief(cluster, join_seconds)
    except OSError as error:
        return [f"{here} cannot reach {chief} at {cluster.addresses[0]} port {cluster.port} ({error})"]
    with connection:
        line = Line(connection, 2 * join_seconds, f"{here} waited, but {chief}")
        while (question := line.receive()).get("time"):
            line.send({"time": time.time()})
        troubles = share_files(cluster, folder, question["token"]) if question["token"] else []
        troubles += unreachable_nodes(cluster)
        line.send(dataclasses.asdict(look_around(cluster, os.environ, troubles)))
        with contextlib.suppress(UserError):
            line.receive()  # Rank 0 hangs up when nobody needs anybody any more.
    return []


def connect_to_chief(cluster: Cluster, join_seconds: float) -> socket.socket:
    deadline = time.monotonic() + join_seconds
    while True:
        try:
            return connect(cluster, 0, cluster.port, CONNECT_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
