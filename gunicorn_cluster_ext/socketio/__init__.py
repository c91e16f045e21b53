"""Client managers for python-socketio and Flask-SocketIO: what one worker emits reaches all.

``client_manager=ClusterManager()`` is all that an application needs: rooms, namespaces, callbacks,
disconnect and close_room work across the workers. Messages go over this machine's bus or, if
``cluster_store`` names a Redis, through python-socketio's own Redis managers, and then to all
machines.

Nearly all of it is python-socketio's PubSubManager. This module adds the choice of a transport for
its messages, and makes each process a server of its own.
"""

# mypy: disable-error-code="misc, call-arg, attr-defined, no-any-return"

from __future__ import annotations

import json as standard_json
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gunicorn_cluster_ext.extras import missing

try:
    from socketio.async_pubsub_manager import AsyncPubSubManager
    from socketio.pubsub_manager import PubSubManager
except ImportError as error:
    raise missing("socketio", error) from None

from gunicorn_cluster_ext.runtime import context, forks

__all__ = ["AsyncClusterManager", "ClusterManager"]


class _ClusterMixin:
    """What both managers add to the one of python-socketio that they inherit from."""

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
        forks.register(self)

    def forget(self) -> None:
        """Start again under another name, in a forked child.

        With the same name, the workers of a preloaded application would take each other's messages
        for their own, and ignore them.
        """
        self.host_id = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._chosen_transport: Any = None
        self._is_initialized = False

    def set_server(self, server: Any) -> None:
        """Prepare for ``server``. python-socketio calls this before the server serves anything."""
        super().set_server(server)
        self.json = server.packet_class.json  # not each version does this
        _ = self._transport  # if cluster_store cannot be used, the application cannot be loaded

    @property
    def _transport(self) -> Any:
        """Return what carries this process's messages, as ``cluster_store`` says.

        Nothing is opened yet: this may be the arbiter, which imports a preloaded application.
        """
        with self._lock:
            if self._chosen_transport is None:
                settings = context.settings()
                if settings.store == "embedded":
                    from gunicorn_cluster_ext.socketio.bus_transport import (
                        AsyncBusTransport,
                        BusTransport,
                    )

                    bus_class = AsyncBusTransport if self._is_async else BusTransport
                    self._chosen_transport = bus_class(self)
                else:
                    from gunicorn_cluster_ext.socketio.redis_transport import (
                        AsyncRedisTransport,
                        RedisTransport,
                    )

                    redis_class = AsyncRedisTransport if self._is_async else RedisTransport
                    self._chosen_transport = redis_class(self, settings)
            return self._chosen_transport

    def initialize(self) -> None:
        """Subscribe. python-socketio calls this when the first client of the process connects."""
        with self._lock:
            if self._is_initialized:
                return
            if self._listens:
                # Before that client is told that it is connected: from then on it misses nothing.
                self._transport.start()
            self._is_initialized = True
            super().initialize()

    def basic_enter_room(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as python-socketio, once this process is subscribed.

        Each client that connects enters a room first. Another thread may be subscribing for the
        first client, and this client must not overtake it.
        """
        if self._listens:
            self.initialize()
        return super().basic_enter_room(*args, **kwargs)

    @property
    def _listens(self) -> bool:
        return self.server is not None and not self.write_only

    def _sending_transport(self) -> Any:
        """Return the transport to publish with, once this process is subscribed: without clients
        too it must receive the answers for its callbacks."""
        if self._listens:
            self.initialize()
        return self._transport


class ClusterManager(_ClusterMixin, PubSubManager):
    """The client manager for ``socketio.Server`` and ``flask_socketio.SocketIO``.

    :param channel: messages reach the servers with the same channel.
    :param write_only: for a process that is no worker and only emits, such as a task queue's.
    :param logger: by default the server's.
    :param json: for a write-only manager, as in python-socketio; a server has its own.

    A server with this manager raises SettingError if ``cluster_store`` is wrong, and StoreError if
    that names a Redis that cannot be used. A write-only manager raises these when it first emits,
    and BusError if it finds no server.
    """

    name = "cluster"
    _is_async = False

    def initialize(self) -> None:
        super().initialize()
        if self._listens:  # without the lock, which the listening thread needs
            self._transport.wait_subscribed()

    def _publish(self, data: dict[str, Any]) -> None:
        self._sending_transport().publish(data)

    def _listen(self) -> Iterator[Any]:
        return self._transport.listen()


class AsyncClusterManager(_ClusterMixin, AsyncPubSubManager):
    """The client manager for ``socketio.AsyncServer``. See ClusterManager."""

    name = "asynccluster"
    _is_async = True

    async def connect(self, eio_sid: str, namespace: str) -> Any:
        sid = await super().connect(eio_sid, namespace)
        if self._listens:
            await self._transport.wait_subscribed()
        return sid

    async def _publish(self, data: dict[str, Any]) -> None:
        transport = self._sending_transport()
        if self._listens:
            await transport.wait_subscribed()
        await transport.publish(data)

    def _listen(self) -> AsyncIterator[Any]:
        return self._transport.listen()
