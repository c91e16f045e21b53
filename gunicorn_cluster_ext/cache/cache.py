"""The cache: values under keys, computed once, with a time to live. See the package."""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from gunicorn_cluster_ext import codec
from gunicorn_cluster_ext.cache.locks import Lock
from gunicorn_cluster_ext.cache.single_flight import Entry, Flight, unpack
from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime import context
from gunicorn_cluster_ext.runtime.counters import (
    cache_errors,
    cache_failed,
    cache_hits,
    cache_misses,
)
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.drivers import Asynchronous, Blocking
from gunicorn_cluster_ext.stores.handles import Stores
from gunicorn_cluster_ext.stores.script import Script, arun, run

F = TypeVar("F", bound=Callable[..., Any])
Key = str | bytes


class Default(enum.Enum):
    """``ttl`` was not given: it is ``cluster_cache_ttl``."""

    TTL = enum.auto()


Ttl = float | None | Default

#: The longest key that is kept as it is; LMDB allows 511 bytes with all prefixes.
_LONGEST: Final = 200
_PATIENCE_S: Final = 20.0
_MISS: Final = object()


class Cache:
    """One namespace. ``ttl`` is in seconds; None: as long as there is room.

    The module's functions are the methods of the one without a name.
    """

    def __init__(self, namespace: str = "", stores: Stores = handles.default) -> None:
        if ":" in namespace:
            raise ValueError(f"the namespace {namespace!r} has a colon")
        self._name = namespace
        self._prefix = f"cache:{namespace}:".encode()
        self._stores = stores
        self._blocking = Blocking(stores)
        self._asynchronous = Asynchronous(stores)

    def __repr__(self) -> str:
        return f"<Cache {self._name!r}>"

    def namespace(self, name: str) -> Cache:
        """A cache whose keys are its own, and that can be cleared by itself."""
        return Cache(name, self._stores)

    # --- one value ----------------------------------------------------------------------

    def get(self, key: Key, default: Any = None) -> Any:
        try:
            data = self._stores.store.get(self._key(key))
        except StoreError as error:
            return self._failed(error, default)
        return self._opened(key, data, default)

    async def aget(self, key: Key, default: Any = None) -> Any:
        try:
            data = await self._stores.async_store.get(self._key(key))
        except StoreError as error:
            return self._failed(error, default)
        return self._opened(key, data, default)

    def set(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        """Whether it was stored. Raises UnknownType."""
        return run(self._set(key, value, ttl), self._blocking)

    async def aset(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        return await arun(self._set(key, value, ttl), self._asynchronous)

    def add(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        """Set unless there is something, atomically. Whether it was set. Raises StoreAway."""
        return run(self._add(key, value, ttl), self._blocking)

    async def aadd(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        return await arun(self._add(key, value, ttl), self._asynchronous)

    def touch(self, key: Key, ttl: Ttl = Default.TTL) -> bool:
        """Give what is there another time to live. Whether there is something."""
        return run(self._touch(key, ttl), self._blocking)

    async def atouch(self, key: Key, ttl: Ttl = Default.TTL) -> bool:
        return await arun(self._touch(key, ttl), self._asynchronous)

    def delete(self, key: Key) -> bool:
        """Whether there was something. What is being computed for ``key`` is not kept either."""
        return self.delete_many([key]) > 0

    async def adelete(self, key: Key) -> bool:
        return await self.adelete_many([key]) > 0

    def incr(self, key: Key, by: int = 1, ttl: float | None = None) -> int:
        """Add to a number, 0 if there is none, atomically. Returns the sum. Raises StoreAway.

        ``ttl`` counts from the first time, and is not the default.
        """
        return run(self._incr(key, by, ttl), self._blocking)

    async def aincr(self, key: Key, by: int = 1, ttl: float | None = None) -> int:
        return await arun(self._incr(key, by, ttl), self._asynchronous)

    # --- many ---------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Those that are there, by key."""
        return run(self._get_many(list(keys)), self._blocking)

    async def aget_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        return await arun(self._get_many(list(keys)), self._asynchronous)

    def set_many(self, items: Mapping[Any, Any], ttl: Ttl = Default.TTL) -> bool:
        """Whether they were stored. Raises UnknownType, and then none is."""
        return run(self._set_many(items, ttl), self._blocking)

    async def aset_many(self, items: Mapping[Any, Any], ttl: Ttl = Default.TTL) -> bool:
        return await arun(self._set_many(items, ttl), self._asynchronous)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """How many there were."""
        return run(self._delete_many(list(keys)), self._blocking)

    async def adelete_many(self, keys: Iterable[Key]) -> int:
        return await arun(self._delete_many(list(keys)), self._asynchronous)

    def clear(self) -> int:
        """Delete all of this namespace; without a name, of all namespaces. About how many there
        were. Raises StoreAway."""
        return run(self._clear(), self._blocking)

    async def aclear(self) -> int:
        return await arun(self._clear(), self._asynchronous)

    # --- what is costly -----------------------------------------------------------------

    def get_or_set(
        self,
        key: Key,
        function: Callable[[], Any],
        ttl: Ttl = Default.TTL,
        *,
        stale: float = 0,
        wait: float = _PATIENCE_S,
    ) -> Any:
        """The value, which ``function`` computes if there is none, once for all workers.

        The others wait up to ``wait`` seconds, or are given a value that is too old by at most
        ``stale`` seconds. A value that is asked for often and costs something is computed anew a
        little ahead of its time, by one of those who ask. What it is cannot be counted with
        ``incr``, which needs no first value.
        """
        return run(self._get_or_set(key, function, ttl, stale, wait), self._blocking)

    async def aget_or_set(
        self,
        key: Key,
        function: Callable[[], Any],
        ttl: Ttl = Default.TTL,
        *,
        stale: float = 0,
        wait: float = _PATIENCE_S,
    ) -> Any:
        """``function`` may be asynchronous."""
        return await arun(self._get_or_set(key, function, ttl, stale, wait), self._asynchronous)

    def cached(
        self,
        ttl: Ttl = Default.TTL,
        *,
        key: Callable[..., Key] | None = None,
        stale: float = 0,
        wait: float = _PATIENCE_S,
    ) -> Callable[[F], F]:
        """Decorates a function, asynchronous or not, so that ``get_or_set`` calls it.

        The key is made of its name and its arguments, which must be such as can be stored, or by
        ``key`` of its arguments. ``f.delete(*arguments)`` forgets one value, ``f.key(*arguments)``
        tells its key.
        """

        def decorate(function: F) -> F:
            name: Callable[..., Key] = key or functools.partial(_key_of_call, function)

            def blocking(*args: Any, **kwargs: Any) -> Any:
                call = functools.partial(function, *args, **kwargs)
                return self.get_or_set(name(*args, **kwargs), call, ttl, stale=stale, wait=wait)

            async def asynchronous(*args: Any, **kwargs: Any) -> Any:
                call = functools.partial(function, *args, **kwargs)
                key = name(*args, **kwargs)
                return await self.aget_or_set(key, call, ttl, stale=stale, wait=wait)

            is_async = inspect.iscoroutinefunction(function)
            wrapper: Any = functools.wraps(function)(asynchronous if is_async else blocking)
            wrapper.key = name
            wrapper.delete = lambda *args, **kwargs: self.delete(name(*args, **kwargs))
            wrapper.adelete = lambda *args, **kwargs: self.adelete(name(*args, **kwargs))
            return wrapper  # type: ignore[no-any-return]

        return decorate

    def lock(self, name: str, ttl: float, *, wait: float | None = None) -> Lock:
        """A lock for ``with`` or ``async with``, which wait for it up to ``wait`` seconds (by
        default ``ttl``: whoever has it now has it no longer by then) and then raise LockTimeout.
        """
        key = b"lock:" + self._key(name)
        return Lock(self._stores, key, name, ttl, ttl if wait is None else wait)

    def stats(self) -> dict[str, int]:
        """What this process has counted since its start, in all namespaces."""
        counts = {"hits": cache_hits, "misses": cache_misses, "errors": cache_errors}
        return {name: count.value for name, count in counts.items()}

    # --- the scripts --------------------------------------------------------------------

    def _set(self, key: Key, value: Any, ttl: Ttl) -> Script[bool]:
        data, seconds = codec.encode(value, _word(key)), _seconds(ttl)
        try:
            yield lambda face: face.store.set(self._key(key), data, seconds)
        except StoreError as error:
            return self._dropped(error)
        return True

    def _add(self, key: Key, value: Any, ttl: Ttl) -> Script[bool]:
        data, seconds = codec.encode(value, _word(key)), _seconds(ttl)
        with _counting():
            return bool((yield lambda face: face.store.add(self._key(key), data, seconds)))

    def _touch(self, key: Key, ttl: Ttl) -> Script[bool]:
        seconds = _seconds(ttl)
        try:
            return bool((yield lambda face: face.store.touch(self._key(key), seconds)))
        except StoreError as error:
            return self._dropped(error)

    def _incr(self, key: Key, by: int, ttl: float | None) -> Script[int]:
        seconds = _seconds(ttl)
        with _counting():
            return int((yield lambda face: face.store.incr(self._key(key), by, seconds)))

    def _get_many(self, keys: list[Key]) -> Script[dict[Key, Any]]:
        try:
            found = yield lambda face: face.store.get_many([self._key(key) for key in keys])
        except StoreError as error:
            self._failed(error, None, len(keys))
            return {}
        values = {
            key: self._opened(key, data, _MISS) for key, data in zip(keys, found, strict=True)
        }
        return {key: value for key, value in values.items() if value is not _MISS}

    def _set_many(self, items: Mapping[Key, Any], ttl: Ttl) -> Script[bool]:
        seconds = _seconds(ttl)
        data = {self._key(key): codec.encode(value, _word(key)) for key, value in items.items()}
        try:
            yield lambda face: face.store.set_many(data, seconds)
        except StoreError as error:
            return self._dropped(error)
        return True

    def _delete_many(self, keys: list[Key]) -> Script[int]:
        # The turn as well: who computes this now does so from what was true before.
        names = [name for key in keys for name in (self._key(key), self._turn(key))]
        try:
            found = yield lambda face: face.store.delete(names)
        except StoreError as error:
            return int(self._dropped(error))
        return min(int(found), len(keys))

    def _clear(self) -> Script[int]:
        prefix = self._prefix if self._name else b"cache:"
        with _counting():
            return int((yield lambda face: face.store.clear(prefix)))

    def _get_or_set(
        self, key: Key, function: Callable[[], Any], ttl: Ttl, stale: float, wait: float
    ) -> Script[Any]:
        name = self._key(key)
        entry = yield from self._entry(name)
        fresh = entry is not None and entry.is_fresh()
        (cache_hits if fresh else cache_misses).add()
        if entry is not None and not entry.is_due():
            return entry.value
        flight = Flight(
            name,
            self._turn(key),
            _word(key),
            function,
            _seconds(ttl),
            stale,
            wait,
            self._entry,
        )
        return (yield from flight.fly(entry))

    def _entry(self, name: bytes) -> Script[Entry | None]:
        """What is under ``name``, perhaps too old. Counts errors only."""
        try:
            data = yield lambda face: face.store.get(name)
            return None if data is None else unpack(data)
        except StoreError as error:
            cache_failed(error)
        except codec.CorruptValue as error:
            _say_corrupt(name, error)
        return None

    # --- what they share ----------------------------------------------------------------

    def _key(self, key: Key) -> bytes:
        return self._prefix + _short(key)

    def _turn(self, key: Key) -> bytes:
        """Within the namespace, so that clearing it is a delete of all."""
        return self._prefix + b"\0turn:" + _short(key)

    def _opened(self, key: Key, data: bytes | None, default: Any) -> Any:
        if data is not None:
            try:
                entry = unpack(data)
            except codec.CorruptValue as error:
                _say_corrupt(self._key(key), error)
            else:
                if entry.is_fresh():
                    cache_hits.add()
                    return entry.value
        cache_misses.add()
        return default

    def _failed(self, error: StoreError, default: Any, keys: int = 1) -> Any:
        cache_failed(error)
        cache_misses.add(keys)
        return default

    def _dropped(self, error: StoreError) -> bool:
        cache_failed(error)
        return False


def _short(key: Key) -> bytes:
    data = key.encode(errors="surrogatepass") if isinstance(key, str) else key
    if len(data) <= _LONGEST:
        return data
    return b"\0" + hashlib.blake2b(data, digest_size=32).hexdigest().encode()


def _word(key: Key) -> str:
    return key if isinstance(key, str) else repr(key)


def _seconds(ttl: Ttl) -> float | None:
    if isinstance(ttl, Default):
        return context.settings().cache_ttl or None
    if ttl is not None and ttl <= 0:
        raise ValueError(f"ttl must be more than 0, not {ttl!r}")
    return ttl


def _key_of_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Raises UnknownType for an argument that cannot be stored, ``self`` for instance."""
    name = f"{function.__module__}.{function.__qualname__}"
    data = codec.encode((args, sorted(kwargs.items())), f"an argument of {name}")
    return f"{name}:{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _say_corrupt(name: bytes, error: codec.CorruptValue) -> None:
    cache_errors.add()
    log.warning("What the store has under %r is no value (%s)", name[:100], error)


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        cache_failed(error)
        raise
