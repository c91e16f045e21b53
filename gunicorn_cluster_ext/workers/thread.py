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

import errno
import socket
import time
from functools import partial
from typing import Any, Final

from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.board import State, Word
from gunicorn_cluster_ext.handoff import MAX_RECEIVED, LostDescriptor
from gunicorn_cluster_ext.head import NEED_MORE, NOT_PROXIED, OPAQUE, Head, blind, scan, scan_proxy
from gunicorn_cluster_ext.routing import lightest
from gunicorn_cluster_ext.settings import executed_config
from gunicorn_cluster_ext.workers.base import StickyWorker
from gunicorn_cluster_ext.workers.connection import NOTHING_TO_JUDGE, StickyConn, Waiting, accept
from gunicorn_cluster_ext.workers.poller import Poller
from gunicorn_cluster_ext.workers.pool import Pool

#: Bytes read at once in the main loop; nearly every head fits, and what follows it travels along.
READ_SIZE: Final = 16 * 1024
#: After so many hand-offs without being served a request is served where it is: workers that
#: come and go must not play ball with it.
MAX_HOPS: Final = 2
#: How long a new connection may say nothing: gthread waits 5 s in a thread and then
#: `keepalive` in its poller.
FIRST_BYTE_TIMEOUT: Final = 5.0
#: How long a connection lingers that we have closed (util.close_graceful in gunicorn 26 on).
LINGER_TIMEOUT: Final = 2.0
#: How long kept-alive connections stay open in a stopping worker (gthread in gunicorn 27).
STOP_TIMEOUT: Final = 2.0
#: Hand-offs that are read in one turn of the loop, so that none starves the other connections.
INBOX_BATCH: Final = 32
RETRY_INTERVAL: Final = 0.01
#: How long a request of nobody may wait for a thread here before it goes to a free sibling. A
#: hand-off costs as much as many a request; and 5 ms is how long a thread may hold the interpreter.
PATIENCE: Final = 0.005
#: How long the first workers wait for each other: a hung import must not stop its siblings.
START_TIMEOUT: Final = 2.0
START_INTERVAL: Final = 0.01
NOTIFY_INTERVAL: Final = 0.25
SWEEP_INTERVAL: Final = 1.0


class Sticky(StickyWorker, ThreadWorker):
    """A threaded worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.Sticky"`` is all that is needed; see the settings
    ``cluster_sticky`` and ``cluster_threads``.
    """

    poller: Any  # until _open it is gthread's
    _accepting: bool

    @staticmethod
    def choose_threads(cfg: Any, threads: int, log: Any) -> None:
        is_set = "threads" in executed_config(cfg.config) or any(
            word.startswith("--thread") for word in StickyWorker.arguments(cfg)
        )
        if cfg.threads == 1 and not is_set:
            cfg.set("threads", threads)
            log.info("Using up to %d threads per worker (cluster_threads)", threads)

    # --- life -----------------------------------------------------------------------------

    def run(self) -> None:
        """Called by gunicorn when the application is loaded."""
        self._open()
        try:
            self._start_together()
            while self.alive:
                self.set_accept_enabled(self.nr_conns < self.worker_connections)
                if not self._turn(1.0):
                    break
            self._drain()
        finally:  # also when a signal ends the process: its threads must end too
            self._close()

    def get_thread_pool(self) -> Pool[StickyConn]:
        return Pool(self.cfg.threads, self._serve)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish."""
        self.alive = False
        self.tpool.wake()

    def _open(self) -> None:
        board, keepalive = self.cluster.board, self.cfg.keepalive
        self._words, self._row = board.words, board.row(self.place.seat)
        self._reads_heads = compat.can_read_heads(self.cfg)
        self._server_names = {sock: sock.getsockname() for sock in self.sockets}
        self._proxy_mode = self.cfg.proxy_protocol
        self._notified = self._swept = 0.0
        # When threads last finished something, and the smoothed interval between two requests
        # that they finish: how long a request will wait here.
        self._finished = self._pace = 0.0
        self._silent = Waiting(FIRST_BYTE_TIMEOUT + keepalive)
        self._partial = Waiting(self.cluster.settings.head_timeout)
        self._blocked = Waiting(self.cluster.settings.handoff_timeout)
        self._lingering = Waiting(LINGER_TIMEOUT)
        # gunicorn's handle_request() asks how long this is, to limit kept-alive connections.
        self.keepalived_conns = Waiting(keepalive)
        self.poller.close()
        self.poller = Poller()
        self.poller.add(self.cluster.inboxes.reader(self.place.seat).fileno(), self._on_inbox)
        self.poller.add(self.tpool.fileno(), self.tpool.drain_wakeups)

    def set_accept_enabled(self, enabled: bool) -> None:
        if enabled == self._accepting:
            return
        self._accepting = enabled
        for listener in self.sockets:
            if enabled:
                listener.setblocking(False)
                self.poller.add(listener.fileno(), partial(self.accept, listener))
            else:
                self.poller.remove(listener.fileno())

    def _start_together(self) -> None:
        """Accept nothing until the server's first workers are all ready.

        After a restart all clients come at once. The first worker to be ready would take
        them all, and sticky clients stay.
        """
        board, deadline = self.cluster.board, time.monotonic() + START_TIMEOUT
        while self.alive and self.place.generation == 1 and time.monotonic() < deadline:
            if len(board.slots()) >= board.target or not self._turn(START_INTERVAL):
                break

    def _turn(self, timeout: float) -> bool:
        """Wait for events and serve them. False when the arbiter is gone."""
        if self._blocked:
            timeout = min(timeout, RETRY_INTERVAL)
        elif self.tpool.waiting():
            timeout = min(timeout, PATIENCE)
        self._note(Word.CONNECTIONS, self.nr_conns)
        self._note(Word.REQUESTS, self.nr)
        timeout = self.tpool.patience(timeout)
        readable = self.poller.wait(timeout if self.tpool.may_sleep() else 0)
        self.tpool.is_awake()
        # First what threads gave back, so that a connection whose next request is there is idle.
        self._finish_all()
        self.poller.call(readable)
        now = time.monotonic()
        self.tpool.attend(now)
        if self.tpool.waiting() and now - self._finished > PATIENCE:
            self._relieve()
        if now - self._notified >= NOTIFY_INTERVAL:
            self._notified = now
            self.notify()
            self._expire(now)
            if not self.is_parent_alive():
                return False
        if self._blocked:
            self._retry(now)
        if now - self._swept >= SWEEP_INTERVAL:
            self._swept = now
            self._sweep()
        return True

    def _drain(self) -> None:
        """Finish what was begun; hand what is idle to a sibling."""
        self.set_accept_enabled(False)
        self.cluster.board.set(self.place.seat, Word.STATE, State.DRAINING)
        now = time.monotonic()
        deadline = now + self.cfg.graceful_timeout
        self._release_idle()
        self.keepalived_conns.seconds = min(self.cfg.keepalive, STOP_TIMEOUT)
        linger = now + self.keepalived_conns.seconds
        while self.nr_conns > 0 and now < deadline:
            if not self._turn(0.1):
                break
            now = time.monotonic()
            if now >= linger:
                self._drop_idle()

    def _release_idle(self) -> None:
        for waiting in (self.keepalived_conns, self._silent):
            for conn in waiting:
                self._leave_to_sibling(conn)

    def _leave_to_sibling(self, conn: StickyConn) -> bool:
        """Hand an idle connection to a worker that goes on. A TLS session cannot be handed on."""
        seat = self._sibling()
        return seat is not None and not self.cfg.is_ssl and self._hand_over(conn, seat)

    def _sibling(self) -> int | None:
        """The seat of a worker that takes over what this one leaves: its successor, if any."""
        board = self.cluster.board
        successor = board.serving(self.place.slot)
        if successor is not None:
            return successor
        loads = board.loads()
        return min(loads, key=lambda seat: loads[seat].busy) if loads else None

    def _drop_idle(self) -> None:
        for waiting in (self.keepalived_conns, self._silent):
            for conn in waiting:
                self._drop(conn)

    def _close(self) -> None:
        self.cluster.board.set(self.place.seat, Word.STATE, State.GONE)
        self._empty_inbox()
        for waiting in (self.keepalived_conns, self._silent, self._partial, self._blocked):
            for conn in waiting:
                self._drop(conn)
        self.poller.close()
        self.tpool.close()
        self.method_queue.close()
        for sock in self.sockets:
            sock.close()

    def _empty_inbox(self) -> None:
        """Pass on what was handed here too late."""
        while (conn := self._receive(self.place.seat)) is not None:
            seat = self._sibling()
            if seat is None or not self._hand_over(conn, seat):
                self._drop(conn)

    # --- connections come -----------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        try:
            sock, client = accept(listener)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                return
            raise
        self.nr_conns += 1
        conn = StickyConn(self.cfg, sock, client, self._server_names[listener])
        if self._reads_heads:
            self._read(conn)
            return
        owner = self.owner_of(blind(conn.address))
        if owner is None or owner.seat == self.place.seat or not self._hand_over(conn, owner.seat):
            self._await(conn)

    def _on_inbox(self) -> None:
        for _ in range(INBOX_BATCH):
            conn = self._receive(self.place.seat)
            if conn is None:
                return
            if conn.owned and self.alive:
                self._dispatch(conn)
            else:
                self._consider(conn)

    def _receive(self, seat: int) -> StickyConn | None:
        try:
            arrived = self.cluster.inboxes.receive(seat)
        except LostDescriptor as error:
            self.log.error("%s", error)
            return self._receive(seat)
        if arrived is None:
            return None
        conn = StickyConn.unpack(self.cfg, *arrived)
        self.nr_conns += 1
        self._count(Word.HANDED_IN)
        return conn

    def _sweep(self) -> None:
        """Take connections from inboxes that nobody reads.

        A sender may look at the board, be held up, and send to a process that has gone
        meanwhile. What is left in the inbox of an empty seat is everybody's; the lowest slot
        that serves takes it.
        """
        board = self.cluster.board
        slots = board.slots()
        if not slots or slots[0] != self.place.slot:
            return
        for seat in range(2 * board.capacity):
            if board.get(seat, Word.GENERATION) and board.get(seat, Word.STATE) == State.GONE:
                while (conn := self._receive(seat)) is not None:
                    self._consider(conn)

    # --- a request's head -----------------------------------------------------------------

    def _on_readable(self, conn: StickyConn) -> None:
        waiting = conn.waiting
        if conn.busy or waiting is self._blocked:
            self.poller.pause(conn.fd)
            conn.full = True
        elif waiting is self._lingering:
            self._discard_input(conn)
        elif self._reads_heads:
            self._read(conn)
        else:
            self._dispatch(conn)

    def _read(self, conn: StickyConn) -> None:
        try:
            data = conn.sock.recv(READ_SIZE, _DONTWAIT)
        except BlockingIOError:
            self._await(conn)
            return
        except OSError:  # the client has reset the connection
            self._drop(conn)
            return
        if not data:
            self._drop(conn)
            return
        conn.full = len(data) == READ_SIZE
        conn.received = conn.received + data if conn.received else data
        self._consider(conn)

    def _consider(self, conn: StickyConn) -> None:
        """Go on with a connection as far as its bytes allow."""
        if not self._reads_heads:
            self._await(conn)
            return
        if not conn.received:
            self._read(conn)
            return
        head = self._scan(conn)
        if head is NEED_MORE and not self._has_answer(conn):
            self._await(conn)
        elif isinstance(head, Head):
            self._route(conn, head)
        else:
            self._dispatch(conn)

    def _scan(self, conn: StickyConn) -> Any:
        mode = self._proxy_mode
        if mode == "off" or conn.requests:
            return scan(conn.received, conn.address)
        proxied = scan_proxy(conn.received, mode)
        if proxied is NEED_MORE or proxied is OPAQUE:
            return proxied
        if proxied is NOT_PROXIED:
            return scan(conn.received, conn.address)
        return scan(conn.received[proxied.length :], proxied.client or conn.address)

    def _has_answer(self, conn: StickyConn) -> bool:
        """Whether gunicorn would answer this half of a head at once, with an error.

        It is asked when there is something new to judge: when the request line is there, at a
        bare line feed, and when a limit may have been passed, but not at every byte of a
        client that dribbles.
        """
        data = conn.received
        lines = data.count(b"\r\n")
        news = (lines > 0, data.count(b"\n") != lines, not data[:1].isalpha(), len(data) // 2048)
        if news == conn.judged:
            return False
        conn.judged = news
        return compat.is_answerable(self.cfg, data, conn.client, conn.requests)

    def _await(self, conn: StickyConn) -> None:
        """Wait in the poller for more of the head."""
        if conn.received:
            if conn.waiting is not self._partial:
                self._partial.add(conn, time.monotonic())
        elif conn.waiting is None:
            waiting = self.keepalived_conns if conn.requests else self._silent
            waiting.add(conn, time.monotonic())
        self._watch(conn)

    # --- where it goes --------------------------------------------------------------------

    def _route(self, conn: StickyConn, head: Head) -> None:
        if conn.hops >= MAX_HOPS:
            self._dispatch(conn)
            return
        owner = self.owner_of(head)
        conn.owned = owner is not None
        seat = self.taker_of(head) if owner is None else owner.seat
        if seat == self.place.seat or len(conn.received) > MAX_RECEIVED:
            self._dispatch(conn)
        elif not self._hand_over(conn, seat):
            self._count(Word.INBOX_FULL)
            self._block(conn) if owner is not None and owner.hard else self._dispatch(conn)

    def has_room(self) -> bool:
        """Whether a thread is free, or will be at once: a hand-off costs more than a short wait."""
        pool = self.tpool
        if not self.alive or pool.busy < pool.size:
            return bool(self.alive)
        if (pool.waiting() + 1) * self._pace > PATIENCE:
            return False
        return time.monotonic() - self._finished < PATIENCE

    def _relieve(self) -> None:
        """Hand what waits for a thread here, and is anybody's, to workers with free threads."""
        stay: list[StickyConn] = []
        for conn in self.tpool.take_back():
            conn.busy = False
            seat = lightest(self.cluster.board.loads(), self.place.seat, strictly=False)
            if conn.owned or seat == self.place.seat or not self._hand_over(conn, seat):
                stay.append(conn)
        for conn in stay:
            self._dispatch(conn)

    def _dispatch(self, conn: StickyConn) -> None:
        """Let a thread serve the request."""
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        if not self.tpool.busy:
            self._finished = time.monotonic()  # the pace counts from here
        conn.hops, conn.judged = 0, NOTHING_TO_JUDGE
        conn.busy = True
        conn.watched = conn.watched and self.poller.busy(conn.fd)
        self.tpool.submit(conn)
        self._words[self._row + _BUSY] = self.tpool.busy

    def _hand_over(self, conn: StickyConn, seat: int) -> bool:
        if not self.cluster.inboxes.send(seat, conn.pack(), conn.fd):
            return False
        self._count(Word.HANDED_OUT)
        self._drop(conn)  # the connection lives on: the other worker has it too
        return True

    def _block(self, conn: StickyConn) -> None:
        """Only one process can serve the request, and its inbox is full: try again soon."""
        if conn.waiting is not self._blocked:
            self._blocked.add(conn, time.monotonic())

    def _retry(self, now: float) -> None:
        for conn in self._blocked.expired(now):
            self._refuse(conn, 503, "Service Unavailable", "Retry-After: 1\r\n")
        for conn in self._blocked:
            head = self._scan(conn)
            owner = self.owner_of(head)
            if owner is None or not owner.hard or owner.seat == self.place.seat:
                self._route(conn, head)
            else:
                self._hand_over(conn, owner.seat)

    # --- a request was served -------------------------------------------------------------

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
            self._pace += ((now - self._finished) / count - self._pace) / 8
            self._finished = now

    def _finish(self, conn: StickyConn, keep: bool) -> None:
        """A thread has given the connection back."""
        conn.busy = False
        self._words[self._row + _BUSY] = self.tpool.busy
        if keep:
            self._keep(conn)
        elif compat.is_spent(conn.parser):
            self._drop(conn)
        else:
            self._linger(conn)

    def _keep(self, conn: StickyConn) -> None:
        conn.received = compat.take_buffered(conn.parser)
        if conn.received:  # the client sends requests without waiting for answers
            self._consider(conn)
            return
        if not self.alive and self._leave_to_sibling(conn):
            return
        self.keepalived_conns.add(conn, time.monotonic())
        self._watch(conn)

    def _linger(self, conn: StickyConn) -> None:
        """Close, but not before the client has what was sent (RFC 9112 section 9.6).

        Gunicorn 26 on waits for the client in its main thread; here that goes through the
        poller.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client was first
            self._drop(conn)
            return
        self._lingering.add(conn, time.monotonic())
        self._discard_input(conn)

    def _discard_input(self, conn: StickyConn) -> None:
        try:
            # Not through TLS: what comes is thrown away, and SSLSocket.recv takes no flags.
            if not socket.socket.recv(conn.sock, READ_SIZE, _DONTWAIT):
                self._drop(conn)
                return
        except BlockingIOError:
            pass
        except OSError:
            self._drop(conn)
            return
        conn.full = True  # only the end counts: do not rely on another edge
        self._watch(conn)

    # --- connections go -------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        for waiting in (self.keepalived_conns, self._silent, self._lingering):
            for conn in waiting.expired(now):
                self._drop(conn)
        for conn in self._partial.expired(now):
            self._count(Word.TIMED_OUT)
            self._refuse(conn, 408, "Request Timeout")

    def _refuse(self, conn: StickyConn, status: int, reason: str, headers: str = "") -> None:
        """Answer in gunicorn's place, and close."""
        headers += "Connection: close\r\nContent-Length: 0\r\n"
        answer = f"HTTP/1.1 {status} {reason}\r\n{headers}\r\n"
        try:
            conn.sock.send(answer.encode(), socket.MSG_DONTWAIT)
        except OSError:
            self._drop(conn)
            return
        self._linger(conn)

    def _watch(self, conn: StickyConn) -> None:
        if not conn.watched:
            conn.watched = True
            self.poller.idle(conn.fd, partial(self._on_readable, conn))
        elif conn.full:  # the poller tells of news only, and not all of the last was read
            self.poller.pause(conn.fd)
            self.poller.idle(conn.fd, partial(self._on_readable, conn))
        conn.full = False

    def _drop(self, conn: StickyConn) -> None:
        """Close our end at once."""
        if conn.waiting is not None:
            conn.waiting.remove(conn)
        if conn.watched:
            self.poller.remove(conn.fd)
        self.nr_conns -= 1
        util.close(conn.sock)

    # --- the board ------------------------------------------------------------------------

    def _note(self, word: Word, value: int) -> None:
        self._words[self._row + word] = value

    def _count(self, word: Word) -> None:
        self._words[self._row + word] += 1


# Plain ints, for the request path.
_BUSY: Final = int(Word.BUSY)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
