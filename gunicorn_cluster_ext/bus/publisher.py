"""The sending side of the bus: it sends messages to every worker that listens.

A message is written straight to a worker's link. If that is full it is kept, in order, and a thread
(with gevent a greenlet), the *pump*, writes it when there is room again. If too much is kept, the
publisher waits, up to a bound, and then the message is lost for that worker (send_queue.py).
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from gunicorn_cluster_ext.bus import framing, links
from gunicorn_cluster_ext.bus.send_queue import (
    CHUNK_BYTES,
    OVERHEAD_BYTES,
    QueuedMessage,
    SendQueue,
    SendResult,
)
from gunicorn_cluster_ext.logs import ThrottledLog, log
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT
from gunicorn_cluster_ext.runtime.counters import bus_lost, bus_sent
from gunicorn_cluster_ext.runtime.directory import bus_socket

#: How often a pump checks whether a worker that does not read still listens.
_CHECK_MS: Final = 100
#: After how long a pump tries again where no event says when that will succeed.
_RETRY_S: Final = 0.02


class PeerGone(Exception):
    """The worker no longer listens."""


class Peer:
    """A worker that listens, as a publisher sees it. The publisher holds its lock in all calls."""

    def __init__(self, seat: int, generation: int, directory: Path) -> None:
        self.seat, self.generation = seat, generation
        self.queue = SendQueue()
        self.link: socket.socket | None = None
        self.is_gone = self.has_pump = False
        self._path = bus_socket(directory, seat, generation)
        self._unflushed_bytes = 0
        self._has_shortage = False

    def __str__(self) -> str:
        return f"Worker {self.seat // SEATS_PER_SLOT} (generation {self.generation})"

    def send_now(self, frame: bytearray) -> bool:
        """Send the frame if nothing waits and there is room; return False if nothing was done."""
        if self.link is None or self.queue.waiting:
            return False
        try:
            count = self.link.send(frame)
        except OSError:  # ``offer`` will meet it again, and handle it
            return False
        if count < len(frame):
            self.queue.append(_small(frame), count)
        return True

    def offer(self, message: QueuedMessage, now: float, deadline: float) -> SendResult:
        """Send the message, or keep it if there is room. Raise PeerGone."""
        if message.file is None and not self.queue.waiting:
            count = self._write((message.frame,), None)
            if count < len(message.frame):
                self.queue.append(message, count)
            return SendResult.ACCEPTED
        self._read_answers()
        result = self.queue.offer(message, now, deadline)
        if result is SendResult.ACCEPTED:
            # Not each time, so that more is written at once.
            self._unflushed_bytes += message.size
            if self._unflushed_bytes >= CHUNK_BYTES:
                self.flush()
        elif self.queue.lost == 1:
            log.warning("%s does not read the bus: messages to it are lost from now on", self)
        return result

    def flush(self) -> None:
        """Write as many of the kept messages as there is room for. Raise PeerGone."""
        self._unflushed_bytes, self._has_shortage = 0, False
        self._read_answers()
        while self.queue.waiting and (chunk := self.queue.next_chunk()):
            count = self._write(*chunk)
            if not count:
                return
            self.queue.mark_written(count)
            self._resume()

    def _write(self, buffers: Sequence[bytes | bytearray | memoryview], file: Any) -> int:
        try:
            if self.link is None:
                self.link = links.connect(self._path)
            return links.send(self.link, buffers, file)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in links.SHORTAGES:
                raise PeerGone from error
            self._has_shortage = True
            return 0

    def _read_answers(self) -> None:
        """Read a byte for each large message that the worker has read. Raise PeerGone."""
        if self.link is None or not self.queue.has_unread:
            return
        try:
            answers = self.link.recv(64)
        except BlockingIOError:
            return
        except OSError as error:
            raise PeerGone from error
        if not answers:
            raise PeerGone
        self.queue.mark_read(len(answers))
        self._resume()

    def _resume(self) -> None:
        lost = self.queue.resume()
        if lost:
            log.warning("%s reads the bus again: %d messages to it were lost", self, lost)

    def waiter(self) -> Callable[[], object]:
        """Return a function that waits, for a moment, until more can be written. It is called
        without the lock."""
        if self.link is None or self._has_shortage:
            return partial(time.sleep, _RETRY_S)
        poller = select.poll()
        can_write = self.queue.waiting and self.queue.next_chunk()
        poller.register(self.link, select.POLLOUT if can_write else select.POLLIN)
        return partial(poller.poll, _CHECK_MS)

    def close(self) -> None:
        """Close the link and discard what is kept."""
        self.is_gone = True
        if self.queue.lost:
            log.warning("%s is gone: %d messages to it were lost", self, self.queue.lost)
        if self.link is not None:
            self.link.close()


class Delivery:
    """One message on its way: how many workers have accepted it, and which are waited for."""

    message: QueuedMessage
    #: Until when the publisher waits, as time.monotonic() has it.
    deadline = 0.0

    def __init__(self, accepted: int, waiting: list[Peer]) -> None:
        self.accepted, self.waiting = accepted, waiting


class Publisher:
    """Everything that this process sends. Any thread may call ``send`` and ``finish``.

    ``own_seat`` is the seat of this process, which is sent nothing; None for one that is no worker.
    ``timeout_s`` is how long the publisher of a message waits at most.
    """

    def __init__(
        self, board: Board, directory: Path, own_seat: int | None, timeout_s: float
    ) -> None:
        self._board, self._directory = board, directory
        self._own_seat, self._timeout_s = own_seat, timeout_s
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._column = b""  # of the board: the generation of each seat that listens
        self._peers: list[Peer] = []  # replaced, never changed
        self._is_closed = False
        self._warn_no_thread = ThrottledLog(logging.ERROR)

    def close(self) -> None:
        """Wait until what is kept is written, up to the bound, and close all links.

        What other threads of the ending process send after that reaches nobody.
        """
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(
                lambda: not any(peer.queue.waiting and not peer.queue.lost for peer in self._peers),
                self._timeout_s,
            )
            for peer in self._peers:
                peer.close()
            self._peers = []

    def abandon(self) -> None:
        """Close a forked child's copies of its parent's links."""
        for peer in self._peers:
            if peer.link is not None:
                peer.link.close()

    def send(self, channel: str, body: bytes) -> Delivery:
        """Send a message to all workers that listen, without waiting.

        If the returned delivery has ``waiting`` workers, ``finish`` it. Raise TypeError,
        ValueError, and OSError if a large message cannot be stored.
        """
        framing.check(channel, body)
        frame: bytearray | None = None
        with self._lock:
            self._update_peers()
            waiting = peers = self._peers
            if peers and len(body) <= framing.MAX_INLINE_BYTES:
                # Most messages end here: nothing waits for any worker.
                frame = framing.frame(channel, body)
                waiting = []
                for peer in peers:
                    if not peer.send_now(frame):
                        waiting.append(peer)
                    elif peer.queue.waiting:
                        self._start_pump(peer)
                bus_sent.add(len(peers) - len(waiting))
        delivery = Delivery(len(peers) - len(waiting), waiting)
        if waiting:
            # Copying a large message to its file takes a while: without the lock.
            delivery.message = (
                QueuedMessage(framing.frame(channel, len(body)), links.File(body), len(body))
                if frame is None
                else _small(frame)
            )
            now = time.monotonic()
            delivery.deadline = now + self._timeout_s
            with self._lock:
                self._offer(delivery, now)
        return delivery

    def finish(self, delivery: Delivery) -> None:
        """Wait for the workers that had no room for the message, up to the bound."""
        with self._changed:
            while delivery.waiting:
                self._changed.wait(max(0, delivery.deadline - time.monotonic()))
                self._update_peers()
                self._offer(delivery, time.monotonic())

    # --- with the lock held -------------------------------------------------------------------

    def _update_peers(self) -> None:
        """Follow the board, which says what workers listen."""
        column = self._board.bus_listeners()
        if column == self._column or self._is_closed:
            return
        self._column = column
        before = {(peer.seat, peer.generation): peer for peer in self._peers}
        peers = []
        for seat, generation in enumerate(memoryview(column).cast("Q")):
            if generation and seat != self._own_seat:
                known = before.pop((seat, generation), None)
                peers.append(known or Peer(seat, generation, self._directory))
        self._peers = peers
        for peer in before.values():
            peer.close()
        self._changed.notify_all()

    def _offer(self, delivery: Delivery, now: float) -> None:
        """Offer the message to the workers that have yet to accept it."""
        offered, delivery.waiting = delivery.waiting, []
        accepted = lost = 0
        for peer in offered:
            if peer.is_gone:
                continue
            try:
                result = peer.offer(delivery.message, now, delivery.deadline)
            except PeerGone:
                self._forget(peer)
                continue
            if peer.queue.waiting or result is SendResult.WAIT:
                self._start_pump(peer)
            if result is SendResult.WAIT:
                delivery.waiting.append(peer)
            elif result is SendResult.ACCEPTED:
                accepted += 1
            else:
                lost += 1
        delivery.accepted += accepted
        if accepted:
            bus_sent.add(accepted)
        if lost:
            bus_lost.add(lost)
            self._changed.notify_all()  # other publishers need not wait for that worker either

    def _forget(self, peer: Peer) -> None:
        """Drop a worker that has closed its link, which it does only when it ends."""
        self._peers = [each for each in self._peers if each is not peer]
        peer.close()
        self._changed.notify_all()
        self._column = b""  # connect again for as long as the board says that it listens

    def _start_pump(self, peer: Peer) -> None:
        if peer.has_pump:
            return
        pump = threading.Thread(target=self._pump, args=(peer,), name="bus-out", daemon=True)
        try:
            pump.start()
        except RuntimeError as error:
            # A later message tries again; until then what is kept stays so.
            self._warn_no_thread(f"The bus cannot start a thread, and tries again later: {error}")
        else:
            peer.has_pump = True

    # --- in a pump ----------------------------------------------------------------------------

    def _pump(self, peer: Peer) -> None:
        """Write what is kept for ``peer`` until nothing is, in a thread of its own, or a
        greenlet."""
        while True:
            with self._changed:
                self._update_peers()
                try:
                    if not peer.is_gone:
                        peer.flush()
                except PeerGone:
                    self._forget(peer)
                self._changed.notify_all()
                peer.has_pump = peer.queue.is_pending and not peer.is_gone
                if not peer.has_pump:
                    return
                wait = peer.waiter()
            wait()


def _small(frame: bytearray) -> QueuedMessage:
    return QueuedMessage(frame, None, len(frame) + OVERHEAD_BYTES)
