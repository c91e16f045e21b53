"""The connections of a threaded worker, as its main loop accepts, awaits, reads and closes them.

The main loop reads a request's head itself, without blocking, and gives the bytes to gunicorn's
parser afterwards. (Peeking would leave them in the kernel for a second read, would need
``SO_RCVLOWAT`` against spinning on half a head, and that does nothing on Unix sockets.)

All methods run in the worker's main thread.

gthread's own main loop may block (it waits for clients to close) and spends most of its time on
system calls and on waiting for the interpreter's lock. A thread wakes this loop only while it
sleeps. Waking it even less was tried and dropped: with threads that close finished connections
themselves, and kept-alive connections that are registered before they are served, new connections
fell from 1.33 to 1.24 times gthread's rate and the worst case from 0.74 to 0.70 (same run).
"""

from __future__ import annotations

import socket
import sys
import time
from functools import partial
from typing import Any, Final

from gunicorn.workers.gthread import ThreadWorker

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.workers.base import StickyWorker
from gunicorn_cluster_ext.workers.connection import HEAD_READ_SIZE, LINGER_TIMEOUT_S, refusal
from gunicorn_cluster_ext.workers.lifecycle import FIRST_BYTE_TIMEOUT_S
from gunicorn_cluster_ext.workers.listener import Listener
from gunicorn_cluster_ext.workers.thread.connection import Stream, ThreadConnection, Waiting
from gunicorn_cluster_ext.workers.thread.poller import Poller

#: A plain int: the socket module's flags are enums, and slow.
DONTWAIT: Final = int(socket.MSG_DONTWAIT)


class LoopWorker(StickyWorker[ThreadConnection], ThreadWorker):
    """A ThreadWorker whose main loop never blocks but in the poller."""

    poller: Any  # until open_loop it is gthread's
    tpool: Any
    nr_conns: int
    _accepting: bool

    def open_loop(self) -> None:
        keepalive = self.cfg.keepalive
        self._arrived: list[ThreadConnection] = []
        # gthread waits 5 s in a thread and then `keepalive` in its poller.
        self.silent = Waiting(FIRST_BYTE_TIMEOUT_S + keepalive)
        self.partial = Waiting(self.shared.settings.head_timeout)
        self._lingering = Waiting(LINGER_TIMEOUT_S)
        # gunicorn's handle_request() asks how long this is, to limit kept-alive connections.
        self.keepalived_conns = Waiting(keepalive)
        self.poller.close()
        self.poller = Poller()
        self.poller.add(self.handoff.fileno(), lambda _ended: self.on_inbox())

    def close_loop(self) -> None:
        self.poller.close()
        for sock in self.sockets:
            sock.close()

    def idle(self) -> list[ThreadConnection]:
        return [*self.keepalived_conns, *self.silent, *self.partial]

    def count_connections(self) -> tuple[int, int]:
        return self.nr_conns, len(self.keepalived_conns) + len(self.silent) + len(self.partial)

    def expire(self, now: float) -> None:
        """End connections that have waited too long."""
        for waiting in (self.keepalived_conns, self.silent, self._lingering):
            for conn in waiting.expired(now):
                self.drop(conn)
        for conn in self.partial.expired(now):
            self.words[self.row + Word.TIMED_OUT] += 1
            self.refuse(conn, 408, "Request Timeout")

    # --- connections come ---------------------------------------------------------------------

    def set_accepting(self, accepting: bool) -> None:
        accepting = accepting and self.nr_conns < self.worker_connections
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for listener in self.listeners:
            if accepting:
                self.poller.add(listener.fd, partial(self._accept, listener))
            else:
                self.poller.remove(listener.fd)

    def _accept(self, listener: Listener, _ended: bool) -> None:
        accepted = listener.accept()
        if accepted is None:
            return
        fd, client = accepted
        sock = Stream(*listener.kind, fd)
        if sys.platform != "linux":  # elsewhere it inherits the listener's non-blocking mode
            socket.socket.setblocking(sock, True)
        self.nr_conns += 1
        self._arrived.append(ThreadConnection(self.cfg, sock, client, listener.address))

    def start_accepted(self) -> None:
        """Begin with what was accepted in this turn.

        It comes last in a turn: by then more of the connections have sent their request, and need
        not be waited for.
        """
        while self._arrived:
            self.on_accepted(self._arrived.pop())

    def start(self, conn: ThreadConnection) -> None:
        if self.head_reader.are_readable:
            self._read(conn)
        else:
            self.wait(conn)

    def unpack(self, message: HandoffMessage, fd: int) -> ThreadConnection:
        self.nr_conns += 1
        return ThreadConnection.unpack(self.cfg, message, fd)

    # --- waiting and reading ------------------------------------------------------------------

    def wait(self, conn: ThreadConnection) -> None:
        if conn.received:
            if conn.waiting is not self.partial:
                self.partial.add(conn, time.monotonic())
        elif conn.waiting is None:
            waiting = self.keepalived_conns if conn.requests else self.silent
            waiting.add(conn, time.monotonic())
        self._watch(conn)

    def _watch(self, conn: ThreadConnection) -> None:
        if conn.callback is None:
            conn.callback = partial(self._on_readable, conn)
        if not conn.watched:
            conn.watched = True
            self.poller.watch(conn.fd, conn.callback)
        elif conn.unread:
            self.poller.resume(conn.fd)
        conn.unread = False

    def _on_readable(self, conn: ThreadConnection, ended: bool) -> None:
        if ended:
            conn.unread = True
        if conn.waiting is None:  # a thread has the connection, or its request is blocked
            self.poller.pause(conn.fd)
            conn.unread = True
        elif conn.waiting is self._lingering:
            self._discard_input(conn)
        elif self.head_reader.are_readable:
            self._read(conn)
        else:
            self.serve(conn, None)

    def _read(self, conn: ThreadConnection) -> None:
        try:
            data = conn.sock.recv(HEAD_READ_SIZE, DONTWAIT)
        except BlockingIOError:
            self.wait(conn)
            return
        except OSError:  # the client has reset the connection
            self.drop(conn)
            return
        if not data:
            self.drop(conn)
            return
        if len(data) == HEAD_READ_SIZE:  # the poller reports news only, and there may be more
            conn.unread = True
        conn.received = conn.received + data if conn.received else data
        self.advance(conn)

    def block(self, conn: ThreadConnection) -> None:
        if conn.waiting is not None:
            conn.waiting.remove(conn)

    # --- connections go -----------------------------------------------------------------------

    def drop(self, conn: ThreadConnection) -> None:
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        if conn.watched:
            self.poller.remove(conn.fd, conn.callback)
        self.nr_conns -= 1
        conn.release()

    def refuse(self, conn: ThreadConnection, status: int, reason: str, headers: str = "") -> None:
        try:
            conn.sock.send(refusal(status, reason, headers), DONTWAIT)
        except OSError:
            self.drop(conn)
            return
        self._linger(conn)

    def close_after_response(self, conn: ThreadConnection) -> None:
        """Close a connection that gunicorn does not keep.

        Close at once if the client will send no more and has all of the answer: should it send
        more all the same, the kernel resets the connection, and what it has not delivered is lost.
        """
        try:
            is_over = compat.is_spent(conn.parser) and conn.is_delivered()
        except OSError:  # the application has closed it
            is_over = True
        if is_over:
            self.drop(conn)
        else:
            self._linger(conn)

    def _linger(self, conn: ThreadConnection) -> None:
        """Close, but not before the client has what was sent (RFC 9112 section 9.6).

        Gunicorn 26 on waits for the client in its main thread; here the poller does.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client was first, or the application
            self.drop(conn)
            return
        self._lingering.add(conn, time.monotonic())
        self._discard_input(conn)

    def _discard_input(self, conn: ThreadConnection) -> None:
        try:
            # Not through TLS: what comes is thrown away, and SSLSocket.recv takes no flags.
            if not socket.socket.recv(conn.sock, HEAD_READ_SIZE, DONTWAIT):
                self.drop(conn)
                return
            conn.unread = True
        except BlockingIOError:
            pass
        except OSError:
            self.drop(conn)
            return
        self._watch(conn)
