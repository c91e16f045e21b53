"""Stores: bytes under keys with a time to live, shared by all workers.

A store knows nothing of codecs, sessions or caches. Each kind of store passes one conformance
suite (``tests/stores``), and is written once, as coroutines (``sync_async``). A process opens a
store when it first uses it, so always after the fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gunicorn_cluster_ext.settings import Settings
    from gunicorn_cluster_ext.stores.contract import AsyncStore
    from gunicorn_cluster_ext.stores.sync_async import BlockingStore


def open_store(settings: Settings) -> BlockingStore:
    """Return the store that ``cluster_store`` names. No server is connected to, and no file opened.

    Raises StoreError if the store cannot be used: no client library, no directory.
    """
    if settings.store == "embedded":
        from gunicorn_cluster_ext.stores.embedded import store as embedded

        return embedded.open_store(settings)
    from gunicorn_cluster_ext.stores.redis import store as redis

    return redis.open_store(settings)


def open_async_store(settings: Settings) -> AsyncStore:
    """Return the store that ``cluster_store`` names, for an event loop. See ``open_store``."""
    if settings.store == "embedded":
        from gunicorn_cluster_ext.stores.embedded import store as embedded

        return embedded.open_async_store(settings)
    from gunicorn_cluster_ext.stores.redis import store as redis

    return redis.open_async_store(settings)
