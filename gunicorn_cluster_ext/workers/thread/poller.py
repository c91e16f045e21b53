"""File descriptors that the main loop waits for, and the functions to call for them.

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

#: Called with True if the peer has closed its side: nothing more may be reported then.
Callback = Callable[[bool], None]


class EdgePoller:
    """The poller on epoll (Linux)."""

    _EVENTS: Final = 128
    _CONNECTION: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
    _ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._paused: set[int] = set()

    def close(self) -> None:
        self._epoll.close()

    def add(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` while ``fd``, which is no connection, is readable."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def watch(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` when the connection ``fd`` is or becomes readable."""
        self._paused.discard(fd)
        self._callbacks[fd] = callback
        try:
            self._epoll.register(fd, self._CONNECTION)
        except FileExistsError:  # an application keeps a copy of the last one
            self._epoll.modify(fd, self._CONNECTION)

    def busy(self, fd: int) -> bool:
        """Do not wait for the connection ``fd``. Return True if calls may still come."""
        return True

    def pause(self, fd: int) -> None:
        """Let no more calls come for the busy connection ``fd`` before ``resume``."""
        if fd not in self._paused:
            self._paused.add(fd)
            # The end of a connection is reported whatever the mask. Without EPOLLET it would be
            # reported in each call, and the main loop would spin until the thread is done.
            self._epoll.modify(fd, select.EPOLLET)

    def resume(self, fd: int) -> None:
        """Call again for ``fd`` when it is or becomes readable."""
        self._paused.discard(fd)
        self._epoll.modify(fd, self._CONNECTION)

    def remove(self, fd: int, callback: Callback | None = None) -> None:
        """Forget ``fd``, if it is still registered with ``callback``.

        This comes before ``fd`` is closed, because another process may keep the connection open.
        An application may have closed it already, and it may be another connection's by now.
        """
        if callback is None or self._callbacks.get(fd) is callback:
            del self._callbacks[fd]
            self._paused.discard(fd)
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # closed already, which unregisters

    def wait(self, timeout: float) -> list[tuple[int, int]]:
        """Wait ``timeout`` seconds at most, and return the readable ones, for ``call``."""
        return self._epoll.poll(timeout, self._EVENTS)

    def call(self, events: list[tuple[int, int]]) -> None:
        """Make the calls that are due, except for descriptors that were removed meanwhile."""
        for fd, event in events:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(event & self._ENDED != 0)


class LevelPoller:
    """The poller on what ``selectors`` offers (macOS): a busy connection is not registered."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._paused: dict[int, Callback] = {}

    def close(self) -> None:
        self._selector.close()

    def add(self, fd: int, callback: Callback) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def watch(self, fd: int, callback: Callback) -> None:
        self.add(fd, callback)

    def busy(self, fd: int) -> bool:
        self.remove(fd)
        return False

    def pause(self, fd: int) -> None:
        if fd not in self._paused:
            self._paused[fd] = self._selector.unregister(fd).data

    def resume(self, fd: int) -> None:
        if fd in self._paused:
            self.add(fd, self._paused.pop(fd))

    def remove(self, fd: int, callback: Callback | None = None) -> None:
        if self._paused.pop(fd, None) is None and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def wait(self, timeout: float) -> list[tuple[int, int]]:
        return [(key.fd, event) for key, event in self._selector.select(timeout)]

    def call(self, events: list[tuple[int, int]]) -> None:
        for fd, _event in events:
            key = self._selector.get_map().get(fd)
            if key is not None:
                key.data(False)


Poller = EdgePoller if hasattr(select, "epoll") else LevelPoller
