"""Django's users, who log in and out on four workers with our session engine."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gunicorn_cluster_ext.cache import Cache
from gunicorn_cluster_ext.session.session import store_key
from tests.harness.servers.gunicorn import APPS, Gunicorn
from tests.harness.servers.store_site import COOKIE, STICKY, Client, StoreSite
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


@pytest.fixture
def server(shared_store_site: StoreSite) -> Gunicorn:
    directory = shared_store_site.directory
    if not (directory / "users.db").exists():  # the users
        subprocess.run([sys.executable, APPS / "auth_django.py"], cwd=directory, check=True)
    options = ("-k", STICKY, "--threads", "16")
    return shared_store_site.start("auth_django:app", *options, directory=directory)


@pytest.fixture
def client(server: Gunicorn) -> Client:
    return Client(server)


def said(user: str, **session: Any) -> dict[str, Any]:
    return {"user": user, "session": session}


def stored(shared_store_site: StoreSite, cookie: str) -> dict[bytes, bytes]:
    return shared_store_site.stores.store.fields(store_key(cookie))


def test_a_login_is_a_new_session_with_the_old_data(
    client: Client, shared_store_site: StoreSite
) -> None:
    client.get("/put?key=cart&value=7")
    before = client.cookie
    assert client.get("/login?user=ada") == said("ada", cart="7")
    assert client.cookie != before and stored(shared_store_site, before) == {}
    pids = set()

    def all_have_answered() -> bool:
        answers = client.get_all(["/read"] * 32)
        assert all(answer.json()["said"] == said("ada", cart="7") for answer in answers)
        pids.update(answer.json()["pid"] for answer in answers)
        return len(pids) == 4

    wait_until(all_have_answered, 20, "an answer of each worker")
    thief = Client(client.server)
    thief.cookie = before
    assert thief.get("/read") == said("")


def test_what_others_store_during_a_login_is_kept(client: Client) -> None:
    client.get("/put?key=first&value=0")
    client.get("/login?user=ada")
    client.get_all([f"/put?key=k{i}&value={i}&sleep=0.01" for i in range(8)])
    assert client.get("/read") == said("ada", first="0", **{f"k{i}": str(i) for i in range(8)})


def test_a_logout_ends_it_for_all(client: Client, shared_store_site: StoreSite) -> None:
    client.get("/login?user=ada")
    old, cache = client.cookie, Cache(stores=shared_store_site.stores)
    with ThreadPoolExecutor(4) as crowd:
        slow = [crowd.submit(client.send, f"/put?key=k{i}&value=1&meet=") for i in range(4)]
        wait_until(lambda: cache.get("met") == 4, 20, "requests that have read the session")
        assert client.send("/logout").cookies()[COOKIE] == ""
        cache.set("go on", True)
    assert {answer.result().status for answer in slow} == {400}  # as Django has it
    assert stored(shared_store_site, old) == {}
    assert client.get("/read") == said("")


def test_another_user_gets_another_session(client: Client, shared_store_site: StoreSite) -> None:
    client.get("/login?user=ada")
    client.get("/put?key=secret&value=1")
    old = client.cookie
    assert client.get("/login?user=bob") == said("bob")
    assert client.cookie != old and stored(shared_store_site, old) == {}


def test_a_new_password_ends_the_other_sessions(server: Gunicorn) -> None:
    here, elsewhere = Client(server), Client(server)
    for client in (here, elsewhere):
        client.get("/login?user=ada")
    before = here.cookie
    assert here.get("/new_password")["user"] == "ada"
    assert here.cookie != before
    assert here.get("/read")["user"] == "ada"
    assert elsewhere.get("/read") == said("")
