"""The Redis client of threads."""

# mypy: disallow-untyped-calls=false

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import redis
import redis.cluster
import redis.sentinel
from redis.backoff import NoBackoff
from redis.cache import CacheConfig
from redis.connection import Connection
from redis.retry import Retry

from gunicorn_cluster_ext.stores.redis.options import (
    Call,
    connection_options,
    nodes_of,
    sentinel_options,
    sentinels_of,
)
from gunicorn_cluster_ext.stores.redis.timed_connections import (
    TimedPool,
    deadline,
    timed,
    timed_by_sentinel,
)
from gunicorn_cluster_ext.stores.redis.url import Address, Topology
from gunicorn_cluster_ext.stores.sync_async import blocking_sleep, run


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


#: The argument that ``get_connection`` needs before redis-py 5.3, and ignores.
_NAME = () if _version(redis.__version__) >= (5, 3) else ("",)
#: A connection that was in use so lately is not checked before it is used again (4 us): no server
#: restarts so quickly.
_FRESH_S = 0.01
#: The commands whose answers this process may cache: values. Not field maps: a session that another
#: worker has just ended must not be found here.
CACHED = ("GET", "MGET")
#: The size of that cache. redis-py looks through all of it for each changed key (0.1 ms).
_MAX_CACHED = 1_000


class _ValuesOnly(CacheConfig):
    def is_allowed_to_cache(self, command: str) -> bool:
        return command in CACHED


class BlockingClient:
    """redis-py's client, made so that a call ends in time. Its coroutines never suspend.

    It connects when it is first used, and opens at most ``connections`` connections to each server.
    ``timeout`` is in seconds.
    """

    sleep = staticmethod(blocking_sleep)

    def __init__(self, address: Address, timeout: float, connections: int) -> None:
        self._address = address
        self._timeout = timeout
        self._is_cluster = address.topology is Topology.CLUSTER
        self._room: SimpleQueue[None] = SimpleQueue()  # faster than a semaphore, by 2 us
        for _ in range(connections):
            self._room.put(None)
        self._idle: deque[tuple[Any, float]] = deque()
        self._making = threading.Lock()
        self._client: Any = None

    async def execute(self, call: Call) -> list[Any]:
        """Return the answers to the commands. Raises redis-py's errors."""
        deadline.at = call.deadline
        try:
            self._room.get(timeout=deadline.left())
        except Empty:
            raise redis.TimeoutError("all connections are in use") from None
        try:
            client = self._connected()
            if self._is_cluster:
                return _ask_cluster(client, call)
            try:
                return self._ask(client, call.commands)
            except (redis.ConnectionError, redis.TimeoutError):
                self._close_idle(client.connection_pool)
                raise
        finally:
            self._room.put(None)
            deadline.at = math.inf

    def _ask(self, client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Do what redis-py's methods do, without their pool, telemetry and retries, which take half
        of their time (15 us)."""
        connection = self._take(client.connection_pool)
        try:
            if len(commands) == 1:
                options = {"keys": commands[0][1:]} if commands[0][0] in CACHED else {}
                connection.send_command(*commands[0], **options)
                return [client.parse_response(connection, commands[0][0], **options)]
            connection.send_packed_command(connection.pack_commands(commands))
            return [_answer_or_error(client, connection, name) for name, *_ in commands]
        finally:
            self._idle.append((connection, time.monotonic()))

    def _take(self, pool: Any) -> Any:
        """Return a connection that no other thread uses."""
        try:
            connection, used = self._idle.pop()
        except IndexError:
            return pool.get_connection(*_NAME)
        if time.monotonic() - used > _FRESH_S and _is_stale(connection, pool):
            connection.disconnect()
        return connection

    def _close_idle(self, pool: Any) -> None:
        """Close the idle connections: one has failed, so their next users might wait in vain."""
        with contextlib.suppress(IndexError):
            while True:
                connection, _ = self._idle.pop()
                connection.disconnect()
                pool.release(connection)

    def nodes_of(self, keys: Iterable[bytes]) -> list[Any]:
        """Return the nodes of a Cluster that hold these keys; None for an unknown node."""
        return nodes_of(self._client, keys)

    async def nodes(self, timeout: float) -> list[Any]:
        """Return the nodes of a Cluster that hold keys; [None] without a Cluster."""
        if not self._is_cluster:
            return [None]
        deadline.at = time.monotonic() + timeout
        try:
            return list(self._connected().get_primaries())
        finally:
            deadline.at = math.inf

    async def start(self, coroutine: Coroutine[Any, Any, None], wait_s: float) -> None:
        """Run a coroutine in the background, and wait for it at most ``wait_s`` seconds."""
        thread = threading.Thread(target=run, args=(coroutine,), daemon=True)
        thread.start()
        thread.join(wait_s)

    # --- redis-py's client ------------------------------------------------------------------

    def _connected(self) -> Any:
        if self._client is None:
            with self._making:
                if self._client is None:
                    self._client = self._make()
        return self._client

    def _make(self) -> Any:
        address = self._address.options()
        options = connection_options(address, self._timeout, Retry(NoBackoff(), 0))
        connection_class = address.get("connection_class", Connection)
        if self._address.topology is Topology.SENTINEL:
            return self._make_sentinel(options, connection_class)
        if self._is_cluster:
            return self._make_cluster(options)
        return self._make_single(options, connection_class)

    def _make_single(self, options: dict[str, Any], connection_class: Any) -> Any:
        """Ask the server whether it supports a cache in the client, unless the URL says no."""
        options["connection_class"] = timed(connection_class)
        client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
        if "protocol" in self._address.options() or not _can_cache(client):
            return client
        client.connection_pool.disconnect()
        options.update(protocol=3, cache_config=_ValuesOnly(max_size=_MAX_CACHED))
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))

    def _make_sentinel(self, options: dict[str, Any], connection_class: Any) -> Any:
        asking = {**sentinel_options(options), "connection_class": timed(connection_class)}
        sentinel = redis.sentinel.Sentinel([])
        sentinel.sentinels = [
            redis.Redis(connection_pool=redis.ConnectionPool(host=host, port=port, **asking))
            for host, port in self._address.nodes
        ]
        options["connection_class"] = timed_by_sentinel(connection_class)
        pool = redis.sentinel.SentinelConnectionPool(self._address.service, sentinel, **options)
        return redis.Redis(connection_pool=pool)

    def _make_cluster(self, options: dict[str, Any]) -> Any:
        for name in ("host", "port", "db", "connection_class"):
            options.pop(name, None)
        client = redis.cluster.RedisCluster(
            url=self._address.url,
            startup_nodes=[
                redis.cluster.ClusterNode(host, port) for host, port in self._address.nodes
            ],
            connection_pool_class=TimedPool,
            **options,
        )
        vars(client)["cluster_error_retry_attempts"] = 0  # before redis-py 6
        return client

    async def close(self) -> None:
        with self._making:
            client, self._client = self._client, None
        if client is None:
            return
        client.close()
        if not self._is_cluster:
            client.connection_pool.disconnect()
        for sentinel in sentinels_of(client):
            sentinel.connection_pool.disconnect()


def _is_stale(connection: Any, pool: Any) -> bool:
    """Return whether there is something to read, though nothing was asked: the server closed the
    connection. With a cache it may be an invalidation."""
    try:
        return connection.can_read() and pool.cache is None
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        return True


def _ask_cluster(client: Any, call: Call) -> list[Any]:
    if len(call.commands) == 1:
        options = {} if call.node is None else {"target_nodes": call.node}
        return [client.execute_command(*call.commands[0], **options)]
    with client.pipeline(transaction=False) as pipeline:
        for command in call.commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute(raise_on_error=False))


def _answer_or_error(client: Any, connection: Any, name: str) -> Any:
    try:
        return client.parse_response(connection, name)
    except redis.ResponseError as error:
        return error


def _can_cache(client: Any) -> bool:
    """Return whether the server reports changed keys to a redis-py that understands them."""
    try:
        info = client.info("server")
    except redis.ResponseError:  # not every user may ask, and not every service answers
        return False
    server = _version(info.get("redis_version", "0"))
    return _version(redis.__version__) >= (8, 0) and server >= (7, 4)
