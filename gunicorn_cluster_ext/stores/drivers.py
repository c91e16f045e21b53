"""How a script asks the stores of this process: blocking, or in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn_cluster_ext.stores.contract import Store, StoreError
from gunicorn_cluster_ext.stores.handles import Stores

#: How often what is kept is given its time to live anew, which must be a few times longer.
_BEAT_S = 1.0


class Blocking:
    """The face of a script in a thread."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    @property
    def store(self) -> Store:
        return self._stores.store

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def keep(self, key: bytes, ttl: float, function: Callable[[], Any]) -> Any:
        """Call ``function`` and have ``key`` live on as long as that takes."""
        with _keeper.keeping(self.store, key, ttl):
            return function()


class Asynchronous:
    """The face of a script in an event loop."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    @property
    def store(self) -> Any:
        return self._stores.async_store

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(self, function: Callable[[], Any]) -> Any:
        result = function()
        return await result if inspect.isawaitable(result) else result

    async def keep(self, key: bytes, ttl: float, function: Callable[[], Any]) -> Any:
        keeping = asyncio.ensure_future(self._keep(key, ttl))
        try:
            return await self.call(function)
        finally:
            keeping.cancel()

    async def _keep(self, key: bytes, ttl: float) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            with contextlib.suppress(StoreError):
                await self.store.touch(key, ttl)


class Keeper:
    """Has keys live on while this process works on them, from a thread that it starts when there
    is something to keep, and that ends when there is nothing."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, after a fork."""
        self._lock = threading.Lock()
        self._kept: dict[object, Callable[[], Any]] = {}
        self._running = False

    @contextlib.contextmanager
    def keeping(self, store: Store, key: bytes, ttl: float) -> Iterator[None]:
        ours = object()
        with self._lock:
            self._kept[ours] = functools.partial(store.touch, key, ttl)
            is_first, self._running = not self._running, True
        if is_first:
            # Without the lock: with gevent another greenlet runs meanwhile, and the lock may be
            # one of before gevent has patched, for which the whole process would wait.
            threading.Thread(target=self._run, name="cluster-keeper", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._kept[ours]

    def _run(self) -> None:
        while True:
            time.sleep(_BEAT_S)
            with self._lock:
                touches = list(self._kept.values())
                self._running = bool(touches)
            if not touches:
                return
            for touch in touches:
                with contextlib.suppress(StoreError):
                    touch()


_keeper = Keeper()
os.register_at_fork(after_in_child=_keeper.forget)
