"""A Redis that hangs, dies, comes back, is full, fails over: blocking and asynchronous."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import StoreAway, StoreError
from tests.harness.crowding import Crowding
from tests.harness.process import Process
from tests.harness.programs import StartRedis
from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import SERVICE, Watched, is_master
from tests.harness.store_conformance import Awaited, open_in_mode
from tests.harness.waiting import wait_until

PROGRAM = "tests.harness.store_program"
ROOT = Path(__file__).parents[2]
LIMIT = 0.5
#: For a machine that does other things as well.
GRACE = 0.25
RECOVERY = 2.0

OpenFace = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # A probe may be on its way.
    wait_until(lambda: set(threading.enumerate()) <= before, LIMIT + GRACE, "the end of threads")


@pytest.fixture(params=["sync", "async"])
def opened(request: pytest.FixtureRequest, no_thread_is_left: None) -> Iterator[OpenFace]:
    with contextlib.ExitStack() as stack:

        def open_url(url: str, mode: str = request.param, **options: Any) -> Any:
            settings = Settings(store=url, **{"store_timeout": LIMIT, **options})
            store = open_in_mode(mode, settings)
            stack.callback(store.close)
            return store

        yield open_url


class Try(NamedTuple):
    seconds: float
    error: Exception | None


def attempt(work: Callable[[], object]) -> Try:
    """Return how long the call took: less where the machine was busy with other things."""
    crowding, start, error = Crowding(), time.monotonic(), None
    crowding.look()
    try:
        work()
    except StoreError as failure:
        error = failure
    seconds = time.monotonic() - start
    if seconds > LIMIT:
        crowding.look()
        seconds /= crowding.factor
    return Try(seconds, error)


def get(store: Any) -> Try:
    return attempt(lambda: store.get(b"a"))


def away(tried: Try) -> bool:
    return isinstance(tried.error, StoreAway)


def fails_in_time(store: Any) -> None:
    """Each call fails within its timeout until the breaker opens; then it fails at once."""
    tries = [get(store) for _ in range(4)]
    assert all(map(away, tries)), tries
    assert max(tried.seconds for tried in tries) < LIMIT + GRACE
    later = [get(store) for _ in range(500)]
    assert all(map(away, later))
    assert p99(tried.seconds for tried in later) < 0.05


def p99(seconds: Iterable[float]) -> float:
    ordered = sorted(seconds)
    return ordered[int(len(ordered) * 0.99)]


def recovers(store: Any, seconds: float = RECOVERY) -> None:
    wait_until(lambda: get(store).error is None, seconds, "a call that succeeds")
    assert all(get(store).error is None for _ in range(20))


def test_a_redis_that_hangs(redis: StartRedis, opened: OpenFace) -> None:
    server = redis()
    store = opened(server.url)
    store.set(b"a", b"1")
    server.halt()
    fails_in_time(store)
    server.go_on()
    recovers(store)
    assert store.get(b"a") == b"1"


def test_a_redis_that_dies_and_comes_back(redis: StartRedis, opened: OpenFace) -> None:
    server = redis()
    store = opened(server.url)
    store.set(b"a", b"1")
    server.crash()
    fails_in_time(store)
    redis(port=server.port)
    recovers(store)
    store.change(b"m", {b"a": b"1"})  # scripts are gone, too
    assert store.fields(b"m") == {b"a": b"1"}


def test_a_redis_that_was_restarted_meanwhile(redis: StartRedis, opened: OpenFace) -> None:
    """No caller notices, not even one whose commands are never sent twice."""
    server = redis()
    store = opened(server.url)
    store.set(b"a", b"1")
    server.crash()
    redis(port=server.port)
    if isinstance(store, Awaited):
        store.rest()  # an event loop that runs hears of the end at once
    assert store.incr(b"n") == 1
    assert store.add(b"lock", b"1") is True
    assert store.get(b"a") is None


def test_a_short_absence_is_waited_for(redis: StartRedis, opened: OpenFace) -> None:
    server = redis()
    store = opened(server.url)
    store.set(b"a", b"1")
    server.crash()
    with contextlib.closing(Later(0.05, lambda: redis(port=server.port))):
        assert get(store).error is None


class Later:
    """Runs something in another thread."""

    def __init__(self, seconds: float, work: Callable[[], object]) -> None:
        self._timer = threading.Timer(seconds, work)
        self._timer.start()

    def close(self) -> None:
        self._timer.join()


def test_nobody_there_from_the_start(redis: StartRedis, opened: OpenFace) -> None:
    server = redis()
    server.crash()
    store = opened(server.url)
    fails_in_time(store)
    redis(port=server.port)
    recovers(store)


def test_a_full_redis(redis: StartRedis, opened: OpenFace) -> None:
    """It is full, not away: what is there can be read, and deleted."""
    server = redis("--maxmemory-policy", "noeviction")
    store = opened(server.url)
    store.set(b"a", b"1")
    server.ask("CONFIG", "SET", "maxmemory", 1)
    for work in (
        lambda: store.set(b"a", b"2"),
        lambda: store.add(b"b", b"2"),
        lambda: store.incr(b"n", 1, 60),
        lambda: store.change(b"m", {b"a": b"1"}),
        lambda: store.set_many({b"x": b"1", b"y": b"1"}),
    ):
        error = attempt(work).error
        assert type(error) is StoreError and "maxmemory" in str(error)
        assert store.get(b"a") == b"1"
    assert store.delete([b"a"]) == 1
    server.ask("CONFIG", "SET", "maxmemory", 0)
    store.set(b"b", b"1")


def test_a_wrong_password(redis: StartRedis, opened: OpenFace) -> None:
    server = redis("--requirepass", "right")
    store = opened(server.url.replace("127", ":wrong-one@127"))
    error = get(store).error
    assert type(error) is StoreError and "wrong-one" not in str(error)
    assert get(opened(server.url.replace("127", ":right@127"))).error is None


def test_a_server_that_is_busy_for_too_long(redis: StartRedis, opened: OpenFace) -> None:
    """The answer that came too late is not the next call's."""
    server = redis("--enable-debug-command", "local")
    store = opened(server.url, store_timeout=0.2)
    store.set_many({b"a": b"1", b"b": b"2"})
    for _ in range(2):
        with contextlib.closing(Later(0, lambda: server.ask("DEBUG", "SLEEP", "0.4"))):
            wait_until(lambda: away(get(store)), 10, "it to be busy")
        assert store.get(b"b") == b"2"


# --- servers that only a test would write -----------------------------------------------------


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None] | None) -> Iterator[int]:
    """Return a port. Without `serve` its backlog is full, so connecting to it hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as all:
        port = server.getsockname()[1]
        if serve is None:
            for _ in range(3):
                one = all.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            yield port
            return
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield port
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def trickle(server: socket.socket) -> None:
    """Answer a byte at a time, each well within any limit for one wait."""
    with contextlib.suppress(OSError):
        while True:
            connection = server.accept()[0]
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"+")
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.05)


def test_an_answer_in_drops(opened: OpenFace) -> None:
    with listening(trickle) as port:
        tried = get(opened(f"redis://127.0.0.1:{port}"))
    assert away(tried)
    assert tried.seconds < LIMIT + GRACE


def test_a_host_that_does_not_answer(opened: OpenFace) -> None:
    with listening(None) as port:
        tried = get(opened(f"redis://127.0.0.1:{port}"))
    assert away(tried)
    assert tried.seconds < LIMIT + GRACE


def test_a_sentinel_that_does_not_answer(watched: Watched, opened: OpenFace) -> None:
    with listening(None) as port:
        store = opened(watched.url.replace("//", f"//127.0.0.1:{port},"), store_timeout=1.0)
        assert get(store).error is None


# --- many -------------------------------------------------------------------------------------


def test_no_more_connections_than_allowed(redis: StartRedis) -> None:
    server = redis()
    store = open_in_mode("sync", Settings(store=server.url, store_connections=3))
    threads = [
        threading.Thread(target=lambda: [store.incr(b"n") for _ in range(200)]) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(b"n") == b"2400"
    assert server.ask("INFO", "clients")["connected_clients"] <= 4
    store.close()


def test_no_count_is_lost(
    redis: StartRedis, new_directory: Callable[[], Path], keep: Callable[[Process], Process]
) -> None:
    """4 processes x 8 threads x 1,000."""
    server = redis()
    command = [
        sys.executable,
        "-m",
        PROGRAM,
        "count",
        server.url,
        "8",
        "1000",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    counting = [keep(Process(f"count{n}", command, new_directory(), env)) for n in range(4)]
    for process in counting:
        assert process.wait_exit(90) == 0, process.report("failed")
    assert server.ask("GET", "gunicorn_cluster:count") == b"32000"


def test_a_hang_under_load(redis: StartRedis) -> None:
    """Twelve threads together wait no longer than one alone."""
    server = redis()
    store = open_in_mode(
        "sync", Settings(store=server.url, store_timeout=LIMIT, store_connections=4)
    )
    store.set(b"a", b"1")
    stop, tries = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            tries.append((time.monotonic(), get(store)))
            time.sleep(0.002)

    threads = [threading.Thread(target=load) for _ in range(12)]
    for thread in threads:
        thread.start()
    server.halt()
    begun = time.monotonic() + LIMIT + GRACE
    wait_until(lambda: len([at for at, _ in tries if at > begun]) > 1_000, 30, "many tries")
    server.go_on()
    resumed = time.monotonic()
    wait_until(lambda: get(store).error is None, RECOVERY, "an answer")
    stop.set()
    for thread in threads:
        thread.join()
    assert max(tried.seconds for _, tried in tries) < LIMIT + GRACE
    open_for = [tried.seconds for at, tried in tries if begun < at < resumed]
    assert p99(open_for) < 0.05
    store.close()


# --- several servers --------------------------------------------------------------------------


@pytest.fixture
def watched(new_directory: Callable[[], Path]) -> Iterator[Watched]:
    started = Watched(new_directory())
    yield started
    started.stop()


def test_failing_over(watched: Watched, opened: OpenFace) -> None:
    """The master dies; when another one is master, calls succeed again."""
    store = opened(watched.url)
    store.set(b"a", b"1")
    watched.nodes[0].ask("WAIT", 1, 1000)
    watched.nodes[0].crash()
    replica = watched.nodes[1]
    tries = [get(store)]

    def try_again() -> bool:
        tries.append(get(store))
        return is_master(replica)

    wait_until(try_again, 60, "the replica to be master")
    assert tries[-1].error is not None
    assert max(tried.seconds for tried in tries) < LIMIT + GRACE
    recovers(store)
    assert store.get(b"a") == b"1"
    store.set(b"a", b"2")


def test_a_master_that_became_a_replica(watched: Watched, opened: OpenFace) -> None:
    """Connections to the old one are still open; a write to it is refused, and goes to the new."""
    store = opened(watched.url)
    store.set(b"a", b"1")
    watched.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
    wait_until(lambda: is_master(watched.nodes[1]), 15, "the change")
    watched.nodes[0].ask("REPLICAOF", "127.0.0.1", watched.nodes[1].port)  # Sentinel takes 10 s
    deadline = time.monotonic() + RECOVERY
    while (tried := attempt(lambda: store.set(b"a", b"2"))).error is not None:
        assert time.monotonic() < deadline, tried
    assert watched.nodes[1].ask("GET", "gunicorn_cluster:a") == b"2"


@pytest.fixture
def cluster(new_directory: Callable[[], Path]) -> Iterator[Cluster]:
    started = Cluster(new_directory())
    yield started
    started.stop()


def test_a_node_that_hangs(cluster: Cluster, opened: OpenFace) -> None:
    """Its keys fail, and soon fail quickly; the others are served all the time."""
    store = opened(cluster.url)
    keys = [b"%d" % number for number in range(24)]
    store.set_many(dict.fromkeys(keys, b"1"))
    node: Redis = cluster.nodes[1]
    node.halt()
    rounds = [[attempt(lambda key=key: store.get(key)) for key in keys] for _ in range(10)]
    hung = {key for key, tried in zip(keys, rounds[0], strict=True) if tried.error is not None}
    assert hung and hung != set(keys)
    for tries in rounds:
        assert {key for key, tried in zip(keys, tries, strict=True) if away(tried)} == hung
        assert max(tried.seconds for tried in tries) < LIMIT + GRACE
    assert p99([tried.seconds for tries in rounds[1:] for tried in tries]) < 0.05
    node.go_on()
    wait_until(lambda: attempt(lambda: store.get_many(keys)).error is None, RECOVERY, "all nodes")
    assert store.get_many(keys) == [b"1"] * 24


def test_many_keys_while_a_node_hangs(cluster: Cluster, opened: OpenFace) -> None:
    store = opened(cluster.url)
    keys = [b"%d" % number for number in range(24)]
    store.set_many(dict.fromkeys(keys, b"1"))
    cluster.nodes[1].halt()
    tries = [attempt(lambda: store.get_many(keys)) for _ in range(400)]
    assert all(map(away, tries))
    assert max(tried.seconds for tried in tries) < LIMIT + GRACE
    assert p99([tried.seconds for tried in tries[5:]]) < 0.05
    cluster.nodes[1].go_on()
    wait_until(lambda: attempt(lambda: store.get_many(keys)).error is None, RECOVERY, "all nodes")
    assert all(attempt(lambda key=key: store.get(key)).error is None for key in keys)
