"""Sessions on four workers: no change is lost, no logout undone, whatever happens at once."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gunicorn_cluster_ext.cache import Cache
from gunicorn_cluster_ext.session.session import store_key
from tests.harness.clients.connection import Answer
from tests.harness.servers.store_site import COOKIE, STICKY, Client, StoreSite
from tests.harness.view import View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

APP = "shared_state:app"


def test_concurrent_requests_lose_nothing(shared_store_site: StoreSite) -> None:
    """8 at once, each sets a key of its own, 100 times."""
    client = Client(shared_store_site.start(APP, "-k", STICKY, "--threads", "16"))
    client.get("/put?key=first&value=0")
    pids = set()
    for number in range(100):
        targets = [f"/put?key=k{number}.{i}&value={i}&sleep=0.002" for i in range(8)]
        for answer in client.get_all(targets):
            assert answer.status == 200 and not answer.cookies().get(COOKIE)
            pids.add(answer.json()["pid"])
    data = client.get("/read")
    assert len(pids) == 4
    wanted = {f"k{number}.{i}": str(i) for number in range(100) for i in range(8)}
    assert data == {"first": "0", **wanted}


def test_nested_changes_are_kept(shared_store_site: StoreSite) -> None:
    client = Client(shared_store_site.start(APP, "-k", STICKY, "--threads", "16"))
    client.get("/put?key=first&value=0")
    for number in range(10):
        client.get_all([f"/push?key=list{i}&value={number}&sleep=0.002" for i in range(8)])
    data = client.get("/read")
    for i in range(8):
        assert data[f"list{i}"] == {"lists": {"items": [str(number) for number in range(10)]}}


def test_a_logout_is_never_undone(shared_store_site: StoreSite) -> None:
    client = Client(shared_store_site.start(APP, "-k", STICKY, "--threads", "16"))
    slow = [
        "/put?key=a&value=1&sleep=0.03",
        "/push?key=b&value=1&sleep=0.03",
        "/put?key=c&value=1&sleep=0.01",
    ]
    for _ in range(25):
        client.cookie = ""
        client.get("/put?key=before&value=secret")
        with ThreadPoolExecutor(4) as crowd:
            answers = [crowd.submit(client.send, target) for target in slow]
            time.sleep(random.uniform(0, 0.03))
            assert client.send("/logout").cookies()[COOKIE] == ""
        assert shared_store_site.stores.store.fields(store_key(client.cookie)) == {}
        # Who came after the logout has a session of its own, in which nothing of before is.
        for answer in answers:
            cookie = answer.result().cookies().get(COOKIE)
            if cookie is not None:
                assert b"before" not in shared_store_site.stores.store.fields(store_key(cookie))
        assert client.get("/read") == {}


def test_a_logout_in_the_middle_of_a_login_wins(shared_store_site: StoreSite) -> None:
    client = Client(shared_store_site.start(APP, "-k", STICKY, "--threads", "16"))
    cache = Cache(stores=shared_store_site.stores)
    client.get("/put?key=a&value=1")
    with ThreadPoolExecutor(1) as other:
        login = other.submit(client.send, "/login?user=me&stop=1")
        wait_until(lambda: cache.get("stopped"), 20, "a login that stops")
        client.send("/logout")
        cache.set("go on", True)
        answer: Answer = login.result()
    assert answer.status == 200 and answer.cookies().get(COOKIE) is None
    assert client.get("/read") == {}


def test_a_login_gives_a_new_id(shared_store_site: StoreSite) -> None:
    client = Client(shared_store_site.start(APP, "-k", STICKY, workers=2))
    client.get("/put?key=cart&value=full")
    old = client.cookie
    client.get("/login?user=me")
    assert client.cookie not in ("", old)
    assert client.get("/read") == {"cart": "full", "user": "me"}
    client.cookie = old
    assert client.get("/read") == {}


def test_sessions_survive_the_server(store_site: StoreSite) -> None:
    server = store_site.start(APP, "-k", STICKY, workers=2)
    client = Client(server)
    client.get("/put?key=a&value=1")
    server.stop()
    client.server = store_site.start(APP, "-k", STICKY, workers=2)
    assert client.get("/read") == {"a": "1"}


def test_stock_workers_share_sessions_too(shared_store_site: StoreSite) -> None:
    client = Client(shared_store_site.start(APP, "-k", "gthread", "--threads", "4", workers=2))
    client.get("/put?key=a&value=1")
    assert [client.get("/read") for _ in range(8)] == [{"a": "1"}] * 8


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cookie",
    ["x", "A" * 43, "A" * 42, "A" * 7000, "%2e%2e/" * 6 + "A", "\xff" * 43, '"; DROP TABLE x; --'],
)
def test_a_forged_cookie_is_a_new_session(store_site: StoreSite, cookie: str) -> None:
    client = Client(store_site.start(APP, "-k", STICKY, workers=1))
    client.cookie = cookie
    assert client.get("/read") == {}
    lines = [line for line in client.server.log_text().splitlines() if "session cookie" in line]
    assert len(lines) == 1 and cookie not in lines[0].replace("A session", "")
    client.get("/put?key=a&value=1")
    assert client.cookie != cookie and client.get("/read") == {"a": "1"}


@pytest.mark.parametrize("field", [b"a", b"\0made", b"\0seen", b"\xff"])
def test_a_damaged_session_is_a_new_one(store_site: StoreSite, field: bytes) -> None:
    client = Client(store_site.start(APP, "-k", STICKY, workers=1))
    client.get("/put?key=a&value=1")
    old = client.cookie
    store_site.stores.store.change(store_key(old), {field: b"\xc1 top secret"})
    assert client.get("/read") == {}
    log = client.server.log_text()
    assert log.count("is damaged") == 1 and "top secret" not in log
    client.get("/put?key=a&value=2")
    assert client.cookie != old and client.get("/read") == {"a": "2"}


def test_operations_are_on_the_board(store_site: StoreSite) -> None:
    client = Client(store_site.start(APP, "-k", STICKY, workers=2))
    view = View(client.server)
    client.get("/put?key=a&value=1")  # without a cookie there is nothing to read
    for _ in range(5):
        client.get("/read")
    client.get("/plain")
    client.get("/logout")
    assert view.total("session_reads") == 5
    assert view.total("session_writes") == 2
    assert view.total("session_errors") == 0


# --- the store is away ------------------------------------------------------------------------


def check_unavailable(answer: Answer) -> None:
    assert answer.status == 503 and answer.headers["Retry-After"]
    assert "Set-Cookie" not in answer.headers or COOKIE not in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("store_site", ["redis"], indirect=True)
def test_without_redis_nobody_is_logged_out(store_site: StoreSite) -> None:
    client = Client(store_site.start(APP, "-k", STICKY, workers=2))
    client.get("/put?key=a&value=1")
    other = Client(client.server)
    other.get("/put?key=a&value=1")
    assert store_site.redis is not None
    store_site.redis.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        for target in ("/read", "/put?key=b&value=2", "/login?user=me"):
            check_unavailable(client.send(target))
        check_unavailable(other.send("/logout"))  # whether that is done nobody knows
        assert time.monotonic() - began < 8
        assert client.send("/plain").status == 200
    finally:
        store_site.redis.signal(signal.SIGCONT)
    assert client.get_when_served("/read")["a"] == "1"
