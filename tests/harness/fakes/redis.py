"""A Redis of another version than is installed here: it says so, and answers the little that a
client asks to find out whether it may keep copies."""

import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import Any, BinaryIO


class FakeRedis:
    """Has `value` under every key. `asked` counts the commands."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.value = b"1"
        self.asked: Counter[str] = Counter()
        self._tracking: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._start(self._accept)

    def _start(self, work: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._server.accept()[0]
                self._connections.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as file:
            while command := _read(file):
                self.asked[command[0]] += 1
                connection.sendall(self._answer(connection, command))

    def _answer(self, connection: socket.socket, command: list[str]) -> bytes:
        name = command[0]
        if name == "HELLO":
            return _map({"server": "redis", "version": self.version, "proto": int(command[1])})
        if name == "INFO":
            return _bulk(f"redis_version:{self.version}\r\n".encode())
        if name == "CLIENT" and command[1] == "TRACKING":
            self._tracking.append(connection)
        return _bulk(self.value) if name == "GET" else b"+OK\r\n"

    def change(self, key: bytes, value: bytes) -> None:
        """As somebody else does it: those who have asked for it are told."""
        self.value = value
        for connection in self._tracking:
            connection.sendall(b">2\r\n" + _bulk(b"invalidate") + b"*1\r\n" + _bulk(key))

    def stop(self) -> None:
        for each in (self._server, *self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join()


def _read(file: BinaryIO) -> list[str]:
    head = file.readline()
    if not head:
        return []
    command = []
    for _ in range(int(head[1:])):
        length = int(file.readline()[1:])
        command.append(file.read(length + 2)[:-2].decode())
    return [command[0].upper(), *command[1:]]


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _map(items: dict[str, str | int]) -> bytes:
    pairs = [
        _bulk(name.encode())
        + (b":%d\r\n" % value if isinstance(value, int) else _bulk(value.encode()))
        for name, value in items.items()
    ]
    return b"%%%d\r\n" % len(pairs) + b"".join(pairs)
