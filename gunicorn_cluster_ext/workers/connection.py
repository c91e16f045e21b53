"""A client's connection, and what of it travels from one worker to another.

A connection changes hands only between two requests: no worker has begun the next one.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import Any, Final

from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage, plain_address

#: Bytes read at once while a head is awaited. Nearly every head fits, and what follows it has to
#: fit into a message to another worker.
HEAD_READ_SIZE: Final = 16 * 1024
#: How long a connection may linger that we have closed (util.close_graceful in gunicorn 26 on).
LINGER_TIMEOUT_S: Final = 2.0

#: Nothing was checked yet: see ``HeadReader``.
NOTHING_CHECKED: Final = (0, 0, 0, 0)


class Connection:
    """Mixed into a worker class's own kind of connection, or its base.

    ``received`` was read from it and belongs to its next request. Other workers have answered
    ``served`` requests on it, and have handed it over ``hops`` times since the last of them. It is
    ``owned`` when its next request has an owner. ``proxied`` is the PROXY protocol header that it
    began with. ``checked`` is for ``HeadReader``.
    """

    fd: int
    client: Any
    server: Any
    #: The client's IP address, or "" for a Unix socket.
    address: str

    # Defaults of the class: an instance is made for each new connection and each hand-off.
    received = b""
    served = 0
    hops = 0
    owned = False
    proxied = b""
    checked: tuple[int, ...] = NOTHING_CHECKED

    @property
    def requests(self) -> int:
        """How many requests were served on this connection."""
        return self.served

    def can_move(self) -> bool:
        """Return True if this process has nothing left to send on it."""
        return True

    def can_answer(self) -> bool:
        """Return True if an answer can be written at once."""
        return True

    def pack(self) -> HandoffMessage:
        """Return what another worker must know to continue with the connection."""
        # An idle connection has no request yet that could be handed over too often.
        hops = self.hops + 1 if self.received else 0
        client, server = plain_address(self.client), plain_address(self.server)
        owned = self.owned and bool(self.received)
        return HandoffMessage(
            self.received, client, server, self.requests, hops, owned, self.proxied
        )

    def take(self, message: HandoffMessage) -> None:
        """Continue where the worker stopped that has packed ``message``."""
        self.received, self.served, self.hops = message.received, message.requests, message.hops
        self.owned, self.proxied = message.owned, message.proxied

    def is_delivered(self) -> bool:
        """Return True if the client's kernel has all that was sent, as far as ours can tell."""
        if sys.platform != "linux":
            return False
        unsent = fcntl.ioctl(self.fd, termios.TIOCOUTQ, b"\0" * _INT.size)
        return bool(_INT.unpack(unsent)[0] == 0)


def refusal(status: int, reason: str, headers: str) -> bytes:
    """Return an answer in gunicorn's place, after which the connection is closed."""
    headers += "Connection: close\r\nContent-Length: 0\r\n"
    return f"HTTP/1.1 {status} {reason}\r\n{headers}\r\n".encode()


def ip_of(client: Any) -> str:
    """Return the IP address in a client's address as gunicorn has it, or "" (Unix sockets)."""
    return str(client[0]) if isinstance(client, tuple) else ""


def family_of(server: Any) -> int:
    """Return the address family of a listener's address."""
    if isinstance(server, str):
        return _UNIX
    return _INET6 if len(server) == 4 else _INET


_INT: Final = struct.Struct("i")
# Plain ints: enums are slow.
_UNIX: Final = int(socket.AF_UNIX)
_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)
