"""Unix sockets, and several listeners at once."""

import hashlib
import re
import socket
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.stock import Mode, Subject, modes, subject_of, whoami
from tests.harness.view import View


@modes
def test_unix_sockets(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], mode: Mode
) -> None:
    bind = f"unix:{new_directory() / 'app.sock'}"
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, bind=bind)
    view = None if mode.is_stock else View(server)
    if view:
        view.wait_slots(2)
    headers = {"Cookie": "gunicorn_worker=1"} if mode.hands_over else {}
    subject = Subject(server, mode, view, headers)
    body = b"through a socket" * 50_000
    with subject.connect() as connection:
        who = subject.request(connection, "GET", "/who").json()
        # What gunicorn says of a client without an address.
        assert who["client"] == ""
        answer = subject.request(connection, "POST", "/", body=body).json()
        assert answer["sha1"] == hashlib.sha1(body).hexdigest()
        for path in ("/a", "/b"):
            assert subject.request(connection, "GET", path).json()["path"] == path
        data = request_bytes("GET", "/pieces", subject.headers)
        for at in range(len(data)):
            connection.send(data[at : at + 1])
        assert connection.answer().json()["path"] == "/pieces"
    if mode.hands_over:
        assert view and view.total("handed_in") >= 1


def listeners(server: Gunicorn) -> list[tuple[str, int]]:
    line = re.search(r"Listening at: (\S+)", server.log_text())
    assert line
    urls = [url.rpartition("/")[2].rsplit(":", 1) for url in line[1].split(",")]
    return [(host.strip("[]"), int(port)) for host, port in urls]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@modes
def test_several_listeners(gunicorn: StartGunicorn, mode: Mode) -> None:
    binds = ["-b", "127.0.0.1:0", *(["-b", "[::1]:0"] if has_ipv6() else [])]
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20", *binds)
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    found = listeners(server)
    assert len(found) == 1 + len(binds) // 2
    for host, port in found:
        client = HTTPConnection(host, port, timeout=30)
        try:
            for slot in (0, 1, 0, 1):
                client.request("GET", "/who", headers={"Cookie": f"gunicorn_worker={slot}"})
                who = whoami(client)
                assert who["client"] == host
                assert who["worker"] == (slot if subject.view else None)
        finally:
            client.close()
    assert subject.view is None or subject.view.total("handed_in") >= 3 * len(found)
