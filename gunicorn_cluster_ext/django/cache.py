"""A backend for Django's cache framework, over the cache that all workers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async

from gunicorn_cluster_ext.extras import missing

try:
    from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
except ImportError as error:
    raise missing("django", error) from None

from gunicorn_cluster_ext.cache import Cache, http_responses
from gunicorn_cluster_ext.runtime import context
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.handles import Stores

__all__ = ["ClusterCache", "http_responses"]


class ClusterCache(BaseCache):
    """The cache backend. ``LOCATION`` is the address of a store of its own, in place of the
    server's.

    Values are those of ``codec`` and HTTP responses; any other raises UnknownType. When the store
    is away, ``add``, ``incr`` and ``clear`` raise StoreAway.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        stores = handles.default
        if location:
            stores = Stores(partial(context.with_settings, {"store": location}))
        namespace = params.get("OPTIONS", {}).get("namespace", "django")
        self._cache = Cache(namespace, stores)

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return self._cache.get(self.make_and_validate_key(key, version), default)

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            self._cache.delete(name)
        else:
            self._cache.set(name, value, ttl)

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            return not self.has_key(key, version)
        return self._cache.add(name, value, ttl)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            return self._cache.delete(name)
        return self._cache.touch(name, ttl)

    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._cache.delete(self.make_and_validate_key(key, version))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Raises ValueError when there is no value, as Django requires."""
        if not self.has_key(key, version):
            raise ValueError(f"Key {key!r} not found")
        return self._cache.incr(self.make_and_validate_key(key, version), delta)

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Increment atomically, which Django's own method does not."""
        return await sync_to_async(self.incr)(key, delta, version)

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self.make_and_validate_key(key, version): key for key in keys}
        found = self._cache.get_many(names)
        return {names[name]: value for name, value in found.items()}

    def set_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[Any]:
        ttl = self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            self.delete_many(data, version)
            return []
        items = {self.make_and_validate_key(key, version): value for key, value in data.items()}
        return [] if self._cache.set_many(items, ttl) else list(data)

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._cache.delete_many([self.make_and_validate_key(key, version) for key in keys])

    def get_or_set(
        self,
        key: Any,
        default: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> Any:
        """Compute the result of a function once for all workers."""
        ttl = self._ttl(timeout)
        if not callable(default) or (ttl is not None and ttl <= 0):
            return super().get_or_set(key, default, timeout, version)
        return self._cache.get_or_set(self.make_and_validate_key(key, version), default, ttl)

    def clear(self) -> None:
        self._cache.clear()

    def _ttl(self, timeout: Any) -> float | None:
        """Return the time to live in seconds. None means for ever, 0 or less already expired."""
        timeout = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        return None if timeout is None else max(-1.0, float(timeout))
