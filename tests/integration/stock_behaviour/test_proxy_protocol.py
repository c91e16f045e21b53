"""The PROXY protocol, in both of its versions."""

import socket
import struct
from typing import Any

import pytest

from gunicorn_cluster_ext.routing.rules import rendezvous
from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.stock import MODES, Mode, modes, readable, subject_of
from tests.harness.view import GEVENT, STICKY, View

V2 = b"\r\n\r\n\x00\r\nQUIT\n"


def proxied(version: str, client: str) -> bytes:
    if version == "v1":
        return f"PROXY TCP4 {client} 198.51.100.9 4321 80\r\n".encode()
    addresses = socket.inet_aton(client) + socket.inet_aton("198.51.100.9")
    ports = struct.pack("!HH", 4321, 80)
    return V2 + b"\x21\x11" + struct.pack("!H", 12) + addresses + ports


def known_as(who: Any) -> tuple[str, str]:
    return who["client"], who["client_port"]


@modes
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_proxy_protocol(gunicorn: StartGunicorn, mode: Mode, version: str) -> None:
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20", "--proxy-protocol", version)
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    view = subject.view
    get = request_bytes("GET", "/who", {})

    def talk(slot: int) -> None:
        at_slot = request_bytes("GET", "/who", {"Cookie": f"gunicorn_worker={slot}"})
        elsewhere = request_bytes("GET", "/who", {"Cookie": f"gunicorn_worker={1 - slot}"})
        with server.connect() as connection:
            connection.send(proxied(version, "203.0.113.7") + at_slot)
            who = connection.answer().json()
            assert known_as(who) == ("203.0.113.7", "4321")
            assert who["worker"] == (slot if view else None)
            # The header stands before the first request only. On gthread it names the client of
            # that, on gevent of all.
            connection.send(elsewhere)
            second = connection.answer().json()
            assert second["client"] == ("203.0.113.7" if mode.kind == GEVENT else "127.0.0.1")
            assert second["worker"] == (1 - slot if view else None)
            # It is not looked for again.
            connection.send(proxied(version, "203.0.113.8") + get)
            assert connection.answer().status == 400

    before = view.total("handed_in") if view else 0
    talk(0)
    talk(1)
    assert view is None or view.total("handed_in") - before >= 2
    for end in (1, 8, 13, len(proxied(version, "203.0.113.7"))):
        with server.connect() as connection:  # in two pieces
            data = proxied(version, "203.0.113.7") + get
            connection.send(data[:end])
            assert not readable(connection)
            connection.send(data[end:])
            assert connection.answer().json()["client"] == "203.0.113.7"
    with server.connect() as connection:  # without: as it comes
        connection.send(get)
        assert connection.answer().json()["client"] == "127.0.0.1"


BROKEN = {
    "no address": b"PROXY TCP4 999.0.113.7 198.51.100.9 4321 80\r\n",
    "too short": b"PROXY TCP4 203.0.113.7\r\n",
    "no port": b"PROXY TCP4 203.0.113.7 198.51.100.9 99999 80\r\n",
    "not TCP": b"PROXY UDP4 203.0.113.7 198.51.100.9 4321 80\r\n",
    "unknown": b"PROXY UNKNOWN\r\n",
    "v2, another version": V2 + b"\x31\x11\x00\x0c" + bytes(12),
    "v2, too short": V2 + b"\x21\x11\x00\x02" + bytes(2),
    "v2, no command": V2 + b"\x2f\x11\x00\x0c" + bytes(12),
    "v2, no family": V2 + b"\x21\xf1\x00\x0c" + bytes(12),
    "v2, a local one": V2 + b"\x20\x00\x00\x00",
    "v2, a Unix socket": V2 + b"\x21\x31\x00\xd8" + bytes(216),
    "v2, and more": V2 + b"\x21\x11\x00\x0f" + b"\xcb\x00\x71\x07" + bytes(11),
}


COMPARED = [mode for mode in MODES if not mode.hands_over]


def test_unusual_proxy_headers(gunicorn: StartGunicorn) -> None:
    args = ("-w", "2", "--threads", "4", "--proxy-protocol", "auto")
    servers = [gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False) for mode in COMPARED]
    for server, mode in zip(servers, COMPARED, strict=True):
        subject_of(server, mode)
    for name, header in BROKEN.items():
        seen = []
        for server in servers:
            with server.connect() as connection:
                connection.send(header + request_bytes("GET", "/who"))
                answer = connection.answer()
                client = answer.json()["client"] if answer.status == 200 else None
                seen.append((answer.status, client))
        assert len(set(seen)) == 1, name


@modes
def test_a_proxy_header_of_a_stranger(gunicorn: StartGunicorn, mode: Mode) -> None:
    args = ("-w", "2", "--threads", "4", "--proxy-protocol", "v1")
    server = gunicorn(
        "misbehaving:app", "-k", mode.kind, *args, "--proxy-allow-from", "192.0.2.1", wait=False
    )
    subject_of(server, mode)
    with server.connect() as connection:
        connection.send(proxied("v1", "203.0.113.7") + request_bytes("GET", "/who"))
        assert connection.answer().status == 403


def test_hash_ip_by_the_proxy_header(gunicorn: StartGunicorn) -> None:
    """The client of the PROXY protocol, not the proxy, chooses the worker."""
    args = ("-k", STICKY, "-w", "4", "--proxy-protocol", "v1")
    server = gunicorn("misbehaving:app", *args, config="cluster_sticky = ['hash:ip']\n", wait=False)
    View(server).wait_slots(4)
    for number in range(8):
        client = f"203.0.113.{number}"
        with server.connect() as connection:
            connection.send(proxied("v1", client) + request_bytes("GET", "/who"))
            who = connection.answer().json()
        assert (who["client"], who["worker"]) == (client, rendezvous(client.encode(), range(4)))
