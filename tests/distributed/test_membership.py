"""Who is let in by the ranks of a job: real sockets, and strangers that speak before the ranks do."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mnist_dist.distributed.cluster import Cluster, find_cluster
from mnist_dist.distributed.membership import Gate, connect, derive, listen, make_secret, own_address
from mnist_dist.distributed.rollcall import roll_call
from mnist_dist.distributed.strategies.horovod import Horovod, horovod_environment
from mnist_dist.errors import TrainingError
from tests.ports import free_port

RANKS = 3


def make_cluster(rank: int = 0, size: int = RANKS, **changes: object) -> Cluster:
    place = Cluster(rank, size, rank, size, ("127.0.0.1",) * size, free_port(size + 2), "mnist-dist")
    return replace(place, **({"secret": make_secret()} | changes))  # type: ignore[arg-type]


def stranger_to(port: int) -> socket.socket:
    """Connects as soon as somebody listens there."""
    for _ in range(400):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=20)
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on port {port}")


def answer_of(member: Cluster, port: int, challenge: bytes) -> bytes:
    """Returns what a member says to a stranger who listens on a port and has a challenge of its own.

    The member finds out that it is a stranger.
    """
    with socket.create_server(("127.0.0.1", port)) as server, ThreadPoolExecutor() as pool:
        calling = pool.submit(connect, member, 0, port, 20)
        with server.accept()[0] as connection:
            connection.sendall(challenge)
            answer = connection.recv(1000)
            connection.sendall(challenge)
        with pytest.raises(ConnectionError, match="it does not belong to this job"):
            calling.result()
    return answer


def say(words: bytes) -> Callable[[Cluster], list[socket.socket]]:
    def stranger(cluster: Cluster) -> list[socket.socket]:
        connection = stranger_to(cluster.roll_call_port)
        with contextlib.suppress(OSError):  # It is sent away before it has said all.
            connection.sendall(words)
        return [connection]

    return stranger


def reflect(cluster: Cluster) -> list[socket.socket]:
    connection = stranger_to(cluster.roll_call_port)
    challenge = connection.recv(1000)
    connection.sendall((1).to_bytes(4, "big") + challenge + challenge)
    return [connection]


def guess(cluster: Cluster) -> list[socket.socket]:
    stranger_to(cluster.roll_call_port).close()
    with pytest.raises(ConnectionError):
        connect(replace(cluster, rank=1, secret=make_secret()), 0, cluster.roll_call_port, 20)
    return []


def say_nothing(cluster: Cluster) -> list[socket.socket]:
    return [stranger_to(cluster.roll_call_port) for _ in range(100)]


@pytest.mark.parametrize(
    "strangers",
    [
        say(b"1 3\n"),  # As ranks themselves once greeted.
        say(b"\0\0\0\1" + bytes(64)),
        say(bytes(5_000_000)),
        say(b""),
        reflect,
        guess,
        say_nothing,
    ],
    ids=["greeting", "zeros", "megabytes", "silence", "reflection", "another secret", "a hundred"],
)
def test_whatever_strangers_do_all_ranks_meet(strangers: Callable[[Cluster], list[socket.socket]]) -> None:
    cluster = make_cluster()
    with ThreadPoolExecutor() as pool:
        chief = pool.submit(roll_call, cluster, 60)
        connections = strangers(cluster)
        ranks = [pool.submit(roll_call, replace(cluster, rank=rank), 60) for rank in range(1, RANKS)]
        assert [each.result() for each in (chief, *ranks)] == ["127.0.0.1"] * RANKS
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("challenge", ["new", "the same"])
def test_a_replayed_answer_is_worth_nothing(challenge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster()
    answer = answer_of(replace(cluster, rank=1), cluster.port, bytes(32))
    if challenge == "the same":  # As no gate does; it shows that nothing else was wrong with the answer.
        monkeypatch.setattr("mnist_dist.distributed.membership.secrets.token_bytes", bytes)
    with Gate(cluster, cluster.port) as gate, stranger_to(cluster.port) as stranger:
        stranger.sendall(answer)
        member = gate.admit(0.3 if challenge == "new" else 20)
        assert (member is None, gate.turned_away) == ((True, 1) if challenge == "new" else (False, 0))
        if member:
            member[1].close()


def test_a_place_that_does_not_exist() -> None:
    """Who knows the secret, but is of another size, rank or port, is no member either."""
    cluster = make_cluster(rank=1)
    with Gate(cluster, cluster.port) as gate, ThreadPoolExecutor() as pool:
        for wrong in (replace(cluster, rank=RANKS), replace(cluster, size=RANKS + 1)):
            calling = pool.submit(connect, wrong, 0, cluster.port, 20)
            while not calling.done():
                assert gate.admit(0.1) is None
            with pytest.raises(ConnectionError, match="do all ranks have the same MNIST_DIST_SECRET"):
                calling.result()
        calling = pool.submit(connect, cluster, 0, cluster.port, 20)
        member = gate.admit(20)
        assert member and member[0] == 1
        calling.result().close()
        member[1].close()


def test_the_silent_leave_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_dist.distributed.membership.PROOF_SECONDS", 0.1)
    cluster = make_cluster()
    with Gate(cluster, cluster.port) as gate, stranger_to(cluster.port) as silent, stranger_to(cluster.port) as slow:
        slow.sendall(b"\0")
        assert gate.admit(0.5) is None
        assert gate.turned_away == 2
        for each in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert len(each.recv(32)) == 32 and each.recv(1) == b""


def test_listens_on_the_one_address() -> None:
    cluster = make_cluster()
    with Gate(cluster, cluster.port), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", cluster.port), timeout=20)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (("127.0.0.1", "127.0.0.1"), "127.0.0.1"),
        (("127.0.0.9", "127.0.0.10"), "127.0.0.9"),
        (("::1", "::1"), "::1"),
        (("localhost", "192.0.2.1"), ""),  # Others would not find it there.
        (("::1", "2001:db8::1"), ""),
        (("192.0.2.1", "192.0.2.2"), ""),  # It is not an address of this host.
    ],
)
def test_own_address(addresses: tuple[str, str], expected: str) -> None:
    if expected == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    assert own_address(Cluster(0, 2, 0, 1, ("n1", "n2"), addresses=addresses)) == expected


def test_another_secret_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = make_cluster(size=2)
    with ThreadPoolExecutor() as pool:
        chief = pool.submit(roll_call, cluster, 2)
        other = pool.submit(roll_call, replace(cluster, rank=1, secret=make_secret()), 1)
        with pytest.raises(TrainingError, match="it hung up; do all ranks have the same MNIST_DIST_SECRET"):
            other.result()
        with pytest.raises(TrainingError, match=r"rank 1 \(127.0.0.1\) of 2 did not connect .* connections failed"):
            chief.result()
    assert capsys.readouterr().err == ""


def test_without_a_secret_ranks_meet_and_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = make_cluster(size=2, secret="")
    with ThreadPoolExecutor() as pool:
        ranks = [pool.submit(roll_call, replace(cluster, rank=rank), 60) for rank in range(2)]
        assert [each.result() for each in ranks] == ["127.0.0.1"] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch: without MNIST_DIST_SECRET") and "docs/security.md" in line


def test_the_secret_goes_to_ranks_and_nowhere_else() -> None:
    cluster = make_cluster()
    assert find_cluster(cluster.to_environment()).secret == cluster.secret
    assert cluster.secret not in repr(cluster)
    assert cluster.secret not in str(horovod_environment(cluster, "lo", 60)), "what travels is made from it"


class TestHorovodsStore:
    @pytest.fixture
    def cluster(self) -> Iterator[Cluster]:
        cluster = make_cluster(size=2)
        with Horovod.rendezvous(cluster):
            yield cluster

    def ask(self, cluster: Cluster, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes] | None:
        """Returns status and content of the answer, or None where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=20)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def test_only_who_knows_its_key_may_read_and_write(self, cluster: Cluster) -> None:
        address = horovod_environment(cluster, "lo", 60)["HOROVOD_GLOO_RENDEZVOUS_ADDR"]
        place = f"/{address.partition('/')[2]}:{cluster.port}"  # Horovod makes http://ADDRESS:PORT/SCOPE/KEY of it.
        assert self.ask(cluster, "PUT", f"{place}/global/0", b"mine") == (200, b"")
        other = derive(make_secret(), b"rendezvous").hex()
        for method, path in [
            ("GET", "/global/0"),
            ("PUT", "/global/0"),
            ("DELETE", "/global/0"),
            ("HEAD", "/"),  # Of the folder in which the launcher runs.
            ("PUT", f"/{other}:{cluster.port}/global/0"),
        ]:
            assert self.ask(cluster, method, path, b"a stranger's" if method == "PUT" else None) is None, path
        assert self.ask(cluster, "GET", f"{place}/global/0") == (200, b"mine")

    def test_its_end_waits_for_no_stranger(self, capfd: pytest.CaptureFixture[str]) -> None:
        cluster = make_cluster(size=2)
        is_over = threading.Event()

        def dribble(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while not is_over.wait(0.2):
                    connection.sendall(b"G")

        with contextlib.ExitStack() as stack:
            stack.callback(is_over.set)
            with Horovod.rendezvous(cluster):
                strangers = [stack.enter_context(stranger_to(cluster.port)) for _ in range(100)]
                threading.Thread(target=dribble, args=[strangers[0]], daemon=True).start()
                assert self.ask(cluster, "GET", "/global/0") is None
                strangers[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                strangers[1].close()  # Which resets it.
            assert not is_over.is_set(), "the end has not waited for the one that speaks on"
        assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("host", "there"), [("", "127.0.0.1"), ("", "::1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")]
)
def test_listening_on_both_families(host: str, there: str) -> None:
    if ":" in host + there and not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    with listen(host, 0, 1) as server, socket.create_connection((there, server.getsockname()[1]), timeout=5):
        pass
