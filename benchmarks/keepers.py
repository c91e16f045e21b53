"""The stores that are compared: ours, and others that several workers can share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cachelib
import diskcache
import redis
from gunicorn.dirty.stash import StashClient

from gunicorn_cluster_ext.cache import Cache
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_store
from gunicorn_cluster_ext.stores.handles import Stores

VALUE = b"sixty bytes of a cached fragment of a page, or of a session."
TTL = 300
# With cachelib's own limit of 500 files it would prune all the time.
FILES = 100_000

Call = Callable[[Any], object]


@dataclass(frozen=True)
class Place:
    """The addresses and the directory that the contenders use."""

    directory: Path
    redis_tcp: str
    redis_unix: str
    stash: str


@dataclass(frozen=True)
class Calls:
    """The operations of a store; each is called with a key.

    ``add`` also deletes what it has added, as a lock does. None means that the store has no such
    operation, or that it is not atomic.
    """

    get: Call
    set: Call
    add: Call | None = None
    incr: Call | None = None
    key: Callable[[str], Any] = str.encode

    def of(self, name: str) -> Call | None:
        call: Call | None = getattr(self, name)
        return call


OPERATIONS = ("get", "set", "add", "incr")


@dataclass(frozen=True)
class Keeper:
    name: str
    open: Callable[[Place], Calls]


def embedded_settings(place: Place) -> Settings:
    return Settings(store_path=str(place.directory / "embedded"))


def our_store(settings: Settings) -> Calls:
    store = open_store(settings)

    def add(key: bytes) -> bool:
        return store.add(key, VALUE, TTL) and store.compare_and_delete(key, VALUE)

    return Calls(store.get, lambda key: store.set(key, VALUE, TTL), add, store.incr)


def our_cache(settings: Settings) -> Calls:
    cache = Cache("benchmark", Stores(lambda: settings))

    def add(key: str) -> bool:
        return cache.add(key, VALUE, TTL) and cache.delete(key)

    return Calls(cache.get, lambda key: cache.set(key, VALUE, TTL), add, cache.incr, key=str)


def redis_py(url: str) -> Calls:
    client = redis.Redis.from_url(url)

    def add(key: bytes) -> bool:
        return bool(client.set(key, VALUE, ex=TTL, nx=True)) and client.delete(key) == 1

    return Calls(client.get, lambda key: client.set(key, VALUE, ex=TTL), add, client.incr)


def disk_cache(place: Place) -> Calls:
    cache = diskcache.Cache(str(place.directory / "diskcache"))

    def add(key: str) -> bool:
        return bool(cache.add(key, VALUE, TTL)) and bool(cache.delete(key))

    return Calls(cache.get, lambda key: cache.set(key, VALUE, TTL), add, cache.incr, key=str)


def cachelib_files(place: Place) -> Calls:
    cache = cachelib.FileSystemCache(str(place.directory / "cachelib"), threshold=FILES)
    return Calls(cache.get, lambda key: cache.set(key, VALUE, TTL), key=str)


def stash(place: Place) -> Calls:
    client = StashClient(place.stash)

    def get(key: str) -> Any:
        return client.get("benchmark", key)

    return Calls(get, lambda key: client.put("benchmark", key, VALUE), key=str)


EMBEDDED = Keeper("embedded store", lambda place: our_store(embedded_settings(place)))
EMBEDDED_CACHE = Keeper("cache on it", lambda place: our_cache(embedded_settings(place)))
OUR_REDIS = Keeper("Redis store, TCP", lambda place: our_store(Settings(store=place.redis_tcp)))
OUR_REDIS_UNIX = Keeper(
    "Redis store, Unix socket", lambda place: our_store(Settings(store=place.redis_unix))
)
PLAIN_REDIS = Keeper("redis-py, TCP", lambda place: redis_py(place.redis_tcp))
PLAIN_REDIS_UNIX = Keeper("redis-py, Unix socket", lambda place: redis_py(place.redis_unix))
DISKCACHE = Keeper("diskcache", disk_cache)
CACHELIB = Keeper("cachelib, files", cachelib_files)
STASH = Keeper("gunicorn's dirty stash", stash)
ALL = (
    EMBEDDED,
    EMBEDDED_CACHE,
    OUR_REDIS,
    OUR_REDIS_UNIX,
    PLAIN_REDIS,
    PLAIN_REDIS_UNIX,
    DISKCACHE,
    CACHELIB,
    STASH,
)
