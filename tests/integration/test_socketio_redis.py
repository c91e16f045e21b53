"""Each way in which cluster_store may name a Redis: it reaches the clients of all workers."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.clients.crowd import SERVERS
from tests.harness.clients.guests import Guest, Guests, hear_all, wait_introduced
from tests.harness.programs import StartGunicorn, StartRedis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched

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


CONNECT = """
import os, redis, socketio
from gunicorn_cluster_ext.socketio import ClusterManager
server = socketio.Server(async_mode="threading", client_manager=ClusterManager())
server.manager.connect("an eio sid", "/")
print(redis.Redis.from_url(os.environ["GUNICORN_CLUSTER_STORE"]).pubsub_numsub("socketio"))
"""
CONNECT_ASYNC = """
import asyncio, os, redis, socketio
from gunicorn_cluster_ext.socketio import AsyncClusterManager
async def main():
    server = socketio.AsyncServer(async_mode="asgi", client_manager=AsyncClusterManager())
    await server.manager.connect("an eio sid", "/")
    print(redis.Redis.from_url(os.environ["GUNICORN_CLUSTER_STORE"]).pubsub_numsub("socketio"))
    os._exit(0)  # its task listens for ever
asyncio.run(main())
"""


@pytest.mark.parametrize("code", [CONNECT, CONNECT_ASYNC], ids=["threads", "async"])
def test_a_client_is_not_there_before_its_process_is_subscribed(
    code: str, redis: StartRedis
) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        env={**os.environ, "GUNICORN_CLUSTER_STORE": redis().url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "[(b'socketio', 1)]\n"), done.stderr


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
    if way == "cluster":  # the node that is away costs more time than a client is kept waiting
        wait_introduced(all, [first, all[-1]])
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
