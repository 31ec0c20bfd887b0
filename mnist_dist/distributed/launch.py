"""Starts N ranks on this host and keeps them together; or prepares one rank that another launcher has started.

No ssh and no MPI: ranks find each other as their strategy says, through a rendezvous that this launcher (or the chief,
under mpirun) holds where it needs one. Whatever happens to one rank, all have ended a few seconds later.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mnist_dist.command import EXIT_INTERRUPTED
from mnist_dist.config import RuntimeConfig
from mnist_dist.distributed.cluster import Cluster, cores_near, cores_of, free_ports, shared_cores
from mnist_dist.distributed.membership import make_secret
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.distributed.signals import SIGNALS, catchable, tell_of_stop
from mnist_dist.distributed.watchdog import EXIT_LOST_RANKS, HEARTBEAT_VARIABLE
from mnist_dist.errors import EXIT_BAD_INPUT, EXIT_FAILED, TrainingError
from mnist_dist.gpus import cores_near_gpus, own_gpu
from mnist_dist.strategies import STRATEGIES

GRACE_SECONDS = 2.0  # For the survivors of a dead rank to print their own view, before they are killed.
SILENCE_SECONDS = 5.0  # Without a heartbeat (one a second) a rank counts as stuck.
TAIL_LINES = 8
PARENT_VARIABLE = "MNIST_DIST_LAUNCHER_PID"


def run_ranks(command: Sequence[str], ranks: int, *, strategy: str, stdin: IO[str] | None = None) -> None:
    """Runs the command once per rank on this host and waits for all.

    Output lines appear as `[rank] line`. SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 go to every rank.

    Args:
        command: program and arguments, the same for all ranks.
        strategy: of the ranks, whose rendezvous is held meanwhile.
        stdin: a file that every rank can read as /dev/stdin, from its beginning; None: there is nothing to read.

    Raises:
        TrainingError: a rank ended with another code than 0; names the rank and quotes its last lines.
    """
    with free_ports(ranks + 2) as port:
        cluster = Cluster(0, ranks, 0, ranks, (), port, "mnist-dist", secret=make_secret())
        asyncio.run(_Group(command, cluster, stdin).run(strategy))


@contextlib.contextmanager
def join_ranks(cluster: Cluster, config: RuntimeConfig) -> Iterator[None]:
    """Sets up this process as a rank, before TensorFlow is imported: its cores, and how it finds the others.

    Under srun and mpirun the chief holds the rendezvous, as nobody else does.
    """
    if cluster.launcher == "none":
        yield
        return
    _die_with_launcher()
    bind_cores(cluster)
    strategy = STRATEGIES[config.strategy].load()
    with contextlib.ExitStack() as stack:
        if cluster.launcher != "horovodrun":  # It has its own roll call and rendezvous.
            if cluster.is_chief and cluster.launcher != "mnist-dist":
                stack.enter_context(strategy.rendezvous(cluster))
            address = roll_call(cluster, config.join_timeout_seconds, own_gpu(cluster.local_rank))
            strategy.prepare_rank(cluster, address, config.join_timeout_seconds)
        yield


def bind_cores(cluster: Cluster) -> None:
    """Binds this process to its share of the cores it may use, unless the launcher has bound it already.

    Where each rank of the host has a GPU of its own, these are cores near it.
    """
    mine = sorted(os.sched_getaffinity(0))
    if cluster.launcher == "srun":  # Fewer cores than the host has may be the job's, which its ranks then share.
        is_bound = os.environ.get("SLURM_CPU_BIND_TYPE", "none") not in ("", "none")
    else:
        is_bound = cluster.launcher == "mpirun" and len(mine) < (os.cpu_count() or 1)
    if is_bound:
        return
    place = cores_near(cluster.local_rank, cluster.local_size, mine, cores_near_gpus())
    os.sched_setaffinity(0, cores_of(*place))
    if cluster.local_rank == 0 and (line := shared_cores(cluster.local_size, mine)):
        print(line, file=sys.stderr)


@dataclass
class _Rank:
    number: int
    process: asyncio.subprocess.Process
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    phase: str = "starting"
    heard: float = field(default_factory=time.monotonic)

    @property
    def was_interrupted(self) -> bool:
        """Whether Ctrl-C ended it: within its command, or before that had begun."""
        code = self.process.returncode
        return code in (EXIT_INTERRUPTED, -signal.SIGINT) or bool(self.tail and self.tail[-1] == "KeyboardInterrupt")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if it is still there; asyncio's own way could take the exit code before who waits for it."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


@dataclass
class _Group:
    """The ranks of one run, from start to the end of the last; `cluster` is the first one's place."""

    command: Sequence[str]
    cluster: Cluster
    stdin: IO[str] | None
    ranks: list[_Rank] = field(default_factory=list)
    signals: list[signal.Signals] = field(default_factory=list)  # That have come, for ranks that start later, too.

    async def run(self, strategy: str) -> None:
        loop = asyncio.get_running_loop()
        for number in catchable(SIGNALS):
            loop.add_signal_handler(number, self._forward, number)
        readers: list[asyncio.Task[None]] = []
        # Its end takes a moment, too, in which a signal must not look like the end of the run.
        with STRATEGIES[strategy].load().rendezvous(self.cluster):
            try:
                for rank in range(self.cluster.size):
                    readers += await self._start(rank)
                waiting = {asyncio.create_task(self._wait(rank)) for rank in self.ranks}
                failed = await _first_failure(waiting)
                if failed:
                    blame = self._blame(failed)  # While the others live: how they are now tells who is to blame.
                    await _settle(waiting, GRACE_SECONDS)
            finally:
                self._kill()
                await asyncio.gather(*(rank.process.wait() for rank in self.ranks))
                await _settle(readers, GRACE_SECONDS)
        interrupts = self.signals.count(signal.SIGINT)
        if failed and (interrupts > 1 or (interrupts and failed.was_interrupted)):
            raise KeyboardInterrupt
        if failed:
            raise self._explain(failed, blame)

    async def _start(self, rank: int) -> list[asyncio.Task[None]]:
        heartbeat_read, heartbeat_write = os.pipe()
        os.set_blocking(heartbeat_read, False)
        cluster = dataclasses.replace(self.cluster, rank=rank, local_rank=rank)
        process = await asyncio.create_subprocess_exec(
            *self.command,
            env=os.environ
            | _importing_as_here()
            | cluster.to_environment()
            | {HEARTBEAT_VARIABLE: str(heartbeat_write), PARENT_VARIABLE: str(os.getpid())},
            stdin=self.stdin or asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[heartbeat_write],
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which forwards it once.
        )
        os.close(heartbeat_write)
        started = _Rank(rank, process)
        self.ranks.append(started)
        for number in self.signals:
            started.send(number)
        relays = [(process.stdout, sys.stdout), (process.stderr, sys.stderr)]
        readers = [_relay(started, source, target) for source, target in relays if source]
        return [asyncio.create_task(reader) for reader in (*readers, _listen(started, heartbeat_read))]

    async def _wait(self, rank: _Rank) -> _Rank:
        await rank.process.wait()
        return rank

    def _forward(self, number: signal.Signals) -> None:
        if number == signal.SIGINT and number not in self.signals:
            tell_of_stop()
        self.signals.append(number)
        for rank in self.ranks:
            rank.send(number)
        if self.signals.count(signal.SIGINT) == 2:  # A rank that waits for a stuck one does not hear it.
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._kill)

    def _kill(self) -> None:
        for rank in self.ranks:
            rank.send(signal.SIGKILL)

    def _explain(self, failed: _Rank, blame: str) -> TrainingError:
        code = failed.process.returncode or 0
        if code == EXIT_LOST_RANKS:
            return TrainingError(f"launch: {blame}.")
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        error = TrainingError(f"launch: rank {failed.number} {ended}; all {self.cluster.size} ranks were stopped.")
        error.quoted = [f"  [{failed.number}] {line}" for line in ["Its last lines:", *failed.tail]]
        error.exit_code = EXIT_BAD_INPUT if code == EXIT_BAD_INPUT else EXIT_FAILED
        return error

    def _blame(self, waited: _Rank) -> str:
        """Names the rank that the others waited for."""
        now = time.monotonic()
        silent = [rank for rank in self.ranks if rank.process.returncode is None and now - rank.heard > SILENCE_SECONDS]
        elsewhere = [rank for rank in self.ranks if rank.phase != waited.phase]
        if silent:
            first = silent[0]
            return f"rank {first.number} gave no sign of life for {now - first.heard:.0f} s; all ranks were stopped"
        if elsewhere:
            first = elsewhere[0]
            return (
                f"rank {first.number} stayed in the phase '{first.phase}' while rank {waited.number} waited in "
                f"'{waited.phase}'; all ranks were stopped"
            )
        return f"all ranks waited in the phase '{waited.phase}' for longer than the time-out"


def _importing_as_here() -> dict[str, str]:
    """Keeps ranks from importing what happens to lie in the current folder, which `python -m` would look into first.

    Python before 3.11 looks there all the same.
    """
    here, package_parent = Path.cwd(), Path(__file__).resolve().parents[2]
    folders = [str(here)] if here == package_parent else []  # A checkout that is not installed.
    path = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    return {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": path} if path else {})


async def _first_failure(waiting: set[asyncio.Task[_Rank]]) -> _Rank | None:
    """Returns the first rank that ends badly, or None when all have ended well."""
    pending = waiting
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        # A crash says more than the complaint of a rank that lost its partner a moment later.
        bad = [task.result() for task in done if task.result().process.returncode]
        if bad:
            return min(bad, key=lambda rank: rank.process.returncode or 0)
    return None


async def _settle(tasks: Sequence[asyncio.Task] | set[asyncio.Task], seconds: float) -> None:
    """Waits for tasks, but not for ever: a grandchild may hold a pipe open."""
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=seconds)
        for task in pending:
            task.cancel()


async def _relay(rank: _Rank, source: asyncio.StreamReader, target: object) -> None:
    """Copies lines with the rank before each, however long they are."""
    rest = b""
    while chunk := await source.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > 1_000_000:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _print(rank, line, target)
    if rest:
        _print(rank, rest, target)


def _print(rank: _Rank, line: bytes, target: object) -> None:
    text = line.decode(errors="replace").rstrip("\r")
    rank.tail.append(text)
    with contextlib.suppress(BrokenPipeError):
        print(f"[{rank.number}] {text}", file=target, flush=True)  # type: ignore[call-overload]


async def _listen(rank: _Rank, handle: int) -> None:
    """Follows a rank's heartbeat."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(handle, "rb", buffering=0)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        while line := await reader.readline():
            rank.heard = time.monotonic()
            rank.phase = line.decode(errors="replace").strip()
    finally:
        transport.close()


def _die_with_launcher() -> None:
    """Asks the kernel to kill this rank when its launcher is killed, so that no orphan computes on."""
    launcher = os.environ.get(PARENT_VARIABLE)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(launcher):  # It died before the request.
        os._exit(EXIT_FAILED)
