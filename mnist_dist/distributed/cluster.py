"""Which rank this process is, of how many, and where the others are: read from the launcher's environment.

Standard library only, so that it starts in no time on every rank. Five launchers are understood: this package's
own, `srun`, `horovodrun`, `mpirun` (Open MPI's, MPICH's and Intel MPI's), and none at all (one process on its own).
Where another has started several processes, none of them takes itself for the only one.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_dist.cpuinfo import thread_siblings
from mnist_dist.distributed.membership import SECRET_VARIABLE
from mnist_dist.errors import UserError, one_line

# Below the ephemeral ports of Linux (32768 and up), so that no outgoing connection takes one of them by chance.
FIRST_PORT, LAST_PORT = 20_000, 32_000
ADDRESSES_VARIABLE = "MNIST_DIST_NODE_ADDRESSES"  # From slurm/lib.sh, as in "n1=10.0.0.1 n2=10.0.0.2".
REFUSED_SECONDS = 60.0  # Before a controller that has not answered is asked again from the same host.
# How launchers tell a rank, the number of ranks, and the same on the rank's host.
_OWN = tuple(f"MNIST_DIST_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
_HOROVODRUN = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
_OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
_MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")  # And Intel MPI's.
# Others, by the variable with the number of ranks: who sets it, and one that must be there as well.
_UNKNOWN = {
    "PMI_SIZE": ("an mpirun that sets no MPI_LOCALRANKID", "PMI_RANK"),
    "MV2_COMM_WORLD_SIZE": ("MVAPICH2's mpirun", "MV2_COMM_WORLD_RANK"),
    "JSM_NAMESPACE_SIZE": ("jsrun", "JSM_NAMESPACE_RANK"),
    "FLUX_JOB_SIZE": ("flux run", "FLUX_TASK_RANK"),
    "WORLD_SIZE": ("torchrun", "RANK"),
}


@dataclass(frozen=True)
class Cluster:
    """The place of this process in its job.

    Attributes:
        rank: of this process, 0 to size - 1; rank 0 is the chief.
        size: number of processes.
        local_rank: of this process among those on its host.
        local_size: number of processes on its host.
        hosts: the name of every rank's host, in the order of the ranks; this one where a launcher does not tell, as
            horovodrun and mpirun.
        addresses: how to reach the host of every rank; the name, unless the launcher knows better.
        port: first of `size + 2` ports that the job may listen on, the same on all ranks: for Horovod's rendezvous,
            for TensorFlow's server of each rank, and for the roll call.
        launcher: who started the processes: "none", "mnist-dist", "srun", "horovodrun" or "mpirun".
        secret: by which ranks know one another; "" where nobody has made one. It stays out of what is printed.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] = ()
    port: int = FIRST_PORT
    launcher: str = "none"
    addresses: tuple[str, ...] = ()
    secret: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", self.hosts or ("127.0.0.1",) * self.size)
        object.__setattr__(self, "addresses", self.addresses or self.hosts)

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    @property
    def roll_call_port(self) -> int:
        return self.port + self.size + 1

    def to_environment(self) -> dict[str, str]:
        """Returns the variables that tell a process of this package's own launcher its place."""
        place = self.rank, self.size, self.local_rank, self.local_size
        return {
            **dict(zip(_OWN, map(str, place), strict=True)),
            "MNIST_DIST_HOSTS": ",".join(self.hosts),
            "MNIST_DIST_PORT": str(self.port),
            SECRET_VARIABLE: self.secret,
        }


def find_cluster(environment: Mapping[str, str]) -> Cluster:
    """Reads this process' place from its launcher's variables; raises UserError where they do not fit together."""
    return dataclasses.replace(_find_place(environment), secret=environment.get(SECRET_VARIABLE, ""))


def _find_place(environment: Mapping[str, str]) -> Cluster:
    if _OWN[0] in environment:
        rank, size, local_rank, local_size, port = _integers(environment, *_OWN, "MNIST_DIST_PORT")
        hosts = tuple(environment.get("MNIST_DIST_HOSTS", "").split(","))
        return _checked(Cluster(rank, size, local_rank, local_size, hosts, port, "mnist-dist"))
    mpi = _MPICH if {"PMI_RANK", "MPI_LOCALNRANKS"} <= environment.keys() else _OPEN_MPI
    # An mpirun over several nodes of a job starts its own daemons with srun.
    if _count(environment, "SLURM_STEP_NUM_TASKS") > 1 and _count(environment, mpi[1]) == 1:
        return Cluster() if _is_interactive(environment) else _srun_cluster(environment)
    if "HOROVOD_RANK" in environment:
        rank, size, local_rank, local_size = _integers(environment, *_HOROVODRUN)
        port = job_port(environment.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "0"))
        return _checked(Cluster(rank, size, local_rank, local_size, (), port, "horovodrun"))
    if mpi[0] in environment:
        rank, size, local_rank, local_size = _integers(environment, *mpi)
        job = (
            environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid") or _ancestor_without(mpi[0])
        )
        return _checked(Cluster(rank, size, local_rank, local_size, (), job_port(job), "mpirun"))
    _refuse_unknown(environment)
    return Cluster()


def _is_interactive(environment: Mapping[str, str]) -> bool:
    """Whether this runs below the shell of `srun --pty`, the only task of its step that goes on, as in Jupyter there.

    A step within has the same variables, but its tasks have no terminal.
    """
    if "SLURM_PTY_PORT" not in environment or environment.get("SLURM_PROCID") != "0":
        return False
    try:
        task = Path("/proc", environment.get("SLURM_TASK_PID", "self"), "stat").read_text()
    except OSError:
        return False
    return task.rpartition(")")[2].split()[4] != "0"  # The number of its terminal, see proc(5).


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    """Raises UserError where an unknown launcher has started several processes: each would think it is the only one."""
    counts = {name: _count(environment, name) for name, (_, rank) in _UNKNOWN.items() if rank in environment}
    if "SLURM_STEP_NUM_TASKS" in environment:
        counts.pop("PMI_SIZE", None)  # It is srun's, with --mpi=pmi2.
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # Else it is none of TensorFlow's.
        counts["TF_CONFIG"] = sum(map(len, json.loads(environment["TF_CONFIG"])["cluster"].values()))
    for name, count in counts.items():
        if count > 1:
            launcher = _UNKNOWN[name][0] if name in _UNKNOWN else "another launcher"
            raise UserError(
                f"{name}: received {count} processes of {launcher}, which is not supported; start them with "
                f"--devices {count}, srun, or Open MPI's, MPICH's or Intel MPI's mpirun, or unset {name}."
            )


def _ancestor_without(name: str) -> str:
    """Returns the number of the nearest process above that has no such variable: the launcher's, on this host.

    MPICH's launcher gives a job no name.
    """
    process = os.getppid()
    with contextlib.suppress(OSError):
        while f"\0{name}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return str(process)


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "1")
    return int(text) if text.isdigit() else 1


def _srun_cluster(environment: Mapping[str, str]) -> Cluster:
    """Reads the place of a task of `srun` from Slurm's variables for the job step."""
    rank, size, local_rank = _integers(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    nodes = expand_node_list(environment.get("SLURM_STEP_NODELIST", ""))
    tasks = expand_tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(nodes) != len(tasks) or sum(tasks) != size:
        raise UserError(
            f"srun: received nodes: {len(nodes)}, tasks: {sum(tasks)} on {len(tasks)} of them, expected tasks: {size}."
        )
    known = node_addresses(nodes, environment)
    hosts = tuple(node for node, count in zip(nodes, tasks, strict=True) for _ in range(count))
    here = environment.get("SLURMD_NODENAME", hosts[rank])
    if hosts[rank] != here:
        raise UserError(
            f"srun: rank {rank} runs on {here}, expected {hosts[rank]}; start consecutive ranks on one node with "
            "`srun --distribution=block`."
        )
    job = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    addresses = tuple(known.get(host, host) for host in hosts)
    return _checked(Cluster(rank, size, local_rank, hosts.count(here), hosts, job_port(job), "srun", addresses))


def outside_of_step(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment without what Slurm has told the step around this process, for a step beside it.

    `srun` would obey it, and bind to the cores of that step.
    """
    of_step = ("SLURM_STEP", "SLURM_PTY_", "SLURM_SRUN_", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_DISTRIBUTION")
    prefixes = of_step if "SLURM_STEP_ID" in environment else ()  # Else they are the user's own.
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def expand_tasks_per_node(text: str) -> list[int]:
    """Expands Slurm's short form: "2(x3),1" is [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE: received '{text}', expected a form like 2(x3),1.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand_node_list(text: str) -> list[str]:
    """Expands Slurm's short form, in Slurm's order: "rack[1-2]n[09-10]" is rack1n09, rack1n10, rack2n09, rack2n10.

    `scontrol show hostnames` does the same, but is not there within containers, and may refuse "n[1-2]-ib".
    """
    nodes: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text):
        pieces = re.split(r"\[([^\[\]]*)\]", part)  # Every second one stood in brackets.
        choices = [_expand_ranges(piece, text) if number % 2 else [piece] for number, piece in enumerate(pieces)]
        nodes += ["".join(names) for names in itertools.product(*choices)]
    return nodes


def _expand_ranges(ranges: str, text: str) -> list[str]:
    """Expands what stands in brackets: "1,08-10" is 1, 08, 09, 10."""
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_NODELIST: received '{text}', expected a form like n[1-4,7] or rack[1-2]n[3].")
        first, last = match[1], match[2] or match[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def node_addresses(nodes: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Returns at which address Slurm reaches each node; none where Slurm does not tell, and the names serve.

    The batch files ask for all ranks. Elsewhere the first on a node does, and leaves the answer in a file of the
    user's, as a thousand ranks at once would be too much for the controller.
    """
    given = dict(pair.split("=", 1) for pair in environment.get(ADDRESSES_VARIABLE, "").split() if "=" in pair)
    if given.keys() >= set(nodes):
        return given
    question = [environment.get("SLURM_JOB_ID"), environment.get("SLURM_CONF"), *nodes]
    file = Path(tempfile.gettempdir()) / f"mnist-dist-{os.getuid()}-addresses.json"
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "r+", encoding="utf-8") as answers:
            if os.fstat(handle).st_uid != os.getuid():
                raise PermissionError
            fcntl.flock(answers, fcntl.LOCK_EX)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                known = json.load(answers)
                is_recent = time.time() - known["asked_at"] < REFUSED_SECONDS
                if known["question"] == question and (known["addresses"] or is_recent):
                    return dict(known["addresses"])
            addresses = _ask_for_addresses(nodes)
            answers.seek(0)
            answers.truncate()
            json.dump({"question": question, "addresses": addresses, "asked_at": time.time()}, answers)
            return addresses
    except OSError:
        return _ask_for_addresses(nodes)


def _ask_for_addresses(nodes: Sequence[str]) -> dict[str, str]:
    command = ["scontrol", "--oneliner", "show", "nodes", ",".join(nodes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True)
    except FileNotFoundError:
        return {}
    except (OSError, subprocess.SubprocessError) as error:  # As in a container that no cluster's settings reach.
        detail = one_line(str(getattr(error, "stderr", None) or error))
        print(f"srun: `scontrol show nodes` failed ({detail}); nodes are reached by their names.", file=sys.stderr)
        return {}
    return dict(re.findall(r"NodeName=(\S+).*?NodeAddr=(\S+)", done.stdout))


def job_port(job: str) -> int:
    """Returns a first port that all ranks of a job derive alike and that other jobs on the host hardly share."""
    digest = hashlib.sha256(job.encode()).digest()
    return FIRST_PORT + 16 * (int.from_bytes(digest[:4], "big") % ((LAST_PORT - FIRST_PORT) // 16))


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[int]:
    """Yields the first of `count` neighbouring free ports of this host, and holds them for whoever is told of them.

    They are bound, but not listened on: nobody who looks for a free port gets them, while Linux lets sockets with
    SO_REUSEADDR, such as those of our servers, Horovod's and TensorFlow's, bind and listen.
    """
    start = random.SystemRandom().randrange(FIRST_PORT, LAST_PORT - 2000)
    for port in range(start, LAST_PORT - count, count):
        with contextlib.ExitStack() as held:
            try:
                for offset in range(count):
                    held.enter_context(_hold(port + offset))
            except OSError:
                continue
            yield port
            return
    raise UserError(f"launch: no {count} consecutive free ports from {FIRST_PORT} to {LAST_PORT} on this host.")


def cores_of(
    local_rank: int, local_size: int, cores: Sequence[int], siblings: Callable[[int], Sequence[int]] = thread_siblings
) -> list[int]:
    """Returns this rank's share of a host's cores: neighbours, and at least one, shared where ranks outnumber cores.

    Hardware threads of one physical core (`siblings`) go to one rank, unless ranks outnumber physical cores.
    """
    physical = {core: min(siblings(core)) for core in cores}
    if len(set(physical.values())) < local_size:
        physical = {core: core for core in cores}
    parts = list(dict.fromkeys(physical.values()))
    first = local_rank * len(parts) // local_size
    last = (local_rank + 1) * len(parts) // local_size
    return [core for core in cores if physical[core] in parts[first : max(last, first + 1)]]


def cores_near(
    local_rank: int, local_size: int, cores: Sequence[int], near: Sequence[frozenset[int]]
) -> tuple[int, int, Sequence[int]]:
    """Returns a rank's place among how many that share which of a host's cores: those near its GPU (NUMA).

    All share all where GPUs are fewer than ranks, or some rank would get no core, or those near another's GPU as well.

    Args:
        near: of each GPU that ranks take, in their order, the cores near it.
    """
    parts = [frozenset(cores) & each for each in near[:local_size]]
    is_apart = sum(map(len, set(parts))) == len(frozenset().union(*parts))
    if len(parts) < local_size or not is_apart or any(len(part) < parts.count(part) for part in parts):
        return local_rank, local_size, cores
    mine = parts[local_rank]
    return parts[:local_rank].count(mine), parts.count(mine), sorted(mine)


def shared_cores(local_size: int, cores: Iterable[int], what: str = "ranks") -> str | None:
    """Returns a line where the ranks of a host, or what else computes there, must share its physical cores."""
    physical = len({min(thread_siblings(core)) for core in cores})
    if local_size <= physical:
        return None
    return (
        f"cores: {local_size} {what} share {physical} physical core{'s' * (physical > 1)} of this host and are slower "
        f"for it; {physical} would have one each."
    )


def _checked(cluster: Cluster) -> Cluster:
    if not 0 <= cluster.rank < cluster.size or not 0 <= cluster.local_rank < cluster.local_size:
        raise UserError(
            f"{cluster.launcher}: received rank {cluster.rank} of {cluster.size} and local rank {cluster.local_rank} "
            f"of {cluster.local_size}, expected ranks from 0 and below the sizes."
        )
    if len(cluster.hosts) != cluster.size:
        raise UserError(
            f"{cluster.launcher}: received hosts: {len(cluster.hosts)}, expected one for each of {cluster.size} ranks."
        )
    return cluster


def _integers(environment: Mapping[str, str], *names: str) -> list[int]:
    try:
        return [int(environment[name]) for name in names]
    except (KeyError, ValueError):
        missing = [name for name in names if not environment.get(name, "").isdigit()]
        raise UserError(
            f"{missing[0]}: received {environment.get(missing[0])!r}, expected a whole number set by the launcher."
        ) from None


def _hold(port: int) -> socket.socket:
    """Binds a port that nobody else has, or raises OSError."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        holder.bind(("", port))  # Fails where another holds it, as this socket does not share yet.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        holder.close()
        raise
    return holder
