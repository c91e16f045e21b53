"""Django's cache: what Django's own tests ask of a backend (tests/cache/tests.py, 5.2), as far as
it concerns one that does not pickle and does not cull."""

import asyncio
import time
from datetime import date, datetime
from typing import Any

import pytest
from django.core.cache.backends.base import CacheKeyWarning, InvalidCacheBackendError
from django.http import HttpResponse, StreamingHttpResponse
from django.template import Context, Template
from django.test import Client
from django.utils.safestring import SafeString, mark_safe

from gunicorn_cluster_ext.codec import UnknownType
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.contract import StoreAway
from tests.harness.fakes.django_site import BACKEND, cache_of, configure, key_func, stores
from tests.harness.fakes.store import MemoryStores

__all__ = ["stores"]
configure()


@pytest.fixture
def cache(stores: MemoryStores) -> Any:
    return cache_of()


# --- BaseCacheTests ---------------------------------------------------------------------------


def test_simple(cache: Any) -> None:
    cache.set("key", "value")
    assert cache.get("key") == "value"


def test_default_used_when_none_is_set(cache: Any) -> None:
    cache.set("key_default_none", None)
    assert cache.get("key_default_none", default="default") is None


def test_add(cache: Any) -> None:
    assert cache.add("addkey1", "value") is True
    assert cache.add("addkey1", "newvalue") is False
    assert cache.get("addkey1") == "value"


def test_prefix(cache: Any) -> None:
    cache.set("somekey", "value")
    assert cache_of("prefix").has_key("somekey") is False
    cache_of("prefix").set("somekey", "value2")
    assert cache.get("somekey") == "value"
    assert cache_of("prefix").get("somekey") == "value2"


def test_non_existent(cache: Any) -> None:
    assert cache.get("does_not_exist") is None
    assert cache.get("does_not_exist", "bang!") == "bang!"


def test_get_many(cache: Any) -> None:
    cache.set_many({"a": "a", "b": "b", "c": "c", "d": "d", "x": None, "y": 1})
    assert cache.get_many(["a", "c", "d"]) == {"a": "a", "c": "c", "d": "d"}
    assert cache.get_many(["a", "b", "e"]) == {"a": "a", "b": "b"}
    assert cache.get_many(iter(["a", "b", "e"])) == {"a": "a", "b": "b"}
    assert cache.get_many(["x", "y"]) == {"x": None, "y": 1}
    assert cache.get_many([]) == {}


def test_delete(cache: Any) -> None:
    cache.set_many({"key1": "spam", "key2": "eggs"})
    assert cache.delete("key1") is True
    assert cache.get("key1") is None
    assert cache.get("key2") == "eggs"
    assert cache.delete("a_key_that_does_not_exist") is False


def test_has_key(cache: Any) -> None:
    cache.set("hello1", "goodbye1")
    assert cache.has_key("hello1") is True
    assert "hello1" in cache
    assert cache.has_key("goodbye1") is False
    cache.set("no_expiry", "here", None)
    assert cache.has_key("no_expiry") is True
    cache.set("null", None)
    assert cache.has_key("null") is True


def test_incr(cache: Any) -> None:
    cache.set("answer", 41)
    assert cache.incr("answer") == 42
    assert cache.get("answer") == 42
    assert cache.incr("answer", 10) == 52
    assert cache.incr("answer", -10) == 42
    with pytest.raises(ValueError):
        cache.incr("does_not_exist")
    with pytest.raises(ValueError):
        cache.incr("does_not_exist", -1)


def test_decr(cache: Any) -> None:
    cache.set("answer", 43)
    assert cache.decr("answer") == 42
    assert cache.decr("answer", 10) == 32
    assert cache.decr("answer", -10) == 42
    with pytest.raises(ValueError):
        cache.decr("does_not_exist")


def test_close(cache: Any) -> None:
    assert hasattr(cache, "close")
    cache.close()


@pytest.mark.parametrize(
    "value",
    [
        "this is a string",
        "Iñtërnâtiônàlizætiøn",
        True,
        42,
        3.5,
        [1, 2, 3, 4],
        (1, 2, 3, 4),
        {"A": 1, "B": 2, "ü": {"x": 1}},
        b"\x00binary",
        date(2026, 1, 1),
        datetime(2026, 1, 1, 5),
        {1, 2},
        SafeString("<b>"),
    ],
)
def test_data_types(cache: Any, value: Any) -> None:
    for key in ("ascii", "ascii2", "unicode_ü"):
        cache.set(key, value)
        assert cache.get(key) == value
        assert type(cache.get(key)) is type(value)
        cache.delete(key)
        cache.add(key, value)
        assert cache.get(key) == value
        cache.set_many({key: value})
        assert cache.get(key) == value


def test_expiration(cache: Any, stores: MemoryStores) -> None:
    cache.set("expire1", "very quickly", 1)
    cache.set("expire2", "very quickly", 1)
    cache.set("expire3", "slowly", 50)
    stores.memory.ahead = 2
    assert cache.get("expire1") is None
    assert cache.add("expire2", "newvalue") is True
    assert cache.get("expire2") == "newvalue"
    assert cache.has_key("expire3") is True


def test_touch(cache: Any, stores: MemoryStores) -> None:
    cache.set("expire1", "very quickly", timeout=10)
    assert cache.touch("expire1", timeout=40) is True
    stores.memory.ahead += 30
    assert cache.has_key("expire1") is True
    stores.memory.ahead += 30
    assert cache.has_key("expire1") is False
    cache.set("expire1", "very quickly", timeout=10)
    assert cache.touch("expire1") is True
    stores.memory.ahead += 30
    assert cache.has_key("expire1") is True
    assert cache.touch("nonexistent") is False
    assert cache.touch("expire1", timeout=0) is True
    assert cache.has_key("expire1") is False


def test_set_many(cache: Any, stores: MemoryStores) -> None:
    assert cache.set_many({"key1": "spam", "key2": "eggs"}, 10) == []
    assert cache.get("key1") == "spam" and cache.get("key2") == "eggs"
    stores.memory.ahead += 11
    assert cache.get("key1") is None
    stores.memory.away = True
    assert cache.set_many({"key1": 1}) == ["key1"]


def test_delete_many(cache: Any) -> None:
    cache.set_many({"key1": "spam", "key2": "eggs", "key3": "ham"})
    cache.delete_many(["key1", "key2"])
    assert cache.get_many(["key1", "key2", "key3"]) == {"key3": "ham"}
    cache.delete_many([])


def test_clear(cache: Any) -> None:
    cache.set_many({"key1": "spam", "key2": "eggs"})
    cache_of("other").set("key1", "stays")
    cache.clear()
    assert cache.get("key1") is None and cache.get("key2") is None
    assert cache_of("other").get("key1") == "stays"


def test_long_and_forever_timeouts(cache: Any, stores: MemoryStores) -> None:
    cache.set("key1", "eggs", 60 * 60 * 24 * 30 + 1)
    assert cache.get("key1") == "eggs"
    cache.set("key2", "eggs", None)
    assert cache.add("key3", "ham", None) is True
    cache.set_many({"key4": "sausage"}, None)
    cache_of("other").set("key5", "by TIMEOUT")
    stores.memory.ahead = 10**9
    assert cache.get_many(["key1", "key2", "key3", "key4"]) == {
        "key2": "eggs", "key3": "ham", "key4": "sausage",
    }  # fmt: skip
    assert cache_of("other").get("key5") == "by TIMEOUT"


@pytest.mark.parametrize("timeout", [0, -1])
def test_zero_timeout(cache: Any, timeout: int) -> None:
    cache.set("key1", "eggs", timeout)
    assert cache.get("key1") is None
    assert cache.add("key2", "ham", timeout) is True
    assert cache.get("key2") is None
    cache.set_many({"key3": "sausage", "key4": "lobster bisque"}, timeout)
    assert cache.get("key3") is None and cache.get("key4") is None
    cache.set("key5", "belgian fries", timeout=5)
    assert cache.touch("key5", timeout=timeout) is True
    assert cache.get("key5") is None
    cache.set("key5", 1)
    cache.set("key5", 2, timeout)
    assert cache.get("key5") is None
    assert cache.get_or_set("key6", lambda: 5, timeout) == 5
    assert cache.get("key6") is None


def test_float_timeout(cache: Any, stores: MemoryStores) -> None:
    cache.set("key1", "spam", 100.2)
    assert cache.get("key1") == "spam"
    stores.memory.ahead = 101
    assert cache.get("key1") is None


@pytest.mark.parametrize("key", ["key with spaces", "a" * 251, "control\x00"])
def test_invalid_keys_warn(cache: Any, key: str) -> None:
    for use in (
        lambda: cache.add(key, 1),
        lambda: cache.get(key),
        lambda: cache.set(key, 1),
        lambda: cache.set_many({key: 1}),
        lambda: cache.get_many([key]),
        lambda: cache.delete(key),
        lambda: cache.delete_many([key]),
        lambda: cache.touch(key),
        lambda: cache.get_or_set(key, lambda: 1),
    ):
        with pytest.warns(CacheKeyWarning):
            use()


def test_versions(cache: Any) -> None:
    v2 = cache_of("v2")
    cache.set("answer1", 42)
    assert cache.get("answer1") == 42
    assert cache.get("answer1", version=2) is None
    assert v2.get("answer1") is None and v2.get("answer1", version=1) == 42
    cache.set("answer2", 42, version=2)
    assert v2.get("answer2") == 42
    assert cache.add("answer1", 37, version=2) is True
    assert cache.has_key("answer1", version=2) and not v2.has_key("answer1", version=3)
    assert cache.incr("answer1", version=2) == 38 and cache.get("answer1") == 42
    assert cache.touch("answer1", 50, version=2) is True
    assert cache.delete("answer1", version=2) is True
    cache.set_many({"ford2": 37, "arthur2": 42}, version=2)
    assert v2.get_many(["ford2", "arthur2"]) == {"ford2": 37, "arthur2": 42}
    assert cache.get_many(["ford2", "arthur2"]) == {}
    v2.delete_many(["ford2"])
    assert cache.get_many(["ford2", "arthur2"], version=2) == {"arthur2": 42}


def test_incr_version(cache: Any) -> None:
    cache.set("answer", 42, version=2)
    assert cache.incr_version("answer", version=2) == 3
    assert cache.get("answer", version=3) == 42 and cache.get("answer", version=2) is None
    assert cache.decr_version("answer", version=3) == 2
    cache.set("null", None)
    assert cache.incr_version("null") == 2
    with pytest.raises(ValueError):
        cache.incr_version("does_not_exist")


def test_custom_key_func(cache: Any) -> None:
    custom = cache_of("custom_key")
    custom.set("answer2", 42)
    assert custom.get("answer2") == 42
    assert cache.get("answer2") is None
    assert key_func("a", "p", 1) == "CUSTOM-p-1-a"


def test_get_or_set(cache: Any) -> None:
    assert cache.get("projector") is None
    assert cache.get_or_set("projector", 42) == 42
    assert cache.get("projector") == 42
    assert cache.incr("projector") == 43
    assert cache.get_or_set("null", None) is None
    assert cache.get("null", "default") is None


def test_get_or_set_callable(cache: Any) -> None:
    calls = []

    def my_callable() -> str:
        calls.append(1)
        return "value"

    assert [cache.get_or_set("mykey", my_callable) for _ in range(3)] == ["value"] * 3
    assert cache.get_or_set("mykey", my_callable()) == "value"
    assert len(calls) == 2
    assert cache.get_or_set("null", lambda: None) is None
    assert cache.get("null", "default") is None


def test_get_or_set_version(cache: Any) -> None:
    cache.get_or_set("brian", 1979, version=2)
    with pytest.raises(TypeError):
        cache.get_or_set("brian")
    assert cache.get_or_set("brian", lambda: 1980, version=1) == 1980
    assert cache.get("brian", version=2) == 1979


# --- what has no business in a cache ----------------------------------------------------------


class Unpicklable:
    def __getstate__(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize("value", [Unpicklable(), StreamingHttpResponse([b"x"])])
def test_a_type_of_nobody_is_an_error(cache: Any, value: Any) -> None:
    with pytest.raises(UnknownType):
        cache.set("key", value)
    with pytest.raises(UnknownType):
        cache.add("key", value)


def test_without_its_store(cache: Any, stores: MemoryStores) -> None:
    stores.memory.away = True
    assert cache.get("key", "default") == "default"
    cache.set("key", 1)
    assert cache.get_or_set("key", lambda: 5) == 5
    assert cache.delete("key") is False
    with pytest.raises(StoreAway):
        cache.add("key", 1)


def test_a_store_of_its_own() -> None:
    from gunicorn_cluster_ext.django.cache import ClusterCache

    own = ClusterCache("redis://127.0.0.1:1/3", {})
    assert own._cache._stores is not handles.default
    assert own._cache._stores._settings().store == "redis://127.0.0.1:1/3"


def test_it_is_a_backend_by_name() -> None:
    from django.core.cache import CacheHandler

    assert CacheHandler({"default": {"BACKEND": BACKEND}})["default"]
    with pytest.raises(InvalidCacheBackendError):
        CacheHandler({"default": {"BACKEND": BACKEND + "x"}})["default"]


# --- whole pages, fragments, event loops ------------------------------------------------------


def test_cache_page(stores: MemoryStores) -> None:
    client = Client()
    first = client.get("/page")
    second = client.get("/page")
    assert first.content == second.content
    assert type(second) is HttpResponse
    assert second["X-Own"] == "yes" and second["Content-Type"] == "application/json"
    assert second.cookies["flavour"].OutputString() == first.cookies["flavour"].OutputString()
    assert "max-age=60" in second["Cache-Control"]
    cache_of().clear()
    assert client.get("/page").content != first.content


def test_a_response_keeps_what_is_sent(cache: Any) -> None:
    response = HttpResponse("tëxt", status=418, reason="Teapot", charset="latin-1")
    response["X-Own"] = "yes"
    cache.set("page", response)
    back = cache.get("page")
    assert (back.content, back.status_code, back.reason_phrase, back.charset) == (
        "tëxt".encode("latin-1"), 418, "Teapot", "latin-1",
    )  # fmt: skip
    assert back["X-Own"] == "yes"
    assert back["Content-Type"] == response["Content-Type"]


def test_fragments(stores: MemoryStores) -> None:
    template = Template("{% load cache %}{% cache 60 part %}{{ text }}{% endcache %}")
    first = template.render(Context({"text": mark_safe(f"<b>{time.time()}</b>")}))
    assert template.render(Context({"text": "other"})) == first
    assert first.startswith("<b>")


def test_in_an_event_loop(cache: Any) -> None:
    async def use() -> None:
        await cache.aset("key", 1)
        assert await cache.aget("key") == 1
        assert await cache.aadd("key", 2) is False
        assert await cache.aincr("key", 5) == 6
        assert await cache.adecr("key") == 5
        with pytest.raises(ValueError):
            await cache.aincr("absent")
        assert await cache.aget_or_set("other", lambda: "x") == "x"
        await cache.aset_many({"a": 1})
        assert await cache.aget_many(["a", "b"]) == {"a": 1}
        assert await cache.atouch("a", 50) is True
        assert await cache.ahas_key("a") is True
        assert await cache.adelete("a") is True
        await cache.aclear()
        assert await cache.aget("key") is None

    asyncio.run(use())
