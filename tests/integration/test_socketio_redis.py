"""Each way in which cluster_store may name a Redis: it reaches the clients of all workers."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartGunicorn, StartRedis
from tests.harness.guests import Guest, Guests, hear_all, wait_introduced
from tests.harness.redis_cluster import Cluster
from tests.harness.redis_sentinel import Watched
from tests.integration.crowd import SERVERS

pytestmark = pytest.mark.one_gunicorn


def on_both(all: list[Guest]) -> bool:
    return {guest.worker for guest in all} == {0, 1}


class Started:
    """A function for each address, that starts what is there."""

    def __init__(self, redis: StartRedis, directory: Path, at_exit: ExitStack) -> None:
        self._redis, self._directory, self._at_exit = redis, directory, at_exit

    def alone(self) -> str:
        return self._redis().url

    def unix(self) -> str:
        return self._redis().unix_url

    def watched(self) -> str:
        watched = Watched(self._directory)
        self._at_exit.callback(watched.stop)
        return watched.url

    def cluster(self) -> str:
        """One of its nodes is away."""
        cluster = Cluster(self._directory)
        self._at_exit.callback(cluster.stop)
        cluster.nodes[0].crash()
        return cluster.url


@pytest.mark.parametrize("worker", ["thread", "asgi"])
@pytest.mark.parametrize("way", ["alone", "unix", "watched", "cluster"])
def test_a_broadcast_reaches_the_clients_of_all_workers(
    way: str,
    worker: str,
    gunicorn: StartGunicorn,
    redis: StartRedis,
    new_directory: Callable[[], Path],
    at_exit: ExitStack,
) -> None:
    url = getattr(Started(redis, new_directory(), at_exit), way)()
    env = {"GUNICORN_CLUSTER_STORE": url}
    app, worker_class = SERVERS[worker]
    server = gunicorn(app, "-k", worker_class, "-w", "2", serving=2, env=env)
    guests = Guests(server.url, ["websocket"], at_exit)
    all = guests.invite_until(on_both)
    first = all[0]
    first.do("emit", "news", "from the first")
    assert hear_all(all, [first]) == [[("news", "from the first")]] * len(all)


@pytest.mark.parametrize("worker", ["thread", "asgi"])
def test_a_redis_that_goes_and_comes_back(
    worker: str, gunicorn: StartGunicorn, redis: StartRedis, at_exit: ExitStack
) -> None:
    """Meanwhile a worker still reaches its own clients. Afterwards all are reached again."""
    queue = redis()
    app, worker_class = SERVERS[worker]
    env = {"GUNICORN_CLUSTER_STORE": queue.url}
    server = gunicorn(app, "-k", worker_class, "-w", "2", serving=2, env=env)
    guests = Guests(server.url, ["websocket"], at_exit)
    all = guests.invite_until(on_both)
    queue.stop()
    all[0].do("emit", "alone")
    assert all[0].heard.get(timeout=20) == ("alone",)
    redis(port=queue.port)
    wait_introduced(all, [all[0], all[-1]])
