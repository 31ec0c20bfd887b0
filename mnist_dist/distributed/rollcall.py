"""All ranks report to the chief before they join TensorFlow's or Horovod's collectives.

Both of those wait for a missing rank in their own way: long, deaf to signals, or ending in an abort. A roll call
over plain sockets ends in time, and says who is missing.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

from mnist_dist.distributed.cluster import Cluster, listen
from mnist_dist.errors import TrainingError

_GO = b"go\n"


def roll_call(cluster: Cluster, timeout_seconds: float) -> str:
    """Returns when all ranks of the job have called it: the address of this host by which rank 0 and others meet.

    Raises:
        TrainingError: some did not within the time-out; names them, as far as this rank can know.
    """
    if cluster.size == 1:
        return "127.0.0.1"
    deadline = time.monotonic() + timeout_seconds
    part = _call if cluster.is_chief else _answer
    return part(cluster, deadline, timeout_seconds)


def _call(cluster: Cluster, deadline: float, timeout_seconds: float) -> str:
    """The chief's part: collects one greeting of each other rank, then lets all go."""
    local = set(cluster.addresses) == {"127.0.0.1"}
    missing = set(range(1, cluster.size))
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(listen("127.0.0.1" if local else "", cluster.roll_call_port, cluster.size))
        except OSError as error:
            raise TrainingError(
                f"launch: rank 0 cannot listen on port {cluster.roll_call_port} ({error.strerror}); try again."
            ) from None
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        present: dict[int, socket.socket] = {}
        while missing:
            for key, _ in selector.select(timeout=max(deadline - time.monotonic(), 0)):
                if key.fileobj is server:
                    connection = stack.enter_context(server.accept()[0])
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]
                selector.unregister(connection)
                rank = _greeted(connection, cluster.size)
                if rank in missing:
                    missing.remove(rank)
                    present[rank] = connection
            if missing and time.monotonic() > deadline:
                names = ", ".join(f"rank {rank} ({cluster.hosts[rank]})" for rank in sorted(missing))
                raise TrainingError(f"launch: {names} of {cluster.size} did not come within {timeout_seconds:g} s.")
        for connection in present.values():
            connection.sendall(_GO)
        # That rank is on another host, if any is. Where IPv6 is listened to, it has a form for addresses of IPv4.
        return present[cluster.size - 1].getsockname()[0].removeprefix("::ffff:")


def _answer(cluster: Cluster, deadline: float, timeout_seconds: float) -> str:
    """Another rank's part: greets the chief and waits until all are there."""
    chief = f"rank 0 ({cluster.hosts[0]}, port {cluster.roll_call_port})"
    while True:
        left = max(deadline - time.monotonic(), 0.1)
        try:
            with socket.create_connection((cluster.addresses[0], cluster.roll_call_port), timeout=left) as connection:
                connection.sendall(f"{cluster.rank} {cluster.size}\n".encode())
                # The chief may have started later, and then waits as much longer.
                connection.settimeout(left + timeout_seconds)
                if connection.recv(len(_GO)) == _GO:
                    return connection.getsockname()[0]
                raise TrainingError(f"launch: rank {cluster.rank} was sent home by {chief}; another rank is missing.")
        except OSError as error:
            if time.monotonic() >= deadline:
                raise TrainingError(f"launch: {chief} did not come within {timeout_seconds:g} s ({error}).") from None
            time.sleep(0.1)


def _greeted(connection: socket.socket, size: int) -> int | None:
    """Returns the rank that greets, or None for a stranger."""
    connection.settimeout(5)
    try:
        rank, total = connection.recv(64).split()
        return int(rank) if int(total) == size else None
    except (OSError, ValueError):
        return None
