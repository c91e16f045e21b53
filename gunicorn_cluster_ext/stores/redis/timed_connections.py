"""Blocking connections of redis-py that end a call in time.

redis-py limits each wait for a socket, and a call may have many of them: several hosts, a
handshake, an answer in pieces. Here a socket knows when the call of its thread has to end. (In an
event loop, timeouts do that.)
"""

# mypy: disallow-untyped-calls=false

from __future__ import annotations

import math
import threading
import time
from typing import Any

import redis
import redis.sentinel
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

#: Timeouts of sockets that are longer are rounded up to a multiple of this, because to set another
#: one is a system call.
_STEP_S = 0.02


class _Deadline(threading.local):
    """When the call of this thread has to end (monotonic)."""

    at = math.inf

    def left(self) -> float:
        return max(self.at - time.monotonic(), 0.001)


deadline = _Deadline()


class _Socket:
    """A socket that waits no longer than the call of its thread may take."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._own = self._set = sock.gettimeout()
        self.fileno = sock.fileno

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        self._own = seconds

    def _limited(self) -> Any:
        left = deadline.left()
        limit = left if self._own is None or left < self._own else self._own
        if limit > _STEP_S:
            limit = math.ceil(limit / _STEP_S) * _STEP_S
        if limit != self._set:
            self._set = limit
            self._sock.settimeout(limit)
        return self._sock

    def recv(self, *args: Any) -> Any:
        return self._limited().recv(*args)

    def recv_into(self, *args: Any) -> Any:
        return self._limited().recv_into(*args)

    def sendall(self, *args: Any) -> Any:
        return self._limited().sendall(*args)


class _Timed:
    """Mixin for redis-py's classes of connections."""

    def __init__(self, *args: Any, socket_connect_timeout: float, **kwargs: Any) -> None:
        self._max_connect_s = socket_connect_timeout
        super().__init__(*args, **kwargs)

    @property
    def socket_connect_timeout(self) -> float:
        return min(deadline.left(), self._max_connect_s)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float) -> None:
        """Ignore the value that the base class sets."""

    def _connect(self) -> Any:
        return _Socket(super()._connect())  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Never leave a connection open whose answer is still to come: the next call would take
        it for its own. (Connections to Sentinels are left open by default.)"""
        kwargs.setdefault("disconnect_on_error", True)
        return super().read_response(*args, **kwargs)  # type: ignore[misc]


class _Tcp(_Timed, Connection):  # type: ignore[misc]
    pass


class _Tls(_Timed, SSLConnection):  # type: ignore[misc]
    pass


class _Unix(_Timed, UnixDomainSocketConnection):  # type: ignore[misc]
    pass


class _Managed(_Timed, redis.sentinel.SentinelManagedConnection):  # type: ignore[misc]
    pass


class _ManagedTls(_Timed, redis.sentinel.SentinelManagedSSLConnection):  # type: ignore[misc]
    pass


_TIMED = {SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def timed(connection_class: Any) -> Any:
    """Return the timed class for one of redis-py's, to a server."""
    return _TIMED.get(connection_class, _Tcp)


def timed_by_sentinel(connection_class: Any) -> Any:
    """Return the timed class for one of redis-py's, to a master that Sentinels name."""
    return _ManagedTls if connection_class is SSLConnection else _Managed


class TimedPool(redis.ConnectionPool):
    """The pool for a Cluster, whose client knows only redis-py's own classes of connections."""

    def __init__(self, connection_class: Any = Connection, **options: Any) -> None:
        super().__init__(connection_class=timed(connection_class), **options)
