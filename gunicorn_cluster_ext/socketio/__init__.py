"""Client managers for python-socketio and Flask-SocketIO: what one worker emits reaches all.

``client_manager=ClusterManager()`` and nothing else: rooms, namespaces, callbacks, disconnect and
close_room work across the workers. Messages go over this machine's bus, or, when ``cluster_store``
names a Redis, through python-socketio's own Redis managers, and then to all machines.

python-socketio's PubSubManager does what there is to do. Here is only which way its messages go,
and that each process is a server of its own.
"""

# mypy: disable-error-code="misc, call-arg, attr-defined, no-any-return"

from __future__ import annotations

import json as standard_json
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from weakref import WeakSet

from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.pubsub_manager import PubSubManager

from gunicorn_cluster_ext.runtime import context


class _Cluster:
    """Goes before one of python-socketio's managers."""

    _is_async: bool

    def __init__(
        self,
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger)
        self.json = json or standard_json
        self.forget()
        _everywhere.add(self)

    def forget(self) -> None:
        """Begin anew, after a fork. With one name, workers of a preloaded application would take
        each other's messages for their own."""
        self.host_id = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._found: Any = None
        self._is_initialized = False

    def set_server(self, server: Any) -> None:
        """python-socketio calls this when the server is made, before anything is served."""
        super().set_server(server)
        self.json = server.packet_class.json  # not each version does this
        # If cluster_store cannot be used, the application cannot be loaded.
        _ = self._way

    @property
    def _way(self) -> Any:
        """Where messages go. Nothing is opened yet: this may be the arbiter, which imports a
        preloaded application."""
        with self._lock:
            if self._found is None:
                self._found = self._find_way()
            return self._found

    def _find_way(self) -> Any:
        settings = context.settings()
        if settings.store == "embedded":
            from gunicorn_cluster_ext.socketio.bus_transport import AsyncBusWay, BusWay

            return AsyncBusWay(self) if self._is_async else BusWay(self)
        from gunicorn_cluster_ext.socketio.redis_transport import AsyncRedisWay, RedisWay

        return (AsyncRedisWay if self._is_async else RedisWay)(self, settings)

    def initialize(self) -> None:
        """Listen. python-socketio calls this when the first client of the process connects."""
        with self._lock:
            if self._is_initialized:
                return
            if self._listens:
                # Before that client hears that it is connected: from then on it misses nothing.
                self._way.start()
            self._is_initialized = True
            super().initialize()

    def basic_enter_room(self, *args: Any, **kwargs: Any) -> Any:
        """As python-socketio's; whoever connects is entered into a room first. It may come while
        the first one's ``initialize`` is under way in another thread, and must not overtake it."""
        if self._listens:
            self.initialize()
        return super().basic_enter_room(*args, **kwargs)

    @property
    def _listens(self) -> bool:
        return self.server is not None and not self.write_only

    def _sending(self) -> Any:
        """The way, of a process that also hears what its callbacks are told, without clients."""
        if self._listens:
            self.initialize()
        return self._way


class ClusterManager(_Cluster, PubSubManager):
    """For ``socketio.Server`` and ``flask_socketio.SocketIO``.

    :param channel: what is emitted reaches the servers with the same channel.
    :param write_only: for a process that is no worker and only emits, such as a task queue's.
    :param logger: if not given, the server's is used.
    :param json: for a write-only manager, as python-socketio has it; a server has its own.

    A server with it raises SettingError if ``cluster_store`` is wrong, and StoreError if that names
    a Redis that cannot be used; a write-only one does when it first emits, and BusError when it
    finds no server.
    """

    name = "cluster"
    _is_async = False

    def initialize(self) -> None:
        super().initialize()
        if self._listens:  # not under the lock, which who listens wants
            self._way.wait()

    def _publish(self, data: dict[str, Any]) -> None:
        self._sending().publish(data)

    def _listen(self) -> Iterator[Any]:
        return self._way.listen()


class AsyncClusterManager(_Cluster, AsyncPubSubManager):
    """For ``socketio.AsyncServer``. See ClusterManager."""

    name = "asynccluster"
    _is_async = True

    async def connect(self, eio_sid: str, namespace: str) -> Any:
        sid = await super().connect(eio_sid, namespace)
        await self._listening()
        return sid

    async def _publish(self, data: dict[str, Any]) -> None:
        way = self._sending()
        await self._listening()
        await way.publish(data)

    async def _listening(self) -> None:
        """Wait until this process hears what others say, as ``initialize`` does without a loop."""
        if self._listens:
            await self._way.wait()

    def _listen(self) -> AsyncIterator[Any]:
        return self._way.listen()


_everywhere: WeakSet[_Cluster] = WeakSet()


def _after_fork() -> None:
    for manager in _everywhere:
        manager.forget()


os.register_at_fork(after_in_child=_after_fork)
