"""Sticky: gunicorn's threaded worker, whose main loop decides for every request where it is
served.

    accept -> read -> head -> owner?  me       a thread runs gunicorn's own handle()
                        |             another  hand the connection over
                        ` need more   wait in the poller

All methods run in the worker's main thread unless they say otherwise.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Any, Final

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing.balance import least_loaded
from gunicorn_cluster_ext.routing.head import Head, Partial
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.settings import executed_config
from gunicorn_cluster_ext.workers.connection import NOTHING_CHECKED
from gunicorn_cluster_ext.workers.lifecycle import RETRY_INTERVAL_S, run_blocking
from gunicorn_cluster_ext.workers.thread.connection import ThreadConnection
from gunicorn_cluster_ext.workers.thread.loop import LoopWorker
from gunicorn_cluster_ext.workers.thread.pool import Pool

#: How long a request without an owner may wait for a thread here before it is sent to a free
#: sibling. A hand-off costs as much as many a request; and 5 ms is how long a thread may hold the
#: interpreter.
QUEUE_LIMIT_S: Final = 0.005
NOTIFY_INTERVAL_S: Final = 0.25


class Sticky(LoopWorker):
    """A threaded worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.Sticky"`` is all that is needed; see the settings
    ``cluster_sticky`` and ``cluster_threads``.
    """

    #: The smoothed interval between two requests that threads finish: how long a request waits.
    seconds_per_request = 0.0
    _notified = 0.0

    @staticmethod
    def choose_threads(cfg: Any, threads: int) -> None:
        words = compat.command_line(cfg)
        is_set = "threads" in executed_config(cfg.config) or any(
            word.startswith("--thread") for word in words
        )
        if cfg.threads == 1 and not is_set:
            cfg.set("threads", threads)

    # --- the main loop ------------------------------------------------------------------------

    def run(self) -> None:
        """Called by gunicorn when the application is loaded."""
        run_blocking(self.live())

    def open_loop(self) -> None:
        super().open_loop()
        self.poller.add(self.tpool.fileno(), lambda _ended: self.tpool.drain_wakeups())

    async def turn(self, timeout: float) -> bool:
        """Serve events. Return False when the arbiter has ended."""
        pool, words, row = self.tpool, self.words, self.row
        words[row + Word.BUSY] = pool.busy
        words[row + Word.CONNECTIONS] = self.nr_conns
        words[row + Word.REQUESTS] = self.nr
        if self.blocked:
            timeout = min(timeout, RETRY_INTERVAL_S)
        elif pool.waiting():
            timeout = min(timeout, QUEUE_LIMIT_S)
        timeout = pool.max_sleep(timeout)
        readable = self.poller.wait(timeout if pool.may_sleep() else 0)
        pool.is_awake()
        # First what threads gave back, so that a connection whose next request is there is idle.
        self._finish_all()
        self.poller.call(readable)
        self.start_accepted()
        now = time.monotonic()
        pool.wake_more(now)
        if self.blocked:
            self.retry_blocked()
        if pool.waiting() and now - self.finished > QUEUE_LIMIT_S:
            self._relieve()
        self.handoff.sweep(now)
        if now - self._notified < NOTIFY_INTERVAL_S:
            return True
        self._notified = now
        self.notify()
        self.expire(now)
        return bool(self.is_parent_alive())

    def wake(self) -> None:
        self.tpool.wake()

    def stop_events(self) -> None:
        self._finish_all()

    def close_loop(self) -> None:
        super().close_loop()
        self.tpool.close()
        self.method_queue.close()

    # --- to a thread and back -----------------------------------------------------------------

    def get_thread_pool(self) -> Pool[ThreadConnection]:
        return Pool(self.cfg.threads, self._serve)

    def serve(self, conn: ThreadConnection, head: Head | Partial | None) -> None:
        """Let a thread serve the request."""
        pool = self.tpool
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        if conn.watched:
            # TLS: the thread wraps the socket in another, which closes the descriptor by itself.
            if self.cfg.is_ssl:
                self.poller.remove(conn.fd, conn.callback)
                conn.watched = False
            else:
                conn.watched = self.poller.busy(conn.fd)
        if not pool.busy:
            self.finished = time.monotonic()  # the interval counts from here
        conn.hops, conn.checked = 0, NOTHING_CHECKED
        pool.submit(conn)
        self.words[self.row + Word.BUSY] = pool.busy

    def _serve(self, conn: ThreadConnection) -> bool:
        """Return True if the connection can be kept. Runs in a thread."""
        try:
            return bool(self.handle(conn))
        except BaseException:  # an application that calls sys.exit() must not end this thread
            self.log.exception("Error in a worker thread")
            return False

    def _keepalive_after(self, conn: ThreadConnection, keepalive: bool) -> bool:
        """Called by gunicorn, in a thread.

        A body that was read already costs no system call here; gunicorn's own makes three.
        """
        if keepalive and compat.is_read(conn.parser):
            return True
        return bool(super()._keepalive_after(conn, keepalive))

    def _finish_all(self) -> None:
        """Take back the connections that threads have done with."""
        count = 0
        for conn, keep in self.tpool.finished():
            count += 1
            if keep:
                self.on_keepalive(conn)
            else:
                self.close_after_response(conn)
        if count:
            now = time.monotonic()
            interval = (now - self.finished) / count
            self.seconds_per_request += (interval - self.seconds_per_request) / 8
            self.finished = now

    def on_keepalive(self, conn: ThreadConnection) -> None:
        """A request was answered, and the connection can carry another."""
        conn.received = compat.take_buffered(conn.parser)
        conn.owned = False
        if conn.received:  # the client sends requests without waiting for answers
            self.advance(conn)
        else:
            self.wait(conn)

    # --- where requests are served ------------------------------------------------------------

    def has_room(self) -> bool:
        """Return True if a thread is free, or soon is: a hand-off costs more than a short wait."""
        pool = self.tpool
        if not self.membership.serves or pool.busy < pool.size:
            return self.membership.serves
        if (pool.waiting() + 1) * self.seconds_per_request > QUEUE_LIMIT_S:
            return False
        return time.monotonic() - self.finished < QUEUE_LIMIT_S

    def _relieve(self) -> None:
        """Send requests without an owner that wait for a thread to workers with free threads."""
        board, me = self.shared.board, self.place.seat
        loads = board.loads()
        room = sum(load.threads - load.busy for load in loads.values() if load.busy < load.threads)
        stay: list[ThreadConnection] = []
        for conn in islice(self.tpool.withdraw(), room):
            seat = least_loaded(board.loads(), me, strictly=False)
            if conn.owned or seat == me or not self.handoff.send(conn, seat):
                stay.append(conn)
        self.tpool.requeue(stay)
