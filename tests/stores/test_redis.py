import pytest

from gunicorn_cluster_ext.settings import Settings
from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched
from tests.harness.store_conformance import CALL_TIMEOUT_S, Conformance


class TestRedis(Conformance):
    @pytest.fixture
    def settings(self, shared_redis: Redis) -> Settings:
        return Settings(store=shared_redis.url, store_timeout=CALL_TIMEOUT_S)


class TestUnixSocket(Conformance):
    @pytest.fixture
    def settings(self, shared_redis: Redis) -> Settings:
        return Settings(store=shared_redis.unix_url, store_timeout=CALL_TIMEOUT_S)


class TestSentinel(Conformance):
    @pytest.fixture
    def settings(self, shared_sentinel: Watched) -> Settings:
        return Settings(store=shared_sentinel.url, store_timeout=CALL_TIMEOUT_S)


class TestCluster(Conformance):
    @pytest.fixture
    def settings(self, shared_cluster: Cluster) -> Settings:
        return Settings(store=shared_cluster.url, store_timeout=CALL_TIMEOUT_S)
