"""Asking each worker by itself whether it is well. Runs in the arbiter, and never blocks.

A check is a request like any other: one end of a socket pair is handed to the worker's inbox as
if a client had sent it, and goes to a thread there. So it also finds the worker whose main loop
goes on while all its threads hang, which keeps gunicorn's heartbeat.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from gunicorn_cluster_ext.runtime.inboxes import Address, HandoffMessage, Inboxes
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.slots import Process

#: A process that has passed no check yet is asked more often: somebody waits for it.
FIRST_INTERVAL: Final = 0.5
_REQUEST: Final = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: gunicorn-cluster-health\r\n"
    "Connection: close\r\n\r\n"
)
_STATUS_LINE: Final = 64


class Failure(NamedTuple):
    """So many checks of a process have failed in a row as are allowed."""

    process: Process
    reason: str


@dataclass
class _Patient:
    """A process and what is known of its health; ``sock`` while a check is under way."""

    next_check: float
    failures: int = 0
    sock: socket.socket | None = None
    deadline: float = 0.0
    answer: bytes = b""

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Prober:
    """The checks of all processes."""

    def __init__(self, inboxes: Inboxes) -> None:
        self._inboxes = inboxes
        self._patients: dict[int, _Patient] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is awaited."""
        return any(patient.sock is not None for patient in self._patients.values())

    def close(self) -> None:
        """Forget all. Also called in each worker, which inherits what is under way."""
        for patient in self._patients.values():
            patient.close()
        self._patients.clear()

    def turn(
        self, processes: Iterable[Process], settings: Settings, server: Address, now: float
    ) -> Iterator[Failure]:
        """Go on with the checks of ``processes``, who serve, and forget all others."""
        present = {process.key: process for process in processes}
        for key in self._patients.keys() - present.keys():
            self._patients.pop(key).close()
        for key, process in present.items():
            patient = self._patients.setdefault(key, _Patient(now))
            if patient.sock is None and now >= patient.next_check:
                self._ask(patient, process, settings, server, now)
            complaint = self._complaint(patient, now)
            if complaint is not None:
                yield from self._judge(patient, process, settings, complaint, now)

    def _ask(
        self, patient: _Patient, process: Process, settings: Settings, server: Address, now: float
    ) -> None:
        patient.deadline, patient.answer = now + settings.health_timeout, b""
        patient.sock, theirs = socket.socketpair()
        patient.sock.setblocking(False)
        request = _REQUEST.format(path=settings.health_path).encode()
        # One request was "served" before: the PROXY protocol is looked for on the first only.
        message = HandoffMessage(request, ("127.0.0.1", 0), server, requests=1, hops=0, owned=True)
        with theirs:
            if not self._inboxes.send(process.place.seat, message, theirs.fileno()):
                patient.deadline = now

    def _complaint(self, patient: _Patient, now: float) -> str | None:
        """What is wrong with the process, "" if nothing; None while that is not known."""
        if patient.sock is None:
            return None
        try:
            data = patient.sock.recv(_STATUS_LINE)
        except BlockingIOError:
            return "no answer in time" if now >= patient.deadline else None
        except OSError as error:
            return f"no answer: {error}"
        patient.answer += data
        if data and b"\r\n" not in patient.answer and len(patient.answer) < _STATUS_LINE:
            return None
        return _complaint_of(patient.answer)

    def _judge(
        self, patient: _Patient, process: Process, settings: Settings, complaint: str, now: float
    ) -> Iterator[Failure]:
        patient.close()
        process.healthy = process.healthy or not complaint
        interval = settings.health_interval
        patient.next_check = now + (interval if process.healthy else min(interval, FIRST_INTERVAL))
        patient.failures = patient.failures + 1 if complaint else 0
        if patient.failures >= settings.health_failures:
            patient.failures = 0
            path = settings.health_path
            yield Failure(process, f"failed its health checks ({path}: {complaint})")


def _complaint_of(answer: bytes) -> str:
    version, _, rest = answer.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/") or not status.isdigit():
        return "no answer"
    return "" if 200 <= int(status) < 400 else f"status {status.decode()}"
