"""The stores that this process has opened.

A process opens a store when it first uses it: nothing of a store may cross a fork. To share a
server's embedded store, a process outside its workers gives it the same name or path
(``cluster_store_name``, ``cluster_store_path``) as the server does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from gunicorn_cluster_ext import stores
from gunicorn_cluster_ext.runtime import context, forks
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import AsyncStore
from gunicorn_cluster_ext.stores.sync_async import AsyncIO, BlockingIO, BlockingStore


class Stores:
    """The stores of some settings: one for this process, and one for each event loop in it."""

    def __init__(self, settings: Callable[[], Settings] = context.settings) -> None:
        self._settings = settings
        self.blocking_io = BlockingIO(self)
        self.async_io = AsyncIO(self)
        self.forget()
        forks.register(self)

    def forget(self) -> None:
        """Hold no open store, in a forked child."""
        self._lock = threading.Lock()
        self._store: BlockingStore | None = None
        self._asynchronous: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncStore] = (
            WeakKeyDictionary()
        )

    @property
    def store(self) -> BlockingStore:
        """The blocking store. Raises StoreError when it cannot be opened."""
        if self._store is None:
            with self._lock:
                if self._store is None:
                    self._store = stores.open_store(self._settings())
        return self._store

    @property
    def is_local(self) -> bool:
        """Whether the store answers at once, without a network: it may be used in an event loop."""
        return self._settings().store == "embedded"

    @property
    def async_store(self) -> AsyncStore:
        """The store of the running event loop. Raises StoreError when it cannot be opened."""
        loop = asyncio.get_running_loop()
        store = self._asynchronous.get(loop)
        if store is None:
            store = self._asynchronous[loop] = stores.open_async_store(self._settings())
        return store


default = Stores()
