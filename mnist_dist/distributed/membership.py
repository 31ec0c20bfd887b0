"""Lets in only who proves to belong to the job: a challenge, answered with an HMAC over the secret of the job.

Both sides prove it. Messages have one length each, so nobody can send more than is read, and whoever is silent keeps
nobody waiting. `multiprocessing.connection` has such a challenge too, but waits for one connection at a time until it
answers, takes MD5 before Python 3.12, and its messages are pickles.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import secrets
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

    from mnist_dist.distributed.cluster import Cluster

SECRET_VARIABLE = "MNIST_DIST_SECRET"  # noqa: S105 - the name of a variable.
PROOF_SECONDS = 5.0  # For a connection to answer the challenge.
MOST_STRANGERS = 64  # Connections without proof, beside one of each member; the oldest makes room for the next.

_BYTES = 32  # Of a nonce and of an HMAC-SHA256.
_ANSWER_BYTES = 4 + 2 * _BYTES  # The rank, a nonce and the proof.


def make_secret() -> str:
    return secrets.token_hex(_BYTES)


def derive(secret: str, *purpose: bytes) -> bytes:
    """Returns 32 bytes that only who knows the secret can know, and that do not tell it (RFC 2104, with SHA-256)."""
    return hmac.digest(secret.encode(errors="surrogateescape"), b"".join(purpose), "sha256")


def own_address(cluster: Cluster) -> str:
    """Returns the address of this host at which the other ranks reach it; "" for all where it cannot be told.

    A host may know its own name as a loopback address, at which no other host finds it.
    """
    here = cluster.addresses[cluster.rank]
    elsewhere = [address for address in cluster.addresses if address != here][:1]
    try:
        address, *other = map(_resolve, (here, *elsewhere))
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # It may be that of a router.
    except OSError:
        return ""
    is_loopback, *others_are = (ipaddress.ip_address(each).is_loopback for each in (address, *other))
    return "" if is_loopback and not all(others_are) else address


def _resolve(name: str) -> str:
    """Returns an address of IPv4, to which others fall back, or of IPv6 where there is no other.

    `gethostbyname` does not do, as glibc's takes ::1 for 127.0.0.1.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Listens at an address of this host, or with "" at all of them, IPv4's and IPv6's."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=both)


class Listener:
    """Listens while it is open, as `listen` does; `_selector` watches the server and all that has come to it."""

    def __init__(self, host: str, port: int, backlog: int) -> None:
        self._server = listen(host, port, backlog)
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def connect(cluster: Cluster, rank: int, port: int, timeout_seconds: float) -> socket.socket:
    """Connects to the gate of another rank, once both have proved that they belong to the job.

    Raises:
        OSError: nobody listens there, it did not answer in time, or one did not convince the other.
    """
    with contextlib.ExitStack() as stack:
        address = (cluster.addresses[rank], port)
        connection = stack.enter_context(socket.create_connection(address, timeout=timeout_seconds))
        challenge = connection.recv(_BYTES)  # Too short to come in parts.
        here, nonce = cluster.rank.to_bytes(4, "big"), secrets.token_bytes(_BYTES)
        connection.sendall(here + nonce + _prove(b"member", cluster, port, challenge, nonce, here))
        proof = connection.recv(_BYTES)
        if not hmac.compare_digest(proof, _prove(b"gate", cluster, port, challenge, nonce, here)):
            what = "does not belong to this job" if proof else f"hung up; do all ranks have the same {SECRET_VARIABLE}?"
            raise ConnectionError(f"it {what}")
        stack.pop_all()
        return connection


def _prove(who: bytes, cluster: Cluster, port: int, *said: bytes) -> bytes:
    """Proves a side to the other in one conversation at one gate of a job of one size."""
    return derive(cluster.secret, who, port.to_bytes(2, "big"), cluster.size.to_bytes(4, "big"), *said)


@dataclass(eq=False)
class _Stranger:
    """A connection that has not proved anything yet."""

    connection: socket.socket
    deadline: float
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_BYTES))
    answer: bytes = b""


class Gate(Listener):
    """Listens, while it is open, on the address that the ranks use.

    Attributes:
        turned_away: how many connections proved nothing.

    Raises:
        OSError: cannot listen there.
    """

    def __init__(self, cluster: Cluster, port: int) -> None:
        self.turned_away = 0
        self._cluster, self._port = cluster, port
        self._most = cluster.size + MOST_STRANGERS
        self._strangers: list[_Stranger] = []  # In the order in which they came.
        super().__init__(own_address(cluster), port, self._most)

    def admit(self, seconds: float) -> tuple[int, socket.socket] | None:
        """Returns the next rank that comes, with its connection, which is the caller's; None if none came in time."""
        deadline = time.monotonic() + seconds
        while True:
            until = min([deadline, *(stranger.deadline for stranger in self._strangers[:1])])
            for key, _ in self._selector.select(max(until - time.monotonic(), 0)):
                if key.fileobj is self._server:
                    self._challenge()
                elif member := self._hear(key.data):
                    return member
            now = time.monotonic()
            while self._strangers and (self._strangers[0].deadline < now or len(self._strangers) > self._most):
                self._turn_away(self._strangers[0])
            if now >= deadline:
                return None

    def _challenge(self) -> None:
        with contextlib.suppress(OSError):  # It has gone again.
            stranger = _Stranger(self._server.accept()[0], time.monotonic() + PROOF_SECONDS)
            stranger.connection.setblocking(False)
            self._selector.register(stranger.connection, selectors.EVENT_READ, stranger)
            self._strangers.append(stranger)
            stranger.connection.sendall(stranger.nonce)

    def _hear(self, stranger: _Stranger) -> tuple[int, socket.socket] | None:
        received = b""
        with contextlib.suppress(OSError):
            received = stranger.connection.recv(_ANSWER_BYTES + 1)
        stranger.answer += received
        if received and len(stranger.answer) < _ANSWER_BYTES:
            return None
        rank, nonce, proof = stranger.answer[:4], stranger.answer[4 : 4 + _BYTES], stranger.answer[4 + _BYTES :]
        said = (self._cluster, self._port, stranger.nonce, nonce, rank)
        is_member = hmac.compare_digest(proof, _prove(b"member", *said))
        if not is_member or int.from_bytes(rank, "big") >= self._cluster.size:
            self._turn_away(stranger)
            return None
        self._selector.unregister(stranger.connection)
        self._strangers.remove(stranger)
        stranger.connection.settimeout(PROOF_SECONDS)
        with contextlib.suppress(OSError):
            stranger.connection.sendall(_prove(b"gate", *said))
            return int.from_bytes(rank, "big"), stranger.connection
        return None  # It has gone again.

    def _turn_away(self, stranger: _Stranger) -> None:
        self.turned_away += 1
        self._selector.unregister(stranger.connection)
        self._strangers.remove(stranger)
        stranger.connection.close()
