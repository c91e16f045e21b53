"""TODO bus.drivers."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

#: How long nothing is accepted when there are too many open files.
_PAUSE_S: Final = 0.5


class Driver(Protocol):
    """Calls back when a socket is readable."""

    #: The event loop that it is, if it is one.
    loop: Any

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None: ...

    def forget(self, sock: socket.socket) -> None: ...

    def later(self, seconds: float, callback: Callable[[], None]) -> None: ...

    def start(self) -> None: ...

    @property
    def is_over(self) -> bool: ...


class ThreadDriver:
    """A thread; a greenlet where gevent has patched what is used here."""

    loop = None
    is_over = False

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._later: list[tuple[float, Callable[[], None]]] = []

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, callback)

    def forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, callback))

    def start(self) -> None:
        threading.Thread(target=self._run, name="bus", daemon=True).start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(_PAUSE_S if self._later else None):
                key.data()
            if self._later:
                self._call_due()

    def _call_due(self) -> None:
        now = time.monotonic()
        due = [callback for when, callback in self._later if when <= now]
        self._later = [each for each in self._later if each[0] > now]
        for callback in due:
            callback()


class LoopDriver:
    """An event loop, asyncio's or uvloop's."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        self.loop.add_reader(sock.fileno(), callback)

    def forget(self, sock: socket.socket) -> None:
        self.loop.remove_reader(sock.fileno())

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.loop.call_later(seconds, callback)

    def start(self) -> None:
        pass

    @property
    def is_over(self) -> bool:
        return bool(self.loop.is_closed())
