"""The cache with cachelib's interface: what cachelib's own tests ask of a cache, and
Flask-Caching."""

import time
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, Response, jsonify
from flask_caching import Cache as FlaskCaching

from gunicorn_cluster_ext.cachelib import ClusterCache
from gunicorn_cluster_ext.stores import handles
from tests.harness.fakes.store import MemoryStore, MemoryStores


@pytest.fixture
def cache(stores: MemoryStores) -> ClusterCache:
    return ClusterCache(stores=stores)


PAIRS: dict[str, Any] = {
    "bacon": "spam",
    "sausage": 2,
    "brandy": ["fried eggs", 1.5],
    "lobster": {"crevettes": None},
    "mornay": b"",
    "none": None,
}


# --- as cachelib's common.py has it -----------------------------------------------------------


def test_set_and_get(cache: ClusterCache) -> None:
    for key, value in PAIRS.items():
        assert cache.set(key, value)
        assert cache.get(key) == value
    assert cache.get("absent") is None


def test_many(cache: ClusterCache) -> None:
    assert cache.set_many(PAIRS) == list(PAIRS)
    assert cache.get_many(*PAIRS) == list(PAIRS.values())
    assert cache.get_many("bacon", "absent", "sausage") == ["spam", None, 2]
    assert cache.get_dict("bacon", "sausage") == {"bacon": "spam", "sausage": 2}
    assert set(PAIRS) <= set(cache.delete_many(*PAIRS, "absent"))
    assert not any(cache.has(key) for key in PAIRS)


def test_has(cache: ClusterCache) -> None:
    cache.set("none", None)
    assert cache.has("none") and not cache.has("absent")


def test_add(cache: ClusterCache) -> None:
    assert cache.add("key", 1) and not cache.add("key", 2)
    assert cache.get("key") == 1


def test_delete(cache: ClusterCache) -> None:
    cache.set("key", 1)
    assert cache.delete("key") and not cache.delete("key")


def test_inc_and_dec(cache: ClusterCache) -> None:
    assert [cache.inc("n"), cache.inc("n", 10), cache.dec("n", 5), cache.dec("m")] == [1, 11, 6, -1]
    cache.set("n", 41)
    assert cache.inc("n") == 42 and cache.get("n") == 42


def test_timeouts(cache: ClusterCache, memory: MemoryStore) -> None:
    cache.set("default", 1)
    cache.set("ever", 1, timeout=0)
    cache.set("own", 1, timeout=7)
    cache.set("delta", 1, timeout=timedelta(seconds=9))
    cache.set("over", 1, timeout=-1)
    left = {key.split(b":")[-1]: memory.ttl(key) for key in memory.items}
    assert {key: ttl and round(ttl) for key, ttl in left.items()} == {
        b"default": 300, b"ever": None, b"own": 7, b"delta": 9,
    }  # fmt: skip
    memory.ahead = 8
    assert not cache.has("own") and cache.has("delta")


def test_clear(cache: ClusterCache, stores: MemoryStores) -> None:
    other = ClusterCache(namespace="other", stores=stores)
    cache.set("key", 1)
    other.set("key", 2)
    assert cache.clear()
    assert cache.get("key") is None and other.get("key") == 2


def test_without_its_store(cache: ClusterCache, memory: MemoryStore) -> None:
    memory.away = True
    assert cache.get("key") is None and not cache.has("key")
    assert not cache.set("key", 1) and not cache.add("key", 1) and not cache.delete("key")
    assert cache.set_many(PAIRS) == [] and cache.get_many("a", "b") == [None, None]
    assert cache.inc("n") is None and cache.dec("n") is None and not cache.clear()


# --- Flask-Caching ----------------------------------------------------------------------------


@pytest.fixture
def site(stores: MemoryStores, monkeypatch: pytest.MonkeyPatch) -> tuple[Flask, FlaskCaching]:
    app = Flask(__name__)
    config = {
        "CACHE_TYPE": "gunicorn_cluster_ext.cachelib.flask_caching",
        "CACHE_OPTIONS": {"stores": stores},
        "CACHE_DEFAULT_TIMEOUT": 60,
        "CACHE_IGNORE_ERRORS": True,
    }
    return app, FlaskCaching(app, config=config)


def test_flask_caching_caches_views(site: tuple[Flask, FlaskCaching]) -> None:
    app, cache = site
    calls = []

    @app.get("/text")
    @cache.cached()
    def text() -> str:
        calls.append("text")
        return f"<b>{time.time()}</b>"

    @app.get("/json")
    @cache.cached(query_string=True)
    def data() -> Response:
        calls.append("json")
        response = jsonify(now=time.time())
        response.headers["X-Own"] = "yes"
        response.status_code = 201
        return response

    client = app.test_client()
    for path, status in (("/text", 200), ("/json?a=1", 201)):
        first, second = client.get(path), client.get(path)
        assert first.status_code == second.status_code == status
        assert first.data == second.data
        assert first.headers.get("X-Own") == second.headers.get("X-Own")
        assert first.mimetype == second.mimetype
    assert calls == ["text", "json"]


def test_flask_caching_memoizes(site: tuple[Flask, FlaskCaching]) -> None:
    app, cache = site
    calls = []

    @cache.memoize(60)
    def add(a: int, b: int) -> int:
        calls.append((a, b))
        return a + b

    with app.app_context():
        assert [add(1, 2), add(1, 2), add(2, 2)] == [3, 3, 4]
        cache.delete_memoized(add, 1, 2)
        assert [add(1, 2), add(2, 2)] == [3, 4]
        assert calls == [(1, 2), (2, 2), (1, 2)]
        cache.delete_memoized(add)
        add(2, 2)
        assert len(calls) == 4
        cache.clear()


def test_by_default_it_uses_the_servers_store() -> None:
    assert ClusterCache()._cache._stores is handles.default
