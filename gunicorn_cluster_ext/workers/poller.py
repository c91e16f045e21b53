"""What the main loop waits for: file descriptors and the functions to call for them.

A connection is *idle* while the main loop waits for its next request and *busy* while a
thread has it. On Linux it is registered once, edge-triggered: in 1,000 small requests on one
connection there is then no ``epoll_ctl`` at all, where gthread makes 2,000. Only a connection
that becomes readable while it is busy (a long upload, a WebSocket) is switched off until it is
idle again, so that its traffic does not wake the main loop.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable
from typing import Final

Callback = Callable[[], None]


class EdgePoller:
    """On epoll (Linux)."""

    _EVENTS: Final = 128

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._paused: set[int] = set()

    def close(self) -> None:
        self._epoll.close()

    def add(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` while ``fd`` is readable: for what is no connection."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def idle(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` when the connection ``fd`` becomes readable, or is."""
        if fd not in self._callbacks:
            self._callbacks[fd] = callback
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        elif fd in self._paused:
            self._paused.remove(fd)
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLET)

    def busy(self, fd: int) -> None:
        """The connection ``fd`` is not to be waited for; a call for it may still come."""

    def pause(self, fd: int) -> None:
        """A call came for the busy connection ``fd``: let no more come until it is idle.

        Also when an idle one was not read empty: ``idle`` then reports what is left.
        """
        if fd in self._callbacks and fd not in self._paused:
            self._paused.add(fd)
            self._epoll.modify(fd, 0)

    def remove(self, fd: int) -> None:
        """Forget ``fd``. Before it is closed: another process may keep the connection open."""
        if self._callbacks.pop(fd, None) is not None:
            self._paused.discard(fd)
            self._epoll.unregister(fd)

    def poll(self, timeout: float) -> None:
        """Wait ``timeout`` seconds at most, and make the calls that are due."""
        callbacks = self._callbacks
        for fd, _ in self._epoll.poll(timeout, self._EVENTS):
            callback = callbacks.get(fd)
            if callback is not None:
                callback()


class LevelPoller:
    """On whatever ``selectors`` offers (macOS)."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def close(self) -> None:
        self._selector.close()

    def add(self, fd: int, callback: Callback) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def idle(self, fd: int, callback: Callback) -> None:
        if fd not in self._selector.get_map():
            self.add(fd, callback)

    def busy(self, fd: int) -> None:
        self.remove(fd)

    def pause(self, fd: int) -> None:
        self.remove(fd)

    def remove(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            key.data()


Poller = EdgePoller if hasattr(select, "epoll") else LevelPoller
