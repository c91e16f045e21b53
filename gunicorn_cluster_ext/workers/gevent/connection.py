"""A connection of a worker whose connections are greenlets, and gunicorn's parser of it.

**Leaving.** libev does not remove a closed descriptor from its epoll set, because the kernel does;
but the kernel does not while another process has the connection. Its input then woke the former
owner, which found a number that it did not know and rebuilt its whole epoll set, once for each
hand-off. So a connection is removed from the set before it leaves.

**Waiting** for a request is waiting in ``recv()``. The main greenlet hands an idle connection over
and closes it here, which wakes its greenlet with an error that the greenlet knows.

**The end of a response.** gunicorn's async workers just close. A client that has sent a byte more
than was read would lose the part of the response that it has not received; ours waits for the
client, two seconds at most.
"""

from __future__ import annotations

import functools
import socket as plain_socket
from collections.abc import Callable
from typing import Any, Final

from gevent import GreenletExit, Timeout, monkey
from gevent.exceptions import ConcurrentObjectUseError
from gevent.socket import socket
from gunicorn.http.parser import RequestParser

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.workers.connection import (
    HEAD_READ_SIZE,
    LINGER_TIMEOUT_S,
    Connection,
    family_of,
    ip_of,
    refusal,
)


class GreenletConnection(Connection, socket):
    """An accepted connection. Its greenlet reads it, and no other."""

    parser: Parser | None = None

    #: When the head that has begun must be there (monotonic).
    head_deadline: float | None = None
    #: True if its next request is served here, False if it is not, None until that is known.
    is_served: bool | None = None

    def __init__(self, fd: int, client: Any, server: Any) -> None:
        # With all three given, the constructor need not ask the kernel for them.
        socket.__init__(self, family_of(server), _STREAM, 0, fd)
        self.client, self.server, self.address = client, server, ip_of(client)

    @classmethod
    def unpack(cls, message: HandoffMessage, fd: int) -> GreenletConnection:
        """Return the connection that another worker has packed."""
        conn = cls(fd, message.client, message.server)
        conn.take(message)
        return conn

    @property
    def fd(self) -> int:  # type: ignore[override]
        return int(self.fileno())

    def read_more(self, seconds: float) -> bool:
        """Wait for more of the next request, ``seconds`` at most.

        Return False when none comes in time, the client has closed the connection, or this worker
        has while it was waited for.
        """
        self.settimeout(seconds)
        try:
            data = self.recv(HEAD_READ_SIZE)
        except OSError:
            return False
        self.settimeout(None)
        self.received += data
        return bool(data)

    def release(self) -> None:
        """Close this process's end, which ends its greenlet. Another process has the connection.

        Closing a descriptor that another process has too does not take it out of our poller;
        and libev, which relies on that, would be woken by the connection again, and then make
        its whole poller anew.
        """
        loop = self.hub.loop
        if loop.backend == "epoll" and not self.closed:
            try:
                _epoll(loop.fileno()).unregister(self.fd)
            except OSError:
                pass  # it was never waited for
        self.close()

    def refuse(self, status: int, reason: str, headers: str = "") -> None:
        """Answer in gunicorn's place, and close."""
        try:
            self.sendall(refusal(status, reason, headers))
        except OSError:
            return  # the client was first
        self.close_after_response()

    def close_after_response(self) -> None:
        """Wait until the client has all that was sent, as the connection is about to be closed.

        Return at once if it has, and will send no more: should it send more all the same, the
        kernel resets the connection, and what it has not delivered is lost (RFC 9112 section 9.6).
        """
        try:
            if self.closed or (compat.is_spent(self.parser) and self.is_delivered()):
                return
            self.shutdown(plain_socket.SHUT_WR)
            with Timeout(LINGER_TIMEOUT_S, False):
                while self.recv(HEAD_READ_SIZE):
                    pass
        except (OSError, ConcurrentObjectUseError):
            pass  # the client was first, or the application reads it
        except GreenletExit:
            pass  # the worker ends, and has no time left


class BoundAddress:
    """Stands for a listener where gunicorn asks it for the address that a connection came to."""

    def __init__(self, address: Any) -> None:
        self._address = address

    def getsockname(self) -> Any:
        return self._address


class Parser(RequestParser):
    """Gunicorn's parser, which calls ``await_request`` before it reads each request.

    ``await_request`` returns True when the request is to be served here, and ``conn.received`` has
    its head at least.
    """

    mesg: Any

    def __init__(
        self,
        cfg: Any,
        conn: GreenletConnection,
        client: Any,
        await_request: Callable[[GreenletConnection], bool],
    ) -> None:
        super().__init__(cfg, conn, client)
        self._conn, conn.parser = conn, self
        # The parser reads the PROXY protocol's header before its first request only.
        self._first = conn.proxied if conn.served else b""
        self.req_count = 0 if self._first else conn.served
        self._await_request = await_request

    def __next__(self) -> Any:
        conn = self._conn
        if self.mesg is not None:
            if self.mesg.should_close() or not self._finish():
                raise StopIteration
            conn.received, conn.served = compat.take_buffered(self), self.req_count
            self.mesg = None  # or gunicorn would ask all that again
        conn.is_served = None
        if not self._await_request(conn):
            raise StopIteration
        self.unreader.unread(self._first + conn.received)
        self._first = conn.received = b""
        return super().__next__()

    def _finish(self) -> bool:
        """Read the last request to its end. Return False if that fails, or takes too long."""
        if compat.is_read(self):
            return True
        is_read = False
        with Timeout(self.cfg.keepalive, False):
            is_read = self.finish_body() is not False  # gunicorn 25 returns nothing
        return is_read


@functools.cache
def _epoll(fd: int) -> Any:
    """Return the poller ``fd``. It is kept for ever, because its end would close the descriptor."""
    return monkey.get_original("select", "epoll").fromfd(fd)


_STREAM: Final = int(plain_socket.SOCK_STREAM)  # a plain int: enums are slow
