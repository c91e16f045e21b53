"""What this worker hears of the bus: it listens, reads the lanes, and calls who has subscribed.

The lanes are read by a thread (with gevent a greenlet), or by an event loop where the first
subscriber has one: a *driver*.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from gunicorn_cluster_ext.bus import framing, links
from gunicorn_cluster_ext.bus.drivers import _PAUSE_S, Driver, LoopDriver, ThreadDriver
from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.counters import bus_lost, bus_received
from gunicorn_cluster_ext.runtime.directory import bus_socket

#: Read at once.
_MOST: Final = 64 << 10
#: How long an event loop is held by what came over one lane, at most (and by what is called).
_TURN_S: Final = 0.005

Receive = Callable[[bytes], None]


class Subscription:
    """Who wants the messages of a channel, and the event loop to call it in, if any."""

    def __init__(self, receive: Receive, loop: Any) -> None:
        self.receive, self.loop = receive, loop

    def call(self, body: bytes) -> None:
        try:
            self.receive(body)
        except (Exception, SystemExit):  # the others are to have their messages
            log.exception("A subscriber of the bus failed: %r", self.receive)


class Lane:
    """What comes from one sender."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.splitter = framing.Splitter()
        #: Of large messages; None for one that was lost.
        self.files: deque[int | None] = deque()
        #: Whether messages have been read that an event loop has left for its next turn.
        self.is_behind = False

    def close(self) -> None:
        self.sock.close()
        for fd in self.files:
            if fd is not None:
                os.close(fd)


class Receiver:
    """This worker's end of all lanes. Listens from the first subscription on."""

    def __init__(self, board: Board, directory: Path, seat: int) -> None:
        self._board, self._seat = board, seat
        self._generation = board.get(seat, Word.GENERATION)
        self._path = bus_socket(directory, seat, self._generation)
        self._lock = threading.Lock()
        self._subscriptions: dict[str, tuple[Subscription, ...]] = {}
        self._listener: socket.socket | None = None
        self._driver: Driver | None = None
        self._lanes: set[Lane] = set()

    def subscribe(self, channel: str, receive: Receive) -> Callable[[], None]:
        """Have ``receive`` called with each message; returns what ends that.

        Raises ValueError, and OSError when it cannot listen.
        """
        framing.check(channel)
        loop = _running_loop()
        subscription = Subscription(receive, loop)
        with self._lock:
            if self._driver is None or self._driver.is_over:
                self._attach(LoopDriver(loop) if loop else ThreadDriver())
            subscribed = self._subscriptions.get(channel, ())
            self._subscriptions[channel] = (*subscribed, subscription)
            self._board.set(self._seat, Word.BUS_LISTENS, self._generation)
        return partial(self._end, channel, subscription)

    def _end(self, channel: str, subscription: Subscription) -> None:
        with self._lock:
            rest = tuple(
                each for each in self._subscriptions.get(channel, ()) if each is not subscription
            )
            self._subscriptions[channel] = rest
            if not rest:
                del self._subscriptions[channel]
            if not self._subscriptions:
                self._board.set(self._seat, Word.BUS_LISTENS, 0)

    def _attach(self, driver: Driver) -> None:
        if self._listener is None:
            self._listener = links.listen(self._path)
        self._driver = driver
        driver.watch(self._listener, self._accept)
        for lane in self._lanes:
            driver.watch(lane.sock, partial(self._read, lane))
        driver.start()

    def close(self) -> None:
        """Listen no more. Called when the process ends."""
        if self._listener is not None:
            self._board.set(self._seat, Word.BUS_LISTENS, 0)
            self._path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Give up this process's copies of what belongs to the one that has forked it."""
        for lane in self._lanes:
            lane.close()
        if self._listener is not None:
            self._listener.close()

    # --- in the driver ------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None and self._driver is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in links.SHORTAGES:
                log.error("The bus cannot take a sender's lane, and tries again: %s", error)
                self._driver.forget(self._listener)
                again = partial(self._driver.watch, self._listener, self._accept)
                self._driver.later(_PAUSE_S, again)
            return
        sock.setblocking(False)
        lane = Lane(sock)
        self._lanes.add(lane)
        self._driver.watch(sock, partial(self._read, lane))

    def _drop(self, lane: Lane) -> None:
        assert self._driver is not None
        self._driver.forget(lane.sock)
        self._lanes.discard(lane)
        lane.close()

    def _read(self, lane: Lane) -> None:
        if lane.is_behind:
            return
        try:
            data, fd, lost = links.receive(lane.sock, _MOST)
        except BlockingIOError:
            return
        except OSError:  # its process was killed
            data, fd, lost = b"", None, False
        if not data:
            self._drop(lane)
            return
        if fd is not None or lost:
            lane.files.append(fd)
        lane.splitter.feed(data)
        self._deliver(lane)

    def _deliver(self, lane: Lane) -> None:
        """Call those who want what came, as far as that can be done in one turn."""
        assert self._driver is not None
        lane.is_behind, count = False, 0
        until = time.monotonic() + _TURN_S if self._driver.loop else float("inf")
        try:
            while (letter := lane.splitter.next()) is not None:
                count += 1
                self._call(letter.channel, self._body(lane, letter))
                if time.monotonic() > until:
                    lane.is_behind = True
                    self._driver.later(0, partial(self._deliver, lane))
                    break
        except framing.BadFrame as error:
            log.error("The bus ends a sender's lane: %s", error)
            self._drop(lane)
        bus_received.add(count)

    def _body(self, lane: Lane, letter: framing.Letter) -> bytes | None:
        """None if it was lost."""
        if isinstance(letter.body, bytes):
            return letter.body
        if not lane.files:
            raise framing.BadFrame("a large message without its file")
        fd = lane.files.popleft()
        try:
            if fd is None:
                raise OSError(errno.EMFILE, "too many open files: raise ulimit -n")
            return _read_and_close(fd, letter.body)
        except (OSError, MemoryError) as error:
            bus_lost.add()
            log.error("A message of %d bytes on the bus was lost: %s", letter.body, error)
            return None
        finally:
            with contextlib.suppress(OSError):  # its sender has gone
                lane.sock.send(b"\0")

    def _call(self, channel: str, body: bytes | None) -> None:
        assert self._driver is not None
        if body is None:
            return
        for subscription in self._subscriptions.get(channel, ()):
            if subscription.loop is None or subscription.loop is self._driver.loop:
                subscription.call(body)
            else:
                with contextlib.suppress(RuntimeError):  # that loop has ended
                    subscription.loop.call_soon_threadsafe(subscription.call, body)


def _read_and_close(fd: int, size: int) -> bytes:
    try:
        return links.read_file(fd, size)
    finally:
        os.close(fd)


def _running_loop() -> Any:
    """The event loop that runs here; None without one. Imports nothing."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
