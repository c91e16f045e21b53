"""A real HAProxy in front of the servers of a test."""

from pathlib import Path

from tests.harness.clients.connection import Connection
from tests.harness.ports import accepts, free_port
from tests.harness.process import Process, find_program

_DEFAULTS = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""


class Haproxy(Process):
    """`sections` follow the defaults; `BIND` in them becomes `bind 127.0.0.1:port`."""

    def __init__(self, directory: Path, sections: str) -> None:
        self.port = free_port()
        config = directory / "haproxy.cfg"
        config.write_text(_DEFAULTS + sections.replace("BIND", f"bind 127.0.0.1:{self.port}"))
        super().__init__("haproxy", [find_program("haproxy"), "-db", "-f", str(config)], directory)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 20) -> Connection:
        return Connection(("127.0.0.1", self.port), timeout)

    def wait_ready(self) -> None:
        self.wait_for(lambda: accepts(self.port), 10, "a HAProxy that accepts")
