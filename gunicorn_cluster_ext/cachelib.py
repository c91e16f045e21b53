"""The cache with the interface of cachelib, for Flask-Caching, Flask-Session and others.

Cache(app, config={"CACHE_TYPE": "gunicorn_cluster_ext.cachelib.ClusterCache"})
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gunicorn_cluster_ext.extras import missing

try:
    from cachelib import BaseCache
except ImportError as error:
    raise missing("cachelib", error) from None

from gunicorn_cluster_ext.cache import Cache, http_responses
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.handles import Stores

__all__ = ["ClusterCache", "flask_caching", "http_responses"]

_MISS = object()


class ClusterCache(BaseCache):
    """A cache with a namespace of its own. As in cachelib, a timeout of 0 means for ever, and an
    operation that is impossible without the store returns None or False."""

    def __init__(
        self,
        default_timeout: int | timedelta = 300,
        ignore_delete_many_errors: bool = True,
        *,
        namespace: str = "cachelib",
        stores: Stores = handles.default,
    ) -> None:
        # Before 0.15 the base class takes one argument, and no timedelta.
        super().__init__(default_timeout)  # type: ignore[arg-type,unused-ignore]
        self.ignore_delete_many_errors = ignore_delete_many_errors
        self._cache = Cache(namespace, stores)

    def get(self, key: str) -> Any:
        return self._cache.get(key)

    def get_many(self, *keys: str) -> list[Any]:
        found = self._cache.get_many(keys)
        return [found.get(key) for key in keys]

    def has(self, key: str) -> bool:
        return self._cache.get(key, _MISS) is not _MISS

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        ttl = self._ttl(timeout)
        if ttl is not None and ttl < 0:
            self._cache.delete(key)
            return True
        return self._cache.set(key, value, ttl)

    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        try:
            return self._cache.add(key, value, self._ttl(timeout))
        except StoreError:
            return False

    def set_many(
        self, mapping: dict[str, Any], timeout: int | timedelta | None = None
    ) -> list[Any]:
        stored = self._cache.set_many(mapping, self._ttl(timeout))
        return list(mapping) if stored else []

    def delete(self, key: str) -> bool:
        return self._cache.delete(key)

    def clear(self) -> bool:
        try:
            self._cache.clear()
        except StoreError:
            return False
        return True

    def inc(self, key: str, delta: int = 1) -> int | None:
        try:
            return self._cache.incr(key, delta, self._ttl(None))
        except StoreError:
            return None

    def dec(self, key: str, delta: int = 1) -> int | None:
        return self.inc(key, -delta)

    def _ttl(self, timeout: int | timedelta | None) -> float | None:
        seconds = self.default_timeout if timeout is None else timeout
        return (seconds.total_seconds() if isinstance(seconds, timedelta) else seconds) or None


def flask_caching(*args: Any, **options: Any) -> ClusterCache:
    """Create the cache. Flask-Caching calls this with the options, before 2.5 with (app, config,
    args, options)."""
    if len(args) == 4:
        _, _, args, options = args
    return ClusterCache(*args, **options)
