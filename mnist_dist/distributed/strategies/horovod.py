"""One replica in each of several processes, joined by Horovod."""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence

from mnist_dist.config import RuntimeConfig
from mnist_dist.data.dataset import Shard
from mnist_dist.distributed import horovod_build
from mnist_dist.distributed.cluster import Cluster
from mnist_dist.distributed.membership import MOST_STRANGERS, derive, own_address
from mnist_dist.distributed.strategies.interface import Strategy
from mnist_dist.errors import UserError
from mnist_dist.lazy import keras, tf
from mnist_dist.strategies import STRATEGIES


class Horovod(Strategy):
    """One replica in each of several processes, joined by Horovod."""

    def __init__(self, cluster: Cluster) -> None:
        if horovod_build.waits_for_tensors():
            os.environ.setdefault("HOROVOD_CYCLE_TIME", f"{horovod_build.IDLE_CYCLE_MILLISECONDS:g}")
        import horovod.tensorflow as hvd

        on_gpus = bool(tf.config.get_visible_devices("GPU"))
        if on_gpus and not hvd.nccl_built():
            raise UserError(
                "runtime.strategy: received 'horovod' on GPUs, but this Horovod was built without NCCL, so that each "
                "all-reduce would go through the host; run `mnist-dist install-horovod --force` where the CUDA "
                "compiler and NCCL are, or take --strategy multiworker."
            )
        hvd.init()
        if (hvd.rank(), hvd.size()) != (cluster.rank, cluster.size):
            raise UserError(
                f"runtime.strategy: Horovod found itself to be rank {hvd.rank()} of {hvd.size()}, but the launcher "
                f"says {cluster.rank} of {cluster.size}; start all ranks with one launcher."
            )
        self._hvd = hvd
        self.is_chief = cluster.is_chief
        self.backend = "NCCL" if on_gpus else "Gloo" if hvd.gloo_enabled() else "MPI"
        self.shard = Shard(cluster.rank, 1, cluster.size)

    @classmethod
    def describe_installation(cls) -> str:
        try:
            import horovod.tensorflow as hvd
        except ImportError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"does not load ({reason}); `mnist-dist install-horovod --force`") from None
        built = {"Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built(), "NCCL": hvd.nccl_built()}
        if horovod_build.waits_for_tensors():
            idle = f"idle ranks sleep until there is work, {horovod_build.IDLE_CYCLE_MILLISECONDS:g} ms at most"
        else:
            idle = (
                "as released: ranks wake up every millisecond, even with nothing to send; "
                "`mnist-dist install-horovod` builds one whose ranks sleep until then"
            )
        return f"with {', '.join(name for name, there in built.items() if there)}; {idle}"

    @classmethod
    @contextlib.contextmanager
    def rendezvous(cls, cluster: Cluster) -> Iterator[None]:
        """Serves the key-value store over HTTP through which Horovod's Gloo ranks find each other."""
        try:
            from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
            from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
        except ImportError:
            missing = STRATEGIES["horovod"].missing
            raise UserError(f"runtime.strategy: received 'horovod', but {missing}.") from None
        # Horovod asks for http://ADDRESS:PORT/SCOPE/KEY, with :PORT/OURS at the end of what it is told as the address.
        _, slash, ours = rendezvous_path(cluster).partition("/")
        prefix = f"{slash}{ours}:{cluster.port}" * bool(ours)

        class Handler(RendezvousHandler):
            path = ""

            def parse_request(self) -> bool:
                is_whole = super().parse_request()
                given, self.path = self.path[: len(prefix)], self.path[len(prefix) :]
                return is_whole and hmac.compare_digest(given.encode(), prefix.encode())  # A stranger gets no answer.

        class Server(RendezvousHTTPServer):
            daemon_threads = True  # The end does not wait for strangers.
            request_queue_size = cluster.size + MOST_STRANGERS

            def handle_error(self, *request: object) -> None:
                """Says nothing of a connection that has gone again."""
                if not isinstance(sys.exc_info()[1], OSError):
                    super().handle_error(*request)

        slots = ",".join(f"{host}:{cluster.hosts.count(host)}" for host in dict.fromkeys(cluster.hosts))
        try:
            address = own_address(cluster)
            server = Server(("" if ":" in address else address, cluster.port), Handler, 0)  # It knows IPv4 alone.
        except OSError as error:
            raise UserError(f"launch: cannot listen on port {cluster.port} ({error.strerror}); try again.") from None
        server.init(get_host_assignments(parse_hosts(slots), cluster.size))
        thread = threading.Thread(target=server.serve_forever, daemon=True, name="rendezvous")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @classmethod
    def prepare_rank(cls, cluster: Cluster, address: str, join_timeout_seconds: float) -> None:
        interface = os.environ.get("HOROVOD_GLOO_IFACE") or interface_of(address)
        os.environ.update(horovod_environment(cluster, interface, join_timeout_seconds))

    @classmethod
    def make(cls, config: RuntimeConfig, cluster: Cluster) -> Horovod:
        return cls(cluster)

    def reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._hvd.allreduce(tensor, op=self._hvd.Sum)

    all_reduce = reduce

    def broadcast(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:  # Not all in one call: Horovod's makes a function of them, with autograph.
            variable.assign(self._hvd.broadcast(variable.value, root_rank=0))

    def barrier(self) -> None:
        self.all_reduce(tf.zeros([1])).numpy()
        self._hvd.shutdown()


def horovod_environment(cluster: Cluster, interface: str, join_timeout_seconds: float) -> dict[str, str]:
    """Returns what `horovodrun` would tell a rank, for Gloo over TCP on a network interface."""
    hosts = list(dict.fromkeys(cluster.hosts))
    try:
        rendezvous = socket.gethostbyname(cluster.addresses[0])
    except OSError:
        raise UserError(
            f"node {cluster.hosts[0]}: no IPv4 address is known for '{cluster.addresses[0]}', which Horovod needs; "
            "take --strategy multiworker."
        ) from None
    environment = {
        "HOROVOD_RANK": cluster.rank,
        "HOROVOD_SIZE": cluster.size,
        "HOROVOD_LOCAL_RANK": cluster.local_rank,
        "HOROVOD_LOCAL_SIZE": cluster.local_size,
        "HOROVOD_CROSS_RANK": hosts.index(cluster.hosts[cluster.rank]),
        "HOROVOD_CROSS_SIZE": len(hosts),
        # Without a name of its own, Horovod takes all nodes for one host.
        "HOROVOD_HOSTNAME": cluster.hosts[cluster.rank],
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": rendezvous + rendezvous_path(cluster),
        # Gloo would otherwise resolve the host's name, which may lead to an address nobody listens on.
        "HOROVOD_GLOO_IFACE": interface,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": cluster.port,
        "HOROVOD_GLOO_TIMEOUT_SECONDS": int(join_timeout_seconds),
    }
    return {name: str(value) for name, value in environment.items()}


def rendezvous_path(cluster: Cluster) -> str:
    """Returns what opens the store, which Horovod takes for the end of its address, and says nothing of the secret."""
    return f":{cluster.port}/{derive(cluster.secret, b'rendezvous').hex()}" if cluster.secret else ""


def interface_of(address: str) -> str:
    """Returns the name of the network interface that has an IPv4 address, such as "lo" of 127.0.0.1."""
    request_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # An interface without an IPv4 address.
                answer = fcntl.ioctl(probe, request_address, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return "lo"  # Any address of 127.0.0.0/8 other than the first.
