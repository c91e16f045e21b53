"""The main loop of a threaded worker: gthread's, done again so that it never blocks.

It waits for connections, gives requests to threads, takes connections back, and closes them.
What happens between "readable" and "to a thread" is for the subclass to say: ``read``.

All methods run in the worker's main thread unless they say otherwise.
"""

from __future__ import annotations

import errno
import signal
import socket
import time
from functools import partial
from typing import Any, Final

from gunicorn.workers.gthread import ThreadWorker

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.workers.connection import NOTHING_TO_JUDGE
from gunicorn_cluster_ext.workers.thread.connection import Listener, StickyConn, Waiting
from gunicorn_cluster_ext.workers.thread.poller import Poller
from gunicorn_cluster_ext.workers.thread.pool import Pool

#: Bytes read at once in the main loop; nearly every head fits, and what follows it travels along.
READ_SIZE: Final = 16 * 1024
#: How long a new connection may say nothing: gthread waits 5 s in a thread and then
#: `keepalive` in its poller.
FIRST_BYTE_TIMEOUT: Final = 5.0
#: How long a connection lingers that we have closed (util.close_graceful in gunicorn 26 on).
LINGER_TIMEOUT: Final = 2.0
NOTIFY_INTERVAL: Final = 0.25
#: How long nothing is accepted when there are too many open files.
PAUSE: Final = 0.5
#: A plain int: the socket module's flags are enums, and slow.
DONTWAIT: Final = int(socket.MSG_DONTWAIT)


class LoopWorker(ThreadWorker):
    """A ThreadWorker with a main loop of its own."""

    poller: Any  # until open_loop it is gthread's
    leaving: bool
    _accepting: bool

    # --- for the subclass -----------------------------------------------------------------

    def arrive(self, conn: StickyConn) -> None:
        """A connection was accepted."""
        raise NotImplementedError

    def read(self, conn: StickyConn) -> None:
        """An idle connection is readable."""
        raise NotImplementedError

    def kept(self, conn: StickyConn) -> None:
        """A request was answered and the connection can carry another.

        What was read of that is in ``conn.received``.
        """
        raise NotImplementedError

    # --- turns ----------------------------------------------------------------------------

    def open_loop(self, head_timeout: float) -> None:
        """Called when the application is loaded; after this ``turn`` works."""
        keepalive = self.cfg.keepalive
        self._listeners = [Listener(sock) for sock in self.sockets]
        self._notified = 0.0
        self._arrived: list[StickyConn] = []
        self._accept_after = 0.0
        # When threads last finished something, and the smoothed interval between two requests
        # that they finish: how long a request will wait here.
        self.finished = self.pace = 0.0
        self.silent = Waiting(FIRST_BYTE_TIMEOUT + keepalive)
        self.partial = Waiting(head_timeout)
        self._lingering = Waiting(LINGER_TIMEOUT)
        # gunicorn's handle_request() asks how long this is, to limit kept-alive connections.
        self.keepalived_conns = Waiting(keepalive)
        self.poller.close()
        self.poller = Poller()
        self.poller.add(self.tpool.fileno(), lambda _ended: self.tpool.drain_wakeups())

    def close_loop(self) -> None:
        self.poller.close()
        self.tpool.close()
        self.method_queue.close()
        for sock in self.sockets:
            sock.close()

    def get_thread_pool(self) -> Pool[StickyConn]:
        return Pool(self.cfg.threads, self._serve)

    def init_signals(self) -> None:
        super().init_signals()
        # As gunicorn does for SIGTERM: libraries that know no EINTR are not to be disturbed.
        signal.siginterrupt(signal.SIGWINCH, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish."""
        self.leaving = True
        self.tpool.wake()

    def handle_winch(self, sig: int, frame: Any) -> None:
        """SIGWINCH: the arbiter has written an order on the board, which the main loop reads."""
        self.tpool.wake()

    def turn(self, timeout: float) -> bool:
        """Wait for events and serve them. False when the arbiter is gone."""
        timeout = self.tpool.patience(timeout)
        readable = self.poller.wait(timeout if self.tpool.may_sleep() else 0)
        self.tpool.is_awake()
        # First what threads gave back, so that a connection whose next request is there is idle.
        self._finish_all()
        self.poller.call(readable)
        # Last: by now more of these have sent their request, and need not be waited for.
        while self._arrived:
            self.arrive(self._arrived.pop())
        now = time.monotonic()
        self.tpool.attend(now)
        if now - self._notified < NOTIFY_INTERVAL:
            return True
        self._notified = now
        self.notify()
        self.expire(now)
        return bool(self.is_parent_alive())

    def expire(self, now: float) -> None:
        """End what has waited too long."""
        for waiting in (self.keepalived_conns, self.silent, self._lingering):
            for conn in waiting.expired(now):
                self.drop(conn)
        for conn in self.partial.expired(now):
            self.refuse(conn, 408, "Request Timeout")

    # --- connections come -----------------------------------------------------------------

    def set_accept_enabled(self, enabled: bool) -> None:
        if enabled == self._accepting:
            return
        self._accepting = enabled
        for listener in self._listeners:
            if enabled:
                self.poller.add(listener.fd, partial(self.accept, listener))
            else:
                self.poller.remove(listener.fd)

    def accept(self, listener: Listener, _ended: bool = False) -> None:
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._pause_accept()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        self._arrived.append(StickyConn(self.cfg, sock, client, listener.address))

    def _pause_accept(self) -> None:
        """The process has no file descriptor left. Clients wait in the kernel, or for a sibling."""
        self.log.error("Too many open files: accepting nothing for %s s. Raise ulimit -n.", PAUSE)
        self.set_accept_enabled(False)
        self._accept_after = time.monotonic() + PAUSE

    def may_accept(self) -> bool:
        has_room = self.nr_conns < self.worker_connections
        return bool(has_room) and time.monotonic() >= self._accept_after

    def wait_for_request(self, conn: StickyConn) -> None:
        """Wait in the poller for a request, or for the rest of its head."""
        if conn.received:
            if conn.waiting is not self.partial:
                self.partial.add(conn, time.monotonic())
        elif conn.waiting is None:
            waiting = self.keepalived_conns if conn.requests else self.silent
            waiting.add(conn, time.monotonic())
        self._watch(conn)

    def _watch(self, conn: StickyConn) -> None:
        if conn.callback is None:
            conn.callback = partial(self._on_readable, conn)
        if not conn.watched:
            conn.watched = True
            self.poller.watch(conn.fd, conn.callback)
        elif conn.unread:
            self.poller.resume(conn.fd)
        conn.unread = False

    def _on_readable(self, conn: StickyConn, ended: bool) -> None:
        if ended:
            conn.unread = True
        if conn.waiting is None or conn.waiting is self._lingering:
            self._on_stray(conn)
        else:
            self.read(conn)

    def _on_stray(self, conn: StickyConn) -> None:
        """Input that nobody waits for: a thread has the connection, or we have closed it."""
        if conn.waiting is None:
            self.poller.pause(conn.fd)
            conn.unread = True
        else:
            self._discard_input(conn)

    # --- to a thread and back -------------------------------------------------------------

    def dispatch(self, conn: StickyConn) -> None:
        """Let a thread serve the request."""
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        if conn.watched:
            conn.watched = self._stays_watched(conn)
        if not self.tpool.busy:
            self.finished = time.monotonic()  # the pace counts from here
        conn.hops, conn.judged = 0, NOTHING_TO_JUDGE
        self.tpool.submit(conn)

    def _stays_watched(self, conn: StickyConn) -> bool:
        # TLS: the thread wraps the socket in another, which closes the descriptor by itself.
        if self.cfg.is_ssl:
            self.poller.remove(conn.fd, conn.callback)
            return False
        return bool(self.poller.busy(conn.fd))

    def _serve(self, conn: StickyConn) -> bool:
        """Whether the connection can be kept. Runs in a thread."""
        try:
            return bool(self.handle(conn))
        except BaseException:  # an application that calls sys.exit() must not end this thread
            self.log.exception("Error in a worker thread")
            return False

    def _keepalive_after(self, conn: StickyConn, keepalive: bool) -> bool:
        """Without three system calls to read a body to its end that has none. Runs in a thread."""
        if keepalive and compat.is_read(conn.parser):
            return True
        return bool(super()._keepalive_after(conn, keepalive))

    def _finish_all(self) -> None:
        count = 0
        for conn, keep in self.tpool.finished():
            self._finish(conn, keep)
            count += 1
        if count:
            now = time.monotonic()
            self.pace += ((now - self.finished) / count - self.pace) / 8
            self.finished = now

    def _finish(self, conn: StickyConn, keep: bool) -> None:
        """A thread has given the connection back."""
        if keep:
            conn.received = compat.take_buffered(conn.parser)
            self.kept(conn)
        else:
            self._part(conn)

    def _part(self, conn: StickyConn) -> None:
        """Close after an answer.

        At once if the client will send no more and has all of the answer: should it send more all
        the same, the kernel resets the connection, and what it has not delivered is lost.
        """
        try:
            is_over = compat.is_spent(conn.parser) and conn.is_delivered()
        except OSError:  # the application has closed it
            is_over = True
        if is_over:
            self.drop(conn)
        else:
            self._linger(conn)

    # --- connections go -------------------------------------------------------------------

    def drop(self, conn: StickyConn) -> None:
        """Close our end at once."""
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        if conn.watched:
            self.poller.remove(conn.fd, conn.callback)
        self.nr_conns -= 1
        conn.release()

    def _linger(self, conn: StickyConn) -> None:
        """Close, but not before the client has what was sent (RFC 9112 section 9.6).

        Gunicorn 26 on waits for the client in its main thread; here that goes through the
        poller.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client was first, or the application
            self.drop(conn)
            return
        self._lingering.add(conn, time.monotonic())
        self._discard_input(conn)

    def _discard_input(self, conn: StickyConn) -> None:
        try:
            # Not through TLS: what comes is thrown away, and SSLSocket.recv takes no flags.
            if not socket.socket.recv(conn.sock, READ_SIZE, DONTWAIT):
                self.drop(conn)
                return
            conn.unread = True
        except BlockingIOError:
            pass
        except OSError:
            self.drop(conn)
            return
        self._watch(conn)

    def refuse(self, conn: StickyConn, status: int, reason: str, headers: str = "") -> None:
        """Answer in gunicorn's place, and close."""
        headers += "Connection: close\r\nContent-Length: 0\r\n"
        try:
            answer = f"HTTP/1.1 {status} {reason}\r\n{headers}\r\n".encode()
            conn.sock.send(answer, DONTWAIT)
        except OSError:
            self.drop(conn)
            return
        self._linger(conn)
