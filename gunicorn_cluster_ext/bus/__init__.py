"""The bus: messages from one worker to all others of this server, without a broker.

    from gunicorn_cluster_ext import bus

    end = bus.subscribe("news", lambda message: ...)
    bus.publish("news", b"...")

Each worker's messages arrive in the order in which it published them, once, at every other worker
that has subscribed to anything when they are published. Nothing is stored: a worker that subscribes
later has missed them. Processes that are no workers (a task queue, a shell) can publish as well:
see ``connect``.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.bus.publisher import Publisher
from gunicorn_cluster_ext.bus.receiver import Receiver
from gunicorn_cluster_ext.runtime import context, discovery, forks

__all__ = ["BusError", "apublish", "connect", "publish", "subscribe"]


class BusError(RuntimeError):
    """This process has no server whose bus it could use; the message says why."""


def publish(channel: str, message: bytes) -> int:
    """Send ``message`` to every other worker of this server that listens.

    Return the number of workers that it was sent to, or is kept for because they are slow. Any
    thread may call this. It waits only for a worker that has not read what was sent to it before,
    ``cluster_bus_timeout`` at most; then the message is lost for that worker.

    Raise BusError outside a worker if no server is found, TypeError, ValueError if the channel's
    name is longer than 255 characters, and OSError if there is no memory for a large message.
    """
    publisher = _endpoints.publisher or _endpoints.find_publisher()
    delivery = publisher.send(channel, message)
    if delivery.waiting:
        publisher.finish(delivery)
    return delivery.accepted


async def apublish(channel: str, message: bytes) -> int:
    """Do the same as ``publish`` in an event loop, which goes on while this waits."""
    publisher = _endpoints.publisher or _endpoints.find_publisher()
    delivery = publisher.send(channel, message)
    if delivery.waiting:
        import asyncio  # a gevent worker must be able to patch first

        await asyncio.get_running_loop().run_in_executor(None, publisher.finish, delivery)
    return delivery.accepted


def subscribe(channel: str, receive: Callable[[bytes], None]) -> Callable[[], None]:
    """Call ``receive`` with each message that other workers publish on the channel.

    Return a function that ends the subscription. ``receive`` is called in the event loop that runs
    where this is called, if there is one. Otherwise it is called in a thread of the bus (with
    gevent a greenlet), or in the loop of the process's first subscriber. It should be quick,
    because all messages wait for it. An exception of it is logged.

    Raise BusError outside a worker, and if no socket can be made in the server's directory;
    RuntimeError if no thread can be started. The next call tries again.
    """
    try:
        return _endpoints.find_receiver().subscribe(channel, receive)
    except OSError as error:
        raise BusError(f"this worker cannot listen to the bus: {error}") from error


def connect(
    pid: int | None = None, pidfile: str | None = None, directory: str | None = None
) -> None:
    """Choose the server that this process, which is no worker, publishes to.

    By default it is the only server of this user. ``pid`` is that of its master, which ``pidfile``
    contains; ``directory`` is its ``cluster_dir``, by default GUNICORN_CLUSTER_DIR. When the server
    has been restarted, the next message connects again. In a worker this does nothing.

    Raise BusError if there is no such server, or there are several.
    """
    if context.worker() is None:
        _endpoints.choose(_Choice(pid, pidfile, directory))
        _endpoints.find_publisher()


class _Choice(NamedTuple):
    """The arguments of ``connect``."""

    pid: int | None = None
    pidfile: str | None = None
    directory: str | None = None


class _Remote(NamedTuple):
    """The server that a process publishes to without being one of its workers."""

    server: discovery.Server
    publisher: Publisher


class _Endpoints:
    """What this process has opened of the bus."""

    #: Those of a worker. ``publish`` looks here first, without the lock.
    publisher: Publisher | None = None
    receiver: Receiver | None = None
    remote: _Remote | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choice = _Choice()
        forks.register(self)
        atexit.register(self.close)

    def close(self) -> None:
        """Send what is kept and stop listening, at the end of the process."""
        for endpoint in (self.publisher, self.remote and self.remote.publisher, self.receiver):
            if endpoint is not None:
                endpoint.close()

    def forget(self) -> None:
        """Start again with nothing, in a forked child: what is open is its parent's."""
        self._lock = threading.Lock()
        for endpoint in (self.publisher, self.receiver):
            if endpoint is not None:
                endpoint.abandon()
        self.publisher = self.receiver = None
        self._leave_server()

    def choose(self, choice: _Choice) -> None:
        """Publish to that server from the next message on."""
        with self._lock:
            self._choice = choice
            self._leave_server()

    def _leave_server(self) -> None:
        if self.remote is not None:
            self.remote.publisher.abandon()
        self.remote = None

    def find_publisher(self) -> Publisher:
        """Return the publisher of this worker, or one to the chosen server. Raise BusError."""
        worker = context.worker()
        with self._lock:
            if worker is not None:
                if self.publisher is None:
                    # A child forked by a worker is another process, and the worker hears it.
                    own_seat = worker.seat if worker.pid == os.getpid() else None
                    timeout_s = context.settings().bus_timeout
                    self.publisher = Publisher(
                        worker.board, _directory(worker), own_seat, timeout_s
                    )
                return self.publisher
            if self.remote is not None and not self.remote.server.is_running:
                self._leave_server()  # it may have been restarted since the last message
            if self.remote is None:
                self.remote = self._find_server()
            return self.remote.publisher

    def _find_server(self) -> _Remote:
        settings, choice = context.settings(), self._choice
        try:
            server = discovery.find(choice.pid, choice.pidfile, choice.directory or settings.dir)
        except discovery.ServerNotFound as error:
            raise BusError(
                f"{error} (bus.connect(pid=...), bus.connect(pidfile=...), or GUNICORN_CLUSTER_DIR "
                "if it has a cluster_dir)"
            ) from None
        publisher = Publisher(server.board, server.directory, None, settings.bus_timeout)
        return _Remote(server, publisher)

    def find_receiver(self) -> Receiver:
        """Return the receiver of this worker. Raise BusError."""
        worker = context.worker()
        if worker is None or worker.pid != os.getpid():
            raise BusError(
                "only a worker can subscribe to the bus, and this process is none. With "
                "preload_app subscribe in the post_worker_init hook, or when the first request "
                "comes."
            )
        with self._lock:
            if self.receiver is None:
                self.receiver = Receiver(worker.board, _directory(worker), worker.seat)
            return self.receiver


def _directory(worker: context.CurrentWorker) -> Path:
    if worker.board.path is None:
        raise BusError(
            "this server has no directory for its bus: set cluster_dir to one that it can write"
        )
    return worker.board.path.parent


_endpoints = _Endpoints()
