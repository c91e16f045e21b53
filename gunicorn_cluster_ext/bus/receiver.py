"""The receiving side of the bus: it accepts links, reads them, and calls the subscribers.

A thread does this (with gevent a greenlet), or the event loop of the first subscriber if it has
one: a *driver*.
"""

from __future__ import annotations

import contextlib
import errno
import logging
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
from gunicorn_cluster_ext.bus.drivers import Driver, LoopDriver, ThreadDriver
from gunicorn_cluster_ext.logs import ThrottledLog, log
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.counters import bus_lost, bus_received
from gunicorn_cluster_ext.runtime.directory import bus_socket
from gunicorn_cluster_ext.runtime.fd_passing import LOST_FD, NO_FD

_READ_BYTES: Final = 64 << 10
#: How long the messages of one link, and the subscribers they are for, hold an event loop.
_MAX_TURN_S: Final = 0.005
#: How long no link is accepted when there are too many open files.
_ACCEPT_PAUSE_S: Final = 0.5

Receive = Callable[[bytes], None]


class Subscription:
    """A subscriber of a channel, and the event loop to call it in, if any."""

    def __init__(self, receive: Receive, loop: Any) -> None:
        self.receive, self.loop = receive, loop

    def call(self, body: bytes) -> None:
        try:
            self.receive(body)
        except (Exception, SystemExit):  # it must not cost the other subscribers their messages
            log.exception("A bus subscriber failed: %r", self.receive)


class Link:
    """The receiver's end of one sender's link."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.splitter = framing.Splitter()
        #: Files of large messages whose frames are yet to be taken; LOST_FD for one that is lost.
        self.files: deque[int] = deque()
        #: Whether messages that have been read were left for the event loop's next turn.
        self.is_behind = False

    def close(self) -> None:
        self.sock.close()
        for fd in self.files:
            if fd != LOST_FD:
                os.close(fd)


class Receiver:
    """This worker's end of all links to it. It listens from the first subscription on."""

    def __init__(self, board: Board, directory: Path, seat: int) -> None:
        self._board, self._seat = board, seat
        self._generation = board.get(seat, Word.GENERATION)
        self._path = bus_socket(directory, seat, self._generation)
        self._lock = threading.Lock()
        self._subscriptions: dict[str, tuple[Subscription, ...]] = {}
        self._listener: socket.socket | None = None
        self._driver: Driver | None = None
        self._links: set[Link] = set()
        self._warn_bad_frame = ThrottledLog(logging.ERROR)

    def subscribe(self, channel: str, receive: Receive) -> Callable[[], None]:
        """Call ``receive`` with each message from now on; return a function that ends this.

        Raise ValueError, OSError if this worker cannot listen, and RuntimeError if no thread can
        be started. A later call tries again.
        """
        framing.check(channel)
        loop = _running_loop()
        subscription = Subscription(receive, loop)
        with self._lock:
            if self._driver is None or not self._driver.is_running:
                self._attach(LoopDriver(loop) if loop else ThreadDriver())
            subscribed = self._subscriptions.get(channel, ())
            self._subscriptions[channel] = (*subscribed, subscription)
            self._board.set(self._seat, Word.BUS_LISTENS, self._generation)
        return partial(self._unsubscribe, channel, subscription)

    def _attach(self, driver: Driver) -> None:
        if self._listener is None:
            self._listener = links.listen(self._path)
        self._driver = driver
        driver.watch(self._listener, self._accept)
        for link in self._links:
            driver.watch(link.sock, partial(self._read, link))
            if link.is_behind:  # the event loop before has ended in the middle
                driver.call_later(0, partial(self._deliver, link))
        driver.start()

    def _unsubscribe(self, channel: str, subscription: Subscription) -> None:
        with self._lock:
            rest = tuple(
                each for each in self._subscriptions.get(channel, ()) if each is not subscription
            )
            self._subscriptions[channel] = rest
            if not rest:
                del self._subscriptions[channel]
            if not self._subscriptions:
                self._board.set(self._seat, Word.BUS_LISTENS, 0)

    def close(self) -> None:
        """Stop listening, at the end of the process."""
        if self._listener is not None:
            self._board.set(self._seat, Word.BUS_LISTENS, 0)
            self._path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Close a forked child's copies of its parent's sockets and files."""
        for link in self._links:
            link.close()
        if self._listener is not None:
            self._listener.close()

    # --- in the driver ------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None and self._driver is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in links.SHORTAGES:
                log.error("The bus cannot accept a sender's link, and tries again: %s", error)
                self._driver.unwatch(self._listener)
                again = partial(self._driver.watch, self._listener, self._accept)
                self._driver.call_later(_ACCEPT_PAUSE_S, again)
            return
        sock.setblocking(False)
        link = Link(sock)
        self._links.add(link)
        self._driver.watch(sock, partial(self._read, link))

    def _read(self, link: Link) -> None:
        if link.is_behind:
            return
        try:
            data, fd = links.receive(link.sock, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # its process was killed
            data, fd = b"", NO_FD
        if not data:
            self._close(link)
            return
        if fd != NO_FD:
            link.files.append(fd)
        link.splitter.feed(data)
        self._deliver(link)

    def _deliver(self, link: Link) -> None:
        """Call the subscribers of what has arrived, as far as one turn of an event loop allows."""
        assert self._driver is not None
        link.is_behind, count = False, 0
        until = time.monotonic() + _MAX_TURN_S if self._driver.loop else float("inf")
        try:
            while (message := link.splitter.next()) is not None:
                count += 1
                if isinstance(message.body, bytes):
                    self._call_subscribers(message.channel, message.body)
                elif (body := self._read_file(link, message.body)) is not None:
                    self._call_subscribers(message.channel, body)
                if time.monotonic() > until:
                    link.is_behind = True
                    self._driver.call_later(0, partial(self._deliver, link))
                    break
        except framing.BadFrame as error:
            bus_lost.add()
            self._warn_bad_frame(f"The bus closes a sender's link: {error}")
            self._close(link)
        bus_received.add(count)

    def _read_file(self, link: Link, size: int) -> bytes | None:
        """Return the body of a large message, and answer its sender; None if it is lost."""
        if not link.files:
            raise framing.BadFrame("a large message without its file")
        fd = link.files.popleft()
        try:
            if fd == LOST_FD:
                raise OSError(errno.EMFILE, "too many open files: raise ulimit -n")
            try:
                return links.read_file(fd, size)
            finally:
                os.close(fd)
        except (OSError, MemoryError) as error:
            bus_lost.add()
            log.error("A bus message of %d bytes was lost: %s", size, error)
            return None
        finally:
            with contextlib.suppress(OSError):  # its sender has ended
                link.sock.send(b"\0")

    def _call_subscribers(self, channel: str, body: bytes) -> None:
        assert self._driver is not None
        for subscription in self._subscriptions.get(channel, ()):
            if subscription.loop is None or subscription.loop is self._driver.loop:
                subscription.call(body)
            else:
                with contextlib.suppress(RuntimeError):  # that loop has ended
                    subscription.loop.call_soon_threadsafe(subscription.call, body)

    def _close(self, link: Link) -> None:
        assert self._driver is not None
        self._driver.unwatch(link.sock)
        self._links.discard(link)
        link.close()


def _running_loop() -> Any:
    """Return the event loop that runs in this thread, or None, without importing asyncio."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
