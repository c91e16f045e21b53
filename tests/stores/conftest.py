"""Servers that are slow to start, started once for all tests of a process."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched


@pytest.fixture(scope="session")
def shared_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="gce-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def shared_redis(shared_directory: Path) -> Iterator[Redis]:
    server = Redis(shared_directory)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_sentinel(shared_directory: Path) -> Iterator[Watched]:
    watched = Watched(shared_directory)
    yield watched
    watched.stop()


@pytest.fixture(scope="session")
def shared_cluster(shared_directory: Path) -> Iterator[Cluster]:
    cluster = Cluster(shared_directory)
    yield cluster
    cluster.stop()
