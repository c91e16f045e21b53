"""The Redis client of an event loop."""

# mypy: disallow-untyped-calls=false

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gunicorn_cluster_ext.stores.redis.options import (
    Call,
    connection_options,
    nodes_of,
    sentinel_options,
    sentinels_of,
)
from gunicorn_cluster_ext.stores.redis.url import Address, Topology

if sys.version_info >= (3, 11):
    from asyncio import timeout as _timeout
else:  # a dependency of redis-py there
    from async_timeout import timeout as _timeout


class AsyncClient:
    """The same as BlockingClient, for the event loop in which it is first used."""

    sleep = staticmethod(asyncio.sleep)

    def __init__(self, address: Address, timeout: float, connections: int) -> None:
        self._address = address
        self._timeout = timeout
        self._is_cluster = address.topology is Topology.CLUSTER
        self._room = asyncio.Semaphore(connections)
        self._started: set[asyncio.Task[None]] = set()
        self._client: Any = None

    async def execute(self, call: Call) -> list[Any]:
        async with _timeout(call.deadline - time.monotonic()), self._room:
            client = self._connected()
            if len(call.commands) == 1:
                options = {} if call.node is None else {"target_nodes": call.node}
                return [await client.execute_command(*call.commands[0], **options)]
            pipeline = client.pipeline(transaction=False)
            for command in call.commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute(raise_on_error=False))

    def nodes_of(self, keys: Iterable[bytes]) -> list[Any]:
        return nodes_of(self._client, keys)

    async def nodes(self, timeout: float) -> list[Any]:
        if not self._is_cluster:
            return [None]
        async with _timeout(timeout):
            client = self._connected()
            await client.initialize()
            return list(client.get_primaries())

    async def start(self, coroutine: Coroutine[Any, Any, None], wait_s: float) -> None:
        task = asyncio.create_task(coroutine)
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        await asyncio.wait({task}, timeout=wait_s)

    # --- redis-py's client ------------------------------------------------------------------

    def _connected(self) -> Any:
        if self._client is None:
            address, retry = self._address.options(asynchronous=True), Retry(NoBackoff(), 0)
            options = connection_options(address, self._timeout, retry)
            if self._address.topology is Topology.SENTINEL:
                self._client = self._make_sentinel(options)
            elif self._is_cluster:
                self._client = self._make_cluster(options)
            else:
                pool = redis.asyncio.ConnectionPool(**options)
                self._client = redis.asyncio.Redis(connection_pool=pool)
        return self._client

    def _make_sentinel(self, options: dict[str, Any]) -> Any:
        asking = sentinel_options(options)
        pool_of = redis.asyncio.ConnectionPool
        sentinel = redis.asyncio.sentinel.Sentinel([])
        sentinel.sentinels = [
            redis.asyncio.Redis(connection_pool=pool_of(host=host, port=port, **asking))
            for host, port in self._address.nodes
        ]
        tls = options.pop("connection_class", None) is not None
        pool = redis.asyncio.sentinel.SentinelConnectionPool(
            self._address.service, sentinel, ssl=tls, **options
        )
        return redis.asyncio.Redis(connection_pool=pool)

    def _make_cluster(self, options: dict[str, Any]) -> Any:
        for name in ("host", "port", "db"):
            options.pop(name, None)
        tls = options.pop("connection_class", None) is not None
        nodes = [
            redis.asyncio.cluster.ClusterNode(host, port) for host, port in self._address.nodes
        ]
        return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, ssl=tls, **options)

    async def close(self) -> None:
        for task in self._started:
            task.cancel()
        client, self._client = self._client, None
        if client is None:
            return
        await client.aclose()
        if not self._is_cluster:
            await client.connection_pool.disconnect()
        for sentinel in sentinels_of(client):
            await sentinel.connection_pool.disconnect()
