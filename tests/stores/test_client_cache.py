"""The cache in the client, used if server and client support it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_store
from gunicorn_cluster_ext.stores.sync_async import BlockingStore
from tests.harness.fakes.redis import FakeRedis
from tests.harness.servers.redis import Redis
from tests.harness.waiting import wait_until

Start = Callable[..., tuple[FakeRedis, BlockingStore]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server that reports a version, and a store on it."""
    with ExitStack() as stack:

        def start(version: str, options: str = "") -> tuple[FakeRedis, BlockingStore]:
            server = FakeRedis(version)
            stack.callback(server.stop)
            store = open_store(Settings(store=server.url + options))
            stack.callback(store.close)
            return server, store

        yield start


@pytest.mark.parametrize("version", ["7.4.0", "8.2.1"])
def test_a_value_is_asked_for_once(start: Start, version: str) -> None:
    server, store = start(version)
    assert [store.get(b"a") for _ in range(5)] == [b"1"] * 5
    assert server.asked["GET"] == 1
    server.change(b"gunicorn_cluster:a", b"2")
    wait_until(lambda: store.get(b"a") == b"2", 5, "the new value")
    assert server.asked["GET"] == 2


@pytest.mark.parametrize(
    ("version", "options"), [("6.0.16", ""), ("7.2.4", ""), ("8.2.1", "?protocol=2")]
)
def test_otherwise_it_is_asked_each_time(start: Start, version: str, options: str) -> None:
    server, store = start(version, options)
    assert [store.get(b"a") for _ in range(5)] == [b"1"] * 5
    assert server.asked["GET"] == 5
    assert server.asked["HELLO"] == 0


def test_an_old_client_keeps_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "__version__", "7.1.0")
    server, store = start("8.2.1")
    assert [store.get(b"a") for _ in range(5)] == [b"1"] * 5
    assert server.asked["GET"] == 5


def test_what_another_store_writes_is_seen_at_once(shared_redis: Redis) -> None:
    """On the real server, whatever its version."""
    with ExitStack() as stack:
        one, other = (open_store(Settings(store=shared_redis.url)) for _ in range(2))
        stack.callback(one.close)
        stack.callback(other.close)
        for turn in range(50):
            one.set(b"turn", b"%d" % turn)
            assert other.get(b"turn") == b"%d" % turn
