"""A real Redis Cluster: three local processes that have a third of the slots each."""

from contextlib import ExitStack
from pathlib import Path

from tests.harness.ports import free_port
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.redis import Redis
from tests.harness.waiting import wait_until

_SLOTS = 16_384


class Cluster:
    def __init__(self, directory: Path, certificate: Certificate | None = None) -> None:
        self._certificate = certificate
        self._stack = ExitStack()
        self._buses: list[int] = []
        try:
            self.nodes = [self._node(directory / str(number)) for number in range(3)]
            self._join()
        except BaseException:
            self.stop()
            raise

    def _node(self, directory: Path) -> Redis:
        directory.mkdir()
        # The bus would have a port 10,000 above, which may be one that the kernel gives away.
        bus = free_port()
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "15000"]
        node = Redis(directory, *options, "--cluster-port", str(bus), certificate=self._certificate)
        self._buses.append(bus)
        self._stack.callback(node.stop)
        node.wait_ready()
        return node

    def _join(self) -> None:
        edges = [_SLOTS * number // 3 for number in range(4)]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first = self.nodes[0]
        for node, bus in zip(self.nodes[1:], self._buses[1:], strict=True):
            port = node.tls_port if self._certificate else node.port
            first.ask("CLUSTER", "MEET", "127.0.0.1", port, bus)
        wait_until(lambda: all(map(_is_whole, self.nodes)), 20, "a cluster of three")

    @property
    def url(self) -> str:
        if self._certificate is None:
            return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        nodes = ",".join(f"127.0.0.1:{node.tls_port}" for node in self.nodes)
        return f"rediss+cluster://{nodes}/{self._certificate.query}"

    def stop(self) -> None:
        self._stack.close()


def _is_whole(node: Redis) -> bool:
    info = bytes(node.ask("CLUSTER", "INFO"))
    return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info
