"""The settings that choose a store, and the stores that are opened for them."""

import subprocess
import sys
from typing import Any

import pytest

from gunicorn_cluster_ext.settings import SettingError, Settings
from gunicorn_cluster_ext.stores import open_async_store, open_store
from gunicorn_cluster_ext.stores.contract import StoreError


def test_the_defaults() -> None:
    settings = Settings()
    assert (settings.store, settings.store_path, settings.store_size) == ("embedded", None, 1 << 28)
    assert (settings.store_timeout, settings.store_connections) == (1.0, 50)
    assert (settings.store_name, settings.store_prefix) == (None, "gunicorn_cluster:")


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "redis://localhost",
        "rediss://u:p@h:6380/1",
        "unix:///run/redis.sock?db=2",
        "redis+sentinel://a:1,b:2/main/0",
        "rediss+cluster://a:1,b:2",
    ],
)
def test_stores(url: str) -> None:
    assert Settings(store=url).store == url


@pytest.mark.parametrize(
    "value",
    ["", None, 7, "redis", "redis://", "http://h", "redis+other://h", "redis+sentinel://a:1,b:2"],
)
def test_no_store(value: Any) -> None:
    with pytest.raises(SettingError, match="cluster_store"):
        Settings(store=value)


@pytest.mark.parametrize("value", [7, "a\nb", "a" * 1_001])
def test_no_name(value: Any) -> None:
    with pytest.raises(SettingError, match="cluster_store_name"):
        Settings(store_name=value)


@pytest.mark.parametrize("value", [None, 7, "a b", "ä", "a" * 101])
def test_no_prefix(value: Any) -> None:
    with pytest.raises(SettingError, match="cluster_store_prefix"):
        Settings(store_prefix=value)


@pytest.mark.parametrize("url", ["redis://h:port", "redis+cluster://a:x"])
def test_an_address_that_nobody_can_have(url: str) -> None:
    for opens in (open_store, open_async_store):
        with pytest.raises(StoreError, match="cluster_store is no URL of a Redis"):
            opens(Settings(store=url))


def test_nothing_is_asked_before_it_is_used() -> None:
    store = open_store(Settings(store="redis+sentinel://:secret@nowhere.invalid:1/main"))
    assert repr(store) == "<RedisStore redis+sentinel://nowhere.invalid:1/main>"
    store.close()


def test_what_is_not_used_is_not_imported() -> None:
    code = """
import sys
from gunicorn_cluster_ext import stores
assert not {"lmdb", "redis"} & set(sys.modules)
from gunicorn_cluster_ext.stores import embedded
assert "redis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
