"""StickyGevent: gunicorn's gevent worker, whose greenlets look where each request goes.

    accept -> a greenlet: read -> scan -> owner?  me       gunicorn's own handle_request()
                            |               another  hand the connection over, and end
                            ` need more     wait, as greenlets do

One greenlet serves one connection, with gunicorn's own ``handle()``. It asks its parser for the
next request, and our parser (``greenlets.Parser``) asks the worker first. What is handed over by
others arrives in the hub, and gets a greenlet too. All else happens in the main greenlet, which
sleeps most of the time.
"""

from __future__ import annotations

import functools
import signal
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from gevent.pool import Group
from gunicorn.sock import ssl_context
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing.head import NEED_MORE, Head
from gunicorn_cluster_ext.runtime.board.layout import State, Word
from gunicorn_cluster_ext.workers.base import (
    DRAIN_INTERVAL,
    INBOX_BATCH,
    RETRY_INTERVAL,
    START_INTERVAL,
    START_TIMEOUT,
    StickyWorker,
    Way,
)
from gunicorn_cluster_ext.workers.connection import NOTHING_TO_JUDGE
from gunicorn_cluster_ext.workers.gevent.connection import Connection, Parser
from gunicorn_cluster_ext.workers.gevent.lag import Pace
from gunicorn_cluster_ext.workers.gevent.listener import Door, Listener
from gunicorn_cluster_ext.workers.handoff import Post
from gunicorn_cluster_ext.workers.head_reader import Heads
from gunicorn_cluster_ext.workers.membership import Drain, Member

#: How long a new connection may say nothing where gunicorn's ``keepalive`` is off.
FIRST_BYTE_TIMEOUT: Final = 5.0
NOTIFY_INTERVAL: Final = 1.0
#: How long requests that are given up have to notice. The arbiter waits for a second.
KILL_TIMEOUT: Final = 0.5


class StickyGevent(StickyWorker, GeventWorker):
    """A gevent worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.StickyGevent"`` is all that is needed; see the setting
    ``cluster_sticky`` and gunicorn's ``worker_connections``.
    """

    post: Post[Connection]

    #: How the main greenlet is to end the process, once a signal wants that.
    _quit: Callable[[], None] | None = None

    # --- life -----------------------------------------------------------------------------

    def run(self) -> None:
        """Called by gunicorn when the application is loaded. The main greenlet."""
        self._open()
        try:
            self.notify()
            self.member.become(State.READY)
            self._start_together()
            while self.alive and not self.leaving:
                self._obey()
                self._turn(NOTIFY_INTERVAL if self.member.serves else DRAIN_INTERVAL)
            self._drain()
        finally:  # also when a signal ends the process
            self._close()

    def init_process(self) -> None:
        compat.offer_parser(self._parser_of)
        super().init_process()

    def _open(self) -> None:
        board = self.shared.board
        self._words, self._row = board.words, board.row_start(self.place.seat)
        self._words[self._row + Word.THREADS] = self.worker_connections
        self._tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        self._may_speak_http2 = getattr(self.cfg, "http2_cleartext", "off") != "off"
        # A question to gunicorn's configuration costs more than most of what is done here.
        self._idle_timeout = self.cfg.keepalive or FIRST_BYTE_TIMEOUT
        self._head_timeout = self.shared.settings.head_timeout
        self.calls = 0  # requests in progress
        self.finished = 0.0
        self.greenlets = Group()
        self.connections = 0
        self._unbegun: dict[Connection, None] = {}
        self._blocked: dict[Connection, None] = {}
        self.heads = Heads(self.cfg)
        self.member = Member(self.shared, self.place, self.cfg)
        self.post = Post(
            self.member,
            self.log,
            unpack=Connection.unpack,
            consider=self._go_on,
            drop=Connection.leave,
        )
        self._listen()

    def _listen(self) -> None:
        loop = get_hub().loop
        self._inbox = loop.io(self.post.fileno(), 1)
        self._inbox.start(self._on_inbox)
        self._pace = Pace(loop)
        self._doors = [Door(sock, self._came, self.log) for sock in self.sockets]
        self._may_accept = False

    def _start_together(self) -> None:
        """Accept nothing until the server's first workers are all ready."""
        deadline = time.monotonic() + START_TIMEOUT
        while self.alive and not self.leaving and time.monotonic() < deadline:
            if not self.member.awaits_siblings():
                break
            self._turn(START_INTERVAL)

    def _obey(self) -> None:
        self.member.obey()
        self._may_accept = self.member.serves
        if not self._may_accept:
            self.post.hand_on(list(self._unbegun))

    def _turn(self, timeout: float) -> None:
        """Sleep, but for what is due."""
        self._attend_doors()
        self.notify()
        self.post.sweep(time.monotonic())
        self._woken.wait(timeout)
        self._woken.clear()
        if self._quit is not None:
            self._quit()

    def _attend_doors(self) -> None:
        self._publish()
        is_open = self._may_accept and self.connections < self.worker_connections
        for door in self._doors:
            door.set_open(is_open)

    def _publish(self) -> None:
        """Say at once what siblings decide by: a burst is shared out before its first answer."""
        words, row, connections = self._words, self._row, self.connections
        words[row + Word.CONNECTIONS] = connections
        words[row + Word.REQUESTS] = self.nr
        if self.heads.are_readable:
            words[row + Word.BUSY] = connections - len(self._unbegun) - len(self._blocked)
        else:
            words[row + Word.BUSY] = self.calls

    # --- signals --------------------------------------------------------------------------

    def init_signals(self) -> None:
        self._woken = Event()
        self._wake = get_hub().loop.async_()
        self._wake.start(self._woken.set)
        super().init_signals()
        # As gunicorn does for SIGTERM: libraries that know no EINTR are not to be disturbed.
        signal.siginterrupt(signal.SIGWINCH, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish."""
        self.leaving = True
        self._wake.send()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT, SIGQUIT: end now. Gunicorn does that in a greenlet of its own, which then may
        interrupt the main one at its end."""
        if self.booted:
            self._quit = functools.partial(Worker.handle_quit, self, sig, frame)
            self._wake.send()
        else:
            super().handle_quit(sig, frame)

    def handle_winch(self, sig: int, frame: Any) -> None:
        """SIGWINCH: the arbiter has written an order on the board."""
        self._wake.send()

    # --- leaving --------------------------------------------------------------------------

    def _drain(self) -> None:
        """Finish what was begun, and leave connections to whom goes on."""
        now = time.monotonic()
        drain = Drain(self.member, now)
        self._may_accept = False
        self.member.become(State.DRAINING)
        while not drain.is_over(now):
            followed = self.post.hand_on(list(self._unbegun))
            # Told so, gunicorn answers with "Connection: close", and ends HTTP/2 connections.
            self.alive = followed and not self._may_speak_http2
            connections = self.connections
            unbegun = connections - self.calls - len(self._blocked)
            if drain.may_go(connections, unbegun, self.finished, now):
                return
            self._turn(DRAIN_INTERVAL)
            now = time.monotonic()
        self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    def _close(self) -> None:
        self.member.become(State.GONE)
        self.alive = False
        self._inbox.stop()
        for door in self._doors:
            door.close()
        self.post.close(lambda: (*self._unbegun, *self._blocked))
        self.greenlets.kill(timeout=KILL_TIMEOUT)

    # --- connections ----------------------------------------------------------------------

    def _came(self, fd: int, client: Any, address: Any) -> None:
        self._spawn(self._arrive, Connection(fd, client, address))

    def _on_inbox(self) -> None:
        for _ in range(INBOX_BATCH):
            conn = self.post.receive()
            if conn is None:
                return
            self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        """With a connection that another worker has handed over."""
        if not self.member.serves:
            conn.owned = False
        self._spawn(self._serve, conn)

    def _spawn(self, serve: Callable[[Connection], None], conn: Connection) -> None:
        self.connections += 1
        self._attend_doors()
        self.greenlets.spawn(self._see_off, serve, conn)

    def _see_off(self, serve: Callable[[Connection], None], conn: Connection) -> None:
        """A connection's whole stay here. Its greenlet."""
        try:
            serve(conn)
        finally:
            self.connections -= 1
            self._attend_doors()

    def _arrive(self, conn: Connection) -> None:
        if self.heads.are_readable or self.route_blindly(conn) is Way.HERE:
            self._serve(conn)

    def _serve(self, conn: Connection) -> None:
        """Serve a connection as long as it stays here."""
        listener = Listener(conn.server)
        if self._tls is None:
            self.handle(listener, conn, conn.client)
            return
        try:
            client = self._tls.wrap_socket(conn, server_side=True)
        except (ssl.SSLError, OSError) as error:
            self.log.debug("TLS handshake failed: %s", error)
            conn.close()
            return
        self.handle(listener, client, conn.client)

    # --- requests -------------------------------------------------------------------------

    def timeout_ctx(self) -> AbstractContextManager[Any]:
        """How long gunicorn waits for a request."""
        if self.heads.are_readable:  # then it does not wait: we do
            return _NO_TIMEOUT
        return super().timeout_ctx()  # type: ignore[no-any-return]

    def _parser_of(self, cfg: Any, source: Any, client: Any) -> Parser | None:
        """The parser of a connection whose requests are routed one by one."""
        if isinstance(source, Connection) and self.heads.are_readable:
            return Parser(cfg, source, client, self._await_request)
        return None

    def _await_request(self, conn: Connection) -> bool:
        """Wait for the next request on ``conn``. Whether it is to be served here.

        If not, the connection was handed over, or is to be closed.
        """
        if not (conn.owned and conn.received) and not self._find_server(conn):
            return False
        conn.hops, conn.judged, conn.owned = 0, NOTHING_TO_JUDGE, False
        return True

    def _find_server(self, conn: Connection) -> bool:
        self._unbegun[conn] = None
        self._publish()
        try:
            head = self._read_head(conn)
        except TimeoutError:
            head = None
        finally:
            del self._unbegun[conn]
            self._publish()
        if isinstance(head, Head):
            return self._route(conn, head)
        if head is None and conn.received and not conn.closed:
            self._words[self._row + Word.TIMED_OUT] += 1
            conn.refuse(408, "Request Timeout")
        return head is not None

    def _read_head(self, conn: Connection) -> Any:
        """The next request's Head, or OPAQUE or NEED_MORE if it is for gunicorn to judge.

        None when there will be none. Raises TimeoutError.
        """
        timeout, deadline = self._idle_timeout, None
        while True:
            if conn.received:
                head = self.heads.scan(conn)
                if head is not NEED_MORE or self.heads.have_answer(conn):
                    return head
                now = time.monotonic()
                deadline = deadline or now + self._head_timeout
                timeout = max(deadline - now, 0.001)
            if not conn.read_more(timeout):
                return None

    def _route(self, conn: Connection, head: Head) -> bool:
        """Whether the request is to be served here."""
        deadline = time.monotonic() + self.shared.settings.handoff_timeout
        while (way := self.route(conn, head)) is Way.WAIT:
            if time.monotonic() >= deadline:
                conn.refuse(503, "Service Unavailable", "Retry-After: 1\r\n")
                return False
            self._blocked[conn] = None
            gevent.sleep(RETRY_INTERVAL)
            del self._blocked[conn]
            if conn.closed:  # it was left to the heir
                return False
        return way is Way.HERE

    def taker_of(self, head: Head) -> int:
        seat, me = super().taker_of(head), self.place.seat
        if seat != me or not self._pace.is_behind():
            return seat
        loads = self.post.loads()
        least_loaded = min(loads, key=lambda seat: loads[seat].busy, default=me)
        return me if loads[least_loaded].busy else least_loaded

    def has_room(self) -> bool:
        return self.member.serves and self.has_its_share(self.calls)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        try:
            self._count(super().handle_request, listener_name, req, sock, addr)
        except StopIteration:
            if isinstance(sock, Connection):
                sock.part()
            raise

    def handle_http2_request(
        self, listener_name: Any, req: Any, sock: Any, addr: Any, h2_conn: Any
    ) -> None:
        self._count(super().handle_http2_request, listener_name, req, sock, addr, h2_conn)

    def _count(self, serve: Any, *args: Any) -> None:
        self.calls += 1
        try:
            serve(*args)
        finally:
            self.calls -= 1
            self.finished = time.monotonic()
            if not self.heads.are_readable:  # otherwise at once, when the next one is waited for
                self._publish()


_NO_TIMEOUT: Final = nullcontext()
