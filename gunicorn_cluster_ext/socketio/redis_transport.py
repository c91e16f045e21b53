"""A manager's messages through python-socketio's Redis managers, to what ``cluster_store`` names.

They publish, listen and try again as ever. Here they learn to find a master that Sentinels watch
(the address is written as for the store) and the nodes of a Cluster, and to give up in time.
"""

# mypy: disable-error-code="misc, call-arg, attr-defined"
# mypy: disallow-untyped-calls=false

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from socketio import pubsub_manager
from socketio.async_redis_manager import AsyncRedisManager
from socketio.redis_manager import RedisManager

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import StoreError

try:
    import redis.asyncio
    import redis.asyncio.sentinel
    import redis.sentinel
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from gunicorn_cluster_ext.stores.redis.options import sentinel_options
    from gunicorn_cluster_ext.stores.redis.url import Topology, parse
except ImportError as error:
    raise StoreError(f"cluster_store names a Redis, which needs redis-py >= 5.1: {error}") from None

#: python-socketio's managers try twice to publish.
_TRIES = 2


class _Way:
    """Goes before one of them. ``_redis`` is the part of redis-py that it uses."""

    _redis: Any
    _is_async: bool
    _retry: type[Any]
    _event: type[Any]

    def __init__(self, manager: Any, settings: Settings) -> None:
        if hasattr(pubsub_manager, "pickle"):
            raise StoreError(
                "python-socketio before 5.14 unpickles what it reads from a Redis, so that whoever "
                "can write there can run code here; install a newer one, or leave cluster_store"
            )
        try:
            self._address = parse(settings.store)
        except ValueError as error:
            raise StoreError(f"cluster_store is no URL of a Redis: {error}") from None
        self._nodes = itertools.cycle(self._address.nodes)
        self._timeout = settings.store_timeout
        self._limit = self._timeout / _TRIES
        super().__init__(
            self._address.url, channel=manager.channel, write_only=True, logger=manager.logger
        )
        self.server, self.json = manager.server, manager.json

    def start(self) -> None:
        """Whoever listens subscribes. That is waited for, but not for ever: Redis may be away."""
        self._subscribed = self._event()
        self._deadline = time.monotonic() + self._timeout

    @property
    def _patience(self) -> float:
        return self._deadline - time.monotonic()

    def publish(self, data: dict[str, Any]) -> Any:
        return self._publish(data)

    def listen(self) -> Any:
        return self._listen()

    def _redis_connect(self) -> None:
        """Called by python-socketio, also when it tries again. Nothing is sent yet."""
        limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), self._limit)
        self.redis = self._client(retry=self._retry(NoBackoff(), 0), **limits)
        self.pubsub = self._client().pubsub()
        self.connected = True

    def _client(self, **changes: Any) -> Any:
        options = {**self._address.options(self._is_async), **changes}
        if self._address.topology is Topology.SENTINEL:
            return self._master(options)
        if self._address.topology is Topology.CLUSTER:
            # All nodes hear what is published at one. If this one is away, the next is tried.
            options["host"], options["port"] = next(self._nodes)
        return self._redis.Redis(connection_pool=self._redis.ConnectionPool(**options))

    def _master(self, options: dict[str, Any]) -> Any:
        asking = sentinel_options(options)
        asking.pop("connection_class", None)
        options["ssl"] = asking["ssl"] = options.pop("connection_class", None) is not None
        sentinel = self._redis.sentinel.Sentinel(
            self._address.nodes, sentinel_kwargs=asking, **options
        )
        return sentinel.master_for(self._address.service)


class RedisWay(_Way, RedisManager):
    _redis = redis
    _is_async = False
    _retry = Retry
    _event = threading.Event

    def wait(self) -> None:
        """Until what others say is heard here."""
        if (patience := self._patience) > 0:
            self._subscribed.wait(patience)

    def _redis_listen_with_retries(self) -> Iterator[dict[str, Any]]:
        for message in super()._redis_listen_with_retries():
            if message["type"] == "subscribe":
                self._subscribed.set()
            yield message


class AsyncRedisWay(_Way, AsyncRedisManager):
    _redis = redis.asyncio
    _is_async = True
    _retry = AsyncRetry
    _event = asyncio.Event

    async def wait(self) -> None:
        """Until what others say is heard here."""
        if (patience := self._patience) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._subscribed.wait(), patience)

    async def _redis_listen_with_retries(self) -> AsyncIterator[dict[str, Any]]:
        async for message in super()._redis_listen_with_retries():
            if message["type"] == "subscribe":
                self._subscribed.set()
            yield message
