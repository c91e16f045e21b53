"""A real Redis with a replica, watched by three Sentinels."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import redis

from tests.harness.ports import accepts, free_port
from tests.harness.process import Process, find_program
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.redis import Redis
from tests.harness.waiting import wait_until

P = TypeVar("P", "Redis", "Sentinel")

SERVICE = "main"

_CONFIG = """
{ports}
bind 127.0.0.1
dir {directory}
sentinel monitor {service} 127.0.0.1 {master} 2
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 3000
"""


class Sentinel(Process):
    """A Sentinel; with a certificate it uses TLS only, also with the servers."""

    def __init__(
        self, directory: Path, master: int, certificate: Certificate | None = None
    ) -> None:
        self.port = free_port()
        options, self._client = {"port": str(self.port)}, {}
        if certificate is not None:
            options = {"port": "0", "tls-port": str(self.port), **certificate.redis_options()}
            self._client = {"ssl": True, "ssl_ca_certs": str(certificate.path)}
        ports = "\n".join(f"{name} {value}" for name, value in options.items())
        config = directory / f"sentinel-{self.port}.conf"
        config.write_text(
            _CONFIG.format(ports=ports, directory=directory, master=master, service=SERVICE)
        )
        command = [find_program("redis-server"), str(config), "--sentinel"]
        super().__init__(f"sentinel-{self.port}", command, directory)

    def wait_ready(self) -> None:
        self.wait_for(lambda: accepts(self.port), 10, "a Sentinel that accepts")

    def ask(self, *command: str | int) -> Any:
        with redis.Redis("127.0.0.1", self.port, **self._client) as client:
            return client.execute_command(*command)

    def knows(self) -> tuple[int, int]:
        """Return the number of replicas that it knows, and of other Sentinels."""
        with redis.Redis("127.0.0.1", self.port, **self._client) as client:
            state = client.sentinel_master(SERVICE)
        return state["num-slaves"], state["num-other-sentinels"]


def is_master(node: Redis) -> bool:
    with suppress(redis.ConnectionError):  # it closes them when it changes
        return bool(node.ask("ROLE")[0] == b"master")
    return False


class Watched:
    """A master (`nodes[0]` at first), its replica, and three Sentinels."""

    def __init__(self, directory: Path, certificate: Certificate | None = None) -> None:
        self._certificate = certificate
        self._stack = ExitStack()
        try:
            self._start(directory)
        except BaseException:
            self.stop()
            raise

    def _start(self, directory: Path) -> None:
        certificate = self._certificate
        master = self._started(Redis(directory, certificate=certificate))
        port = master.tls_port if certificate else master.port
        # Without a pause before the first copy, and a copy that does not touch the disk.
        master.ask("CONFIG", "SET", "repl-diskless-sync-delay", 0)
        options = ("--replicaof", f"127.0.0.1 {port}")
        replica = self._started(Redis(directory, *options, certificate=certificate))
        self.nodes = [master, replica]
        wait_until(lambda: b"state=online" in self._replication(master), 15, "a copy")
        self.sentinels = [self._started(Sentinel(directory, port, certificate)) for _ in range(3)]
        wait_until(
            lambda: all(each.knows() == (1, 2) for each in self.sentinels), 15, "acquaintance"
        )

    def _started(self, process: P) -> P:
        self._stack.callback(process.stop)
        process.wait_ready()
        return process

    def _replication(self, node: Redis) -> bytes:
        with redis.Redis(port=node.port) as client:
            client.response_callbacks.clear()
            return bytes(client.execute_command("INFO", "replication"))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        if self._certificate is None:
            return f"redis+sentinel://{hosts}/{SERVICE}/0"
        return f"rediss+sentinel://{hosts}/{SERVICE}/0{self._certificate.query}"

    def stop(self) -> None:
        self._stack.close()
