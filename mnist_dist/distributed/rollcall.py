"""All ranks report to the chief before they join TensorFlow's or Horovod's collectives.

Both of those wait for a missing rank in their own way: long, deaf to signals, or ending in an abort. A roll call
over plain sockets ends in time, and says who is missing.
"""

import contextlib
import socket
import sys
import time

from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.membership import PROOF_SECONDS, SECRET_VARIABLE, Gate, connect
from mnist_dist.errors import TrainingError, one_line

_GO = b"go\n"
_GPU_BYTES = 64  # Of a UUID, with spaces behind it; too short to come in parts.


def roll_call(cluster: Cluster, timeout_seconds: float, gpu: str = "") -> str:
    """Returns when all ranks of the job have called it: the address of this host by which rank 0 and others meet.

    Args:
        gpu: the UUID of the one that this rank will take; "" where there is none, or it is not known.

    Raises:
        TrainingError: some did not within the time-out; names them, as far as this rank can know. Or two would share a
            GPU, where NCCL would fail and others halve their speed in silence.
    """
    if cluster.size == 1:
        return "127.0.0.1"
    deadline = time.monotonic() + timeout_seconds
    part = _call if cluster.is_chief else _answer
    return part(cluster, deadline, timeout_seconds, gpu)


def _call(cluster: Cluster, deadline: float, timeout_seconds: float, gpu: str) -> str:
    """The chief's part: lets in each other rank, then lets all go."""
    if not cluster.secret:
        print(
            f"launch: without {SECRET_VARIABLE} in the environment of all ranks, any process that reaches port "
            f"{cluster.roll_call_port} can take a rank's place; see docs/security.md.",
            file=sys.stderr,
        )
    present: dict[int, socket.socket] = {}
    gpus = {0: gpu}
    with contextlib.ExitStack() as stack:
        try:
            gate = stack.enter_context(Gate(cluster, cluster.roll_call_port))
        except OSError as error:
            raise TrainingError(
                f"launch: rank 0 cannot listen on port {cluster.roll_call_port} ({error.strerror}); try again."
            ) from None
        while missing := set(range(1, cluster.size)) - present.keys():
            member = gate.admit(deadline - time.monotonic())
            if member is None:
                names = ", ".join(f"rank {rank} ({cluster.hosts[rank]})" for rank in sorted(missing))
                hint = " If srun has not started them, unset SLURM_STEP_NUM_TASKS." * (cluster.launcher == "srun")
                strangers = f" {gate.turned_away} connections failed to authenticate." * (gate.turned_away > 0)
                raise TrainingError(
                    f"launch: {names} of {cluster.size} did not connect within {timeout_seconds:g} s.{strangers}{hint}"
                )
            rank, connection = member
            stack.enter_context(connection)
            with contextlib.suppress(OSError):
                if said := connection.recv(_GPU_BYTES):  # Else it has gone again.
                    gpus[rank] = said.decode(errors="replace").strip()
                    present[rank] = connection  # Whoever comes again had not heard our answer.
        users: dict[str, int] = {}
        for rank in range(cluster.size):
            other = users.setdefault(gpus[rank], rank) if gpus[rank] else rank
            if other != rank:
                raise TrainingError(
                    f"launch: rank {rank} and rank {other} ({cluster.hosts[rank]}) would share the GPU "
                    f"{one_line(gpus[rank])}, expected one for each; start fewer ranks, or see CUDA_VISIBLE_DEVICES."
                )
        for connection in present.values():
            connection.sendall(_GO)
        # That rank is on another host, if any is. Where IPv6 is listened to, it has a form for addresses of IPv4.
        return present[cluster.size - 1].getsockname()[0].removeprefix("::ffff:")


def _answer(cluster: Cluster, deadline: float, timeout_seconds: float, gpu: str) -> str:
    """Another rank's part: goes to the chief and waits until all are there."""
    chief = f"rank 0 ({cluster.hosts[0]}, port {cluster.roll_call_port})"
    reason: OSError | None = None
    while True:
        left = max(deadline - time.monotonic(), 0.1)
        try:
            with connect(cluster, 0, cluster.roll_call_port, min(left, PROOF_SECONDS)) as connection:
                connection.sendall(gpu.encode()[:_GPU_BYTES].ljust(_GPU_BYTES))
                # The chief may have started later, and then waits as much longer.
                connection.settimeout(left + timeout_seconds)
                if connection.recv(len(_GO)) == _GO:
                    return connection.getsockname()[0]
                raise TrainingError(f"launch: rank {cluster.rank} was turned away by {chief}, whose output says why.")
        except OSError as error:
            # The last attempt has little time; an earlier one that was refused says more.
            reason = reason if reason and isinstance(error, TimeoutError) else error
            if time.monotonic() >= deadline:
                raise TrainingError(
                    f"launch: {chief} did not answer within {timeout_seconds:g} s ({reason})."
                ) from None
            time.sleep(0.1)
