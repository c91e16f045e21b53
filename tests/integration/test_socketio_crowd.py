"""Twelve clients, half of them polling, on the workers of one server or two."""

from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from tests.harness.clients import crowd
from tests.harness.clients.crowd import BOTH, SERVERS
from tests.harness.programs import StartGunicorn, StartNode, StartRedis
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


def start(gunicorn: StartGunicorn, worker: str, workers: int, **options: Any) -> Gunicorn:
    app, worker_class = SERVERS[worker]
    return gunicorn(app, "-k", worker_class, "-w", str(workers), serving=workers, **options)


def connections_out(server: Gunicorn) -> list[str]:
    """Those of its workers that no client of the server has made: to a broker, for instance."""
    return [
        str(connection)
        for pid in server.worker_pids()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.laddr.port != server.port
    ]


@pytest.mark.parametrize("worker", SERVERS)
def test_on_four_workers_without_a_broker(
    worker: str, gunicorn: StartGunicorn, at_exit: ExitStack
) -> None:
    server = start(gunicorn, worker, workers=4)
    guests = crowd.in_python([server.url], BOTH, at_exit)
    assert {guest.worker for guest in guests} == {0, 1, 2, 3}
    crowd.talk(guests)
    assert connections_out(server) == []


@pytest.mark.parametrize("worker", SERVERS)
def test_with_the_official_client(worker: str, gunicorn: StartGunicorn, node: StartNode) -> None:
    server = start(gunicorn, worker, workers=4)
    assert len(crowd.in_node(node, [server.url], BOTH)) >= 3


@pytest.fixture(params=SERVERS)
def two(request: Any, gunicorn: StartGunicorn, redis: StartRedis) -> tuple[list[Gunicorn], Redis]:
    """Two servers of two workers each, on two ports, and the Redis between them."""
    queue = redis()
    env = {"GUNICORN_CLUSTER_STORE": queue.url}
    servers = [start(gunicorn, request.param, workers=2, env=env) for _ in range(2)]
    return servers, queue


def test_on_two_servers_with_redis(
    two: tuple[list[Gunicorn], Redis], node: StartNode, at_exit: ExitStack
) -> None:
    servers, queue = two
    urls = [server.url for server in servers]
    guests = crowd.in_python(urls, BOTH, at_exit)
    # A worker subscribes in the background, after its first client has connected.
    wait_until(lambda: queue.subscribers("socketio") == 4, 20, "all workers to listen")
    crowd.talk(guests)
    assert len(crowd.in_node(node, urls, BOTH)) == 2
