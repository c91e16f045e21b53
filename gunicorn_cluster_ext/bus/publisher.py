"""What this process sends over the bus: to every worker that listens, and what waits for those
that are slow.

A message goes straight into a lane. If that is full it is kept, in order, and a thread (with gevent
a greenlet) passes it on when there is room again. If too much is kept its publisher waits, up to a
bound, and then the message is lost for that worker only; see backlog.py.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from gunicorn_cluster_ext.bus import framing, links
from gunicorn_cluster_ext.bus.send_queue import CHUNK, OVERHEAD, Backlog, Parcel, Verdict
from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT
from gunicorn_cluster_ext.runtime.counters import bus_lost, bus_sent
from gunicorn_cluster_ext.runtime.directory import bus_socket

#: How often it is looked whether a worker that does not read still lives.
_LOOK_MS: Final = 100
#: When that is tried again of which nothing tells when it can be done.
_AGAIN_S: Final = 0.02


class Gone(Exception):
    """The worker does not listen any more."""


class Peer:
    """A worker that listens. All of this is called under the outbox's lock."""

    def __init__(self, seat: int, generation: int, directory: Path) -> None:
        self.seat, self.generation = seat, generation
        self.backlog = Backlog()
        self.lane: socket.socket | None = None
        self.is_gone = self.has_pump = False
        self._path = bus_socket(directory, seat, generation)
        self._unflushed = 0
        self._is_short = False

    def __str__(self) -> str:
        return f"worker {self.seat // SEATS_PER_SLOT} (generation {self.generation})"

    def send_at_once(self, frame: bytearray) -> bool:
        """Send it, if nothing waits and there is room. Otherwise nothing has happened."""
        if self.lane is None or self.backlog.waiting:
            return False
        try:
            count = self.lane.send(frame)
        except OSError:  # ``take`` will meet the same
            return False
        if count < len(frame):
            self.backlog.keep(_small(frame), count)
        return True

    def take(self, parcel: Parcel, now: float, deadline: float) -> Verdict:
        """Send it, or keep it. Raises Gone."""
        if parcel.file is None and not self.backlog.waiting:
            count = self._write((parcel.frame,), None)
            if count < len(parcel.frame):
                self.backlog.keep(parcel, count)
            return Verdict.KEPT
        self._collect()
        verdict = self.backlog.offer(parcel, now, deadline)
        if verdict is Verdict.KEPT:
            # Not each time, so that there is more to write at once.
            self._unflushed += parcel.size
            if self._unflushed >= CHUNK:
                self.flush()
        elif self.backlog.lost == 1:
            log.warning("The %s does not read the bus: messages to it are lost from now on", self)
        return verdict

    def flush(self) -> None:
        """Write what there is room for. Raises Gone."""
        self._unflushed, self._is_short = 0, False
        self._collect()
        while self.backlog.waiting and (chunk := self.backlog.chunk()):
            count = self._write(*chunk)
            if not count:
                return
            self.backlog.written(count)
            self._reads()

    def _write(self, buffers: Sequence[bytes | bytearray | memoryview], file: Any) -> int:
        try:
            if self.lane is None:
                self.lane = links.connect(self._path)
            return links.send(self.lane, buffers, file)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in links.SHORTAGES:
                raise Gone from error
            self._is_short = True
            return 0

    def _collect(self) -> None:
        """What it says of large messages: a byte for each that it has read. Raises Gone."""
        if self.lane is None or not self.backlog.is_unread:
            return
        try:
            answer = self.lane.recv(64)
        except BlockingIOError:
            return
        except OSError as error:
            raise Gone from error
        if not answer:
            raise Gone
        self.backlog.read(len(answer))
        self._reads()

    def _reads(self) -> None:
        lost = self.backlog.resume()
        if lost:
            log.warning("The %s reads the bus again: %d messages to it were lost", self, lost)

    def waiting(self) -> Callable[[], object]:
        """What waits, for a moment, until it has read something. To be called without the lock."""
        if self.lane is None or self._is_short:
            return partial(time.sleep, _AGAIN_S)
        poller = select.poll()
        can_write = self.backlog.waiting and self.backlog.chunk()
        poller.register(self.lane, select.POLLOUT if can_write else select.POLLIN)
        return partial(poller.poll, _LOOK_MS)

    def close(self) -> None:
        """Throw away what is kept."""
        self.is_gone = True
        if self.backlog.lost:
            log.warning("The %s is gone: %d messages to it were lost", self, self.backlog.lost)
        if self.lane is not None:
            self.lane.close()


class Delivery:
    """One message: how many workers have taken it, which not yet, and how long these are waited
    for."""

    def __init__(self, taken: int, waiting: list[Peer]) -> None:
        self.taken, self.waiting = taken, waiting
        self.parcel = _NOTHING
        self.deadline = 0.0


class Outbox:
    """Everything that this process sends. ``send`` and ``finish`` may be called by any thread.

    ``own`` is the seat of this process, which gets nothing; None for one that is no worker.
    ``timeout`` is how long the publisher of a message waits, in seconds.
    """

    def __init__(self, board: Board, directory: Path, own: int | None, timeout: float) -> None:
        self._board, self._directory, self._own, self._timeout = board, directory, own, timeout
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._column = b""
        self._peers: list[Peer] = []  # replaced, never changed
        self._is_closed = False

    def close(self) -> None:
        """Pass on what is kept, as far as that can be done within the bound, and end all lanes.

        Nobody gets what is sent after that, by threads of a process that ends.
        """
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(self._is_empty, self._timeout)
            for peer in self._peers:
                peer.close()
            self._peers = []

    def abandon(self) -> None:
        """Give up this process's copies of the lanes of the one that has forked it."""
        for peer in self._peers:
            if peer.lane is not None:
                peer.lane.close()

    def send(self, channel: str, body: bytes) -> Delivery:
        """Send it to all that listen. Never waits: if some still do, ``finish`` it.

        Raises TypeError, ValueError, and OSError when a large message cannot be made.
        """
        framing.check(channel, body)
        with self._lock:
            self._look()
            waiting = peers = self._peers
            if peers and len(body) <= framing.LARGE:
                waiting = self._send_at_once(framing.frame(channel, body))
            delivery = Delivery(len(peers) - len(waiting), waiting)
        if delivery.waiting:
            delivery.parcel = _parcel(channel, body)
            now = time.monotonic()
            delivery.deadline = now + self._timeout
            with self._lock:
                self._attempt(delivery, now)
        return delivery

    def finish(self, delivery: Delivery) -> None:
        """Wait for those that have no room, up to the bound."""
        with self._changed:
            while delivery.waiting:
                self._changed.wait(max(0, delivery.deadline - time.monotonic()))
                self._look()
                self._attempt(delivery, time.monotonic())

    # --- under the lock ---------------------------------------------------------------------

    def _send_at_once(self, frame: bytearray) -> list[Peer]:
        """The way of most messages: to those for which nothing waits. The others."""
        waiting = []
        for peer in self._peers:
            if not peer.send_at_once(frame):
                waiting.append(peer)
            elif peer.backlog.waiting:
                self._help(peer)
        bus_sent.add(len(self._peers) - len(waiting))
        return waiting

    def _attempt(self, delivery: Delivery, now: float) -> None:
        taken, lost, waiting = 0, 0, []
        for peer in delivery.waiting:
            verdict = self._offer(peer, delivery, now)
            taken += verdict is Verdict.KEPT
            lost += verdict is Verdict.LOST
            if verdict is Verdict.WAIT:
                waiting.append(peer)
        delivery.waiting = waiting
        delivery.taken += taken
        if taken:
            bus_sent.add(taken)
        if lost:
            bus_lost.add(lost)
            self._changed.notify_all()  # nobody else need wait for it

    def _offer(self, peer: Peer, delivery: Delivery, now: float) -> Verdict | None:
        """None: it is gone."""
        if peer.is_gone:
            return None
        try:
            verdict = peer.take(delivery.parcel, now, delivery.deadline)
        except Gone:
            self._forget(peer)
            return None
        if peer.backlog.waiting or verdict is Verdict.WAIT:
            self._help(peer)
        return verdict

    def _forget(self, peer: Peer) -> None:
        """A worker ends no lane as long as it lives."""
        self._peers = [each for each in self._peers if each is not peer]
        self._part(peer)
        self._column = b""  # it is tried again as long as the board says that it listens

    def _look(self) -> None:
        """Who listens now?"""
        column = self._board.bus_listeners()
        if column != self._column and not self._is_closed:
            self._column = column
            self._meet(memoryview(column).cast("Q").tolist())

    def _meet(self, generations: list[int]) -> None:
        before = {(peer.seat, peer.generation): peer for peer in self._peers}
        self._peers = []
        for seat, generation in enumerate(generations):
            if generation and seat != self._own:
                peer = before.pop((seat, generation), None)
                self._peers.append(peer or Peer(seat, generation, self._directory))
        for peer in before.values():
            self._part(peer)

    def _part(self, peer: Peer) -> None:
        peer.close()
        self._changed.notify_all()

    def _is_empty(self) -> bool:
        return not any(peer.backlog.waiting and not peer.backlog.lost for peer in self._peers)

    def _help(self, peer: Peer) -> None:
        if not peer.has_pump:
            peer.has_pump = True
            threading.Thread(target=self._pump, args=(peer,), name="bus-out", daemon=True).start()

    # --- a thread for each worker that is slow ------------------------------------------------

    def _pump(self, peer: Peer) -> None:
        """Pass on what is kept until nothing is. Runs in a thread of its own, or a greenlet."""
        while wait := self._pass_on(peer):
            wait()

    def _pass_on(self, peer: Peer) -> Callable[[], object] | None:
        """What waits until there is more to do; None when nothing is kept any more."""
        with self._changed:
            self._look()
            try:
                if not peer.is_gone:
                    peer.flush()
            except Gone:
                self._forget(peer)
            self._changed.notify_all()
            peer.has_pump = peer.backlog.is_pending and not peer.is_gone
            return peer.waiting() if peer.has_pump else None


_NOTHING: Final = Parcel(bytearray(), None, 0)


def _parcel(channel: str, body: bytes) -> Parcel:
    """Raises OSError."""
    if len(body) <= framing.LARGE:
        return _small(framing.frame(channel, body))
    return Parcel(framing.frame(channel, len(body)), links.File(body), len(body))


def _small(frame: bytearray) -> Parcel:
    return Parcel(frame, None, len(frame) + OVERHEAD)
