"""A Redis as the transport of a client manager's messages, the one that ``cluster_store`` names.

python-socketio's Redis managers publish, listen and try again. This module adds how they find a
master that Sentinels watch (the address is written as for the store) and the nodes of a Cluster,
and makes them give up in time.
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
from typing import Any, Final

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

#: How often python-socketio's managers try to publish a message.
_PUBLISH_ATTEMPTS: Final = 2


class _RedisTransport:
    """What both transports add to the Redis manager of python-socketio that they inherit from.

    ``_redis`` is the module of redis-py that the manager uses.
    """

    _redis: Any
    _is_async: bool
    _retry: type[Any]
    _event: type[Any]

    def __init__(self, manager: Any, settings: Settings) -> None:
        if hasattr(pubsub_manager, "pickle"):
            raise StoreError(
                "python-socketio before 5.14 unpickles what it reads from a Redis, so that whoever "
                "can write there can run code here; install a newer one, or unset cluster_store"
            )
        try:
            self._address = parse(settings.store)
        except ValueError as error:
            raise StoreError(f"cluster_store is no URL of a Redis: {error}") from None
        self._nodes = itertools.cycle(self._address.nodes)
        self._timeout = settings.store_timeout
        self._attempt_timeout = self._timeout / _PUBLISH_ATTEMPTS
        super().__init__(
            self._address.url, channel=manager.channel, write_only=True, logger=manager.logger
        )
        self.server, self.json = manager.server, manager.json

    def start(self) -> None:
        """Begin the time in which ``listen`` must have subscribed: Redis may be unreachable."""
        self._subscribed = self._event()
        self._deadline = time.monotonic() + self._timeout

    def publish(self, data: dict[str, Any]) -> Any:
        return self._publish(data)

    def listen(self) -> Any:
        return self._listen()

    def _redis_connect(self) -> None:
        """Make the clients, which send nothing yet. python-socketio calls this, and again after an
        error."""
        limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), self._attempt_timeout)
        self.redis = self._client(retry=self._retry(NoBackoff(), 0), **limits)
        self.pubsub = self._client().pubsub()
        self.connected = True

    def _client(self, **changes: Any) -> Any:
        options = {**self._address.options(self._is_async), **changes}
        if self._address.topology is Topology.SENTINEL:
            return self._master(options)
        if self._address.topology is Topology.CLUSTER:
            # A message published at one node reaches all. If this one does not answer, the next
            # attempt takes another.
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


class RedisTransport(_RedisTransport, RedisManager):
    _redis = redis
    _is_async = False
    _retry = Retry
    _event = threading.Event

    def wait_subscribed(self) -> None:
        """Wait until Redis has confirmed the subscription, or the time is over."""
        if (remaining_s := self._deadline - time.monotonic()) > 0:
            self._subscribed.wait(remaining_s)

    def _redis_listen_with_retries(self) -> Iterator[dict[str, Any]]:
        for message in super()._redis_listen_with_retries():
            if message["type"] == "subscribe":
                self._subscribed.set()
            yield message


class AsyncRedisTransport(_RedisTransport, AsyncRedisManager):
    _redis = redis.asyncio
    _is_async = True
    _retry = AsyncRetry
    _event = asyncio.Event

    async def wait_subscribed(self) -> None:
        """Wait until Redis has confirmed the subscription, or the time is over."""
        if (remaining_s := self._deadline - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._subscribed.wait(), remaining_s)

    async def _redis_listen_with_retries(self) -> AsyncIterator[dict[str, Any]]:
        async for message in super()._redis_listen_with_retries():
            if message["type"] == "subscribe":
                self._subscribed.set()
            yield message
