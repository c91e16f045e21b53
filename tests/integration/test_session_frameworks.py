"""The sessions of Flask, Starlette and Django on four workers: the same promises for each."""

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gunicorn
import pytest

from gunicorn_cluster_ext.cache import Cache
from gunicorn_cluster_ext.session.session import store_key
from tests.harness.programs import Programs
from tests.harness.servers.store_site import COOKIE, STICKY, Client, StoreSite
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


APPS = {
    "flask": ("shared_state_flask:app", STICKY),
    "starlette": ("shared_state_starlette:app", "asgi"),
    "django": ("shared_state_django:app", STICKY),
}
# The asgi worker of gunicorn 25 answers 500 to every request of a Django application.
if gunicorn.version_info >= (26,):
    APPS["django-asgi"] = ("shared_state_django:asgi", "asgi")


def start(site: StoreSite, name: str) -> Client:
    app, kind = APPS[name]
    threads = [] if kind == "asgi" else ["--threads", "16"]
    return Client(site.start(app, "-k", kind, *threads))


@pytest.fixture(params=APPS)
def client(request: Any, shared_store_site: StoreSite) -> Client:
    return start(shared_store_site, request.param)


def test_concurrent_requests_lose_nothing(client: Client) -> None:
    client.get("/put?key=first&value=0")
    pids = set()
    for number in range(20):
        targets = [f"/put?key=k{number}.{i}&value={i}&sleep=0.005" for i in range(8)]
        for answer in client.get_all(targets):
            assert answer.status == 200
            assert answer.cookies().get(COOKIE, client.cookie) == client.cookie
            pids.add(answer.json()["pid"])
    assert len(pids) == 4
    data = client.get("/read")
    assert data.pop("first") == {"value": "0"}
    assert data == {f"k{n}.{i}": {"value": str(i)} for n in range(20) for i in range(8)}


def test_a_logout_is_never_undone(client: Client, shared_store_site: StoreSite) -> None:
    client.get("/put?key=user&value=me")
    old, cache = client.cookie, Cache(stores=shared_store_site.stores)
    with ThreadPoolExecutor(4) as crowd:
        slow = [crowd.submit(client.send, f"/put?key=k{i}&value=1&meet=") for i in range(4)]
        wait_until(lambda: cache.get("met") == 4, 20, "requests that have read the session")
        assert client.send("/logout").cookies()[COOKIE] == ""
        cache.set("go on", True)
    # Django says so with 400, the others drop the change.
    assert {answer.result().status for answer in slow} <= {200, 400}
    assert shared_store_site.stores.store.fields(store_key(old)) == {}
    assert client.get("/read") == {}


@pytest.mark.parametrize("name", APPS)
def test_without_redis_nobody_is_logged_out(programs: Programs, name: str) -> None:
    store_site = StoreSite(programs, programs.redis())
    client = start(store_site, name)
    client.get("/put?key=a&value=1")
    other = Client(client.server)
    other.get("/put?key=a&value=1")
    assert store_site.redis is not None
    store_site.redis.signal(signal.SIGSTOP)
    try:
        for who, target in (
            (client, "/read"),
            (client, "/put?key=b&value=2"),
            (other, "/logout"),  # whether that is done nobody knows
        ):
            answer = who.send(target)
            assert answer.status == 503 and answer.headers["Retry-After"] == "2"
            assert COOKIE not in answer.cookies()
        assert client.send("/").status == 200
    finally:
        store_site.redis.signal(signal.SIGCONT)
    assert client.get_when_served("/read")["a"] == {"value": "1"}


def test_a_forged_cookie_is_a_new_session(client: Client) -> None:
    for cookie in ("x", "A" * 43, "A" * 7000):
        client.cookie = cookie
        client.get("/put?key=a&value=1")
        assert client.cookie != cookie
        assert client.get("/read") == {"a": {"value": "1"}}
