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
from typing import Final, NamedTuple

from gunicorn_cluster_ext.bus.publisher import Outbox
from gunicorn_cluster_ext.bus.receiver import Receiver
from gunicorn_cluster_ext.runtime import context, discovery

__all__ = ["BusError", "apublish", "connect", "publish", "subscribe"]


class BusError(RuntimeError):
    """There is no server whose bus this process could use; the message says why."""


def publish(channel: str, message: bytes) -> int:
    """Send ``message`` to every other worker of this server that listens.

    Returns to how many it was sent, or for how many that are slow it is kept. May be called in
    any thread. Waits only for a worker that has not read what was sent to it before, and
    ``cluster_bus_timeout`` at most; then the message is lost for that worker.

    Raises BusError outside a worker when no server is found, TypeError, ValueError when the
    channel's name is longer than 255 characters, and OSError when there is no memory for a large
    message.
    """
    outbox = _sending or _outbox()
    delivery = outbox.send(channel, message)
    if delivery.waiting:
        outbox.finish(delivery)
    return delivery.taken


async def apublish(channel: str, message: bytes) -> int:
    """The same where an event loop runs: that goes on while this waits."""
    outbox = _sending or _outbox()
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

    Raises BusError outside a worker, and where no socket can be made in the server's directory.
    """
    try:
        return _receiver().subscribe(channel, receive)
    except OSError as error:
        raise BusError(f"this worker cannot listen to the bus: {error}") from error


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
    if context.worker() is None:
        with _lock:
            _choice = _Choice(pid, pidfile, directory)
            _forget_remote()
        _outbox()


class _Choice(NamedTuple):
    """Which server a process that is no worker wants."""

    pid: int | None = None
    pidfile: str | None = None
    directory: str | None = None


class _Remote:
    """Its bus."""

    def __init__(self, choice: _Choice) -> None:
        """Raises BusError."""
        settings = context.settings()
        try:
            self.server = discovery.find(
                choice.pid, choice.pidfile, choice.directory or settings.dir
            )
        except discovery.ServerNotFound as error:
            raise BusError(
                f"{error} (bus.connect(pid=...), bus.connect(pidfile=...), or GUNICORN_CLUSTER_DIR "
                "if it has a cluster_dir)"
            ) from None
        board, directory = self.server.board, self.server.directory
        self.outbox = Outbox(board, directory, None, settings.bus_timeout)


_NO_DIRECTORY: Final = (
    "this server has no directory for its bus: set cluster_dir to one that it can write"
)

_lock = threading.Lock()
_sending: Outbox | None = None
_receiving: Receiver | None = None
_choice = _Choice()
_remote: _Remote | None = None


def _outbox() -> Outbox:
    """This process's own, as a worker, or one to a server. Raises BusError."""
    member = context.worker()
    return _of_server() if member is None else _of_member(member)


def _of_member(member: context.CurrentWorker) -> Outbox:
    global _sending
    with _lock:
        if _sending is None:
            # A process that a worker has forked is another one.
            own = member.seat if member.pid == os.getpid() else None
            timeout = context.settings().bus_timeout
            _sending = Outbox(member.board, _directory(member), own, timeout)
            atexit.register(_sending.close)
        return _sending


def _of_server() -> Outbox:
    """It may have been started anew since the last message."""
    global _remote
    with _lock:
        if _remote is not None and not _remote.server.is_running:
            _forget_remote()
        if _remote is None:
            _remote = _Remote(_choice)
            atexit.register(_remote.outbox.close)
        return _remote.outbox


def _forget_remote() -> None:
    global _remote
    if _remote is not None:
        atexit.unregister(_remote.outbox.close)
        _remote.outbox.abandon()
    _remote = None


def _receiver() -> Receiver:
    global _receiving
    member = context.worker()
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


def _directory(member: context.CurrentWorker) -> Path:
    if member.board.path is None:
        raise BusError(_NO_DIRECTORY)
    return member.board.path.parent


def _after_fork() -> None:
    """A process that a worker forks has nothing of the worker's bus."""
    global _lock, _sending, _receiving
    _lock = threading.Lock()
    _forget_remote()
    if _receiving is not None:
        atexit.unregister(_receiving.close)
        _receiving.abandon()
    if _sending is not None:
        atexit.unregister(_sending.close)
        _sending.abandon()
    _sending = _receiving = None


os.register_at_fork(after_in_child=_after_fork)
