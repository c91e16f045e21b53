"""The store of many machines: a Redis, alone, watched by Sentinels, or a Cluster.

Everything that a call may meet is dealt with in ``_Operations._ask``, once for both faces: what
is tried again, what counts for the breaker, and what becomes of an error.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.circuit_breaker import Breaker
from gunicorn_cluster_ext.stores.contract import NotANumber, StoreAway, StoreError
from gunicorn_cluster_ext.stores.redis import lua
from gunicorn_cluster_ext.stores.script import Script, Step, arun, run, sleep
from gunicorn_cluster_ext.stores.sync_async import Asynchronous, Blocking, immediate, operation

try:
    from redis import exceptions

    from gunicorn_cluster_ext.stores.redis.blocking_client import AsyncClient, BlockingClient, Call
    from gunicorn_cluster_ext.stores.redis.url import parse
except ImportError as error:
    raise StoreError(f"cluster_store names a Redis, which needs redis-py >= 5.1: {error}") from None

#: Pauses before it is tried again, varied by half so that not all come back at once.
_AGAIN_S = (0.02, 0.06, 0.18)
#: How long a request waits for a probe, which goes on without it: half of what p99 may be.
_PROBE_S = 0.025
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


class _Circuit(NamedTuple):
    """What may be away by itself: a node of a Cluster, or, without one, all that there is."""

    breaker: Breaker
    node: Any


class _Operations:
    client: Any

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        try:
            self.address = parse(settings.store)
            self.address.options()
        except ValueError as error:
            raise StoreError(f"cluster_store is no URL of a Redis: {error}") from None
        self._timeout = settings.store_timeout
        self._prefix = settings.store_prefix.encode()
        self.forget()
        _stores.add(self)

    def forget(self) -> None:
        """Begin anew, after a fork."""
        self._breakers: defaultdict[str | None, Breaker] = defaultdict(Breaker)
        self.client = self._new_client()

    def _new_client(self) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}>"

    # --- asking ---------------------------------------------------------------------------

    def _ask(self, *commands: tuple[Any, ...], again: bool = True, node: Any = None) -> Script[Any]:
        """The answers to commands. ``again``: it does no harm to do them twice."""
        circuits = self._circuits(commands, node)
        for circuit in circuits:
            if not circuit.breaker.is_closed:
                yield from self._pass(circuit)
        deadline = time.monotonic() + self._timeout
        for pause in (*_AGAIN_S, None):
            try:
                answers = yield _execute(Call(commands, deadline, node))
            except _DENIED as error:
                raise StoreError(f"{self.address}: {error}") from error
            except _AWAY as error:
                may = again or _is_not_done(error)
                yield from self._pause(pause if may else None, deadline, error, circuits)
            except exceptions.RedisError as error:
                _succeeded(circuits)
                raise self._failure(error) from error
            else:
                self._note(circuits, commands, answers)
                return answers

    def _circuits(self, commands: Sequence[tuple[Any, ...]], node: Any) -> list[_Circuit]:
        """One; or those of the nodes of a Cluster that are asked, for others may answer when one
        hangs."""
        if self.address.way != "cluster":
            return [_Circuit(self._breakers[None], None)]
        nodes = [node] if node is not None else self.client.nodes_of(map(_key, commands))
        return [_Circuit(self._breakers[each and each.name], each) for each in nodes]

    def _pass(self, circuit: _Circuit) -> Script[None]:
        """Raises StoreAway while it is open. A request that comes when it may be tried again has
        a probe sent, and goes on if that is answered at once."""
        if circuit.breaker.admits(time.monotonic()):
            yield lambda store: store.probe(circuit, _PROBE_S)
        if not circuit.breaker.is_closed:
            raise StoreAway(f"{self.address} is away")

    def _probe(self, circuit: _Circuit) -> Script[None]:
        """Ask the node, or for some key."""
        command = ("EXISTS", random.randbytes(4)) if circuit.node is None else ("PING",)
        try:
            yield _execute(Call((command,), time.monotonic() + self._timeout, circuit.node))
        except _AWAY:
            circuit.breaker.failed(time.monotonic())
        except exceptions.RedisError:
            circuit.breaker.succeeded()
        else:
            circuit.breaker.succeeded()

    def _pause(
        self, pause: float | None, deadline: float, error: Exception, circuits: list[_Circuit]
    ) -> Script[None]:
        """Before trying again; or this was the last time."""
        seconds = 0.0 if pause is None else pause * random.uniform(0.5, 1.5)
        now = time.monotonic()
        if pause is None or now + seconds >= deadline:
            for circuit in circuits:
                circuit.breaker.failed(now)
            raise StoreAway(f"{self.address} does not answer: {_reason(error)}") from error
        yield sleep(seconds)

    def _note(
        self, circuits: list[_Circuit], commands: Sequence[tuple[Any, ...]], answers: list[Any]
    ) -> None:
        """Of many commands to a Cluster some may have gone to a node that did not answer."""
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

    def _one(self, *command: Any, again: bool = True, node: Any = None) -> Script[Any]:
        return (yield from self._ask(command, again=again, node=node))[0]

    def _each(self, commands: list[tuple[Any, ...]]) -> Script[list[Any]]:
        """The answers to many. The first error among them is raised, except for the wrong kind."""
        if not commands:
            return []
        answers = []
        for start in range(0, len(commands), _BATCH):
            answers += yield from self._ask(*commands[start : start + _BATCH])
        for answer in answers:
            if isinstance(answer, Exception) and not _is_wrong_kind(answer):
                if isinstance(answer, _AWAY):
                    raise StoreAway(f"{self.address}: {_reason(answer)}") from answer
                raise self._failure(answer) from answer
        return [None if isinstance(answer, Exception) else answer for answer in answers]

    def _run_script(self, script: lua.Script, *args: Any, again: bool = True) -> Script[Any]:
        """By its digest; a server that does not know it (any more) gets it."""
        try:
            return (yield from self._one("EVALSHA", script.digest, 1, *args, again=again))
        except StoreError as error:
            if not isinstance(error.__cause__, exceptions.NoScriptError):
                raise
        return (yield from self._one("EVAL", script.text, 1, *args, again=again))

    def _failure(self, error: Exception) -> StoreError:
        if _is_wrong_kind(error):
            return StoreError("The key holds the wrong kind of value: field maps and values differ")
        is_no_number = any(words in str(error) for words in _NO_NUMBER)
        return (NotANumber if is_no_number else StoreError)(f"{self.address}: {error}")

    # --- values ---------------------------------------------------------------------------

    @operation
    def get(self, key: bytes) -> Script[bytes | None]:
        value: bytes | None = yield from self._one("GET", self._prefix + key)
        return value

    @operation
    def get_many(self, keys: Iterable[bytes]) -> Script[list[bytes | None]]:
        wanted = [self._prefix + key for key in keys]
        if self.address.way == "cluster":
            return (yield from self._each([("GET", key) for key in wanted]))
        if not wanted:
            return []
        values: list[bytes | None] = yield from self._one("MGET", *wanted)
        return values

    @operation
    def set(self, key: bytes, value: bytes, ttl: float | None = None) -> Script[None]:
        yield from self._one(*_set(self._prefix + key, value, ttl))

    @operation
    def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> Script[None]:
        yield from self._each(
            [_set(self._prefix + key, value, ttl) for key, value in items.items()]
        )

    @operation
    def add(self, key: bytes, value: bytes, ttl: float | None = None) -> Script[bool]:
        return bool(
            (yield from self._one(*_set(self._prefix + key, value, ttl), "NX", again=False))
        )

    @operation
    def touch(self, key: bytes, ttl: float | None) -> Script[bool]:
        if ttl is None:
            return bool((yield from self._run_script(lua.PERSIST, self._prefix + key)))
        return bool((yield from self._one("PEXPIRE", self._prefix + key, _ms(ttl))))

    @operation
    def delete(self, keys: Iterable[bytes]) -> Script[int]:
        return (yield from self._delete([self._prefix + key for key in keys]))

    def _delete(self, keys: list[bytes]) -> Script[int]:
        if self.address.way == "cluster":
            return sum((yield from self._each([("UNLINK", key) for key in keys])))
        if not keys:
            return 0
        return int((yield from self._one("UNLINK", *keys)))

    @operation
    def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> Script[int]:
        if ttl is None:
            return int((yield from self._one("INCRBY", self._prefix + key, by, again=False)))
        return int(
            (yield from self._run_script(lua.INCR, self._prefix + key, by, _ms(ttl), again=False))
        )

    @operation
    def compare_and_delete(self, key: bytes, value: bytes) -> Script[bool]:
        script = lua.COMPARE_AND_DELETE
        return bool((yield from self._run_script(script, self._prefix + key, value, again=False)))

    @operation
    def clear(self, prefix: bytes) -> Script[int]:
        pattern, cleared = _escape(self._prefix + prefix) + b"*", 0
        for node in (yield lambda store: store.client.nodes(self._timeout)):
            cursor: Any = b"0"
            while cursor is not None:
                answer = yield from self._one(
                    "SCAN", cursor, "MATCH", pattern, "COUNT", 1000, node=node
                )
                cursor, keys = _page(answer)
                cleared += yield from self._delete(keys)
        return cleared

    # --- field maps -----------------------------------------------------------------------

    @operation
    def fields(self, key: bytes) -> Script[dict[bytes, bytes]]:
        fields: dict[bytes, bytes] = yield from self._one("HGETALL", self._prefix + key)
        return fields

    @operation
    def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> Script[bool]:
        gone = list(remove)
        pairs = [each for pair in put.items() for each in pair]
        args = (0 if ttl is None else _ms(ttl), int(must_exist), len(gone), *gone, *pairs)
        return bool((yield from self._run_script(lua.CHANGE, self._prefix + key, *args)))


class RedisStore(_Operations, Blocking):
    def _new_client(self) -> BlockingClient:
        return BlockingClient(self.address, self._timeout, self._settings.store_connections)

    def probe(self, circuit: _Circuit, seconds: float) -> None:
        """See whether there is an answer, aside, and wait for it so many seconds."""
        probe = threading.Thread(target=run, args=(self._probe(circuit), self), daemon=True)
        probe.start()
        probe.join(seconds)

    @immediate
    def close(self) -> None:
        self.client.close()


class AsyncRedisStore(_Operations, Asynchronous):
    def forget(self) -> None:
        super().forget()
        self._probes: set[asyncio.Task[None]] = set()

    def _new_client(self) -> AsyncClient:
        return AsyncClient(self.address, self._timeout, self._settings.store_connections)

    async def probe(self, circuit: _Circuit, seconds: float) -> None:
        probe = asyncio.create_task(arun(self._probe(circuit), self))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)
        await asyncio.wait({probe}, timeout=seconds)

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await self.client.close()


def _succeeded(circuits: list[_Circuit]) -> None:
    for circuit in circuits:
        circuit.breaker.succeeded()


def _key(command: tuple[Any, ...]) -> bytes:
    """Of one that has a key; scripts have it after their digest and the number of keys."""
    key: bytes = command[3 if command[0].startswith("EVAL") else 1]
    return key


def _execute(call: Call) -> Step:
    return lambda store: store.client.execute(call)


def _set(key: bytes, value: bytes, ttl: float | None) -> tuple[Any, ...]:
    return ("SET", key, value) if ttl is None else ("SET", key, value, "PX", _ms(ttl))


def _ms(ttl: float) -> int:
    return max(1, round(min(ttl, 1e12) * 1000))


def _escape(prefix: bytes) -> bytes:
    """So that SCAN's patterns mean it literally."""
    return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", prefix)


def _page(answer: Any) -> tuple[Any, list[bytes]]:
    """Where SCAN goes on (None: nowhere), and what it found."""
    cursor, keys = answer
    if isinstance(cursor, dict):  # a Cluster's client says for which node
        (cursor,) = cursor.values()
    return (None if int(cursor) == 0 else cursor), list(keys)


def _is_not_done(error: Exception) -> bool:
    return isinstance(error, _NOT_DONE) or isinstance(error.__context__, _REFUSED)


#: What Redis says of INCRBY, in a script too.
_NO_NUMBER = ("value is not an integer", "would overflow")


def _is_wrong_kind(error: Exception) -> bool:
    return isinstance(error, exceptions.ResponseError) and str(error).startswith("WRONGTYPE")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


_stores: WeakSet[_Operations] = WeakSet()


def _after_fork() -> None:
    for store in _stores:
        store.forget()


os.register_at_fork(after_in_child=_after_fork)
