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

    def busy(self, fd: int) -> bool:
        """The connection ``fd`` is not to be waited for. Returns whether calls may still come."""
        return True

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

    def wait(self, timeout: float) -> list[int]:
        """Wait ``timeout`` seconds at most; returns what is readable, for ``call``."""
        return [fd for fd, _ in self._epoll.poll(timeout, self._EVENTS)]

    def call(self, fds: list[int]) -> None:
        """Make the calls that are due, but for what was removed meanwhile."""
        for fd in fds:
            callback = self._callbacks.get(fd)
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

    def busy(self, fd: int) -> bool:
        self.remove(fd)
        return False

    def pause(self, fd: int) -> None:
        self.remove(fd)

    def remove(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def wait(self, timeout: float) -> list[int]:
        return [key.fd for key, _ in self._selector.select(timeout)]

    def call(self, fds: list[int]) -> None:
        for fd in fds:
            key = self._selector.get_map().get(fd)
            if key is not None:
                key.data()


Poller = EdgePoller if hasattr(select, "epoll") else LevelPoller
