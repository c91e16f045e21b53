"""Django's sessions: what Django's own tests ask of an engine (tests/sessions_tests/tests.py), and
the merge of concurrent requests that its engines do not have."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.test import Client
from django.test.utils import override_settings
from django.utils import timezone

from gunicorn_cluster_ext.session.cookie import is_id, new_id
from gunicorn_cluster_ext.session.session import SessionAway, store_key
from tests.harness.fakes.django_site import configure, stores
from tests.harness.fakes.store import MemoryStore, MemoryStores

__all__ = ["stores"]
configure()


def engine(key: str | None = None) -> Any:
    from gunicorn_cluster_ext.django.sessions import SessionStore

    return SessionStore(key)


@pytest.fixture
def session(stores: MemoryStores) -> Any:
    return engine()


# --- SessionTestsMixin ------------------------------------------------------------------------


def test_new_session(session: Any) -> None:
    assert session.modified is False and session.accessed is False
    assert session.is_empty() and session.session_key is None


def test_get_empty(session: Any) -> None:
    assert session.get("cat") is None and session.get("cat", "default") == "default"


def test_store(session: Any) -> None:
    session["cat"] = "dog"
    assert session.modified is True
    assert session.pop("cat") == "dog"


def test_pop(session: Any) -> None:
    session["some key"] = "exists"
    session.accessed = session.modified = False
    assert session.pop("some key") == "exists"
    assert session.accessed is True and session.modified is True
    assert session.get("some key") is None
    assert session.pop("some key", "does not exist") == "does not exist"
    assert session.pop("some key", default=None) is None
    with pytest.raises(KeyError):
        session.pop("some key")


def test_setdefault_and_update(session: Any) -> None:
    assert session.setdefault("foo", "bar") == "bar"
    assert session.setdefault("foo", "baz") == "bar"
    session.update({"update key": 1})
    assert session.accessed is True and session.modified is True
    assert session.get("update key", None) == 1


def test_has_key_keys_values_items(session: Any) -> None:
    session["some key"] = 1
    assert session.has_key("some key") and "some key" in session
    assert list(session.keys()) == ["some key"]
    assert list(session.values()) == [1]
    assert list(session.items()) == [("some key", 1)]


def test_clear(session: Any) -> None:
    session["x"] = 1
    session.modified = session.accessed = False
    session.clear()
    assert list(session.items()) == []
    assert session.accessed is True and session.modified is True


def test_save(session: Any) -> None:
    session["cat"] = "dog"
    session.save()
    assert is_id(session.session_key)
    assert session.exists(session.session_key)
    assert engine(session.session_key)["cat"] == "dog"


def test_delete(session: Any) -> None:
    session.save()
    session.delete(session.session_key)
    assert not session.exists(session.session_key)


def test_flush(session: Any) -> None:
    session["foo"] = "bar"
    session.save()
    previous = session.session_key
    session.flush()
    assert not session.exists(previous)
    assert session.session_key is None
    assert session.modified is True and session.accessed is True
    assert session.is_empty()


def test_cycle(session: Any) -> None:
    session["a"], session["b"] = "c", "d"
    session.save()
    previous = session.session_key
    session.cycle_key()
    assert not session.exists(previous)
    assert is_id(session.session_key) and session.session_key != previous
    assert list(session.items()) == [("a", "c"), ("b", "d")]
    assert dict(engine(session.session_key)) == {"a": "c", "b": "d"}


def test_cycle_with_no_session_cache(session: Any) -> None:
    session["a"] = "c"
    session.save()
    fresh = engine(session.session_key)
    fresh.cycle_key()
    assert dict(fresh.items()) == {"a": "c"}


def test_cycle_of_a_new_session(session: Any) -> None:
    session["a"] = 1
    session.cycle_key()
    assert is_id(session.session_key)
    assert dict(engine(session.session_key)) == {"a": 1}


def test_save_doesnt_clear_data(session: Any) -> None:
    session["a"] = "b"
    session.save()
    assert session["a"] == "b"


@pytest.mark.parametrize("key", ["1", "", None, "a" * 32, "a" * 44, "x" * 42 + "=", "x" * 42 + "A"])
def test_invalid_and_unknown_keys(session: Any, key: Any) -> None:
    made = engine(key)
    assert dict(made.items()) == {}
    assert made.session_key is None
    made["a"] = 1
    made.save()
    assert is_id(made.session_key) and made.session_key != key


def test_session_load_does_not_create_record(session: Any, memory: MemoryStore) -> None:
    made = engine(new_id())
    assert made.load() == {}
    assert made.session_key is None and memory.items == {}


def test_session_save_does_not_resurrect_session_logged_out_in_other_context(
    session: Any, memory: MemoryStore
) -> None:
    session["test_data"] = "value1"
    session.save()
    other = engine(session.session_key)
    assert other["test_data"] == "value1"
    session.flush()
    other["test_data"] = "value2"
    with pytest.raises(UpdateError):
        other.save()
    assert memory.items == {}
    other["again"] = 1
    with pytest.raises(UpdateError):
        other.save()


def test_nor_does_a_login(session: Any, memory: MemoryStore) -> None:
    session["a"] = 1
    session.save()
    other = engine(session.session_key)
    assert other["a"] == 1
    session.flush()
    with pytest.raises(SessionInterrupted):
        other.cycle_key()
    assert memory.items == {}


def test_default_expiry(session: Any, memory: MemoryStore) -> None:
    assert session.get_expiry_age() == settings.SESSION_COOKIE_AGE
    session["a"] = 1
    session.save()
    assert memory.ttl(store_key(session.session_key)) == pytest.approx(
        settings.SESSION_COOKIE_AGE, abs=2
    )


def test_custom_expiry(session: Any, memory: MemoryStore) -> None:
    for value in (10, timedelta(seconds=10), timezone.now() + timedelta(seconds=10)):
        session.set_expiry(value)
        session.save()
        assert 8 < session.get_expiry_age() <= 10
        assert 7 < (memory.ttl(store_key(session.session_key)) or 0) <= 10
    session.set_expiry(None)
    assert session.get_expiry_age() == settings.SESSION_COOKIE_AGE
    session.set_expiry(0)
    assert session.get_expire_at_browser_close() is True


def test_an_expired_session_is_gone(session: Any, memory: MemoryStore) -> None:
    session["a"] = 1
    session.set_expiry(5)
    session.save()
    memory.ahead = 6
    assert dict(engine(session.session_key).items()) == {}
    session.clear_expired()


# --- what this engine adds --------------------------------------------------------------------


def test_nested_changes_count_as_modified(session: Any, memory: MemoryStore) -> None:
    session["cart"] = {"items": [1]}
    session.save()
    again = engine(session.session_key)
    again["cart"]["items"].append(2)
    assert again.modified is True
    again.save()
    assert again.cluster_session.is_changed() is False
    assert engine(session.session_key)["cart"] == {"items": [1, 2]}


def test_changes_of_different_keys_are_all_kept(session: Any) -> None:
    session["a"] = 1
    session.save()
    requests = [engine(session.session_key) for _ in range(8)]
    for number, each in enumerate(requests):
        assert each["a"] == 1
        each[f"key{number}"] = number
    for each in requests:
        each.save()
    assert len(engine(session.session_key).keys()) == 9


def test_the_store_has_no_key_of_a_cookie(session: Any, memory: MemoryStore) -> None:
    session["a"] = 1
    session.save()
    assert session.session_key not in repr(memory.items)


def test_clearing_keeps_the_session(session: Any) -> None:
    session["a"] = 1
    session.save()
    key = session.session_key
    session.clear()
    session["b"] = 2
    session.save()
    assert session.session_key == key
    assert dict(engine(key).items()) == {"b": 2}


def test_in_an_event_loop(session: Any) -> None:
    async def use() -> None:
        await session.aset("a", [1])
        await session.asave()
        again = engine(session.session_key)
        (await again.aget("a")).append(2)
        assert again.modified
        await again.asave()
        await again.acycle_key()
        assert await again.aget("a") == [1, 2]
        assert await again.aexists(again.session_key)
        await again.aflush()
        assert again.session_key is None
        await engine(new_id()).acreate()

    asyncio.run(use())


# --- requests ---------------------------------------------------------------------------------


def cookie_of(client: Client) -> str:
    morsel = client.cookies.get(settings.SESSION_COOKIE_NAME)
    return morsel.value if morsel else ""


def test_a_session_goes_from_request_to_request(stores: MemoryStores) -> None:
    client = Client()
    assert [client.get("/visit").content for _ in range(3)] == [b"1", b"2", b"3"]
    assert [client.get("/nested").content for _ in range(3)] == [b"1", b"2", b"3"]
    assert Client().get("/visit").content == b"1"


def test_an_untouched_session_costs_nothing(stores: MemoryStores, memory: MemoryStore) -> None:
    client = Client()
    client.get("/visit")
    memory.calls.clear()
    assert not client.get("/plain").has_header("Vary")
    assert memory.calls == []


def test_a_changed_one_costs_one_read_and_one_write(
    stores: MemoryStores, memory: MemoryStore
) -> None:
    client = Client()
    client.get("/visit")
    memory.calls.clear()
    client.get("/visit")
    assert memory.calls == ["fields", "change"]


def test_login_and_logout(stores: MemoryStores, memory: MemoryStore) -> None:
    client = Client()
    client.get("/visit")
    old = cookie_of(client)
    assert client.get("/login").content.decode() == cookie_of(client) != old
    assert client.get("/visit").content == b"2"
    client.get("/logout")
    assert cookie_of(client) == "" and memory.items == {}


@override_settings(SESSION_SAVE_EVERY_REQUEST=True)
def test_use_can_keep_it(stores: MemoryStores, memory: MemoryStore) -> None:
    client = Client()
    client.get("/visit")
    memory.calls.clear()
    response = client.get("/plain")
    assert cookie_of(client) and response.cookies
    assert memory.calls == ["fields"]  # it was written a moment ago


@pytest.mark.parametrize("path", ["/visit", "/nested", "/login", "/logout", "/curious"])
def test_a_request_that_needs_the_session_is_told(
    stores: MemoryStores, memory: MemoryStore, path: str
) -> None:
    client = Client(raise_request_exception=False)
    client.get("/visit")
    old = cookie_of(client)
    memory.away = True
    response = client.get(path)
    assert response.status_code == 503 and response["Retry-After"] == "2"
    assert client.get("/plain").status_code == 200
    memory.away = False
    assert cookie_of(client) == old
    assert client.get("/visit").content == b"2"


def test_so_is_one_whose_session_cannot_be_saved(stores: MemoryStores, memory: MemoryStore) -> None:
    memory.before = lambda name: setattr(memory, "away", name == "change")
    response = Client().get("/visit")
    assert response.status_code == 503 and not response.cookies


def test_the_error_is_the_sessions(session: Any, memory: MemoryStore) -> None:
    memory.away = True
    with pytest.raises(SessionAway):
        engine(new_id()).get("a")
