"""Health checks of single workers. Runs in the arbiter, and never blocks.

A check is a request like any other: one end of a socket pair is handed to the worker's inbox as
if a client had sent it, and goes to a thread there. So it also finds a worker whose main loop
runs, and keeps gunicorn's heartbeat, while all its threads hang.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gunicorn_cluster_ext.runtime.inboxes import Address, HandoffMessage, Inboxes
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.slots import Process

#: A process that has not passed a check yet is asked more often, because a roll may wait for it.
FIRST_INTERVAL_S: Final = 0.5
_REQUEST: Final = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: gunicorn-cluster-health\r\n"
    "Connection: close\r\n\r\n"
)
_STATUS_LINE_BYTES: Final = 64


@dataclass
class _Check:
    """The checks of one process; ``sock`` is set while one is under way."""

    next_at: float
    failures: int = 0
    sock: socket.socket | None = None
    deadline: float = 0.0
    answer: bytes = b""

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Prober:
    """The health checks of all processes."""

    def __init__(self, inboxes: Inboxes) -> None:
        self._inboxes = inboxes
        self._checks: dict[int, _Check] = {}

    @property
    def is_waiting(self) -> bool:
        """Return whether a process has yet to answer."""
        return any(check.sock is not None for check in self._checks.values())

    def close(self) -> None:
        """Forget every check. Each worker, which inherits those under way, calls it too."""
        for check in self._checks.values():
            check.close()
        self._checks.clear()

    def turn(
        self, processes: Iterable[Process], settings: Settings, server: Address, now: float
    ) -> Iterator[tuple[Process, str]]:
        """Continue the checks of ``processes``, all of which serve, and forget all others.

        ``server`` is the address that the requests appear to be sent to. Yield each process that
        has failed ``cluster_health_failures`` checks in a row, and the reason.
        """
        present = {process.key: process for process in processes}
        for key in self._checks.keys() - present.keys():
            self._checks.pop(key).close()
        for key, process in present.items():
            check = self._checks.setdefault(key, _Check(now))
            if check.sock is None and now >= check.next_at:
                self._ask(check, process, settings, server, now)
            problem = _poll(check, now)
            if problem is None:
                continue
            check.close()
            process.healthy = process.healthy or not problem
            interval = settings.health_interval
            check.next_at = now + (interval if process.healthy else min(interval, FIRST_INTERVAL_S))
            check.failures = check.failures + 1 if problem else 0
            if check.failures >= settings.health_failures:
                check.failures = 0
                yield process, f"failed its health checks ({settings.health_path}: {problem})"

    def _ask(
        self, check: _Check, process: Process, settings: Settings, server: Address, now: float
    ) -> None:
        check.deadline, check.answer = now + settings.health_timeout, b""
        try:
            check.sock, theirs = socket.socketpair()
        except OSError:  # too many open files, here: that says nothing about the process
            check.next_at = now + FIRST_INTERVAL_S
            raise
        check.sock.setblocking(False)
        request = _REQUEST.format(path=settings.health_path).encode()
        # One request was "served" before: the PROXY protocol is looked for on the first only.
        message = HandoffMessage(request, ("127.0.0.1", 0), server, requests=1, hops=0, owned=True)
        with theirs:
            if not self._inboxes.send(process.place.seat, message, theirs.fileno()):
                check.deadline = now


def _poll(check: _Check, now: float) -> str | None:
    """Return the problem that the check has found, "" if none; None while it is under way."""
    if check.sock is None:
        return None
    try:
        data = check.sock.recv(_STATUS_LINE_BYTES)
    except BlockingIOError:
        return "no answer in time" if now >= check.deadline else None
    except OSError as error:
        return f"no answer: {error}"
    check.answer += data
    if data and b"\r\n" not in check.answer and len(check.answer) < _STATUS_LINE_BYTES:
        return None
    version, _, rest = check.answer.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/") or not status.isdigit():
        return "no answer"
    return "" if 200 <= int(status) < 400 else f"status {status.decode()}"
