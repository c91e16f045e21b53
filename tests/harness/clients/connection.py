"""An HTTP client connection that never reconnects by itself."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.cookies import SimpleCookie
from typing import Any

from tests.harness.closing import Closing

Address = tuple[str, int] | str


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def cookies(self) -> dict[str, str]:
        """Return the cookies that the answer sets."""
        jar: SimpleCookie = SimpleCookie()
        for line in self.headers.get_all("Set-Cookie", []):
            jar.load(line)
        return {name: morsel.value for name, morsel in jar.items()}


class Connection(Closing):
    """One connection. Requests may be pipelined, and any bytes may be sent."""

    def __init__(self, address: Address, timeout: float = 20) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self._input = self.socket.makefile("rb")

    def close(self) -> None:
        self._input.close()
        self.socket.close()

    def get(self, target: str = "/", **headers: str) -> Answer:
        """Send a GET request; header names are written as in `x_key="1"`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("GET", target, headers=named)

    def request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        self.send(request_bytes(method, target, headers, body))
        return self.answer()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """Return the next answer, skipping interim ones (100 Continue)."""
        status = 100
        while status < 200:
            status = self._status()
            headers = http.client.parse_headers(self._input)
        return Answer(status, headers, self._body(status, headers))

    def read_line(self) -> bytes:
        return self._input.readline()

    def closed_by_peer(self) -> bool:
        """Wait for the peer to close; False if it sends more bytes instead."""
        try:
            return self._input.read(1) == b""
        except ConnectionResetError:
            return True

    def _status(self) -> int:
        line = self.read_line()
        if not line:
            raise ConnectionError("the peer closed the connection instead of answering")
        return int(line.split(None, 2)[1])

    def _body(self, status: int, headers: Message) -> bytes:
        if headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        if "Content-Length" in headers:
            return self._exactly(int(headers["Content-Length"]))
        return b"" if status in (204, 304) else self._input.read()

    def _chunk(self) -> bytes:
        size = int(self.read_line().split(b";")[0], 16)
        data = self._exactly(size)
        self.read_line()
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._input.read(size)
        if len(data) < size:
            raise ConnectionError(f"the peer closed after {len(data)} of {size} bytes")
        return data


def request_bytes(
    method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    lines = {"Host": "localhost", **(headers or {})}
    if body:
        lines.setdefault("Content-Length", str(len(body)))
    head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body
