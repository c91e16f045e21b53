"""StickyASGI: gunicorn's asgi worker, which decides for every request where it goes.

    accept -> read -> scan -> owner?  me      gunicorn's own protocol serves it
                        |             another hand the connection over
                        ` need more   wait in the event loop

Everything runs in the event loop. The worker accepts by itself, because asyncio's servers cannot
stop accepting for a while (a worker that is parked) without closing the listening socket, and
take all connections that wait at once, so that the first worker to wake up would have them all.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from functools import partial
from typing import Any, Final

from gunicorn.arbiter import Arbiter
from gunicorn.asgi import lifespan
from gunicorn.workers.gasgi import ASGIWorker

from gunicorn_cluster_ext.routing.head import NEED_MORE, Head
from gunicorn_cluster_ext.routing.rules import is_websocket_upgrade
from gunicorn_cluster_ext.runtime.board.layout import State, Word
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.workers.asgi.protocol import HEAD_SIZE, READ_SIZE, StickyProtocol
from gunicorn_cluster_ext.workers.base import (
    DRAIN_INTERVAL,
    INBOX_BATCH,
    RETRY_INTERVAL,
    START_INTERVAL,
    START_TIMEOUT,
    StickyWorker,
    Way,
)
from gunicorn_cluster_ext.workers.handoff import Post
from gunicorn_cluster_ext.workers.head_reader import Heads
from gunicorn_cluster_ext.workers.membership import Drain, Member

#: Connections that are accepted, or received, in one turn of the loop, so that the others are
#: not starved, and siblings have their share of a burst.
ACCEPT_BATCH: Final = 4
#: How long nothing is accepted when there are too many open files.
PAUSE: Final = 0.5
NOTIFY_INTERVAL: Final = 0.5
#: How much of the drain timeout is left for those to end whose WebSockets are closed then.
LAST_WORDS: Final = 1.0


class StickyASGI(StickyWorker, ASGIWorker):
    """An asgi worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.StickyASGI"`` is all that is needed; see the setting
    ``cluster_sticky``.
    """

    post: Post[StickyProtocol]

    # --- life -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Called by gunicorn when the application is loaded."""
        await self._start_application()
        self._open()
        try:
            self.notify()
            self.member.become(State.READY)
            await self._start_together()
            while self.alive and not self.leaving:
                self._obey()
                self._set_accepting(self.member.serves and time.monotonic() >= self._accept_after)
                if not await self._turn(NOTIFY_INTERVAL if self._accepting else DRAIN_INTERVAL):
                    break
            await self._drain()
        finally:
            self._close()
        if self.lifespan is not None and not self._quick_shutdown:
            await self._end_application()

    async def _start_application(self) -> None:
        mode = getattr(self.cfg, "asgi_lifespan", "auto")
        if mode == "off":
            return
        manager = lifespan.LifespanManager(self.asgi, self.log, self.state)
        try:
            await manager.startup()
        except Exception as error:
            if mode == "on" or isinstance(error, _REPORTED):
                self.log.error("ASGI lifespan startup failed: %s", error)
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None
            self.log.debug("ASGI lifespan not supported by the application: %s", error)
        else:
            self.lifespan = manager

    async def _end_application(self) -> None:
        try:
            await self.lifespan.shutdown()
        except Exception as error:
            self.log.error("ASGI lifespan shutdown error: %s", error)

    def _open(self) -> None:
        board = self.shared.board
        self._words, self._row = board.words, board.row_start(self.place.seat)
        self._words[self._row + Word.THREADS] = self.worker_connections
        self._may_speak_http2 = getattr(self.cfg, "http2_cleartext", "off") != "off"
        self._conns: set[StickyProtocol] = set()
        self._idle: set[StickyProtocol] = set()
        self._blocked: dict[StickyProtocol, float] = {}
        self._accepting = False
        self._accept_after = 0.0
        self._awake = asyncio.Event()
        self._calls = self._websockets = 0
        self._finished = 0.0
        self.buffer = memoryview(bytearray(READ_SIZE))
        self.ssl_context = self._get_ssl_context()
        self.head_timeout = self.shared.settings.head_timeout
        self.heads = Heads(self.cfg)
        self.member = Member(self.shared, self.place, self.cfg)
        self.post = Post(
            self.member, self.log, unpack=self._unpack, consider=self.consider, drop=self._drop
        )
        self.loop.add_reader(self.post.fileno(), self._on_inbox)

    async def _start_together(self) -> None:
        """Accept nothing until the server's first workers are all ready."""
        deadline = time.monotonic() + START_TIMEOUT
        while self.alive and not self.leaving and time.monotonic() < deadline:
            if not self.member.awaits_siblings() or not await self._turn(START_INTERVAL):
                break

    def _obey(self) -> None:
        self.member.obey()
        if not self.member.serves:
            self.post.hand_on(self._unbegun())

    async def _turn(self, timeout: float) -> bool:
        """Let the event loop go on for a while. False when the arbiter is gone."""
        timer = self.loop.call_later(timeout, self._awake.set)
        await self._awake.wait()
        self._awake.clear()
        timer.cancel()
        self.notify()
        self._publish()
        self.post.sweep(time.monotonic())
        return bool(self.ppid == os.getppid())

    # --- signals, called by the event loop --------------------------------------------------

    def handle_exit_signal(self) -> None:
        """SIGTERM: finish."""
        self.leaving = True
        self._wake()

    def handle_quit_signal(self) -> None:
        """SIGINT and SIGQUIT: end at once."""
        super().handle_quit_signal()
        self._wake()

    def handle_winch_signal(self) -> None:
        """SIGWINCH: the arbiter has written an order on the board."""
        self._wake()

    def _wake(self) -> None:
        if hasattr(self, "_awake"):
            self._awake.set()

    # --- leaving ----------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Finish what was begun, and leave connections to whom goes on."""
        now = time.monotonic()
        drain = Drain(self.member, now)
        self._set_accepting(False)
        self.member.become(State.DRAINING)
        while not self._quick_shutdown and not drain.is_over(now + LAST_WORDS):
            followed = self.post.hand_on(self._unbegun())
            # Told so, gunicorn answers with "Connection: close", and ends HTTP/2 connections.
            self.alive = followed and not self._may_speak_http2
            # What the application still does after an answer is in progress as well.
            connections = len(self._conns) + self._calls
            if drain.may_go(connections, self._count_unbegun(), self._finished, now):
                return
            if not await self._turn(DRAIN_INTERVAL):
                return
            now = time.monotonic()
        if not self._quick_shutdown:
            await self._end_websockets()

    async def _end_websockets(self) -> None:
        restarts = [conn.restart() for conn in self._conns]
        await asyncio.gather(*restarts, return_exceptions=True)
        deadline = time.monotonic() + LAST_WORDS / 2
        while self._websockets and time.monotonic() < deadline:
            await self._turn(DRAIN_INTERVAL)

    def _close(self) -> None:
        self._set_accepting(False)
        self.member.become(State.GONE)
        self.alive = False
        self.loop.remove_reader(self.post.fileno())
        self.post.close(lambda: (*self._unbegun(), *self._blocked))

    def _unbegun(self) -> list[StickyProtocol]:
        """The connections that can be left to others: no request is in progress on them."""
        return [conn for conn in self._idle if conn.can_leave()]

    def _count_unbegun(self) -> int:
        """How many connections have no request in progress, as far as that can be known."""
        if self.heads.are_readable:
            return len(self._idle)
        return sum(not conn.calls for conn in self._conns)

    # --- connections come and go ------------------------------------------------------------

    def _set_accepting(self, accepting: bool) -> None:
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for listener in self.sockets:
            if accepting:
                sock = listener.sock
                sock.setblocking(False)
                self.loop.add_reader(sock, partial(self._accept, sock, sock.getsockname()))
            else:
                self.loop.remove_reader(listener.sock)

    def _accept(self, listener: Any, address: Any) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, client = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._pause_accepting()
                elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                    raise
                return
            sock.setblocking(False)
            conn = StickyProtocol(self, sock, client, address)
            self._enter(conn)
            self._arrive(conn)

    def _pause_accepting(self) -> None:
        """The process has no file descriptor left. Clients wait in the kernel, or for a sibling."""
        self.log.error("Too many open files: accepting nothing for %s s. Raise ulimit -n.", PAUSE)
        self._set_accepting(False)
        self._accept_after = time.monotonic() + PAUSE

    def _enter(self, conn: StickyProtocol) -> None:
        self._conns.add(conn)
        if self.heads.are_readable:
            self._idle.add(conn)
        self._publish()

    def _drop(self, conn: StickyProtocol) -> None:
        """Close our end at once."""
        conn.leave()
        self.forget(conn)

    def forget(self, conn: StickyProtocol) -> None:
        """The connection is no longer in this process."""
        self._conns.discard(conn)
        self._idle.discard(conn)
        self._blocked.pop(conn, None)
        self._count_websocket(conn, False)
        self._publish()

    # --- inbox ------------------------------------------------------------------------------

    def _unpack(self, message: HandoffMessage, fd: int) -> StickyProtocol:
        conn = StickyProtocol.unpack(self, message, fd)
        self._enter(conn)
        return conn

    def _on_inbox(self) -> None:
        for _ in range(INBOX_BATCH):
            conn = self.post.receive()
            if conn is None:
                return
            if conn.owned and self.member.serves:
                self._serve_here(conn, self.heads.scan(conn))
            else:
                self.consider(conn)

    # --- a request's head -------------------------------------------------------------------

    def _arrive(self, conn: StickyProtocol) -> None:
        if self.heads.are_readable:
            self._read(conn)
        elif self.route_blindly(conn) is Way.HERE:
            conn.wait()

    def _read(self, conn: StickyProtocol) -> None:
        """Mostly the request is there already, and what is handed on needs no transport."""
        try:
            conn.received = conn.sock.recv(HEAD_SIZE)
        except BlockingIOError:
            conn.wait()
            return
        except OSError:  # the client has reset the connection
            self._drop(conn)
            return
        if conn.received:
            self.consider(conn)
        else:
            self._drop(conn)

    def consider(self, conn: StickyProtocol) -> None:
        """Go on with a connection as far as its bytes allow."""
        if not conn.received:
            conn.wait()
            return
        head = self.heads.scan(conn)
        if head is NEED_MORE and not self.heads.have_answer(conn):
            conn.wait()
        elif isinstance(head, Head):
            self._route(conn, head)
        else:
            self._serve_here(conn, head)

    def head_is_late(self, conn: StickyProtocol) -> None:
        """A head did not end in time."""
        self._words[self._row + Word.TIMED_OUT] += 1
        conn.refuse(408, "Request Timeout")

    # --- where it goes ----------------------------------------------------------------------

    def _route(self, conn: StickyProtocol, head: Head) -> None:
        way = self.route(conn, head)
        if way is Way.HERE:
            self._serve_here(conn, head)
        elif way is Way.WAIT and conn not in self._blocked:
            self._block(conn)

    def has_room(self) -> bool:
        # Calls that wait for something count, not those that are answered at once.
        return self.member.serves and self.has_its_share(self._calls)

    def _serve_here(self, conn: StickyProtocol, head: Any) -> None:
        self._idle.discard(conn)
        if self._blocked:
            self._blocked.pop(conn, None)
        if isinstance(head, Head) and is_websocket_upgrade(head):
            self._count_websocket(conn, True)
        self._publish_busy()
        conn.serve()

    def is_idle(self, conn: StickyProtocol) -> None:
        """A request has been answered, and its connection waits for the next."""
        if conn.is_websocket:  # it was refused
            self._count_websocket(conn, False)
        self._idle.add(conn)
        self._words[self._row + Word.REQUESTS] = self.nr
        self._publish_busy()

    def call_begins(self, conn: StickyProtocol) -> None:
        """The application is called."""
        conn.calls += 1
        self._calls += 1

    def call_ends(self, conn: StickyProtocol) -> None:
        """A call of the application has ended."""
        conn.calls -= 1
        self._calls -= 1
        self._finished = time.monotonic()

    def _count_websocket(self, conn: StickyProtocol, is_websocket: bool) -> None:
        if conn.is_websocket != is_websocket:
            conn.is_websocket = is_websocket
            self._websockets += 1 if is_websocket else -1
            self._words[self._row + Word.WEBSOCKETS] = self._websockets

    def _publish(self) -> None:
        words, row = self._words, self._row
        words[row + Word.CONNECTIONS] = len(self._conns)
        words[row + Word.REQUESTS] = self.nr
        self._publish_busy()

    def _publish_busy(self) -> None:
        """Say at once what siblings decide by: a burst is shared out before its first answer."""
        busy = len(self._conns) - len(self._idle) - len(self._blocked)
        self._words[self._row + Word.BUSY] = busy if self.heads.are_readable else self._calls

    # --- requests that only one process can serve -------------------------------------------

    def _block(self, conn: StickyProtocol) -> None:
        """Only one process can serve the request, and its inbox is full: try again soon."""
        if not self._blocked:
            self.loop.call_later(RETRY_INTERVAL, self._retry)
        self._idle.discard(conn)
        self._blocked[conn] = time.monotonic() + self.shared.settings.handoff_timeout
        self._publish()
        conn.stop()

    def _retry(self) -> None:
        now = time.monotonic()
        for conn, deadline in list(self._blocked.items()):
            if now >= deadline and conn.transport is not None:
                del self._blocked[conn]
                conn.refuse(503, "Service Unavailable", "Retry-After: 1\r\n")
            else:
                self._route(conn, self.heads.scan(conn))
        if self._blocked:
            self.loop.call_later(RETRY_INTERVAL, self._retry)


#: What gunicorn 27 raises for an application that says that it could not start.
_REPORTED: Final = getattr(lifespan, "LifespanStartupFailed", ())
