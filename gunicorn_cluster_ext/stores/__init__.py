"""Stores: bytes under keys with a time to live, shared by all workers.

A store knows nothing of codecs, sessions or caches. All of them pass one conformance suite
(``tests/stores``). What a store holds is opened after the fork, in the process that uses it,
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import AsyncStore, Store


def open_store(settings: Settings) -> Store:
    """What ``cluster_store`` names. Nothing is opened or asked yet, except where its files are.

    Raises StoreError if that store cannot be: no client library, no directory.
    """
    if settings.store == "embedded":
        from gunicorn_cluster_ext.stores.embedded.store import EmbeddedStore, open_environment

        return EmbeddedStore(open_environment(settings))
    from gunicorn_cluster_ext.stores.redis.store import RedisStore

    return RedisStore(settings)


def open_async_store(settings: Settings) -> AsyncStore:
    """The same for an event loop."""
    if settings.store == "embedded":
        from gunicorn_cluster_ext.stores.embedded.store import AsyncEmbeddedStore, open_environment

        return AsyncEmbeddedStore(open_environment(settings))
    from gunicorn_cluster_ext.stores.redis.store import AsyncRedisStore

    return AsyncRedisStore(settings)
