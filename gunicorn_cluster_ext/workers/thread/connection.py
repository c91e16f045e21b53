"""A connection as the main loop of a threaded worker sees it, and how it waits."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.workers.connection import Connection, family_of, ip_of


class Stream(socket.socket):
    """A socket that does not set a blocking mode again that it is in already.

    Gunicorn sets it twice for each request, and each time the interpreter's lock changes hands.

    Only the main loop closes its descriptor, with ``ThreadConnection.release``. Threads close
    sockets too: simple-websocket does, and gunicorn itself when an application fails in the middle
    of a response. The number could then be another connection's before the main loop knows.
    """

    __slots__ = ()

    def setblocking(self, flag: bool) -> None:
        if not flag or self.gettimeout() is not None:
            super().setblocking(flag)

    def close(self) -> None:
        """End the connection, and leave the descriptor to the main loop. Runs in a thread."""
        try:
            self.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # ended already

    def settimeout(self, value: float | None) -> None:
        if value != self.gettimeout():
            super().settimeout(value)


class _NoSocket:
    def setblocking(self, flag: bool) -> None:
        """There is nothing to set."""


_NO_SOCKET: Final = _NoSocket()


class ThreadConnection(Connection, TConn):
    """A connection, with what the main loop has read from it.

    ``waiting`` is the Waiting that it is in, or None while a thread has it or its request is
    blocked. It is ``watched`` when the poller has it, and ``unread`` when the kernel may hold input
    that the poller will not report again.
    """

    initialized: bool

    # Defaults of the class: an instance is made for each new connection and each hand-off.
    unread = False
    watched = False
    callback: Callable[[bool], None] | None = None
    waiting: Waiting | None = None

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        # gthread makes the socket non-blocking for its poller. Here it stays blocking, as threads
        # need it, and the main loop says MSG_DONTWAIT: that saves two system calls a request.
        super().__init__(cfg, _NO_SOCKET, client, server)
        self.sock = sock
        self.fd = sock.fileno()
        self.address = ip_of(client)
        self.data_ready = True  # it goes to a thread only when it is

    def init(self) -> None:
        """Give gunicorn's parser what the main loop has read. Runs in a worker thread."""
        if not self.initialized:
            if self.received:  # so it is plain HTTP/1, which gunicorn would find out first
                self.initialized = True
                self.parser = RequestParser(self.cfg, self.sock, self.client)
                self.parser.req_count = self.served
            else:
                super().init()
        if self.received:
            self.parser.unreader.unread(self.received)
            self.received = b""

    def release(self) -> None:
        """Close the descriptor. The connection ends if no other process has it."""
        try:
            socket.socket.close(self.sock)
        except OSError:
            pass  # the client has reset it; the descriptor is free all the same

    @classmethod
    def unpack(cls, cfg: Any, message: HandoffMessage, fd: int) -> ThreadConnection:
        """Return the connection that another worker has packed."""
        # With all three given, the constructor need not ask the kernel for them.
        sock = Stream(family_of(message.server), _STREAM, 0, fd)
        # A sender of another worker class, which a roll has replaced, may have set it non-blocking;
        # the mode is the connection's, not the descriptor's.
        socket.socket.setblocking(sock, True)
        conn = cls(cfg, sock, message.client, message.server)
        conn.take(message)
        return conn

    @property
    def requests(self) -> int:
        """How many requests were served on this connection."""
        if self.parser is None or self.is_http2:
            return self.served
        return int(self.parser.req_count)


class Waiting:
    """Connections that wait for ``seconds`` at most, the oldest first.

    As the duration is the same for all, a plain dictionary is in the order of their deadlines.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadlines: dict[ThreadConnection, float] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def __iter__(self) -> Iterator[ThreadConnection]:
        return iter(list(self._deadlines))

    def add(self, conn: ThreadConnection, now: float) -> None:
        """Let ``conn`` wait here, and nowhere else. Its time begins ``now`` (monotonic)."""
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        conn.waiting = self
        self._deadlines[conn] = now + self.seconds

    def remove(self, conn: ThreadConnection) -> None:
        conn.waiting = None
        del self._deadlines[conn]

    def expired(self, now: float) -> Iterator[ThreadConnection]:
        """Take out and yield every connection whose time has passed."""
        while self._deadlines:
            conn = next(iter(self._deadlines))
            if self._deadlines[conn] > now:
                return
            self.remove(conn)
            yield conn


_STREAM: Final = int(socket.SOCK_STREAM)  # a plain int: enums are slow
