"""redis-py's clients, made so that a call ends in time, and what both kinds are asked.

redis-py limits each wait for a socket. A call has many of them: several hosts, a handshake, an
answer in pieces. Here the sockets of blocking clients know when the call of their thread ends;
an event loop has timeouts for that. Nobody else tries again, either: one place does (redis.py).
"""

# mypy: disallow-untyped-calls=false

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cache import CacheConfig
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from gunicorn_cluster_ext.stores.redis.url import Address

if sys.version_info >= (3, 11):
    from asyncio import timeout as _timeout
else:  # a dependency of redis-py there
    from async_timeout import timeout as _timeout


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


#: What its pools want to be told before redis-py 5.3, and ignore.
_NAME = () if _version(redis.__version__) >= (5, 3) else ("",)
#: A connection that was in use so lately is not looked at before it is used again (4 us): no server
#: restarts so quickly.
_FRESH_S = 0.01
#: A host that does not answer leaves time for the others.
_CONNECT_SHARE = 1 / 3


class Call(NamedTuple):
    """Commands in one round trip, before ``deadline`` (monotonic); ``node`` of a Cluster."""

    commands: Sequence[tuple[Any, ...]]
    deadline: float
    node: Any = None


# --- blocking --------------------------------------------------------------------------------


class _Deadline(threading.local):
    at = math.inf

    def left(self) -> float:
        return max(self.at - time.monotonic(), 0.001)


_deadline = _Deadline()
#: Limits of sockets that are longer are multiples of this: setting another one is a system call.
_STEP_S = 0.02


class _Socket:
    """A socket that waits no longer than the call of its thread may take."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._own = self._set = sock.gettimeout()
        self.fileno = sock.fileno

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        self._own = seconds

    def _limited(self) -> Any:
        left = _deadline.left()
        limit = left if self._own is None or left < self._own else self._own
        if limit > _STEP_S:
            limit = math.ceil(limit / _STEP_S) * _STEP_S
        if limit != self._set:
            self._set = limit
            self._sock.settimeout(limit)
        return self._sock

    def recv(self, *args: Any) -> Any:
        return self._limited().recv(*args)

    def recv_into(self, *args: Any) -> Any:
        return self._limited().recv_into(*args)

    def sendall(self, *args: Any) -> Any:
        return self._limited().sendall(*args)


class _Timed:
    """Goes before one of redis-py's classes of connections."""

    def __init__(self, *args: Any, socket_connect_timeout: float, **kwargs: Any) -> None:
        self._longest = socket_connect_timeout
        super().__init__(*args, **kwargs)

    @property
    def socket_connect_timeout(self) -> float:
        return min(_deadline.left(), self._longest)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float) -> None:
        """What the base class sets is of no interest."""

    def _connect(self) -> Any:
        return _Socket(super()._connect())  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Never leave a connection open whose answer is still to come: the next call would take
        it for its own. (Those of Sentinel do, if nobody says so.)"""
        kwargs.setdefault("disconnect_on_error", True)
        return super().read_response(*args, **kwargs)  # type: ignore[misc]


class _Tcp(_Timed, Connection):  # type: ignore[misc]
    pass


class _Tls(_Timed, SSLConnection):  # type: ignore[misc]
    pass


class _Unix(_Timed, UnixDomainSocketConnection):  # type: ignore[misc]
    pass


class _Found(_Timed, redis.sentinel.SentinelManagedConnection):  # type: ignore[misc]
    pass


class _FoundTls(_Timed, redis.sentinel.SentinelManagedSSLConnection):  # type: ignore[misc]
    pass


_CLASSES = {SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


class _Pool(redis.ConnectionPool):
    """For a Cluster, whose client knows only the usual classes of connections."""

    def __init__(self, connection_class: Any = Connection, **options: Any) -> None:
        super().__init__(connection_class=_CLASSES.get(connection_class, _Tcp), **options)


#: What this process may keep a copy of: values. Not field maps: a session that another worker has
#: just ended must not be found here.
CACHED = ("GET", "MGET")
#: redis-py looks through all of them for each key that has changed (1,000: 0.1 ms).
_COPIES = 1_000


class Reads(CacheConfig):
    def is_allowed_to_cache(self, command: str) -> bool:
        return command in CACHED


class BlockingClient:
    """Connects when it is first used. ``connections`` at most, for each server."""

    def __init__(self, address: Address, timeout: float, connections: int) -> None:
        self._address = address
        self._timeout = timeout
        self._room: SimpleQueue[None] = SimpleQueue()  # faster than a semaphore, by 2 us
        for _ in range(connections):
            self._room.put(None)
        self._idle: deque[tuple[Any, float]] = deque()
        self._making = threading.Lock()
        self._client: Any = None

    def execute(self, call: Call) -> list[Any]:
        """The answers to its commands. Raises redis-py's errors."""
        _deadline.at = call.deadline
        try:
            self._room.get(timeout=_deadline.left())
        except Empty:
            raise redis.TimeoutError("all connections are in use") from None
        try:
            client = self._made()
            if self._address.way == "cluster":
                return _ask_cluster(client, call)
            try:
                return self._ask(client, call.commands)
            except (redis.ConnectionError, redis.TimeoutError):
                self._give_back_all(client.connection_pool)
                raise
        finally:
            self._room.put(None)
            _deadline.at = math.inf

    def _ask(self, client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What the client's own methods do but for its pool, telemetry, and other attempts, which
        take half of their time (15 us)."""
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
        """A connection for our own use."""
        try:
            connection, used = self._idle.pop()
        except IndexError:
            return pool.get_connection(*_NAME)
        if time.monotonic() - used > _FRESH_S and _is_stale(connection, pool):
            connection.disconnect()
        return connection

    def _give_back_all(self, pool: Any) -> None:
        """One has failed, so the others may keep their next users waiting for nothing."""
        with contextlib.suppress(IndexError):
            while True:
                connection, _ = self._idle.pop()
                connection.disconnect()
                pool.release(connection)

    def nodes_of(self, keys: Iterable[bytes]) -> list[Any]:
        return _nodes_of(self._client, keys)

    def nodes(self, limit: float) -> list[Any]:
        if self._address.way != "cluster":
            return [None]
        _deadline.at = time.monotonic() + limit
        try:
            return list(self._made().get_primaries())
        finally:
            _deadline.at = math.inf

    def _made(self) -> Any:
        if self._client is None:
            with self._making:
                if self._client is None:
                    self._client = self._make()
        return self._client

    def _make(self) -> Any:
        if self._address.way == "sentinel":
            return self._make_sentinel()
        if self._address.way == "cluster":
            return self._make_cluster()
        options = self._options()
        client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
        if "protocol" in self._address.options() or not _may_cache(_info(client)):
            return client
        client.connection_pool.disconnect()
        options.update(protocol=3, cache_config=Reads(max_size=_COPIES))
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))

    def _options(self) -> dict[str, Any]:
        options = self._address.options()
        kind = options.get("connection_class", Connection)
        return {
            "protocol": 2,
            **options,
            "connection_class": _CLASSES.get(kind, _Tcp),
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout * _CONNECT_SHARE,
            "retry": Retry(NoBackoff(), 0),
        }

    def _make_sentinel(self) -> Any:
        options = self._options()
        asking = sentinel_options(options)
        tls = options["connection_class"] is _Tls
        sentinel = redis.sentinel.Sentinel([])
        sentinel.sentinels = [
            redis.Redis(connection_pool=redis.ConnectionPool(host=host, port=port, **asking))
            for host, port in self._address.nodes
        ]
        options["connection_class"] = _FoundTls if tls else _Found
        pool = redis.sentinel.SentinelConnectionPool(self._address.service, sentinel, **options)
        return redis.Redis(connection_pool=pool)

    def _make_cluster(self) -> Any:
        """With the URL, or it would not take a class of pools."""
        options = self._options()
        for name in ("host", "port", "db", "connection_class"):
            options.pop(name, None)
        client = redis.cluster.RedisCluster(
            url=self._address.url,
            startup_nodes=[
                redis.cluster.ClusterNode(host, port) for host, port in self._address.nodes
            ],
            connection_pool_class=_Pool,
            **options,
        )
        vars(client)["cluster_error_retry_attempts"] = 0  # before redis-py 6
        return client

    def close(self) -> None:
        with self._making:
            client, self._client = self._client, None
        if client is None:
            return
        client.close()
        if self._address.way != "cluster":
            client.connection_pool.disconnect()
        for sentinel in _sentinels(client):
            sentinel.connection_pool.disconnect()


def _is_stale(connection: Any, pool: Any) -> bool:
    """Whether there is something to read without a question: the end, if the server closed it."""
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


# --- in an event loop ------------------------------------------------------------------------


class AsyncClient:
    """The same. It belongs to the event loop in which it is first used."""

    def __init__(self, address: Address, timeout: float, connections: int) -> None:
        self._address = address
        self._timeout = timeout
        self._room = asyncio.Semaphore(connections)
        self._client: Any = None

    async def execute(self, call: Call) -> list[Any]:
        async with _timeout(call.deadline - time.monotonic()), self._room:
            client = self._made()
            if len(call.commands) == 1:
                options = {} if call.node is None else {"target_nodes": call.node}
                return [await client.execute_command(*call.commands[0], **options)]
            pipeline = client.pipeline(transaction=False)
            for command in call.commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute(raise_on_error=False))

    def nodes_of(self, keys: Iterable[bytes]) -> list[Any]:
        return _nodes_of(self._client, keys)

    async def nodes(self, limit: float) -> list[Any]:
        if self._address.way != "cluster":
            return [None]
        async with _timeout(limit):
            client = self._made()
            await client.initialize()
            return list(client.get_primaries())

    def _made(self) -> Any:
        if self._client is None:
            self._client = self._make()
        return self._client

    def _make(self) -> Any:
        options = self._options()
        if self._address.way == "sentinel":
            return self._make_sentinel(options)
        if self._address.way == "cluster":
            return self._make_cluster(options)
        pool = redis.asyncio.ConnectionPool(**options)
        return redis.asyncio.Redis(connection_pool=pool)

    def _options(self) -> dict[str, Any]:
        return {
            "protocol": 2,
            **self._address.options(asynchronous=True),
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout * _CONNECT_SHARE,
            "retry": AsyncRetry(NoBackoff(), 0),
        }

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
        client, self._client = self._client, None
        if client is None:
            return
        await client.aclose()
        if self._address.way != "cluster":
            await client.connection_pool.disconnect()
        for sentinel in _sentinels(client):
            await sentinel.connection_pool.disconnect()


# --- both --------------------------------------------------------------------------------------


def _nodes_of(client: Any, keys: Iterable[bytes]) -> list[Any]:
    """The nodes of a Cluster that have these keys; None for one that is not known yet."""
    try:
        nodes = [client.get_node_from_key(key) for key in keys] if client is not None else [None]
    except redis.exceptions.RedisClusterException:
        return [None]
    return list({node and node.name: node for node in nodes}.values())


def sentinel_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those for asking Sentinels, taken from those for what they name."""
    asking = {name: each for name, each in options.items() if name not in ("host", "port", "db")}
    for name in ("username", "password"):
        asking.pop(name, None)
        if (own := options.pop(f"sentinel_{name}", None)) is not None:
            asking.pop(f"sentinel_{name}", None)
            asking[name] = own
    for name in ("host", "port"):
        options.pop(name, None)
    return asking


def _sentinels(client: Any) -> list[Any]:
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _info(client: Any) -> dict[str, Any]:
    try:
        return dict(client.info("server"))
    except redis.ResponseError:  # not every user may ask, nor every service answers
        return {}


def _may_cache(info: dict[str, Any]) -> bool:
    """Whether the server says what has changed, to a redis-py that understands it: before 8.0 that
    compares keys as text, and ours never match."""
    server = _version(info.get("redis_version", "0"))
    return _version(redis.__version__) >= (8, 0) and server >= (7, 4)
