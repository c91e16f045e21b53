"""The cache on four workers: counted exactly, computed once."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gunicorn_cluster_ext.cache import Cache
from tests.harness.servers.store_site import STICKY, Client, StoreSite
from tests.harness.view import View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

APP = "shared_state:app"


def test_a_costly_value_is_computed_once(store_site: StoreSite) -> None:
    """It takes 500 ms, and 200 ask for it at once."""
    server = store_site.start(APP, "-k", STICKY, "--threads", "64")
    client = Client(server)
    began = time.monotonic()
    answers = client.get_all(["/costly?key=ab&sleep=0.5"] * 200)
    took = time.monotonic() - began
    assert {answer.json()["said"] for answer in answers} == {"ababab"}
    assert len({answer.json()["pid"] for answer in answers}) == 4
    assert client.get("/value?key=computed") == 1
    assert took < 10


def test_the_stale_value_meanwhile(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, "--threads", "16", workers=2)
    client = Client(server)
    target = "/costly?key=a&ttl=0.5&stale=60&sleep="
    client.get(target + "0")
    wait_until(lambda: client.get("/value?key=a") == "miss", 20, "a value that is too old")
    with ThreadPoolExecutor(1) as other:
        slow = other.submit(client.get, target + "3")
        wait_until(lambda: client.get("/value?key=computed") == 2, 20, "somebody who computes")
        assert client.get(target + "3") == "aaa"
        assert not slow.done()
        assert slow.result() == "aaa"
    assert client.get("/value?key=computed") == 2


def test_who_dies_while_computing_holds_nobody_up(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, "--threads", "8", workers=2)
    client = Client(server)
    began = time.monotonic()
    with pytest.raises(OSError):
        client.get("/dying")
    assert client.get("/dying") == "alive"
    assert time.monotonic() - began < 8


def test_counting_is_exact(store_site: StoreSite) -> None:
    """4 workers, 8 threads each, 1,000 times."""
    store_site.settings["store_timeout"] = 20.0  # a busy machine may let one wait long
    server = store_site.start(APP, "-k", STICKY, "--threads", "8")
    client = Client(server)
    times = 1000 if store_site.redis is None else 100
    answers = client.get_all([f"/count?times={times}"] * 32)
    assert all(answer.status == 200 for answer in answers)
    assert client.get("/value?key=number") == 32 * times


def test_a_lock_makes_it_right(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, "--threads", "8")
    client = Client(server)
    answers = client.get_all(["/guarded?times=5"] * 24)
    assert all(answer.status == 200 for answer in answers)
    assert client.get("/value?key=guarded") == 120


def test_what_one_worker_stores_all_have(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY)
    client = Client(server)
    assert client.get("/keep?key=a&value=b") is True
    answers = client.get_all(["/value?key=a"] * 32)
    assert {answer.json()["said"] for answer in answers} == {"b"}
    assert Cache(stores=store_site.stores).get("a") == "b"


def test_a_corrupt_value_is_a_miss_and_one_line(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, workers=1)
    client = Client(server)
    store_site.stores.store.set(b"cache::a", b"\xc7 top secret")
    assert client.get("/value?key=a") == "miss"
    log = server.log_text()
    assert log.count("cache::a") == 1 and "top secret" not in log
    assert client.get("/stats") == {"hits": 0, "misses": 1, "errors": 1}


def test_counts_are_on_the_board(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, workers=2)
    client, view = Client(server), View(server)
    client.get("/keep?key=a&value=b")
    for _ in range(5):
        client.get("/value?key=a")
    client.get("/value?key=absent")
    assert view.total("cache_hits") == 5
    assert view.total("cache_misses") == 1
    assert view.total("cache_errors") == 0


def test_no_thread_is_left(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, workers=1)
    client = Client(server)
    with ThreadPoolExecutor(1) as other:
        costly = other.submit(client.get, "/costly?key=a&sleep=2")
        wait_until(lambda: "cluster-renewer" in client.get("/threads"), 20, "a renewal")
    wait_until(lambda: "cluster-renewer" not in client.get("/threads"), 20, "its end")
    costly.result()


@pytest.mark.parametrize("store_site", ["redis"], indirect=True)
def test_without_redis_it_misses_quickly(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, workers=1)
    client = Client(server)
    client.get("/keep?key=a&value=b")
    assert store_site.redis is not None
    store_site.redis.signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            client.get("/value?key=a")  # until the breaker opens
        began = time.monotonic()
        assert [client.get("/value?key=a") for _ in range(5)] == ["miss"] * 5
        assert client.get("/costly?key=x&sleep=0") == "xxx"
        assert time.monotonic() - began < 2.5
    finally:
        store_site.redis.signal(signal.SIGCONT)
    deadline = time.monotonic() + 5
    while client.get("/value?key=a") != "b":
        assert time.monotonic() < deadline


def test_a_worker_that_dies_harms_no_store(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, workers=2)
    client = Client(server)
    client.get("/keep?key=a&value=b")
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert client.get("/value?key=a") == "b"
    assert client.get("/keep?key=a&value=c") is True
    assert client.get("/value?key=a") == "c"


def test_a_preloaded_application_may_use_it_before_the_fork(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, "--preload", env={"AT_IMPORT": "1"})
    client = Client(server)
    answers = client.get_all(["/value?key=imported_by"] * 16)
    assert {answer.json()["said"] for answer in answers} == {server.master_pid}
    assert client.get("/put?key=a&value=1") == 0
    assert client.get("/count?times=10") == 10
