"""A Redis with TLS: alone, watched by Sentinels, a Cluster."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import StoreAway
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched
from tests.harness.store_conformance import CALL_TIMEOUT_S, Conformance, open_in_mode


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="gce-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def certificate(directory: Path) -> Certificate:
    return Certificate(directory)


@pytest.fixture(scope="module")
def server(directory: Path, certificate: Certificate) -> Iterator[Redis]:
    started = Redis(directory, certificate=certificate)
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def watched(directory: Path, certificate: Certificate) -> Iterator[Watched]:
    started = Watched(directory, certificate)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def cluster(directory: Path, certificate: Certificate) -> Iterator[Cluster]:
    started = Cluster(directory, certificate)
    yield started
    started.stop()


class TestAlone(Conformance):
    @pytest.fixture
    def settings(self, server: Redis) -> Settings:
        return Settings(store=server.tls_url, store_timeout=CALL_TIMEOUT_S)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", ["watched", "cluster"])
def test_several_servers(request: pytest.FixtureRequest, kind: str, mode: str) -> None:
    servers: Watched | Cluster = request.getfixturevalue(kind)
    store = open_in_mode(mode, Settings(store=servers.url, store_timeout=CALL_TIMEOUT_S))
    items = {b"%d" % number: b"%d" % number for number in range(24)}
    store.set_many(items)
    assert store.get_many(items) == list(items.values())
    assert store.change(b"map", {b"a": b"1"}) and store.fields(b"map") == {b"a": b"1"}
    store.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_server_that_nobody_vouches_for(server: Redis, mode: str) -> None:
    url = server.tls_url.partition("?")[0]
    store = open_in_mode(mode, Settings(store=url, store_timeout=0.5))
    with pytest.raises(StoreAway, match="certificate verify failed"):
        store.get(b"a")
    store.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_server_without_tls(server: Redis, mode: str) -> None:
    url = server.tls_url.replace(str(server.tls_port), str(server.port))
    store = open_in_mode(mode, Settings(store=url, store_timeout=0.5))
    with pytest.raises(StoreAway, match="does not answer"):
        store.get(b"a")
    store.close()
