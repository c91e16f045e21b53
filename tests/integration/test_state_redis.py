"""Sessions and cache of four workers on a Redis that Sentinels watch, and on a Redis Cluster."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gunicorn_cluster_ext.cache import Cache
from gunicorn_cluster_ext.session.session import store_key
from tests.harness.clients.connection import Answer
from tests.harness.programs import Programs
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched, is_master
from tests.harness.servers.store_site import COOKIE, STICKY, Client, StoreSite
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

THREADED = ("shared_state_flask:app", "-k", STICKY, "--threads", "16")
ASYNC = ("shared_state_starlette:app", "-k", "asgi")
RECOVERY_S = 2.0


@pytest.fixture
def watched(programs: Programs) -> Watched:
    started = Watched(programs.new_directory())
    programs.at_exit.callback(started.stop)
    return started


@pytest.fixture
def cluster(programs: Programs) -> Cluster:
    started = Cluster(programs.new_directory())
    programs.at_exit.callback(started.stop)
    return started


@pytest.fixture(params=["watched", "cluster"])
def store_site(request: pytest.FixtureRequest, programs: Programs) -> StoreSite:
    return StoreSite(programs, request.getfixturevalue(request.param))


@pytest.mark.parametrize("args", [THREADED, ASYNC], ids=["threads", "async"])
def test_sessions(store_site: StoreSite, args: tuple[str, ...]) -> None:
    """No change is lost, and a logout is not undone by a request that began before it."""
    client = Client(store_site.start(*args))
    client.get("/put?key=first&value=0")
    pids = set()
    for number in range(10):
        targets = [f"/put?key=k{number}.{i}&value={i}&sleep=0.005" for i in range(8)]
        pids |= {answer.json()["pid"] for answer in client.get_all(targets)}
    assert len(pids) == 4
    assert len(client.get("/read")) == 81
    old, cache = client.cookie, Cache(stores=store_site.stores)
    with ThreadPoolExecutor(4) as crowd:
        slow = [crowd.submit(client.send, f"/put?key=k{i}&value=1&meet=") for i in range(4)]
        wait_until(lambda: cache.get("met") == 4, 20, "requests that have read the session")
        assert client.send("/logout").cookies()[COOKIE] == ""
        cache.set("go on", True)
    assert {answer.result().status for answer in slow} == {200}
    assert store_site.stores.store.fields(store_key(old)) == {}


def test_the_cache(store_site: StoreSite) -> None:
    store_site.settings["store_timeout"] = 20.0  # a busy machine may let one wait long
    client = Client(store_site.start("shared_state:app", "-k", STICKY, "--threads", "8"))
    answers = client.get_all(["/count?times=25"] * 32)
    assert {answer.status for answer in answers} == {200}
    assert client.get("/value?key=number") == 800
    client.get_all(["/costly?key=ab&sleep=0.5"] * 64)
    assert client.get("/value?key=computed") == 1


@pytest.mark.parametrize("args", [THREADED, ASYNC], ids=["threads", "async"])
def test_the_master_dies_under_load(
    programs: Programs, watched: Watched, args: tuple[str, ...]
) -> None:
    """Until another is master, requests are answered with 503; no client is logged out."""
    client = Client(StoreSite(programs, watched).start(*args))
    client.get("/put?key=user&value=me")
    watched.nodes[0].ask("WAIT", 1, 1000)
    answers: list[tuple[float, int, bytes]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = client.send("/read")
            answers.append((time.monotonic(), answer.status, answer.body))

    with ThreadPoolExecutor(8) as crowd:
        loads = [crowd.submit(load) for _ in range(8)]
        try:
            wait_until(lambda: answers, 20, "an answer")
            watched.nodes[0].crash()
            wait_until(lambda: is_master(watched.nodes[1]), 20, "a master")
            changed = time.monotonic()
            wait_until(lambda: answers[-1][0] > changed + RECOVERY_S, 20, "two seconds more")
        finally:
            stop.set()
    for ended in loads:
        ended.result()
    assert {status for _, status, _ in answers} <= {200, 503}
    assert all(b'"me"' in body for _, status, body in answers if status == 200)
    assert {status for at, status, _ in answers if at > changed + RECOVERY_S} == {200}


def test_a_node_hangs(programs: Programs, cluster: Cluster) -> None:
    """Clients with sessions on other nodes are served; all are when it continues."""
    store_site = StoreSite(programs, cluster)
    server = store_site.start(*THREADED)
    clients = [Client(server) for _ in range(24)]
    for client in clients:
        client.get("/put?key=a&value=1")
    node = cluster.nodes[1]
    node.halt()
    try:
        with ThreadPoolExecutor(24) as crowd:
            statuses = [answer.status for answer in crowd.map(read, clients)]
        assert set(statuses) == {200, 503}
    finally:
        node.go_on()
    deadline = time.monotonic() + RECOVERY_S
    while time.monotonic() < deadline:  # each worker has a breaker of its own
        assert {read(client).status for client in clients} <= {200, 503}
    assert all(client.get("/read") == {"a": {"value": "1"}} for client in clients)


def read(client: Client) -> Answer:
    return client.send("/read")
