"""Code that is written once, as coroutines, and run with or without an event loop.

In an event loop a coroutine is awaited as usual. Without one ``run`` drives it, and whatever it
awaits blocks the thread and returns, so that it never suspends:

    async def double(io: IO, key: bytes) -> int:
        number = await io.store.get(key)
        ...

    run(double(stores.blocking_io, key))        await double(stores.async_io, key)

One step costs 300 ns without a loop and 160 ns in one. Generators that yield their steps, which
were tried before, cost 660 and 730 ns.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from gunicorn_cluster_ext.runtime import forks
from gunicorn_cluster_ext.stores.contract import AsyncStore, StoreError

if TYPE_CHECKING:
    from gunicorn_cluster_ext.stores.handles import Stores

T = TypeVar("T")

#: How often a held key gets its time to live again, which must be a few times longer.
_RENEWAL_INTERVAL_S = 1.0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends. Raises RuntimeError if it does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("A blocking call awaited something that suspends")


async def blocking_sleep(seconds: float) -> None:
    """Sleep in this thread: ``asyncio.sleep`` for coroutines that ``run`` drives."""
    time.sleep(seconds)


class BlockingStore:
    """The store of threads, made of the coroutines of an AsyncStore, which never suspend."""

    def __init__(self, coroutines: AsyncStore) -> None:
        self.coroutines = coroutines

    def __repr__(self) -> str:
        return repr(self.coroutines)

    def get(self, key: bytes) -> bytes | None:
        return run(self.coroutines.get(key))

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return run(self.coroutines.get_many(keys))

    def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        return run(self.coroutines.set(key, value, ttl))

    def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None:
        return run(self.coroutines.set_many(items, ttl))

    def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool:
        return run(self.coroutines.add(key, value, ttl))

    def touch(self, key: bytes, ttl: float | None) -> bool:
        return run(self.coroutines.touch(key, ttl))

    def delete(self, keys: Iterable[bytes]) -> int:
        return run(self.coroutines.delete(keys))

    def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int:
        return run(self.coroutines.incr(key, by, ttl))

    def compare_and_delete(self, key: bytes, value: bytes) -> bool:
        return run(self.coroutines.compare_and_delete(key, value))

    def clear(self, prefix: bytes) -> int:
        return run(self.coroutines.clear(prefix))

    def fields(self, key: bytes) -> dict[bytes, bytes]:
        return run(self.coroutines.fields(key))

    def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool:
        return run(self.coroutines.change(key, put, remove, ttl=ttl, must_exist=must_exist))

    def close(self) -> None:
        return run(self.coroutines.close())


class BlockingIO:
    """Whatever a coroutine of the cache or of a session may wait for, in a thread."""

    sleep = staticmethod(blocking_sleep)

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    @property
    def store(self) -> AsyncStore:
        """The store, opened on first use. Raises StoreError when it cannot be opened."""
        return self._stores.store.coroutines

    async def call(self, function: Callable[[], Any]) -> Any:
        """Return the result of ``function``, which may be asynchronous in an event loop."""
        return function()

    async def call_while_renewing(self, key: bytes, ttl: float, function: Callable[[], Any]) -> Any:
        """Return the result of ``function``. Until then ``key`` is renewed each second, so that
        it does not expire after its ``ttl`` seconds."""
        store = self._stores.store
        with _renewer.renewing(lambda: store.touch(key, ttl)):
            return function()


class AsyncIO:
    """The same as BlockingIO, in the running event loop."""

    sleep = staticmethod(asyncio.sleep)

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    @property
    def store(self) -> AsyncStore:
        return self._stores.async_store

    async def call(self, function: Callable[[], Any]) -> Any:
        result = function()
        return await result if inspect.isawaitable(result) else result

    async def call_while_renewing(self, key: bytes, ttl: float, function: Callable[[], Any]) -> Any:
        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEWAL_INTERVAL_S)
                with contextlib.suppress(StoreError):
                    await self.store.touch(key, ttl)

        renewal = asyncio.ensure_future(renew())
        try:
            return await self.call(function)
        finally:
            renewal.cancel()


IO = BlockingIO | AsyncIO


class _Renewer:
    """Renews keys from a thread, which runs only while there are some."""

    def __init__(self) -> None:
        self.forget()
        forks.register(self)

    def forget(self) -> None:
        """Hold no key, in a forked child."""
        self._lock = threading.Lock()
        self._touches: dict[object, Callable[[], object]] = {}
        self._running = False

    @contextlib.contextmanager
    def renewing(self, touch: Callable[[], object]) -> Iterator[None]:
        """Call ``touch`` each second in the meantime."""
        token = object()
        with self._lock:
            self._touches[token] = touch
            is_first, self._running = not self._running, True
        if is_first:
            # Without the lock: with gevent another greenlet runs meanwhile, and a lock that was
            # made before gevent patched would block the whole process.
            threading.Thread(target=self._run, name="cluster-renewer", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._touches[token]

    def _run(self) -> None:
        while True:
            time.sleep(_RENEWAL_INTERVAL_S)
            with self._lock:
                touches = list(self._touches.values())
                self._running = bool(touches)
            if not touches:
                return
            for touch in touches:
                with contextlib.suppress(StoreError):
                    touch()


_renewer = _Renewer()
