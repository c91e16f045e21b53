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
from gunicorn_cluster_ext.board import Order, State, Word
from gunicorn_cluster_ext.handoff import MAX_RECEIVED, LostDescriptor
from gunicorn_cluster_ext.head import NEED_MORE, NOT_PROXIED, OPAQUE, Head, blind, scan, scan_proxy
from gunicorn_cluster_ext.routing import lightest
from gunicorn_cluster_ext.settings import executed_config
from gunicorn_cluster_ext.workers.base import StickyWorker
from gunicorn_cluster_ext.workers.connection import StickyConn, Waiting
from gunicorn_cluster_ext.workers.loop import DONTWAIT, READ_SIZE, LoopWorker

#: After so many hand-offs without being served a request is served where it is: workers that
#: come and go must not play ball with it.
MAX_HOPS: Final = 2
#: Hand-offs that are read in one turn of the loop, so that none starves the other connections.
INBOX_BATCH: Final = 32
RETRY_INTERVAL: Final = 0.01
#: How long a request of nobody may wait for a thread here before it goes to a free sibling. A
#: hand-off costs as much as many a request; and 5 ms is how long a thread may hold the interpreter.
PATIENCE: Final = 0.005
#: How long kept-alive connections stay open in a stopping worker (gthread in gunicorn 27).
STOP_TIMEOUT: Final = 2.0
#: How long the first workers wait for each other: a hung import must not stop its siblings.
START_TIMEOUT: Final = 5.0
START_INTERVAL: Final = 0.01
SWEEP_INTERVAL: Final = 1.0
#: How often a worker that drains or is parked looks whether there is something to hand on.
DRAIN_INTERVAL: Final = 0.02
#: How long a process that has begun Engine.IO sessions stays after the last request of one: a
#: client that polls asks again at once, and only this process knows it.
HARD_QUIET: Final = 5.0


class Sticky(StickyWorker, LoopWorker):
    """A threaded worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.Sticky"`` is all that is needed; see the settings
    ``cluster_sticky`` and ``cluster_threads``.
    """

    @staticmethod
    def choose_threads(cfg: Any, threads: int, log: Any) -> None:
        is_set = "threads" in executed_config(cfg.config) or any(
            word.startswith("--thread") for word in StickyWorker.arguments(cfg)
        )
        if cfg.threads == 1 and not is_set:
            cfg.set("threads", threads)
            log.info("Using up to %d threads per worker (cluster_threads)", threads)

    # --- life -----------------------------------------------------------------------------

    #: Whether requests that others could serve as well are served here: not while it drains or
    #: is parked.
    serves = False

    def run(self) -> None:
        """Called by gunicorn when the application is loaded."""
        self._open()
        try:
            self.notify()
            self._become(State.READY)
            self._start_together()
            while self.alive and not self.leaving:
                self._obey()
                self.set_accept_enabled(self.may_accept())
                if not self.turn(1.0 if self.serves else DRAIN_INTERVAL):
                    break
            self._drain()
        finally:  # also when a signal ends the process: its threads must end too
            self._close()

    def _open(self) -> None:
        board, settings = self.cluster.board, self.cluster.settings
        self._words, self._row = board.words, board.row(self.place.seat)
        self._reads_heads = compat.can_read_heads(self.cfg)
        self._judge_step = compat.smallest_limit(self.cfg)
        self._proxy_mode = self.cfg.proxy_protocol
        self._may_speak_http2 = getattr(self.cfg, "http2_cleartext", "off") != "off"
        self._swept = 0.0
        self._abandoned: set[int] = set()
        self._blocked = Waiting(settings.handoff_timeout)
        self.open_loop(settings.head_timeout)
        self.poller.add(self.cluster.inboxes.reader(self.place.seat).fileno(), self._on_inbox)

    def _become(self, state: State) -> None:
        self.serves = state is State.READY
        self.cluster.board.set(self.place.seat, Word.STATE, state)

    def _start_together(self) -> None:
        """Accept nothing until the server's first workers are all ready.

        After a restart all clients come at once. The first worker to be ready would take
        them all, and sticky clients stay.
        """
        if self.place.generation != 1:
            return
        board, deadline = self.cluster.board, time.monotonic() + START_TIMEOUT
        while self.alive and not self.leaving and time.monotonic() < deadline:
            if len(board.slots()) >= board.target or not self.turn(START_INTERVAL):
                break

    def may_accept(self) -> bool:
        return self.serves and super().may_accept()

    def _obey(self) -> None:
        """Serve or be parked, as the arbiter has ordered.

        A parked worker is one that drains without an end, and can be called back.
        """
        serve = self._words[self._row + _ORDER] == _SERVE
        if serve != self.serves:
            self._become(State.READY if serve else State.PARKED)
        if not serve:
            self._hand_on()

    def turn(self, timeout: float) -> bool:
        words, row = self._words, self._row
        words[row + _BUSY] = self.tpool.busy
        words[row + _CONNECTIONS] = self.nr_conns
        words[row + _REQUESTS] = self.nr
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
        if now - self._swept >= SWEEP_INTERVAL:
            self._swept = now
            self._sweep()
        return True

    # --- leaving --------------------------------------------------------------------------

    def _drain(self) -> None:
        """Finish what was begun, and leave connections to whom goes on."""
        begun = now = time.monotonic()
        self.set_accept_enabled(False)
        self._become(State.DRAINING)
        while now < begun + self._drain_timeout():
            followed = self._hand_on()
            # Told so, gunicorn answers with "Connection: close", and ends HTTP/2 connections.
            self.alive = followed and not self._may_speak_http2
            if self._may_go(begun, now, followed) or not self.turn(DRAIN_INTERVAL):
                break
            now = time.monotonic()

    def _drain_timeout(self) -> float:
        timeout = self.cluster.settings.drain_timeout
        if timeout is None or self.cluster.board.stopping:
            timeout = self.cfg.graceful_timeout
        return float(timeout)

    def _hand_on(self) -> bool:
        """Leave connections on which no request is in progress to the heir.

        False when there is none: the whole server ends, nobody else serves, or they are TLS
        sessions, which cannot be left to anybody.
        """
        heir = self._heir()
        if heir == self.place.seat or self.cluster.board.stopping or self.cfg.is_ssl:
            return False
        for conn in self._unbegun():
            if not self._hand_over(conn, heir):
                break  # its inbox is full: go on at the next turn
        return True

    def _may_go(self, begun: float, now: float, followed: bool) -> bool:
        """Whether a worker that drains since ``begun`` has nothing left to do."""
        if followed:
            return not self.nr_conns and not self._is_expected(begun, now)
        unbegun = len(self._unbegun())
        if self.nr_conns > unbegun:
            return False
        return now >= begun + STOP_TIMEOUT or not unbegun or not self._lingers()

    def _is_expected(self, begun: float, now: float) -> bool:
        """Whether sessions that only this process knows may still go on here."""
        had_sessions = self._words[self._row + _SESSIONS]
        return bool(had_sessions) and now - max(begun, self.finished) < HARD_QUIET

    def _lingers(self) -> bool:
        """Whether idle connections are kept for a while that nobody will take over.

        For requests that are on their way, as in gunicorn 27. Otherwise somebody will.
        """
        board = self.cluster.board
        return board.stopping or bool(self.cfg.is_ssl) or board.has_deaf()

    def _heir(self) -> int:
        """The seat that takes over what this worker leaves.

        Who serves in the same slot, if there is somebody, or the worker that is least busy.
        Otherwise this very seat: what is in its inbox is read by the process that takes it next.
        """
        board = self.cluster.board
        successor = board.successor(self.place.seat)
        if successor is not None:
            return successor
        loads = board.loads()
        return min(loads, key=lambda seat: loads[seat].busy) if loads else self.place.seat

    def _close(self) -> None:
        """Go, and leave nothing behind.

        Whoever sends to this seat after the state is set sees it, and takes it back: see
        ``_hand_over``.
        """
        self._become(State.GONE)
        self.alive = False
        self._finish_all()
        heir, seat = self._heir(), self.place.seat
        while heir != seat and (late := self._receive(seat)) is not None:
            if not self._bequeath(late, heir):
                break
        for conn in (*self._unbegun(), *self._blocked):
            self._bequeath(conn, heir)
        self.close_loop()

    def _bequeath(self, conn: StickyConn, heir: int) -> bool:
        """Hand ``conn`` to the heir. Where it finds no room, to whom reads this seat's inbox next.

        Returns whether the heir has got it.
        """
        conn.owned = False  # the heir must see for itself whose request it is
        if heir != self.place.seat and not self.cfg.is_ssl and self._send(conn, heir):
            return True
        # Who comes next may be of a worker class that reads no inbox.
        is_lost = self.cfg.is_ssl or self.cluster.board.has_deaf()
        if is_lost or not self._send(conn, self.place.seat):
            self.drop(conn)
        return False

    def _unbegun(self) -> list[StickyConn]:
        """The connections on which no request is in progress."""
        return [*self.keepalived_conns, *self.silent, *self.partial]

    # --- inboxes --------------------------------------------------------------------------

    def _on_inbox(self, _ended: bool) -> None:
        for _ in range(INBOX_BATCH):
            conn = self._receive(self.place.seat)
            if conn is None:
                return
            if conn.owned and self.serves:
                self._serve_here(conn)
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
        self._words[self._row + _HANDED_IN] += 1
        return conn

    def _sweep(self) -> None:
        """Take connections from inboxes that nobody reads.

        Such are left by workers that were killed. A replacement is to have what was queued for
        its predecessor, so it is given until the next sweep to come.
        """
        board, before = self.cluster.board, self._abandoned
        self._abandoned = set(board.abandoned()) if self._is_sweeper() else set()
        for seat in self._abandoned:
            if seat in before or board.successor(seat) is not None:
                self._take_all(seat)

    def _is_sweeper(self) -> bool:
        """Whether this worker is the one who sweeps: the process that serves in the lowest slot."""
        board = self.cluster.board
        slots = board.slots()
        return bool(slots) and board.serving(slots[0]) == self.place.seat

    def _take_all(self, seat: int) -> None:
        """Take what is in the inbox of ``seat``, where nobody is."""
        while (conn := self._receive(seat)) is not None:
            self._consider(conn)

    # --- a request's head -----------------------------------------------------------------

    def arrive(self, conn: StickyConn) -> None:
        if self._reads_heads:
            self.read(conn)
            return
        owner = self.owner_of(blind(conn.address))
        if owner is None or owner.seat == self.place.seat or not self._hand_over(conn, owner.seat):
            self.wait_for_request(conn)

    def read(self, conn: StickyConn) -> None:
        if conn.waiting is self._blocked:  # it has a request that cannot be served yet
            self.poller.pause(conn.fd)
            conn.unread = True
        elif self._reads_heads:
            self._read_head(conn)
        else:
            self._serve_here(conn)

    def kept(self, conn: StickyConn) -> None:
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
            self.arrive(conn) if self._reads_heads else self.wait_for_request(conn)
            return
        head = self._scan(conn)
        if head is NEED_MORE and not self._has_answer(conn):
            self.wait_for_request(conn)
        elif isinstance(head, Head):
            self._route(conn, head)
        else:
            self._serve_here(conn)

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
        lines, feeds = data.count(b"\r\n"), data.count(b"\n")
        news = (lines > 0, feeds != lines, not data[:1].isalpha(), len(data) // self._judge_step)
        if news == conn.judged:
            return False
        conn.judged = news
        return compat.is_answerable(self.cfg, data, conn.client, conn.requests)

    # --- where it goes --------------------------------------------------------------------

    def _route(self, conn: StickyConn, head: Head) -> None:
        if len(conn.received) > MAX_RECEIVED:
            self._serve_here(conn)
            return
        owner = self.owner_of(head)
        conn.owned = owner is not None
        seat = self.taker_of(head) if owner is None else owner.seat
        is_hard = owner is not None and owner.hard
        # Where hard affinity leads stays the same, however many workers come and go.
        if seat == self.place.seat or (conn.hops >= MAX_HOPS and not is_hard):
            self._serve_here(conn)
        elif not self._hand_over(conn, seat):
            self._words[self._row + _INBOX_FULL] += 1
            self._block(conn) if is_hard else self._serve_here(conn)

    def _serve_here(self, conn: StickyConn) -> None:
        self.dispatch(conn)
        self._words[self._row + _BUSY] = self.tpool.busy

    def _hand_over(self, conn: StickyConn, seat: int) -> bool:
        """Hand ``conn`` to the process in ``seat``. False when there is no room in its inbox.

        Between the look at the board and the hand-off, the process may have gone. It empties its
        inbox after it has said so. So either it finds what was sent, or this look finds it gone.
        """
        if not self._send(conn, seat):
            return False
        if self._words[self.cluster.board.row(seat) + _STATE] == _GONE:
            self._take_all(seat)
        return True

    def _send(self, conn: StickyConn, seat: int) -> bool:
        if len(conn.received) > MAX_RECEIVED:
            return False
        if not self.cluster.inboxes.send(seat, conn.pack(), conn.fd):
            return False
        self._words[self._row + _HANDED_OUT] += 1
        self.drop(conn)  # the connection lives on: the other worker has it too
        return True

    def has_room(self) -> bool:
        """Whether a thread is free, or will be at once: a hand-off costs more than a short wait."""
        pool = self.tpool
        if not self.serves or pool.busy < pool.size:
            return self.serves
        if (pool.waiting() + 1) * self.pace > PATIENCE:
            return False
        return time.monotonic() - self.finished < PATIENCE

    def _relieve(self) -> None:
        """Hand what waits for a thread here, and is anybody's, to workers with free threads."""
        board, me = self.cluster.board, self.place.seat
        loads = board.loads()
        room = sum(load.threads - load.busy for load in loads.values() if load.busy < load.threads)
        stay: list[StickyConn] = []
        for conn in islice(self.tpool.take_back(), room):
            seat = lightest(board.loads(), me, strictly=False)
            if conn.owned or seat == me or not self._hand_over(conn, seat):
                stay.append(conn)
        self.tpool.give_back(stay)

    def _block(self, conn: StickyConn) -> None:
        """Only one process can serve the request, and its inbox is full: try again soon."""
        if conn.waiting is not self._blocked:
            self._blocked.add(conn, time.monotonic())

    def _retry(self, now: float) -> None:
        for conn in self._blocked.expired(now):
            self.refuse(conn, 503, "Service Unavailable", "Retry-After: 1\r\n")
        for conn in self._blocked:
            self._route(conn, self._scan(conn))

    def expire(self, now: float) -> None:
        timed_out = len(self.partial)
        super().expire(now)
        self._words[self._row + _TIMED_OUT] += timed_out - len(self.partial)


# Plain ints: adding an IntEnum member costs 60 ns more, and this is the request path.
_STATE: Final = int(Word.STATE)
_ORDER: Final = int(Word.ORDER)
_SESSIONS: Final = int(Word.SESSIONS)
_GONE: Final = int(State.GONE)
_SERVE: Final = int(Order.SERVE)
_BUSY: Final = int(Word.BUSY)
_CONNECTIONS: Final = int(Word.CONNECTIONS)
_REQUESTS: Final = int(Word.REQUESTS)
_HANDED_IN: Final = int(Word.HANDED_IN)
_HANDED_OUT: Final = int(Word.HANDED_OUT)
_INBOX_FULL: Final = int(Word.INBOX_FULL)
_TIMED_OUT: Final = int(Word.TIMED_OUT)
