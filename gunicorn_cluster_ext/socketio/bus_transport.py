"""A manager's messages over the bus of this machine.

What arrives is queued, and a background task of the server handles it. It may call the
application (callbacks, ``disconnect`` handlers, also when an emit finds that a client has gone),
and meanwhile the bus's reader must not wait.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gunicorn_cluster_ext import bus
from gunicorn_cluster_ext.codec import UnknownType, decode, encode
from gunicorn_cluster_ext.logs import ThrottledLog, log

#: So many messages wait for a handler of the application at most.
MOST = 10_000


class _Process:
    """What the managers of this process share."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, after a fork."""
        self.listening: dict[str, list[_Way]] = {}
        #: There is no bus here. It is no worker: a development server, a test. What it emits is
        #: no concern of a server that happens to run on the same machine.
        self.is_alone = False


class _Way:
    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._channel = f"socketio:{manager.channel}"
        self._complain = ThrottledLog()

    def start(self) -> None:
        """Listen to what is published from now on."""
        self._queue = self._manager.server.eio.create_queue()
        try:
            bus.subscribe(self._channel, self.receive)
        except bus.BusError as error:
            here.is_alone = True
            log.warning("Socket.IO's messages stay in this process: %s", error)
        here.listening.setdefault(self._channel, []).append(self)

    def receive(self, message: bytes) -> None:
        """Called by the bus; in the event loop, if this belongs to one."""
        if self._queue.qsize() < MOST:
            self._queue.put_nowait(message)
        else:
            self._complain(RuntimeError(_LOST))

    def hear(self, message: bytes) -> None:
        """Called by another manager of this process."""
        self.receive(message)

    def _told(self, data: dict[str, Any]) -> bytes:
        """As bytes. The other managers of this process, which the bus does not tell, have them."""
        message = self._encoded(data)
        for way in here.listening.get(self._channel, ()):
            if way is not self:
                way.hear(message)
        return message

    def _encoded(self, data: dict[str, Any]) -> bytes:
        try:
            return encode(data, self._channel)
        except UnknownType:  # something that only the server's own JSON module knows
            json = self._manager.json
            return encode(json.loads(json.dumps(data)), self._channel)


class BusWay(_Way):
    def wait(self) -> None:
        """It listens since it was started."""

    def publish(self, data: dict[str, Any]) -> None:
        message = self._told(data)
        if not here.is_alone:
            bus.publish(self._channel, message)

    def listen(self) -> Iterator[Any]:
        while True:
            yield decode(self._queue.get())


class AsyncBusWay(_Way):
    """It belongs to the event loop in which it is started, or else in which it listens."""

    _loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # ``listen`` will have one
            return
        super().start()

    async def wait(self) -> None:
        """It listens since it was started."""

    def hear(self, message: bytes) -> None:
        """In any thread. The loop of a test that is over, for instance, is closed."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.receive, message)

    async def publish(self, data: dict[str, Any]) -> None:
        message = self._told(data)
        if not here.is_alone:
            await bus.apublish(self._channel, message)

    async def listen(self) -> AsyncIterator[Any]:
        if self._loop is None:
            self.start()
        while True:
            yield decode(await self._queue.get())


_LOST = f"Socket.IO: a message is lost, {MOST} wait for a handler of the application that hangs"
here = _Process()
os.register_at_fork(after_in_child=here.forget)
