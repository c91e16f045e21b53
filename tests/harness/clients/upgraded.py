"""HTTP/2 on a connection that began with HTTP/1.1."""

import h2.config
import h2.connection
import h2.events

from tests.harness.clients.connection import Connection


class Upgraded:
    """A client that asks over HTTP/1.1 whether it may go on with HTTP/2 (RFC 7540 section 3.2)."""

    def __init__(self, connection: Connection, headers: dict[str, str]) -> None:
        self._connection = connection
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        settings = self._state.initiate_upgrade_connection()
        assert settings is not None
        lines = {
            "Host": "x",
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": "h2c",
            "HTTP2-Settings": settings.decode(),
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.send(f"GET / HTTP/1.1\r\n{head}\r\n".encode())
        self._bodies: dict[int, bytes] = {}
        self._ended: set[int] = set()
        self._receive(self._switched())

    def get(self, target: str) -> bytes:
        stream = self._state.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "http", ":authority": "x", ":path": target}
        self._state.send_headers(stream, list(headers.items()), end_stream=True)
        return self.answer(stream)

    def answer(self, stream: int) -> bytes:
        """The body of a stream's answer; stream 1 is the request that asked for the upgrade."""
        while stream not in self._ended:
            self._receive(self._more())
        return self._bodies[stream]

    def _switched(self) -> bytes:
        """What follows the answer to the upgrade."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(f"not upgraded: {head!r}")
        return rest

    def _more(self) -> bytes:
        self._connection.send(self._state.data_to_send())
        data = self._connection.socket.recv(65536)
        if not data:
            raise ConnectionError("the peer closed the connection instead of answering")
        return data

    def _receive(self, data: bytes) -> None:
        for event in self._state.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self._bodies[event.stream_id] = self._bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, h2.events.StreamEnded):
                self._ended.add(event.stream_id)
