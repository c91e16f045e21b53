"""A real redis-server that keeps nothing on disk."""

from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import redis

from tests.harness.ports import accepts, free_port
from tests.harness.process import Process, find_program
from tests.harness.servers.certificate import Certificate


class Redis(Process):
    """A redis-server. With `port`, a test starts a second one where the first was; with a
    certificate it uses TLS on `tls_port`, too."""

    def __init__(
        self,
        directory: Path,
        *args: str,
        port: int | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        if certificate is not None:
            self.tls_port = free_port()
            self.tls_url = f"rediss://127.0.0.1:{self.tls_port}/0{certificate.query}"
            options = {"tls-port": str(self.tls_port), **certificate.redis_options()}
            args += tuple(each for name, value in options.items() for each in (f"--{name}", value))
        self.socket = directory / f"redis-{self.port}.sock"
        command = [find_program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--unixsocket", str(self.socket)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        super().__init__(f"redis-{self.port}", [*command, *args], directory)

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def ask(self, *command: str | int) -> Any:
        """Return the server's answer, as redis-py has it."""
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*command)

    def subscribers(self, channel: str) -> int:
        with redis.Redis.from_url(self.url) as client:
            return int(client.pubsub_numsub(channel)[0][1])

    def wait_ready(self) -> None:
        self.wait_for(lambda: accepts(self.port), 10, "a redis-server that accepts")

    def halt(self) -> None:
        """Stop the process (SIGSTOP), so that it answers no more."""
        self.signal(SIGSTOP)

    def go_on(self) -> None:
        self.signal(SIGCONT)

    def crash(self) -> None:
        self.signal(SIGKILL)
        self.wait_exit(10)

    def stop(self, number: int = 15, timeout: float = 40) -> None:
        """Stop it, also after `halt`."""
        if self.running():
            self.go_on()
        super().stop(number, timeout)
