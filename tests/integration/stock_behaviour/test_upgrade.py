"""Connections that become WebSockets."""

import json

import websocket  # type: ignore[import-untyped]

from tests.harness.clients.connection import request_bytes
from tests.harness.servers.stock import Subject, read_head
from tests.harness.waiting import wait_until


def test_a_websocket(subject: Subject) -> None:
    url = subject.server.url.replace("http", "ws") + "/websocket"
    view = subject.view

    def talk(slot: int) -> None:
        client = websocket.create_connection(url, cookie=f"gunicorn_worker={slot}", timeout=30)
        try:
            assert json.loads(client.recv()) == {"worker": slot if view else None}
            for text in ("short", "long" * 10_000):
                client.send(text)
                assert client.recv() == text
        finally:
            client.close()

    if view is None:
        talk(0)
        return
    before = view.total("handed_in")
    wait_until(lambda: (talk(0), talk(1), view.total("handed_in") > before)[-1], 30, "a hand-off")


def test_a_websocket_on_a_connection_in_use(subject: Subject) -> None:
    with subject.connect() as connection:
        subject.request(connection, "GET", "/")
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        }
        connection.send(request_bytes("GET", "/websocket", {**subject.headers, **upgrade}))
        status, headers = read_head(connection)
        assert status.startswith(b"HTTP/1.1 101")
        assert headers[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
