"""What calls a receiver when one of its sockets is readable: a thread, or an event loop."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

#: How often a thread that has something to call later checks whether it is due.
_TICK_S: Final = 0.5


class Driver(Protocol):
    """Calls functions when sockets are readable, and later, one after the other."""

    #: The event loop that calls them; None for a thread.
    loop: Any

    @property
    def is_running(self) -> bool:
        """Return whether it has been started and can still call anything."""

    def start(self) -> None:
        """Raise RuntimeError if no thread can be started."""

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``sock`` is readable."""

    def unwatch(self, sock: socket.socket) -> None: ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None: ...


class ThreadDriver:
    """A thread; a greenlet if gevent has patched the modules that are used here."""

    loop = None

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, Callable[[], None]]] = []

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, callback)

    def unwatch(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, callback))

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(_TICK_S if self._timers else None):
                key.data()
            if not self._timers:
                continue
            now = time.monotonic()
            due = [callback for when, callback in self._timers if when <= now]
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for callback in due:
                callback()


class LoopDriver:
    """An event loop, asyncio's or uvloop's."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    @property
    def is_running(self) -> bool:
        return not self.loop.is_closed()

    def start(self) -> None:
        """Do nothing: the loop runs already."""

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        self.loop.add_reader(sock.fileno(), callback)

    def unwatch(self, sock: socket.socket) -> None:
        self.loop.remove_reader(sock.fileno())

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.loop.call_later(seconds, callback)
