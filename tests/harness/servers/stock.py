"""A server with a stock worker class or one of the pack, to compare how they behave."""

import json
import socket
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import gunicorn
import pytest

from tests.harness.clients.connection import Connection
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import GEVENT, STICKY, View


@dataclass(frozen=True)
class Mode:
    """A worker class, and whether every request is to be handed over."""

    kind: str
    hands_over: bool = False

    @property
    def is_stock(self) -> bool:
        return self.kind == "gthread"

    def __str__(self) -> str:
        return self.kind.rpartition(".")[2] + (", handed over" if self.hands_over else "")


GTHREAD = Mode("gthread")
THREADED = (GTHREAD, Mode(STICKY), Mode(STICKY, hands_over=True))
MODES = (*THREADED, Mode(GEVENT), Mode(GEVENT, hands_over=True))
ARGS = (
    *("-w", "2", "--threads", "8", "--keep-alive", "20"),
    *("--limit-request-line", "500"),
    *("--limit-request-fields", "20"),
    *("--limit-request-field_size", "1000"),
)


@dataclass
class Subject:
    """A server, and how its requests are sent."""

    server: Gunicorn
    mode: Mode
    view: View | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def connect(self, timeout: float = 30) -> Connection:
        """Return a connection; if requests are handed over, it is with worker 0."""
        connection = self.server.connect(timeout)
        if self.mode.hands_over:
            assert self.first(connection)["worker"] == 0
        return connection

    def first(self, connection: Connection) -> Any:
        return connection.request("GET", "/who", {"Cookie": "gunicorn_worker=0"}).json()

    @property
    def line(self) -> bytes:
        """The header line that makes a request be handed over, if any."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode()

    def request(self, connection: Connection, method: str, target: str, **more: Any) -> Any:
        headers = {**self.headers, **more.pop("headers", {})}
        return connection.request(method, target, headers, **more)


def subject_of(server: Gunicorn, mode: Mode, workers: int = 2) -> Subject:
    if mode.is_stock:
        server.wait_serving(workers)
        return Subject(server, mode)
    view = View(server)
    view.wait_slots(workers)
    headers = {"Cookie": "gunicorn_worker=1"} if mode.hands_over else {}
    return Subject(server, mode, view, headers)


modes = pytest.mark.parametrize("mode", MODES, ids=str)

OLD = gunicorn.version_info < (27,)


def skip_old_gthread(mode: Mode) -> None:
    """Skip gthread where only the newest gunicorn's does what Sticky does on every release."""
    if OLD and mode == GTHREAD:
        pytest.skip("gthread does this from gunicorn 27 on")


def read_head(connection: Connection) -> tuple[bytes, dict[bytes, bytes]]:
    status = connection.read_line().rstrip()
    lines = list(iter(lambda: connection.read_line().rstrip(), b""))
    return status, {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}


def readable(connection: Connection, seconds: float = 0.2) -> bool:
    """True if the server sends something, or closes, within this time."""
    before = connection.socket.gettimeout()
    connection.socket.settimeout(seconds)
    try:
        connection.socket.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.socket.settimeout(before)
    return True


def whoami(client: HTTPConnection) -> Any:
    response = client.getresponse()
    assert response.status == 200
    return json.loads(response.read())
