"""Sticky: gunicorn's threaded worker, whose main loop decides for every request where it goes.

    accept -> read -> scan -> owner?  me      a thread runs gunicorn's own handle()
                        |             another hand the connection over
                        ` need more   wait in the poller

All methods here run in the worker's main thread unless they say otherwise. The main loop
reads a request's head itself, without blocking, and gives the bytes to gunicorn's parser
afterwards. (Peeking would leave them in the kernel for a second read, would need
``SO_RCVLOWAT`` against spinning on half a head, and that does nothing on Unix sockets.)
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Any, Final

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing.balance import least_loaded
from gunicorn_cluster_ext.routing.head import NEED_MORE, Head
from gunicorn_cluster_ext.runtime.board.layout import State, Word
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage
from gunicorn_cluster_ext.settings import executed_config
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
from gunicorn_cluster_ext.workers.thread.connection import StickyConn, Waiting
from gunicorn_cluster_ext.workers.thread.loop import DONTWAIT, READ_SIZE, LoopWorker

#: How long a request of nobody may wait for a thread here before it goes to a free sibling. A
#: hand-off costs as much as many a request; and 5 ms is how long a thread may hold the interpreter.
PATIENCE: Final = 0.005


class Sticky(StickyWorker, LoopWorker):
    """A threaded worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.Sticky"`` is all that is needed; see the settings
    ``cluster_sticky`` and ``cluster_threads``.
    """

    @staticmethod
    def choose_threads(cfg: Any, threads: int) -> None:
        is_set = "threads" in executed_config(cfg.config) or any(
            word.startswith("--thread") for word in compat.command_line(cfg)
        )
        if cfg.threads == 1 and not is_set:
            cfg.set("threads", threads)

    # --- life -----------------------------------------------------------------------------

    post: Post[StickyConn]

    def run(self) -> None:
        """Called by gunicorn when the application is loaded."""
        self._open()
        try:
            self.notify()
            self.member.become(State.READY)
            self._start_together()
            while self.alive and not self.leaving:
                self._obey()
                self.set_accept_enabled(self.may_accept())
                if not self.turn(1.0 if self.member.serves else DRAIN_INTERVAL):
                    break
            self._drain()
        finally:  # also when a signal ends the process: its threads must end too
            self._close()

    def _open(self) -> None:
        board, settings = self.shared.board, self.shared.settings
        self._words, self._row = board.words, board.row_start(self.place.seat)
        self._may_speak_http2 = getattr(self.cfg, "http2_cleartext", "off") != "off"
        self._blocked = Waiting(settings.handoff_timeout)
        self.heads = Heads(self.cfg)
        self.member = Member(self.shared, self.place, self.cfg)
        self.post = Post(
            self.member,
            self.log,
            unpack=self._unpack,
            consider=self._consider,
            drop=self.drop,
        )
        self.open_loop(settings.head_timeout)
        self.poller.add(self.post.fileno(), self._on_inbox)

    def _start_together(self) -> None:
        """Accept nothing until the server's first workers are all ready."""
        deadline = time.monotonic() + START_TIMEOUT
        while self.alive and not self.leaving and time.monotonic() < deadline:
            if not self.member.awaits_siblings() or not self.turn(START_INTERVAL):
                break

    def may_accept(self) -> bool:
        return self.member.serves and super().may_accept()

    def _obey(self) -> None:
        self.member.obey()
        if not self.member.serves:
            self.post.hand_on(self._unbegun())

    def turn(self, timeout: float) -> bool:
        words, row = self._words, self._row
        words[row + Word.BUSY] = self.tpool.busy
        words[row + Word.CONNECTIONS] = self.nr_conns
        words[row + Word.REQUESTS] = self.nr
        if self._blocked:
            timeout = min(timeout, RETRY_INTERVAL)
        elif self.tpool.waiting():
            timeout = min(timeout, PATIENCE)
        if not super().turn(timeout):
            return False
        now = time.monotonic()
        if self._blocked:
            self._retry(now)
        if self.tpool.waiting() and now - self.finished > PATIENCE:
            self._relieve()
        self.post.sweep(now)
        return True

    # --- leaving --------------------------------------------------------------------------

    def _drain(self) -> None:
        """Finish what was begun, and leave connections to whom goes on."""
        now = time.monotonic()
        drain = Drain(self.member, now)
        self.set_accept_enabled(False)
        self.member.become(State.DRAINING)
        while not drain.is_over(now):
            followed = self.post.hand_on(self._unbegun())
            # Told so, gunicorn answers with "Connection: close", and ends HTTP/2 connections.
            self.alive = followed and not self._may_speak_http2
            unbegun = len(self._unbegun())
            if drain.may_go(self.nr_conns, unbegun, self.finished, now):
                break
            if not self.turn(DRAIN_INTERVAL):
                break
            now = time.monotonic()

    def _close(self) -> None:
        self.member.become(State.GONE)
        self.alive = False
        self._finish_all()
        self.post.close(lambda: (*self._unbegun(), *self._blocked))
        self.close_loop()

    def _unbegun(self) -> list[StickyConn]:
        """The connections on which no request is in progress."""
        return [*self.keepalived_conns, *self.silent, *self.partial]

    # --- inboxes --------------------------------------------------------------------------

    def _on_inbox(self, _ended: bool) -> None:
        for _ in range(INBOX_BATCH):
            conn = self.post.receive()
            if conn is None:
                return
            if conn.owned and self.member.serves:
                self._serve_here(conn)
            else:
                self._consider(conn)

    def _unpack(self, message: HandoffMessage, fd: int) -> StickyConn:
        self.nr_conns += 1
        return StickyConn.unpack(self.cfg, message, fd)

    # --- a request's head -----------------------------------------------------------------

    def arrive(self, conn: StickyConn) -> None:
        if self.heads.are_readable:
            self.read(conn)
        elif self.route_blindly(conn) is Way.HERE:
            self.wait_for_request(conn)

    def read(self, conn: StickyConn) -> None:
        if conn.waiting is self._blocked:  # it has a request that cannot be served yet
            self.poller.pause(conn.fd)
            conn.unread = True
        elif self.heads.are_readable:
            self._read_head(conn)
        else:
            self._serve_here(conn)

    def kept(self, conn: StickyConn) -> None:
        conn.owned = False
        if conn.received:  # the client sends requests without waiting for answers
            self._consider(conn)
        else:
            self.wait_for_request(conn)

    def _read_head(self, conn: StickyConn) -> None:
        try:
            data = conn.sock.recv(READ_SIZE, DONTWAIT)
        except BlockingIOError:
            self.wait_for_request(conn)
            return
        except OSError:  # the client has reset the connection
            self.drop(conn)
            return
        if not data:
            self.drop(conn)
            return
        if len(data) == READ_SIZE:  # the poller tells of news only, and there may be more
            conn.unread = True
        conn.received = conn.received + data if conn.received else data
        self._consider(conn)

    def _consider(self, conn: StickyConn) -> None:
        """Go on with a connection as far as its bytes allow."""
        if not conn.received:
            self.arrive(conn) if self.heads.are_readable else self.wait_for_request(conn)
            return
        head = self.heads.scan(conn)
        if head is NEED_MORE and not self.heads.have_answer(conn):
            self.wait_for_request(conn)
        elif isinstance(head, Head):
            self._route(conn, head)
        else:
            self._serve_here(conn)

    # --- where it goes --------------------------------------------------------------------

    def _route(self, conn: StickyConn, head: Head) -> None:
        way = self.route(conn, head)
        if way is Way.HERE:
            self._serve_here(conn)
        elif way is Way.WAIT and conn.waiting is not self._blocked:
            self._blocked.add(conn, time.monotonic())

    def _serve_here(self, conn: StickyConn) -> None:
        self.dispatch(conn)
        self._words[self._row + Word.BUSY] = self.tpool.busy

    def has_room(self) -> bool:
        """Whether a thread is free, or will be at once: a hand-off costs more than a short wait."""
        pool = self.tpool
        if not self.member.serves or pool.busy < pool.size:
            return self.member.serves
        if (pool.waiting() + 1) * self.pace > PATIENCE:
            return False
        return time.monotonic() - self.finished < PATIENCE

    def _relieve(self) -> None:
        """Hand what waits for a thread here, and is anybody's, to workers with free threads."""
        board, me = self.shared.board, self.place.seat
        loads = board.loads()
        room = sum(load.threads - load.busy for load in loads.values() if load.busy < load.threads)
        stay: list[StickyConn] = []
        for conn in islice(self.tpool.take_back(), room):
            seat = least_loaded(board.loads(), me, strictly=False)
            if conn.owned or seat == me or not self.post.hand_over(conn, seat):
                stay.append(conn)
        self.tpool.give_back(stay)

    def _retry(self, now: float) -> None:
        for conn in self._blocked.expired(now):
            self.refuse(conn, 503, "Service Unavailable", "Retry-After: 1\r\n")
        for conn in self._blocked:
            self._route(conn, self.heads.scan(conn))

    def expire(self, now: float) -> None:
        timed_out = len(self.partial)
        super().expire(now)
        self._words[self._row + Word.TIMED_OUT] += timed_out - len(self.partial)
