"""The bus: messages from one worker to all others of this server, without a broker.

    from gunicorn_cluster_ext import bus

    end = bus.subscribe("news", lambda message: ...)
    bus.publish("news", b"...")

Each worker's messages arrive in the order in which it published them, once, at every worker that
has subscribed to anything when they are published; never at the worker itself. Nothing is stored:
who comes later has missed them. Processes that are no workers (a task queue, a shell) can publish
as well: see ``connect``.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gunicorn_cluster_ext import process
from gunicorn_cluster_ext.board import Board, directories, is_alive
from gunicorn_cluster_ext.outbox import Outbox
from gunicorn_cluster_ext.receiver import Receiver

__all__ = ["BusError", "apublish", "connect", "publish", "subscribe"]


class BusError(RuntimeError):
    """There is no server whose bus this process could use; the message says why."""


def publish(channel: str, message: bytes) -> int:
    """Send ``message`` to every other worker of this server that listens.

    Returns to how many it was sent, or for how many that are slow it is kept. May be called in
    any thread. Waits only for a worker that has not read what was sent to it before, and
    ``cluster_bus_timeout`` at most; then the message is lost for that worker.

    Raises BusError outside a worker when no server is found, ValueError when the channel's name is
    longer than 255 characters, and OSError when there is no memory for a large message.
    """
    outbox = _outbox()
    delivery = outbox.send(channel, message)
    if delivery.waiting:
        outbox.finish(delivery)
    return delivery.taken


async def apublish(channel: str, message: bytes) -> int:
    """The same where an event loop runs: that goes on while this waits."""
    outbox = _outbox()
    delivery = outbox.send(channel, message)
    if delivery.waiting:
        import asyncio  # a gevent worker must be able to patch first

        await asyncio.get_running_loop().run_in_executor(None, outbox.finish, delivery)
    return delivery.taken


def subscribe(channel: str, receive: Callable[[bytes], None]) -> Callable[[], None]:
    """Have ``receive`` called with each message that other workers publish; returns what ends it.

    It is called in the event loop that runs here, if one does; else in a thread of the bus's own (a
    greenlet with gevent), or in the loop of whoever subscribed first in this process. It should be
    quick: all messages wait for it. What it raises is logged.

    Raises BusError outside a worker, and where the server could make no directory.
    """
    return _receiver().subscribe(channel, receive)


def connect(
    pid: int | None = None, pidfile: str | None = None, directory: str | None = None
) -> None:
    """Choose the server that this process, which is no worker, publishes to.

    Without this it is the only one of this user. ``pid`` is that of its master, or in ``pidfile``;
    ``directory`` is its ``cluster_dir``, by default that of GUNICORN_CLUSTER_DIR. When the server
    is started anew, so is the connection. In a worker it does nothing.

    Raises BusError when there is no such server, or there are several.
    """
    global _choice
    if process.member() is None:
        _choice = _Choice(pid, pidfile, directory)
        _outbox()


class _Choice:
    """Which server a process that is no worker wants."""

    def __init__(
        self, pid: int | None = None, pidfile: str | None = None, directory: str | None = None
    ) -> None:
        self._pid, self._pidfile, self._base = pid, pidfile, directory

    def find(self) -> tuple[int, Path]:
        """Its pid and its directory. Raises BusError."""
        base = self._base or process.settings().dir
        pid = self._pid if self._pidfile is None else self._read_pidfile(self._pidfile)
        found = [each for each in directories(base) if pid in (None, each[0]) and _lives(*each)]
        if len(found) == 1:
            return found[0]
        if found:
            pids = ", ".join(str(each[0]) for each in sorted(found))
            raise BusError(
                f"several servers run here (masters {pids}): choose one with "
                "bus.connect(pid=...) or bus.connect(pidfile=...)"
            )
        which = "server" if pid is None else f"server with the master {pid}"
        where = f"in {base}" if base else "of this user (if it has a cluster_dir, say which)"
        raise BusError(f"no {which} found {where}")

    @staticmethod
    def _read_pidfile(path: str) -> int:
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise BusError(f"no server: {path} has no pid: {error}") from None


def _lives(pid: int, directory: Path) -> bool:
    return os.access(directory / "board", os.R_OK) and is_alive(pid)


class _Server:
    """A server as another process sees it."""

    def __init__(self, choice: _Choice) -> None:
        """Raises BusError."""
        self.pid, self.directory = choice.find()
        try:
            board = Board.attach(self.directory / "board")
        except (OSError, ValueError) as error:
            raise BusError(f"the server {self.pid} has no usable board: {error}") from None
        self.outbox = Outbox(board, self.directory, None, process.settings().bus_timeout)

    @property
    def is_there(self) -> bool:
        return _lives(self.pid, self.directory)


_NO_DIRECTORY: Final = (
    "this server has no directory for its bus: set cluster_dir to one that it can write"
)

_lock = threading.Lock()
_sending: Outbox | None = None
_receiving: Receiver | None = None
_choice = _Choice()
_server: _Server | None = None


def _outbox() -> Outbox:
    """Raises BusError."""
    if _sending is not None:
        return _sending
    member = process.member()
    return _of_server() if member is None else _of_member(member)


def _of_member(member: process.Member) -> Outbox:
    global _sending
    with _lock:
        if _sending is None:
            # A process that a worker has forked is another one.
            own = member.seat if member.pid == os.getpid() else None
            timeout = process.settings().bus_timeout
            _sending = Outbox(member.board, _directory(member), own, timeout)
            atexit.register(_sending.close)
        return _sending


def _of_server() -> Outbox:
    """It may have been started anew since the last message."""
    global _server
    with _lock:
        if _server is None or not _server.is_there:
            if _server is not None:
                _server.outbox.close()
            _server = None
            _server = _Server(_choice)
            atexit.register(_server.outbox.close)
        return _server.outbox


def _receiver() -> Receiver:
    global _receiving
    member = process.member()
    if member is None or member.pid != os.getpid():
        raise BusError(
            "only a worker can subscribe to the bus, and this process is none. With preload_app "
            "subscribe in the post_worker_init hook, or when the first request comes."
        )
    with _lock:
        if _receiving is None:
            _receiving = Receiver(member.board, _directory(member), member.seat)
            atexit.register(_receiving.close)
        return _receiving


def _directory(member: process.Member) -> Path:
    if member.board.path is None:
        raise BusError(_NO_DIRECTORY)
    return member.board.path.parent


def _after_fork() -> None:
    """Nothing of the bus is for a process that a worker forks, or that forks one."""
    global _lock, _sending, _receiving, _server
    if _receiving is not None:
        atexit.unregister(_receiving.close)
        _receiving.abandon()
    outboxes = [_sending] if _sending else []
    outboxes += [_server.outbox] if _server else []
    for outbox in outboxes:
        atexit.unregister(outbox.close)
        outbox.abandon()
    _lock, _sending, _receiving, _server = threading.Lock(), None, None, None


os.register_at_fork(after_in_child=_after_fork)
