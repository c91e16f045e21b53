"""The cache: values under keys, computed once, with a time to live. See the package.

Each public method exists twice, blocking and as a coroutine, over one private coroutine.
"""

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
from gunicorn_cluster_ext.cache.single_flight import CachedValue, Computation, unpack
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
from gunicorn_cluster_ext.stores.handles import Stores
from gunicorn_cluster_ext.stores.sync_async import IO, run

F = TypeVar("F", bound=Callable[..., Any])
Key = str | bytes


class Default(enum.Enum):
    """Stands for a ``ttl`` that was not given, which is ``cluster_cache_ttl``."""

    TTL = enum.auto()


Ttl = float | None | Default

#: The longest key that is stored as it is, in bytes; LMDB allows 511 with all prefixes.
_LONGEST: Final = 200
#: How long ``get_or_set`` waits for another worker's computation by default.
_MAX_WAIT_S: Final = 20.0
_MISS: Final = object()


class Cache:
    """One namespace. ``ttl`` is in seconds; None means as long as there is room.

    The functions of the package are the methods of the cache without a name.
    """

    def __init__(self, namespace: str = "", stores: Stores = handles.default) -> None:
        if ":" in namespace:
            raise ValueError(f"the namespace {namespace!r} has a colon")
        self._name = namespace
        self._prefix = f"cache:{namespace}:".encode()
        self._stores = stores

    def __repr__(self) -> str:
        return f"<Cache {self._name!r}>"

    def namespace(self, name: str) -> Cache:
        """Return a cache whose keys are its own, and which can be cleared by itself."""
        return Cache(name, self._stores)

    # --- one value ----------------------------------------------------------------------

    # These two are written twice, because with a coroutine of its own ``get`` on the embedded store
    # takes 2.1 us in place of 1.8.

    def get(self, key: Key, default: Any = None) -> Any:
        try:
            data = self._stores.store.get(self._key(key))
        except StoreError as error:
            return self._failed(error, default)
        return self._value(key, data, default)

    async def aget(self, key: Key, default: Any = None) -> Any:
        try:
            data = await self._stores.async_store.get(self._key(key))
        except StoreError as error:
            return self._failed(error, default)
        return self._value(key, data, default)

    def set(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        """Return whether the value was stored. Raises UnknownType."""
        return run(self._set(self._stores.blocking_io, key, value, ttl))

    async def aset(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        return await self._set(self._stores.async_io, key, value, ttl)

    def add(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        """Set unless there is a value, atomically. Return whether it was set. Raises StoreAway."""
        return run(self._add(self._stores.blocking_io, key, value, ttl))

    async def aadd(self, key: Key, value: Any, ttl: Ttl = Default.TTL) -> bool:
        return await self._add(self._stores.async_io, key, value, ttl)

    def touch(self, key: Key, ttl: Ttl = Default.TTL) -> bool:
        """Give a value another time to live. Return whether there is a value."""
        return run(self._touch(self._stores.blocking_io, key, ttl))

    async def atouch(self, key: Key, ttl: Ttl = Default.TTL) -> bool:
        return await self._touch(self._stores.async_io, key, ttl)

    def delete(self, key: Key) -> bool:
        """Delete a value, and do not store one that is being computed now. Return whether there was
        a value."""
        return self.delete_many([key]) > 0

    async def adelete(self, key: Key) -> bool:
        return await self.adelete_many([key]) > 0

    def incr(self, key: Key, by: int = 1, ttl: float | None = None) -> int:
        """Add to a number, 0 if there is none, atomically, and return the sum. Raises StoreAway.

        ``ttl`` counts from the first call on; without it the number does not expire.
        """
        return run(self._incr(self._stores.blocking_io, key, by, ttl))

    async def aincr(self, key: Key, by: int = 1, ttl: float | None = None) -> int:
        return await self._incr(self._stores.async_io, key, by, ttl)

    # --- many ---------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Return the values that exist, by key."""
        return run(self._get_many(self._stores.blocking_io, list(keys)))

    async def aget_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        return await self._get_many(self._stores.async_io, list(keys))

    def set_many(self, items: Mapping[Any, Any], ttl: Ttl = Default.TTL) -> bool:
        """Return whether the values were stored. Raises UnknownType; then none is stored."""
        return run(self._set_many(self._stores.blocking_io, items, ttl))

    async def aset_many(self, items: Mapping[Any, Any], ttl: Ttl = Default.TTL) -> bool:
        return await self._set_many(self._stores.async_io, items, ttl)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Delete values. Return how many there were."""
        return run(self._delete_many(self._stores.blocking_io, list(keys)))

    async def adelete_many(self, keys: Iterable[Key]) -> int:
        return await self._delete_many(self._stores.async_io, list(keys))

    def clear(self) -> int:
        """Delete all values of this namespace; without a name, of all namespaces.

        Return about how many there were. Raises StoreAway.
        """
        return run(self._clear(self._stores.blocking_io))

    async def aclear(self) -> int:
        return await self._clear(self._stores.async_io)

    # --- computed values ------------------------------------------------------------------

    def get_or_set(
        self,
        key: Key,
        function: Callable[[], Any],
        ttl: Ttl = Default.TTL,
        *,
        stale: float = 0,
        wait: float = _MAX_WAIT_S,
    ) -> Any:
        """Return the value, which ``function`` computes if there is none, once for all workers.

        The others wait up to ``wait`` seconds, or get a value that has expired at most ``stale``
        seconds ago. A costly value that is asked for often is computed again a little before it
        expires, by one of the callers. ``incr`` cannot count such a value, and needs no first one.
        """
        return run(self._get_or_set(self._stores.blocking_io, key, function, ttl, stale, wait))

    async def aget_or_set(
        self,
        key: Key,
        function: Callable[[], Any],
        ttl: Ttl = Default.TTL,
        *,
        stale: float = 0,
        wait: float = _MAX_WAIT_S,
    ) -> Any:
        """See ``get_or_set``. ``function`` may be asynchronous."""
        return await self._get_or_set(self._stores.async_io, key, function, ttl, stale, wait)

    def cached(
        self,
        ttl: Ttl = Default.TTL,
        *,
        key: Callable[..., Key] | None = None,
        stale: float = 0,
        wait: float = _MAX_WAIT_S,
    ) -> Callable[[F], F]:
        """Decorate a function, asynchronous or not, so that ``get_or_set`` calls it.

        The key is made of the name and the arguments of the function, which the codec must know, or
        by ``key(*arguments)``. ``f.delete(*arguments)`` deletes one value, and
        ``f.key(*arguments)`` returns its key.
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
        """Return a lock for ``with`` or ``async with``.

        They raise LockTimeout after ``wait`` seconds; by default ``ttl``, after which the present
        holder no longer has the lock.
        """
        key = b"lock:" + self._key(name)
        return Lock(self._stores, key, name, ttl, ttl if wait is None else wait)

    def stats(self) -> dict[str, int]:
        """Return the counts of this process since its start, over all namespaces."""
        counts = {"hits": cache_hits, "misses": cache_misses, "errors": cache_errors}
        return {name: count.value for name, count in counts.items()}

    # --- the coroutines, which run with either IO -------------------------------------------

    async def _set(self, io: IO, key: Key, value: Any, ttl: Ttl) -> bool:
        data, seconds = codec.encode(value, _word(key)), _seconds(ttl)
        try:
            await io.store.set(self._key(key), data, seconds)
        except StoreError as error:
            return self._dropped(error)
        return True

    async def _add(self, io: IO, key: Key, value: Any, ttl: Ttl) -> bool:
        data, seconds = codec.encode(value, _word(key)), _seconds(ttl)
        with _counting():
            return await io.store.add(self._key(key), data, seconds)

    async def _touch(self, io: IO, key: Key, ttl: Ttl) -> bool:
        seconds = _seconds(ttl)
        try:
            return await io.store.touch(self._key(key), seconds)
        except StoreError as error:
            return self._dropped(error)

    async def _incr(self, io: IO, key: Key, by: int, ttl: float | None) -> int:
        seconds = _seconds(ttl)
        with _counting():
            return await io.store.incr(self._key(key), by, seconds)

    async def _get_many(self, io: IO, keys: list[Key]) -> dict[Key, Any]:
        try:
            found = await io.store.get_many([self._key(key) for key in keys])
        except StoreError as error:
            self._failed(error, None, len(keys))
            return {}
        values = {key: self._value(key, data, _MISS) for key, data in zip(keys, found, strict=True)}
        return {key: value for key, value in values.items() if value is not _MISS}

    async def _set_many(self, io: IO, items: Mapping[Key, Any], ttl: Ttl) -> bool:
        seconds = _seconds(ttl)
        data = {self._key(key): codec.encode(value, _word(key)) for key, value in items.items()}
        try:
            await io.store.set_many(data, seconds)
        except StoreError as error:
            return self._dropped(error)
        return True

    async def _delete_many(self, io: IO, keys: list[Key]) -> int:
        # The lease as well: whoever computes the value now does so from what was true before.
        names = [name for key in keys for name in (self._key(key), self._lease(key))]
        try:
            found = await io.store.delete(names)
        except StoreError as error:
            return int(self._dropped(error))
        return min(found, len(keys))

    async def _clear(self, io: IO) -> int:
        with _counting():
            return await io.store.clear(self._prefix if self._name else b"cache:")

    async def _get_or_set(
        self,
        io: IO,
        key: Key,
        function: Callable[[], Any],
        ttl: Ttl,
        stale: float,
        wait: float,
    ) -> Any:
        name = self._key(key)
        cached = await self._read(io, name)
        is_fresh = cached is not None and cached.is_fresh()
        (cache_hits if is_fresh else cache_misses).add()
        if cached is not None and not cached.is_due():
            return cached.value
        lease, word, seconds = self._lease(key), _word(key), _seconds(ttl)
        return await Computation(
            io, name, lease, word, function, seconds, stale, wait, self._read
        ).run(cached)

    async def _read(self, io: IO, name: bytes) -> CachedValue | None:
        """Return what is under ``name``, perhaps too old. Counts errors only."""
        try:
            data = await io.store.get(name)
            return None if data is None else unpack(data)
        except StoreError as error:
            cache_failed(error)
        except codec.CorruptValue as error:
            _log_corrupt(name, error)
        return None

    # --- keys, values, failures -------------------------------------------------------------

    def _key(self, key: Key) -> bytes:
        return self._prefix + _short(key)

    def _lease(self, key: Key) -> bytes:
        """Return the key of the lease: within the namespace, so that ``clear`` deletes it."""
        return self._prefix + b"\0lease:" + _short(key)

    def _value(self, key: Key, data: bytes | None, default: Any) -> Any:
        if data is not None:
            try:
                cached = unpack(data)
            except codec.CorruptValue as error:
                _log_corrupt(self._key(key), error)
            else:
                if cached.is_fresh():
                    cache_hits.add()
                    return cached.value
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
    """Return the key of a call. Raises UnknownType for an argument that cannot be stored, such as
    ``self``."""
    name = f"{function.__module__}.{function.__qualname__}"
    data = codec.encode((args, sorted(kwargs.items())), f"an argument of {name}")
    return f"{name}:{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _log_corrupt(name: bytes, error: codec.CorruptValue) -> None:
    cache_errors.add()
    log.warning("The data in the store under %r is not a value (%s)", name[:100], error)


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    """Count a StoreError, and raise it."""
    try:
        yield
    except StoreError as error:
        cache_failed(error)
        raise
