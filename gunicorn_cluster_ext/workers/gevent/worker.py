"""StickyGevent: gunicorn's gevent worker, whose greenlets decide where each request is served.

    accept -> a greenlet: read -> head -> owner?  me       gunicorn's own handle_request()
                            |               another  hand the connection over, and end
                            ` need more     wait, as greenlets do

One greenlet serves one connection, with gunicorn's own ``handle()``. It asks its parser for the
next request, and our ``Parser`` asks the worker first. What other workers hand over arrives in the
hub, and gets a greenlet too. All else happens in the main greenlet, which sleeps most of the time.
"""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from gunicorn_cluster_ext.extras import missing

try:
    import gevent
    from gevent.event import Event
    from gevent.hub import get_hub
    from gevent.pool import Group
    from gunicorn.sock import ssl_context
    from gunicorn.workers.base import Worker
    from gunicorn.workers.ggevent import GeventWorker
except ImportError as error:
    raise missing("gevent", error) from None

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing.head import Head, Partial
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.workers.connection import NOTHING_CHECKED
from gunicorn_cluster_ext.workers.event_loop import EventLoopWorker
from gunicorn_cluster_ext.workers.gevent.connection import BoundAddress, GreenletConnection, Parser
from gunicorn_cluster_ext.workers.gevent.lag import LoopLag
from gunicorn_cluster_ext.workers.lifecycle import (
    FIRST_BYTE_TIMEOUT_S,
    RETRY_INTERVAL_S,
    run_blocking,
)
from gunicorn_cluster_ext.workers.listener import Listener

#: How long requests that are given up have to notice. The arbiter waits for a second.
KILL_TIMEOUT_S: Final = 0.5


class StickyGevent(EventLoopWorker[GreenletConnection], GeventWorker):
    """A gevent worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.StickyGevent"`` is all that is needed; see the setting
    ``cluster_sticky`` and gunicorn's ``worker_connections``.
    """

    #: What the main greenlet is to call to end the process, once a signal wants that.
    _quit: Callable[[], None] | None = None

    # --- the main greenlet --------------------------------------------------------------------

    def init_process(self) -> None:
        def make_parser(cfg: Any, source: Any, client: Any) -> Parser | None:
            if isinstance(source, GreenletConnection) and self.head_reader.are_readable:
                return Parser(cfg, source, client, self._await_request)
            return None

        compat.offer_parser(make_parser)
        super().init_process()

    def run(self) -> None:
        """Called by gunicorn when the application is loaded."""
        run_blocking(self.live())

    def open_loop(self) -> None:
        super().open_loop()
        self._tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        # A question to gunicorn's configuration costs more than most of what is done here.
        self._idle_timeout = self.cfg.keepalive or FIRST_BYTE_TIMEOUT_S
        self._head_timeout = self.shared.settings.head_timeout
        self.greenlets = Group()
        loop = get_hub().loop
        self._inbox = loop.io(self.handoff.fileno(), 1)
        self._inbox.start(self.on_inbox)
        self._lag = LoopLag(loop)
        self._watchers = [(loop.io(each.fd, 1), each) for each in self.listeners]
        self._accepting = False

    async def turn(self, timeout: float) -> bool:
        """Sleep until the main greenlet has something to do."""
        self.publish()
        self.notify()
        self.handoff.sweep(time.monotonic())
        self._woken.wait(timeout)
        self._woken.clear()
        if self._quit is not None:
            self._quit()
        return True

    def stop_events(self) -> None:
        self._inbox.stop()
        for watcher, _ in self._watchers:
            watcher.close()

    def close_loop(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.greenlets.kill(timeout=KILL_TIMEOUT_S)

    def count_connections(self) -> tuple[int, int]:
        connections = len(self.conns)
        return connections, connections - self.calls - len(self.blocked)

    async def end_drain(self) -> None:
        self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    # --- signals ------------------------------------------------------------------------------

    def init_signals(self) -> None:
        self._woken = Event()
        self._wake = get_hub().loop.async_()
        self._wake.start(self._woken.set)
        super().init_signals()

    def wake(self) -> None:
        self._wake.send()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT, SIGQUIT: end now.

        Gunicorn does that in a greenlet of its own, which then may interrupt the main one at its
        end.
        """
        if self.booted:
            self._quit = functools.partial(Worker.handle_quit, self, sig, frame)
            self.wake()
        else:
            super().handle_quit(sig, frame)

    # --- connections --------------------------------------------------------------------------

    def set_accepting(self, accepting: bool) -> None:
        self._accepting = accepting
        self._watch_listeners()

    def _watch_listeners(self) -> None:
        accepting = self._accepting and len(self.conns) < self.worker_connections
        for watcher, listener in self._watchers:
            if not accepting:
                watcher.stop()
            elif not watcher.active:
                watcher.start(self._accept, listener)

    def _accept(self, listener: Listener) -> None:
        """Accept one connection, so that siblings have their share. Runs in the hub."""
        accepted = listener.accept()
        if accepted is not None:
            self._spawn(self.on_accepted, GreenletConnection(*accepted, listener.address))

    def unpack(self, message: HandoffMessage, fd: int) -> GreenletConnection:
        return GreenletConnection.unpack(message, fd)

    def resume_handed(self, conn: GreenletConnection) -> None:
        self._spawn(self.start, conn)

    def _spawn(self, begin: Callable[[GreenletConnection], None], conn: GreenletConnection) -> None:
        self.conns.add(conn)
        self.publish()
        self._watch_listeners()
        self.greenlets.spawn(self._run_connection, begin, conn)

    def _run_connection(
        self, begin: Callable[[GreenletConnection], None], conn: GreenletConnection
    ) -> None:
        """Serve a connection as long as it stays in this process. Its greenlet."""
        try:
            begin(conn)
        finally:
            self.conns.discard(conn)
            self.publish()
            self._watch_listeners()

    def start(self, conn: GreenletConnection) -> None:
        """Let gunicorn serve the connection. The greenlet ends with it."""
        client: Any = conn
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(conn, server_side=True)
            except (ssl.SSLError, OSError) as error:
                self.log.debug("TLS handshake failed: %s", error)
                conn.close()
                return
        self.handle(BoundAddress(conn.server), client, conn.client)

    # --- requests, in the connection's greenlet -----------------------------------------------

    def timeout_ctx(self) -> AbstractContextManager[Any]:
        """Return how long gunicorn waits for a request."""
        if self.head_reader.are_readable:  # then it does not wait: we do
            return _NO_TIMEOUT
        return super().timeout_ctx()  # type: ignore[no-any-return]

    def _await_request(self, conn: GreenletConnection) -> bool:
        """Wait for the next request on ``conn``. Return True if it is to be served here.

        Otherwise the connection was handed over, or is to be closed.
        """
        if conn.owned:  # it was handed over to be served here
            super().resume_handed(conn)
        while conn.is_served is None:
            self.advance(conn)
        return conn.is_served

    def wait(self, conn: GreenletConnection) -> None:
        timeout = self._idle_timeout
        if conn.received:
            now = time.monotonic()
            conn.head_deadline = conn.head_deadline or now + self._head_timeout
            timeout = max(conn.head_deadline - now, 0.001)
        self.idle_conns.add(conn)
        self.words[self.row + Word.REQUESTS] = self.nr
        self.publish_busy()
        try:
            has_more = conn.read_more(timeout)
        finally:
            self.idle_conns.discard(conn)
            self.publish_busy()
        if has_more:
            return
        conn.is_served = False
        if conn.received and not conn.closed:
            self.words[self.row + Word.TIMED_OUT] += 1
            conn.refuse(408, "Request Timeout")

    def serve(self, conn: GreenletConnection, head: Head | Partial | None) -> None:
        conn.is_served = True
        conn.hops, conn.checked, conn.owned = 0, NOTHING_CHECKED, False
        conn.head_deadline = None

    def block(self, conn: GreenletConnection) -> None:
        gevent.sleep(RETRY_INTERVAL_S)

    def refuse(self, conn: GreenletConnection, status: int, reason: str, headers: str = "") -> None:
        conn.is_served = False
        conn.refuse(status, reason, headers)

    def drop(self, conn: GreenletConnection) -> None:
        """Close this process's end, from any greenlet."""
        conn.is_served = False
        conn.release()

    def is_behind(self) -> bool:
        return self._lag.is_behind()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        try:
            self._count(super().handle_request, listener_name, req, sock, addr)
        except StopIteration:
            if isinstance(sock, GreenletConnection):
                sock.close_after_response()
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
            if not self.head_reader.are_readable:  # otherwise at the next wait for a request
                self.publish()


_NO_TIMEOUT: Final = nullcontext()
