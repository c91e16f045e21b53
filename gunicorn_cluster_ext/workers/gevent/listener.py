"""The listening sockets of a worker whose connections are greenlets."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from gevent.hub import get_hub

#: How long nothing is accepted when there are too many open files.
PAUSE: Final = 0.5


class Listener(NamedTuple):
    """What gunicorn asks for the address that a connection came to."""

    address: Any

    def getsockname(self) -> Any:
        return self.address


class Door:
    """A listening socket, which is open while the worker accepts."""

    def __init__(self, sock: Any, came: Callable[[int, Any, Any], None], log: Any) -> None:
        self._sock, self._came, self._log = sock, came, log
        self._address = sock.getsockname()
        self._watcher = get_hub().loop.io(sock.fileno(), 1)
        self._open_after = 0.0

    def set_open(self, is_open: bool) -> None:
        if not is_open or time.monotonic() < self._open_after:
            self._watcher.stop()
        elif not self._watcher.active:
            self._watcher.start(self._accept)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._sock.close()

    def _accept(self) -> None:
        """One connection, so that siblings have their share. Runs in the hub."""
        try:
            fd, client = self._sock._accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._pause()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self._came(fd, client, self._address)

    def _pause(self) -> None:
        """The process has no file descriptor left. Clients wait in the kernel, or for a sibling."""
        self._log.error("Too many open files: accepting nothing for %s s. Raise ulimit -n.", PAUSE)
        self._open_after = time.monotonic() + PAUSE
        self._watcher.stop()
