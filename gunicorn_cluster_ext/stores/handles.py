"""The stores that this process has opened.

A store is opened when it is first used, by the process that uses it: nothing of it may cross a
fork. To share a server's embedded store, a process outside its workers gives it the same name or
path (``cluster_store_name``, ``cluster_store_path``) as the server does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from gunicorn_cluster_ext import stores
from gunicorn_cluster_ext.runtime import context, forks
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import Store


class Stores:
    """The stores of some settings: one for this process, and one for each event loop in it."""

    def __init__(self, settings: Callable[[], Settings] = context.settings) -> None:
        self._settings = settings
        self.forget()
        forks.register(self)

    def forget(self) -> None:
        """Hold no open store, in a forked child."""
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._asynchronous: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @property
    def store(self) -> Store:
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
    def async_store(self) -> Any:
        """The store of the running event loop. Raises StoreError when it cannot be opened."""
        # Imported here, because a gevent worker must be able to patch before asyncio is imported.
        import asyncio

        loop = asyncio.get_running_loop()
        store = self._asynchronous.get(loop)
        if store is None:
            store = self._asynchronous[loop] = stores.open_async_store(self._settings())
        return store


default = Stores()
