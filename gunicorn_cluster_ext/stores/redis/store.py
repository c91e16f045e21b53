"""The Redis store: which calls are retried, what opens a breaker, how errors are raised."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gunicorn_cluster_ext.runtime import forks
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.circuit_breaker import Breaker
from gunicorn_cluster_ext.stores.contract import AsyncStore, NotANumber, StoreAway, StoreError
from gunicorn_cluster_ext.stores.redis import lua
from gunicorn_cluster_ext.stores.sync_async import BlockingStore

try:
    from redis import exceptions

    from gunicorn_cluster_ext.stores.redis.async_client import AsyncClient
    from gunicorn_cluster_ext.stores.redis.blocking_client import BlockingClient
    from gunicorn_cluster_ext.stores.redis.options import Call
    from gunicorn_cluster_ext.stores.redis.url import Topology, parse
except ImportError as error:
    raise StoreError(f"cluster_store names a Redis, which needs redis-py >= 5.1: {error}") from None

#: Pauses before a call is retried, varied by half so that not all processes retry at once.
_RETRY_PAUSES_S = (0.02, 0.06, 0.18)
#: How long a request waits for a probe, which continues without it: half of what p99 may be.
_PROBE_WAIT_S = 0.025
#: Commands in one round trip.
_BATCH = 500

_REFUSED = (ConnectionRefusedError, FileNotFoundError)
#: The command was not carried out.
_NOT_DONE = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
_AWAY = (
    *_NOT_DONE,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.RedisClusterException,  # no node could be asked for the others
    asyncio.TimeoutError,
    TimeoutError,
    OSError,
)
_DENIED = (exceptions.AuthenticationError, exceptions.AuthorizationError)
#: Redis's messages for an INCRBY that is impossible, from a Lua script too.
_NO_NUMBER = ("value is not an integer", "would overflow")


class _Circuit(NamedTuple):
    """A part that fails by itself: a node of a Cluster, or, without a Cluster, everything."""

    breaker: Breaker
    node: Any


class RedisStore:
    """An AsyncStore, which suspends only in its client. Raises StoreError for a bad address."""

    client: BlockingClient | AsyncClient

    def __init__(
        self, settings: Settings, client_class: type[BlockingClient | AsyncClient]
    ) -> None:
        self._settings = settings
        self._client_class = client_class
        try:
            self.address = parse(settings.store)
            self.address.options()
        except ValueError as error:
            raise StoreError(f"cluster_store is no URL of a Redis: {error}") from None
        self._is_cluster = self.address.topology is Topology.CLUSTER
        self._timeout = settings.store_timeout
        self._prefix = settings.store_prefix.encode()
        self.forget()
        forks.register(self)

    def forget(self) -> None:
        """Hold no connection, in a forked child."""
        self._breakers: defaultdict[str | None, Breaker] = defaultdict(Breaker)
        self.client = self._client_class(
            self.address, self._timeout, self._settings.store_connections
        )

    def __repr__(self) -> str:
        return f"<RedisStore {self.address}>"

    # --- asking ---------------------------------------------------------------------------

    async def _ask(
        self, *commands: tuple[Any, ...], again: bool = True, node: Any = None
    ) -> list[Any]:
        """Return the answers to commands. ``again``: they may be carried out twice."""
        circuits = self._circuits(commands, node)
        for circuit in circuits:
            if not circuit.breaker.is_closed:
                # A request that comes when the pause is over starts a probe, and continues if that
                # is answered soon.
                if circuit.breaker.admits(time.monotonic()):
                    await self.client.start(self._probe(circuit), _PROBE_WAIT_S)
                if not circuit.breaker.is_closed:
                    raise StoreAway(f"{self.address} is away")
        deadline = time.monotonic() + self._timeout
        for pause in (*_RETRY_PAUSES_S, None):
            try:
                answers = await self.client.execute(Call(commands, deadline, node))
            except _DENIED as error:
                raise StoreError(f"{self.address}: {error}") from error
            except _AWAY as error:
                seconds = (pause or 0.0) * random.uniform(0.5, 1.5)
                now = time.monotonic()
                is_last = pause is None or now + seconds >= deadline
                if is_last or not (again or _is_not_done(error)):
                    for circuit in circuits:
                        circuit.breaker.failed(now)
                    reason = _reason(error)
                    raise StoreAway(f"{self.address} does not answer: {reason}") from error
                await self.client.sleep(seconds)
            except exceptions.RedisError as error:
                for circuit in circuits:
                    circuit.breaker.succeeded()
                raise self._failure(error) from error
            else:
                self._note(circuits, commands, answers)
                return answers
        raise AssertionError("the last attempt has no pause")

    def _circuits(self, commands: Sequence[tuple[Any, ...]], node: Any) -> list[_Circuit]:
        """Return the circuits of the nodes that are asked: in a Cluster some may answer while
        another hangs."""
        if not self._is_cluster:
            return [_Circuit(self._breakers[None], None)]
        nodes = [node] if node is not None else self.client.nodes_of(map(_key, commands))
        return [_Circuit(self._breakers[each and each.name], each) for each in nodes]

    async def _probe(self, circuit: _Circuit) -> None:
        """Ask the node, or, without a Cluster, for a random key."""
        command = ("EXISTS", random.randbytes(4)) if circuit.node is None else ("PING",)
        call = Call((command,), time.monotonic() + self._timeout, circuit.node)
        try:
            await self.client.execute(call)
        except _AWAY:
            circuit.breaker.failed(time.monotonic())
        except exceptions.RedisError:
            circuit.breaker.succeeded()
        else:
            circuit.breaker.succeeded()

    def _note(
        self, circuits: list[_Circuit], commands: Sequence[tuple[Any, ...]], answers: list[Any]
    ) -> None:
        """Tell the breakers. Some of many commands may have gone to a node that did not answer."""
        if len(commands) == 1:
            circuits[0].breaker.succeeded()
            return
        lost = [
            command
            for command, answer in zip(commands, answers, strict=True)
            if isinstance(answer, _AWAY)
        ]
        silent = [circuit.breaker for circuit in self._circuits(lost, None)] if lost else []
        for circuit in circuits:
            if any(circuit.breaker is each for each in silent):
                circuit.breaker.failed(time.monotonic())
            else:
                circuit.breaker.succeeded()

    async def _one(self, *command: Any, again: bool = True, node: Any = None) -> Any:
        return (await self._ask(command, again=again, node=node))[0]

    async def _each(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Return the answers to many commands, None for a key of the wrong kind. Raises the first
        other error among them."""
        answers = []
        for start in range(0, len(commands), _BATCH):
            answers += await self._ask(*commands[start : start + _BATCH])
        for answer in answers:
            if isinstance(answer, Exception) and not _is_wrong_kind(answer):
                if isinstance(answer, _AWAY):
                    raise StoreAway(f"{self.address}: {_reason(answer)}") from answer
                raise self._failure(answer) from answer
        return [None if isinstance(answer, Exception) else answer for answer in answers]

    async def _run_lua(self, script: lua.LuaScript, *args: Any, again: bool = True) -> Any:
        """Run a script by its digest; a server that does not know the digest gets the text."""
        try:
            return await self._one("EVALSHA", script.digest, 1, *args, again=again)
        except StoreError as error:
            if not isinstance(error.__cause__, exceptions.NoScriptError):
                raise
        return await self._one("EVAL", script.text, 1, *args, again=again)

    def _failure(self, error: Exception) -> StoreError:
        if _is_wrong_kind(error):
            return StoreError("The key holds the wrong kind of value: field maps and values differ")
        is_no_number = any(words in str(error) for words in _NO_NUMBER)
        return (NotANumber if is_no_number else StoreError)(f"{self.address}: {error}")

    # --- values ---------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes | None:
        value: bytes | None = await self._one("GET", self._prefix + key)
        return value

    async def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        prefixed = [self._prefix + key for key in keys]
        if self._is_cluster:
            return await self._each([("GET", key) for key in prefixed])
        if not prefixed:
            return []
        values: list[bytes | None] = await self._one("MGET", *prefixed)
        return values

    async def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        await self._one(*_set(self._prefix + key, value, ttl))

    async def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None:
        await self._each([_set(self._prefix + key, value, ttl) for key, value in items.items()])

    async def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool:
        return bool(await self._one(*_set(self._prefix + key, value, ttl), "NX", again=False))

    async def touch(self, key: bytes, ttl: float | None) -> bool:
        if ttl is None:
            return bool(await self._run_lua(lua.PERSIST, self._prefix + key))
        return bool(await self._one("PEXPIRE", self._prefix + key, _ms(ttl)))

    async def delete(self, keys: Iterable[bytes]) -> int:
        return await self._delete([self._prefix + key for key in keys])

    async def _delete(self, prefixed: list[bytes]) -> int:
        if self._is_cluster:
            return sum(await self._each([("UNLINK", key) for key in prefixed]))
        return int(await self._one("UNLINK", *prefixed)) if prefixed else 0

    async def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int:
        key = self._prefix + key
        if ttl is None:
            return int(await self._one("INCRBY", key, by, again=False))
        return int(await self._run_lua(lua.INCR, key, by, _ms(ttl), again=False))

    async def compare_and_delete(self, key: bytes, value: bytes) -> bool:
        key = self._prefix + key
        return bool(await self._run_lua(lua.COMPARE_AND_DELETE, key, value, again=False))

    async def clear(self, prefix: bytes) -> int:
        # SCAN's patterns are to take the prefix literally.
        pattern = re.sub(rb"([*?\[\]\\^-])", rb"\\\1", self._prefix + prefix) + b"*"
        cleared = 0
        for node in await self.client.nodes(self._timeout):
            cursor: Any = b"0"
            while True:
                scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                cursor, keys = await self._one(*scan, node=node)
                if isinstance(cursor, dict):  # a Cluster's client says for which node
                    (cursor,) = cursor.values()
                cleared += await self._delete(list(keys))
                if int(cursor) == 0:
                    break
        return cleared

    # --- field maps -----------------------------------------------------------------------

    async def fields(self, key: bytes) -> dict[bytes, bytes]:
        fields: dict[bytes, bytes] = await self._one("HGETALL", self._prefix + key)
        return fields

    async def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool:
        removed = list(remove)
        pairs = [each for pair in put.items() for each in pair]
        args = (0 if ttl is None else _ms(ttl), int(must_exist), len(removed), *removed, *pairs)
        return bool(await self._run_lua(lua.CHANGE, self._prefix + key, *args))

    async def close(self) -> None:
        await self.client.close()


def open_store(settings: Settings) -> BlockingStore:
    """Return the Redis store for threads. Raises StoreError."""
    return BlockingStore(RedisStore(settings, BlockingClient))


def open_async_store(settings: Settings) -> AsyncStore:
    """Return the Redis store for an event loop. Raises StoreError."""
    return RedisStore(settings, AsyncClient)


def _key(command: tuple[Any, ...]) -> bytes:
    """Return the key of a command; scripts have it after their digest and the number of keys."""
    key: bytes = command[3 if command[0].startswith("EVAL") else 1]
    return key


def _set(key: bytes, value: bytes, ttl: float | None) -> tuple[Any, ...]:
    return ("SET", key, value) if ttl is None else ("SET", key, value, "PX", _ms(ttl))


def _ms(ttl: float) -> int:
    return max(1, round(min(ttl, 1e12) * 1000))


def _is_not_done(error: Exception) -> bool:
    """Return whether the command was certainly not carried out."""
    return isinstance(error, _NOT_DONE) or isinstance(error.__context__, _REFUSED)


def _is_wrong_kind(error: Exception) -> bool:
    return isinstance(error, exceptions.ResponseError) and str(error).startswith("WRONGTYPE")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
