"""A connection whose next request no worker has begun: what travels with it from one to another."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import Any, Final

from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage

NOTHING_TO_JUDGE: Final = (0, 0, 0, 0)


class Arrival:
    """Mixed into what a worker class has for a connection, or its base.

    ``received`` was read from it and belongs to its next request; ``served`` requests were
    answered on it by other workers, ``hops`` times it was handed on since; it is ``owned`` when
    its request has an owner. ``proxied`` is the PROXY protocol header that it began with.
    ``judged`` is for ``Heads``.
    """

    fd: int
    client: Any
    server: Any
    #: The client's IP address, or nothing.
    address: str

    # Defaults of the class: an instance is made for each new connection and each hand-off.
    received = b""
    served = 0
    hops = 0
    owned = False
    proxied = b""
    judged: tuple[int, ...] = NOTHING_TO_JUDGE

    @property
    def requests(self) -> int:
        """How many requests were served on this connection."""
        return self.served

    def can_leave(self) -> bool:
        """Whether this process has nothing left to send on it."""
        return True

    def pack(self) -> HandoffMessage:
        """What another worker must know to go on with the connection."""
        # An idle connection has no request yet that could be handed on too often.
        hops = self.hops + 1 if self.received else 0
        client, server = _plain(self.client), _plain(self.server)
        owned = self.owned and bool(self.received)
        return HandoffMessage(
            self.received, client, server, self.requests, hops, owned, self.proxied
        )

    def take(self, message: HandoffMessage) -> None:
        """Go on where the worker stopped that has packed it."""
        self.received, self.served, self.hops = message.received, message.requests, message.hops
        self.owned, self.proxied = message.owned, message.proxied

    def is_delivered(self) -> bool:
        """Whether the client's kernel has all that was sent, as far as ours can tell."""
        if sys.platform != "linux":
            return False
        unsent = fcntl.ioctl(self.fd, termios.TIOCOUTQ, b"\0" * _INT.size)
        return bool(_INT.unpack(unsent)[0] == 0)


def ip_of(client: Any) -> str:
    """The IP address in a client's address as gunicorn has it, or nothing (Unix sockets)."""
    return str(client[0]) if isinstance(client, tuple) else ""


def family_of(server: Any) -> int:
    """The address family of a listener's address."""
    if isinstance(server, str):
        return _UNIX
    return _INET6 if len(server) == 4 else _INET


def _plain(address: Any) -> Any:
    """An address as a message can carry it: abstract Unix names are bytes."""
    return address.decode("latin-1") if isinstance(address, bytes) else address


_INT: Final = struct.Struct("i")
# Plain ints: enums are slow.
_UNIX: Final = int(socket.AF_UNIX)
_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)
