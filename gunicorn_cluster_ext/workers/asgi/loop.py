"""The main loop of workers on asyncio.

    accept -> read -> head -> owner?  me       the server's own protocol serves it
                        |             another  hand the connection over
                        ` need more   wait in the event loop

Everything runs in the event loop. The worker accepts by itself, because asyncio's servers cannot
stop accepting for a while (a worker that is parked) without closing the listening socket, and
take all connections that wait at once, so that the first worker to wake up would have them all.

Bytes that are there when a connection is accepted are read at once: a connection that is handed on
then needs no transport, and making one costs more than everything else here. SIGTERM drains as in
every worker; one second before the drain timeout WebSockets are closed with 1012 (service
restart), then the application shuts down and remaining tasks are cancelled.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import partial
from typing import Any, Final, TypeVar

from gunicorn_cluster_ext.routing.head import Head, Partial
from gunicorn_cluster_ext.routing.rules import is_websocket_upgrade
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.workers.connection import HEAD_READ_SIZE, Connection
from gunicorn_cluster_ext.workers.event_loop import EventLoopWorker
from gunicorn_cluster_ext.workers.lifecycle import RETRY_INTERVAL_S
from gunicorn_cluster_ext.workers.listener import Listener

#: Connections that are accepted in one turn of the event loop, so that the others are not starved,
#: and siblings have their share of a burst.
ACCEPT_BATCH: Final = 4


class AsyncioConnection(Connection):
    """A connection from accept, or from its hand-off, to its end in this process.

    At first it is a mere socket. ``wait``, ``serve`` or ``pause`` opens a transport.
    """

    sock: socket.socket

    #: True if its request asks for a WebSocket, and is served here.
    is_websocket = False
    #: Calls of the application in progress.
    calls = 0

    def wait(self) -> None:
        """Wait for a request, or for the rest of its head."""
        raise NotImplementedError

    def serve(self) -> None:
        """Let the server's protocol have the request."""
        raise NotImplementedError

    def pause(self) -> None:
        """Read nothing more for now: no process can serve the request yet."""
        raise NotImplementedError

    def refuse(self, status: int, reason: str, headers: str) -> None:
        """Answer in the protocol's place, and close."""
        raise NotImplementedError

    def release(self) -> None:
        """Close this process's end, and leave no timer or task behind."""
        raise NotImplementedError


A = TypeVar("A", bound=AsyncioConnection)


class AsyncioWorker(EventLoopWorker[A]):
    """Mixed into a worker class that runs an event loop, before it in the order of bases."""

    turn_interval_s = 0.5

    loop: asyncio.AbstractEventLoop
    ppid: int

    def make_connection(self, sock: socket.socket, client: Any, server: Any) -> A:
        """Return the connection of the non-blocking ``sock``."""
        raise NotImplementedError

    # --- turns --------------------------------------------------------------------------------

    def open_loop(self) -> None:
        super().open_loop()
        self._accepting = False
        self._retrying = False
        self._websockets = 0
        self.head_timeout = self.shared.settings.head_timeout
        self.loop.add_reader(self.handoff.fileno(), self.on_inbox)

    async def turn(self, timeout: float) -> bool:
        """Let the event loop run for a while. Return False when the arbiter has ended."""
        timer = self.loop.call_later(timeout, self._awake.set)
        await self._awake.wait()
        self._awake.clear()
        timer.cancel()
        self.notify()
        self.publish()
        self.handoff.sweep(time.monotonic())
        return self.ppid == os.getppid()

    def init_signals(self) -> None:
        self._awake = asyncio.Event()
        super().init_signals()

    def wake(self) -> None:
        self._awake.set()

    def stop_events(self) -> None:
        self.set_accepting(False)
        self.loop.remove_reader(self.handoff.fileno())

    def count_connections(self) -> tuple[int, int]:
        if self.head_reader.are_readable:
            idle = len(self.idle_conns)
        else:
            idle = sum(not conn.calls for conn in self.conns)
        # What the application still does after an answer is in progress as well.
        return len(self.conns) + self.calls, idle

    # --- connections come and go --------------------------------------------------------------

    def set_accepting(self, accepting: bool) -> None:
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for listener in self.listeners:
            if accepting:
                self.loop.add_reader(listener.fd, partial(self._accept, listener))
            else:
                self.loop.remove_reader(listener.fd)

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPT_BATCH):
            accepted = listener.accept()
            if accepted is None:
                return
            fd, client = accepted
            sock = socket.socket(*listener.kind, fd)
            self.on_accepted(self._enter(sock, client, listener.address))

    def unpack(self, message: HandoffMessage, fd: int) -> A:
        conn = self._enter(socket.socket(fileno=fd), message.client, message.server)
        conn.take(message)
        return conn

    def _enter(self, sock: socket.socket, client: Any, server: Any) -> A:
        sock.setblocking(False)
        conn = self.make_connection(sock, client, server)
        self.conns.add(conn)
        if self.head_reader.are_readable:
            self.idle_conns.add(conn)
        self.publish()
        return conn

    def drop(self, conn: A) -> None:
        conn.release()
        self.forget(conn)

    def forget(self, conn: A) -> None:
        """Note that the connection is no longer in this process."""
        self.conns.discard(conn)
        self.idle_conns.discard(conn)
        self.blocked.pop(conn, None)
        self.count_websocket(conn, False)
        self.publish()

    # --- requests -----------------------------------------------------------------------------

    def start(self, conn: A) -> None:
        if not self.head_reader.are_readable:
            conn.wait()
            return
        # Mostly the request is there already, and what is handed over needs no transport.
        try:
            conn.received = conn.sock.recv(HEAD_READ_SIZE)
        except BlockingIOError:
            conn.wait()
            return
        except OSError:  # the client has reset the connection
            self.drop(conn)
            return
        if conn.received:
            self.advance(conn)
        else:
            self.drop(conn)

    def wait(self, conn: A) -> None:
        conn.wait()

    def serve(self, conn: A, head: Head | Partial | None) -> None:
        self.idle_conns.discard(conn)
        if head is None:
            head = self.head_reader.read(conn)
        if isinstance(head, Head) and is_websocket_upgrade(head):
            self.count_websocket(conn, True)
        self.publish_busy()
        conn.serve()

    def block(self, conn: A) -> None:
        if not self._retrying:
            self._retrying = True
            self.loop.call_later(RETRY_INTERVAL_S, self._retry)
        self.idle_conns.discard(conn)
        self.publish()
        conn.pause()

    def _retry(self) -> None:
        self._retrying = False
        self.retry_blocked()

    def refuse(self, conn: A, status: int, reason: str, headers: str = "") -> None:
        conn.refuse(status, reason, headers)

    def on_late_head(self, conn: A) -> None:
        """Refuse a head that has not ended in time."""
        self.words[self.row + Word.TIMED_OUT] += 1
        self.refuse(conn, 408, "Request Timeout")

    def on_keepalive(self, conn: A) -> None:
        """Note that a request was answered, and that its connection waits for the next."""
        if conn.is_websocket:  # it was refused
            self.count_websocket(conn, False)
        self.idle_conns.add(conn)
        self.words[self.row + Word.REQUESTS] = self.nr
        self.publish_busy()

    def call_begins(self, conn: A) -> None:
        """Note that the application is called."""
        conn.calls += 1
        self.calls += 1

    def call_ends(self, conn: A) -> None:
        """Note that a call of the application has ended."""
        conn.calls -= 1
        self.calls -= 1
        self.finished = time.monotonic()

    def count_websocket(self, conn: A, is_websocket: bool) -> None:
        """Note whether the connection is a WebSocket."""
        if conn.is_websocket != is_websocket:
            conn.is_websocket = is_websocket
            self._websockets += 1 if is_websocket else -1
            self.words[self.row + Word.WEBSOCKETS] = self._websockets
