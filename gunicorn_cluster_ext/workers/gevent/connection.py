"""A connection of a worker whose connections are greenlets, and gunicorn's parser of it."""

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
from gunicorn_cluster_ext.workers.connection import Arrival, family_of, ip_of

READ_SIZE: Final = 16 * 1024
#: How long a connection lingers that we have closed after an answer of our own.
LINGER_TIMEOUT: Final = 2.0


class Connection(Arrival, socket):
    """An accepted connection. Its greenlet reads it and nobody else does."""

    parser: Parser | None = None

    def __init__(self, fd: int, client: Any, server: Any) -> None:
        # With all three given, the constructor need not ask the kernel for them.
        socket.__init__(self, family_of(server), _STREAM, 0, fd)
        self.client, self.server, self.address = client, server, ip_of(client)

    @classmethod
    def unpack(cls, message: HandoffMessage, fd: int) -> Connection:
        """The connection that another worker has packed."""
        conn = cls(fd, message.client, message.server)
        conn.take(message)
        return conn

    @property
    def fd(self) -> int:  # type: ignore[override]
        return int(self.fileno())

    def read_more(self, seconds: float) -> bool:
        """Wait for more of the next request, ``seconds`` at most.

        False when none comes: the client has closed the connection, or this worker has while
        it was waited for. Raises TimeoutError.
        """
        self.settimeout(seconds)
        try:
            data = self.recv(READ_SIZE)
        except TimeoutError:
            raise
        except OSError:
            return False
        self.settimeout(None)
        self.received += data
        return bool(data)

    def leave(self) -> None:
        """Close this process's end, and let its greenlet end. Another process has the connection.

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
        """Answer in gunicorn's place, and part."""
        headers += "Connection: close\r\nContent-Length: 0\r\n"
        try:
            self.sendall(f"HTTP/1.1 {status} {reason}\r\n{headers}\r\n".encode())
        except OSError:
            return  # the client was first
        self.part()

    def part(self) -> None:
        """Wait until the client has all that was sent, as the connection is about to be closed.

        At once if it has, and will send no more: should it send more all the same, the kernel
        resets the connection, and what it has not delivered is lost (RFC 9112 section 9.6).
        """
        try:
            if self.closed or (compat.is_spent(self.parser) and self.is_delivered()):
                return
            self.shutdown(plain_socket.SHUT_WR)
            with Timeout(LINGER_TIMEOUT, False):
                while self.recv(READ_SIZE):
                    pass
        except (OSError, ConcurrentObjectUseError):
            pass  # the client was first, or the application reads it
        except GreenletExit:
            pass  # the worker ends, and has no time left


class Parser(RequestParser):
    """Gunicorn's, which asks ``await_request`` for each request before it reads it.

    That says whether there is one for it: whether its bytes are in ``conn.received``, at least
    as many as its head has.
    """

    mesg: Any

    def __init__(
        self, cfg: Any, conn: Connection, client: Any, await_request: Callable[[Connection], bool]
    ) -> None:
        super().__init__(cfg, conn, client)
        self._conn, conn.parser = conn, self
        # It is told the client of the PROXY protocol before its first request, as everywhere.
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
        if not self._await_request(conn):
            raise StopIteration
        self.unreader.unread(self._first + conn.received)
        self._first = conn.received = b""
        return super().__next__()

    def _finish(self) -> bool:
        """Read the last request to its end. False when that cannot be done, or takes too long."""
        if compat.is_read(self):
            return True
        is_read = False
        with Timeout(self.cfg.keepalive, False):
            is_read = self.finish_body() is not False  # gunicorn 25 says nothing
        return is_read


@functools.cache
def _epoll(fd: int) -> Any:
    """The poller ``fd``. It is kept for ever, because its end would close the descriptor."""
    return monkey.get_original("select", "epoll").fromfd(fd)


_STREAM: Final = int(plain_socket.SOCK_STREAM)  # a plain int: enums are slow
