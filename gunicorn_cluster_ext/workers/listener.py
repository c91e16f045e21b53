"""A listening socket of a worker."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any


class Listener:
    """A listening socket, with what is asked of it often: ``fd``, ``address``, ``kind``.

    ``kind`` is its family, type and protocol, which its connections have too.

    ``pause`` is called when the process has no file descriptor left. Clients then wait in the
    kernel, or for a sibling.
    """

    def __init__(self, sock: Any, pause: Callable[[], None]) -> None:
        self.fd = sock.fileno()
        self.address = sock.getsockname()
        # Plain ints: the properties make enums of them at each call.
        self.kind = int(sock.family), int(sock.type), int(sock.proto)
        self._accept, self._pause = sock._accept, pause
        sock.setblocking(False)

    def accept(self) -> tuple[int, Any] | None:
        """Return the next connection's descriptor and its client's address; None if none waits."""
        try:
            fd, client = self._accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._pause()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return None
        return fd, client
