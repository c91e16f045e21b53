"""Two sites on one Redis do not see each other's entries."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gunicorn_cluster_ext.settings import Settings
from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.store_conformance import CALL_TIMEOUT_S, open_in_mode

Pair = tuple[Any, Any]


@pytest.fixture(params=["alone", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    kind = "shared_redis" if request.param == "alone" else "shared_cluster"
    server: Redis | Cluster = request.getfixturevalue(kind)
    return server.url


@pytest.fixture(params=["sync", "async"])
def sites(request: pytest.FixtureRequest, url: str) -> Iterator[Pair]:
    """Two sites with similar prefixes, which contain the special characters of SCAN."""
    with ExitStack() as stack:
        opened = []
        for prefix in ("shop[1]*:", "shop[1]:"):
            settings = Settings(store=url, store_prefix=prefix, store_timeout=CALL_TIMEOUT_S)
            opened.append(open_in_mode(request.param, settings))
            stack.callback(opened[-1].close)
            opened[-1].clear(b"")
        yield opened[0], opened[1]


def fill(site: Any, mark: bytes) -> None:
    site.set(b"value", mark)
    site.set_many({b"many1": mark, b"many2": mark})
    assert site.add(b"added", mark)
    assert site.incr(b"count", len(mark)) == len(mark)
    assert site.incr(b"timed", len(mark), 1_000) == len(mark)
    assert site.change(b"map", {b"field": mark})


def check(site: Any, mark: bytes) -> None:
    values = [mark, mark, mark, mark, b"%d" % len(mark), b"%d" % len(mark)]
    names = [b"value", b"many1", b"many2", b"added", b"count", b"timed"]
    assert site.get_many(names) == values
    assert site.get(b"value") == mark
    assert site.fields(b"map") == {b"field": mark}


def test_each_has_its_own(sites: Pair) -> None:
    one, other = sites
    fill(one, b"1")
    fill(other, b"22")
    check(one, b"1")
    check(other, b"22")


def test_what_one_deletes_the_other_keeps(sites: Pair) -> None:
    one, other = sites
    fill(one, b"1")
    fill(other, b"22")
    assert one.compare_and_delete(b"value", b"1")
    assert one.delete([b"many1", b"map"]) == 2
    assert one.touch(b"many2", None) and one.touch(b"many2", 1_000)
    check(other, b"22")
    assert one.clear(b"") == 4
    check(other, b"22")
    assert one.get(b"added") is None


def test_what_is_not_ours_stays(sites: Pair, shared_redis: Redis, url: str) -> None:
    """A clear deletes only what has our prefix."""
    if url == shared_redis.url:
        shared_redis.ask("SET", "cache:of:others", "1")
        sites[0].clear(b"")
        assert shared_redis.ask("GET", "cache:of:others") == b"1"
