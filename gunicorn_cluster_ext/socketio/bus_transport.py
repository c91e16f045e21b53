"""The bus of this machine as the transport of a client manager's messages.

What arrives is queued, and a background task of the server handles it. The task may call the
application (callbacks, ``disconnect`` handlers, also when an emit finds that a client is gone),
and the bus's thread must not wait for that.

The hop to the task costs some tens of microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from gunicorn_cluster_ext import bus
from gunicorn_cluster_ext.codec import UnknownType, decode, encode
from gunicorn_cluster_ext.logs import ThrottledLog, log
from gunicorn_cluster_ext.runtime import forks

#: The most messages that wait for a handler of the application.
MAX_QUEUED: Final = 10_000


class _Local:
    """What the managers of this process share."""

    def __init__(self) -> None:
        self.forget()
        forks.register(self)

    def forget(self) -> None:
        """Start again with nothing, in a forked child."""
        #: The transports that listen to a channel: the bus does not bring them what this process
        #: publishes itself.
        self.transports: dict[str, list[_BusTransport]] = {}
        #: Whether there is no bus here, because this is no worker but a development server or a
        #: test. Its messages are no concern of a server that happens to run on the same machine.
        self.is_alone = False


local = _Local()


class _BusTransport:
    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._channel = f"socketio:{manager.channel}"
        self._warn = ThrottledLog()

    def start(self) -> None:
        """Queue what is published from now on."""
        self._queue = self._manager.server.eio.create_queue()
        try:
            bus.subscribe(self._channel, self.receive)
        except bus.BusError as error:
            local.is_alone = True
            log.warning("Socket.IO's messages stay in this process: %s", error)
        local.transports.setdefault(self._channel, []).append(self)

    def receive(self, message: bytes) -> None:
        """Queue a message. The bus calls this, in the event loop if this belongs to one."""
        if self._queue.qsize() < MAX_QUEUED:
            self._queue.put_nowait(message)
        else:
            self._warn(
                f"A Socket.IO message is lost: {MAX_QUEUED} wait for a handler of the "
                "application that hangs"
            )

    def receive_local(self, message: bytes) -> None:
        """Queue a message of another manager of this process, which calls this in any thread."""
        self.receive(message)

    def _publish_locally(self, data: dict[str, Any]) -> bytes:
        """Give the message to the other managers of this process; return its bytes."""
        try:
            message = encode(data, self._channel)
        except UnknownType:  # something that only the server's own JSON module knows
            json = self._manager.json
            message = encode(json.loads(json.dumps(data)), self._channel)
        for transport in local.transports.get(self._channel, ()):
            if transport is not self:
                transport.receive_local(message)
        return message


class BusTransport(_BusTransport):
    def wait_subscribed(self) -> None:
        """Return at once: ``start`` has subscribed."""

    def publish(self, data: dict[str, Any]) -> None:
        message = self._publish_locally(data)
        if not local.is_alone:
            bus.publish(self._channel, message)

    def listen(self) -> Iterator[Any]:
        while True:
            yield decode(self._queue.get())


class AsyncBusTransport(_BusTransport):
    """A transport that belongs to the event loop in which it starts, or else that of ``listen``."""

    _loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # ``listen`` starts it
            return
        super().start()

    async def wait_subscribed(self) -> None:
        """Return at once: ``start`` has subscribed."""

    def receive_local(self, message: bytes) -> None:
        # The loop may be closed: that of a test that has ended, for instance.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.receive, message)

    async def publish(self, data: dict[str, Any]) -> None:
        message = self._publish_locally(data)
        if not local.is_alone:
            await bus.apublish(self._channel, message)

    async def listen(self) -> AsyncIterator[Any]:
        if self._loop is None:
            self.start()
        while True:
            yield decode(await self._queue.get())
