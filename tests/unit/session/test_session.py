"""A session and the store: what is read and written, and what concurrent requests may not do."""

import asyncio
import time
from typing import Any

import pytest

from gunicorn_cluster_ext.codec import UnknownType
from gunicorn_cluster_ext.session.cookie import new_id
from gunicorn_cluster_ext.session.session import (
    Outcome,
    Session,
    SessionAway,
    SessionLifetime,
    store_key,
)
from tests.harness.fakes.store import MemoryStore, MemoryStores

LIFETIME = SessionLifetime(idle=1000, total=5000)


class Client:
    """A client with one cookie jar."""

    def __init__(self, stores: MemoryStores, lifetime: SessionLifetime = LIFETIME) -> None:
        self.stores = stores
        self.lifetime = lifetime
        self.sid: str | None = None

    def request(self) -> Session:
        return Session(self.stores, self.lifetime, self.sid)

    def end(self, session: Session) -> Outcome:
        outcome, sid = session.save()
        if outcome is Outcome.PUT:
            self.sid = sid
        elif outcome is Outcome.REMOVE:
            self.sid = None
        return outcome

    def put(self, **values: Any) -> Outcome:
        session = self.request()
        session.update(values)
        return self.end(session)

    def data(self) -> dict[str, Any]:
        return dict(self.request())


@pytest.fixture
def client(stores: MemoryStores) -> Client:
    return Client(stores)


@pytest.fixture
def known(client: Client, memory: MemoryStore) -> Client:
    """A client with a session."""
    client.put(a=1, cart={"items": [1]})
    memory.calls.clear()
    return client


# --- what it costs ----------------------------------------------------------------------------


def test_an_unread_session_costs_nothing(known: Client, memory: MemoryStore) -> None:
    assert known.end(known.request()) is Outcome.KEEP
    assert memory.calls == []


def test_a_read_one_costs_one_read(known: Client, memory: MemoryStore) -> None:
    session = known.request()
    assert session["a"] == 1 and session["cart"] == {"items": [1]} and len(session) == 2
    assert known.end(session) is Outcome.KEEP
    assert memory.calls == ["fields"]


def test_a_changed_one_costs_one_write_more(known: Client, memory: MemoryStore) -> None:
    assert known.put(b=2) is Outcome.KEEP
    assert memory.calls == ["fields", "change"]


def test_a_client_without_a_session_costs_nothing(client: Client, memory: MemoryStore) -> None:
    session = client.request()
    assert dict(session) == {} and session.new
    session.pop("x", None)
    assert client.end(session) is Outcome.KEEP
    assert memory.calls == []


def test_a_new_one_costs_one_write(client: Client, memory: MemoryStore) -> None:
    assert client.put(a=1) is Outcome.PUT
    assert memory.calls == ["change"]


# --- what is stored ---------------------------------------------------------------------------


def test_values_come_back(client: Client) -> None:
    client.put(a=1, b=(1, [2]), c=None)
    assert client.data() == {"a": 1, "b": (1, [2]), "c": None}
    assert not client.request().new


def test_only_what_changed_is_written(known: Client, memory: MemoryStore) -> None:
    key = store_key(known.sid or "")
    before = memory.fields(key)
    session = known.request()
    session["cart"]["items"].append(2)
    del session["a"]
    session["n"] = 5
    known.end(session)
    after = memory.fields(key)
    assert after.keys() == before.keys() - {b"a"} | {b"n"}
    assert known.data() == {"cart": {"items": [1, 2]}, "n": 5}


def test_the_store_has_the_hash_of_the_id_only(known: Client, memory: MemoryStore) -> None:
    assert known.sid is not None
    text = repr(memory.items)
    assert known.sid not in text and known.sid[5:20] not in text
    assert list(memory.items) == [store_key(known.sid)]


def test_it_does_not_show_its_id(known: Client) -> None:
    session = known.request()
    assert repr(session) == "<Session, unread>"
    dict(session)
    assert repr(session) == "<Session of a, cart>"


def test_what_cannot_be_stored_is_refused_where_it_is_set(known: Client) -> None:
    with pytest.raises(UnknownType, match=r"'user'.*builtins.object"):
        known.request()["user"] = object()


# --- requests at the same time ----------------------------------------------------------------


def test_changes_of_different_keys_are_all_kept(known: Client) -> None:
    sessions = [known.request() for _ in range(8)]
    for number, session in enumerate(sessions):
        assert session["a"] == 1
        session[f"key{number}"] = number
    for session in sessions:
        known.end(session)
    data = known.data()
    assert all(data[f"key{number}"] == number for number in range(8))


def test_a_change_and_a_removal_are_both_kept(known: Client) -> None:
    one, other = known.request(), known.request()
    one["cart"]["items"].append(2)
    del other["a"]
    known.end(one)
    known.end(other)
    assert known.data() == {"cart": {"items": [1, 2]}}


@pytest.mark.parametrize("change", ["set", "nested", "remove", "nothing"])
def test_a_logout_is_not_undone(known: Client, memory: MemoryStore, change: str) -> None:
    slow, logout = known.request(), known.request()
    assert slow["a"] == 1
    logout.clear()
    assert logout.save()[0] is Outcome.REMOVE
    if change == "set":
        slow["b"] = 2
    elif change == "nested":
        slow["cart"]["items"].append(2)
    elif change == "remove":
        del slow["a"]
    assert slow.save()[0] is Outcome.KEEP
    assert memory.items == {}


def test_nor_by_a_login_in_a_session_that_ended(known: Client, memory: MemoryStore) -> None:
    slow, logout = known.request(), known.request()
    slow["user"] = "me"
    slow.regenerate()
    logout.clear()
    logout.save()
    assert slow.save()[0] is Outcome.KEEP
    assert memory.items == {}


@pytest.mark.parametrize("step", ["fields", "change", "delete"])
def test_nor_when_both_happen_at_once(known: Client, memory: MemoryStore, step: str) -> None:
    """The logout happens before any step of a login."""
    slow, logout = known.request(), known.request()
    slow["user"] = "me"
    slow.regenerate()
    logout.clear()

    def log_out(name: str) -> None:
        if name == step:
            memory.before = lambda name: None
            logout.save()

    memory.before = log_out
    assert slow.save()[0] is Outcome.KEEP
    assert memory.items == {}


def test_what_expired_is_not_brought_back(known: Client, memory: MemoryStore) -> None:
    slow = known.request()
    slow["b"] = 1
    memory.ahead = 1001
    assert slow.save()[0] is Outcome.KEEP
    assert memory.fields(store_key(known.sid or "")) == {}


# --- ids --------------------------------------------------------------------------------------


def test_an_unknown_id_is_not_used(client: Client, memory: MemoryStore, caplog: Any) -> None:
    client.sid = planted = new_id()
    with caplog.at_level("DEBUG", "gunicorn.error"):
        assert client.put(a=1) is Outcome.PUT
    assert client.sid != planted
    assert list(memory.items) == [store_key(client.sid or "")]
    assert len(caplog.records) == 1 and planted not in caplog.text


def test_regenerate_gives_a_new_id_to_the_same_data(known: Client, memory: MemoryStore) -> None:
    old = known.sid
    login, other = known.request(), known.request()
    login["user"] = "me"
    login.regenerate()
    del login["a"]
    other["meanwhile"] = 1
    known.end(other)
    assert known.end(login) is Outcome.PUT
    assert known.sid != old
    assert known.data() == {"cart": {"items": [1]}, "user": "me", "meanwhile": 1}
    assert list(memory.items) == [store_key(known.sid or "")]


def test_regenerate_alone_is_enough(known: Client) -> None:
    old, session = known.sid, known.request()
    session.regenerate()
    known.end(session)
    assert known.sid != old
    assert known.data() == {"a": 1, "cart": {"items": [1]}}


def test_regenerate_of_nothing_is_nothing(client: Client, memory: MemoryStore) -> None:
    session = client.request()
    session.regenerate()
    assert client.end(session) is Outcome.KEEP
    assert memory.items == {}


def test_clear_and_set_is_a_new_session(known: Client, memory: MemoryStore) -> None:
    """Many applications write a login this way."""
    old, session = known.sid, known.request()
    session.clear()
    session["user"] = "me"
    assert dict(session) == {"user": "me"}
    assert known.end(session) is Outcome.PUT
    assert known.sid != old
    assert known.data() == {"user": "me"}
    assert list(memory.items) == [store_key(known.sid or "")]


def test_clear_needs_no_read(known: Client, memory: MemoryStore) -> None:
    session = known.request()
    session.clear()
    session.clear()
    assert known.end(session) is Outcome.REMOVE
    assert memory.calls == ["delete"] and memory.items == {}


def test_clear_of_nothing_is_nothing(client: Client) -> None:
    session = client.request()
    session.clear()
    assert client.end(session) is Outcome.KEEP


# --- the lifetime -----------------------------------------------------------------------------


def travel(monkeypatch: pytest.MonkeyPatch, memory: MemoryStore, seconds: float) -> None:
    memory.ahead += seconds
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


def test_it_ends_when_it_is_not_used(
    known: Client, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    travel(monkeypatch, memory, 999)
    assert known.data() != {}
    travel(monkeypatch, memory, 2)
    assert known.data() == {}


def test_use_keeps_it_and_writes_seldom(
    known: Client, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        travel(monkeypatch, memory, 40)
        session = known.request()
        assert session["a"] == 1
        known.end(session)
    assert memory.calls.count("fields") == 100
    assert 30 <= memory.calls.count("change") <= 34  # each third: 120 s is the first above 100


def test_it_ends_after_its_lifetime_however_it_is_used(
    known: Client, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(9):
        travel(monkeypatch, memory, 550)
        assert known.put(a=1) is Outcome.KEEP
    assert memory.ttl(store_key(known.sid or "")) == pytest.approx(50, abs=2)
    travel(monkeypatch, memory, 60)
    assert known.data() == {}


def test_a_shorter_lifetime_counts_for_old_sessions(
    known: Client, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    travel(monkeypatch, memory, 500)
    known.lifetime = SessionLifetime(1000, 400)
    assert known.data() == {}
    assert known.put(a=2) is Outcome.PUT


def test_without_a_lifetime_only_use_counts(
    stores: MemoryStores, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(stores, SessionLifetime(1000, 0))
    client.put(a=0)
    for number in range(20):
        travel(monkeypatch, memory, 900)
        assert client.data() == {"a": number}
        client.put(a=number + 1)


def test_a_new_id_begins_a_new_lifetime(
    known: Client, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        travel(monkeypatch, memory, 900)
        known.put(a=1)
    session = known.request()
    session.regenerate()
    known.end(session)
    travel(monkeypatch, memory, 900)
    assert known.data() != {}


# --- what is damaged --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        {b"a": b"\xc1 secret"},
        {b"\xff": b"1"},
        {b"\0made": b"\xa1x"},
        {b"\0seen": b""},
        {b"a": b"\x80\x04]\x94."},
    ],
)
def test_a_damaged_session_starts_empty(
    known: Client, memory: MemoryStore, damage: dict[bytes, bytes], caplog: Any
) -> None:
    memory.change(store_key(known.sid or ""), damage)
    old = known.sid
    with caplog.at_level("WARNING", "gunicorn.error"):
        assert known.data() == {}
    assert len(caplog.records) == 1 and "secret" not in caplog.text
    assert known.put(a=1) is Outcome.PUT
    assert known.sid != old


def test_one_without_its_times_is_damaged(known: Client, memory: MemoryStore) -> None:
    memory.change(store_key(known.sid or ""), {}, [b"\0made"])
    assert known.data() == {}


# --- the store is away ------------------------------------------------------------------------


def test_reading_says_that_the_store_is_away(known: Client, memory: MemoryStore) -> None:
    memory.away = True
    session = known.request()
    for _ in range(2):
        with pytest.raises(SessionAway):
            session.get("a")
    assert session.failed
    assert memory.calls == ["fields"]  # it is not asked again and again


def test_so_does_saving_and_nothing_is_lost(known: Client, memory: MemoryStore) -> None:
    session = known.request()
    session["b"] = 2
    memory.away = True
    with pytest.raises(SessionAway):
        session.save()
    memory.away = False
    assert session.save()[0] is Outcome.KEEP
    assert known.data()["b"] == 2


def test_a_logout_is_not_taken_for_done(known: Client, memory: MemoryStore) -> None:
    session = known.request()
    session.clear()
    memory.away = True
    with pytest.raises(SessionAway):
        session.save()
    memory.away = False
    assert session.save()[0] is Outcome.REMOVE
    assert memory.items == {}


def test_an_untouched_session_does_not_notice(known: Client, memory: MemoryStore) -> None:
    memory.away = True
    assert known.end(known.request()) is Outcome.KEEP


# --- after the response began -----------------------------------------------------------------


def test_what_is_changed_too_late_is_said(known: Client, caplog: Any) -> None:
    session = known.request()
    known.end(session)
    with caplog.at_level("WARNING", "gunicorn.error"):
        session["late"] = 1
    assert "after its response began" in caplog.text


def test_one_that_is_saved_more_than_once(known: Client, caplog: Any) -> None:
    """A WebSocket's session is."""
    session = known.request()
    session["b"] = 1
    session.save(last=False)
    session["c"] = [1]
    session.save(last=False)
    session["c"].append(2)
    session.save()
    assert known.data() == {"a": 1, "cart": {"items": [1]}, "b": 1, "c": [1, 2]}
    assert caplog.records == []


# --- the asynchronous methods -------------------------------------------------------------------


def test_the_asynchronous_methods(known: Client, memory: MemoryStore) -> None:
    async def use() -> None:
        session = known.request()
        await session.aload()
        session["cart"]["items"].append(7)
        assert await session.asave() == (Outcome.KEEP, known.sid)
        assert memory.calls == ["fields", "change"]

    asyncio.run(use())
    assert known.data()["cart"] == {"items": [1, 7]}


def test_an_event_loop_does_not_wait_unawares(known: Client, memory: MemoryStore) -> None:
    async def use() -> None:
        unasked = known.request()
        await unasked.prepare(load=False)
        with pytest.raises(RuntimeError, match="aload"):
            unasked.get("a")
        await unasked.aload()
        assert unasked["a"] == 1
        loaded = known.request()
        await loaded.prepare(load=True)
        assert loaded["a"] == 1
        memory.away = True
        away = known.request()
        await away.prepare(load=True)
        assert not away.failed
        with pytest.raises(SessionAway):
            away.get("a")
        assert away.failed

    asyncio.run(use())
