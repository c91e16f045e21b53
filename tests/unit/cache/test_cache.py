"""The cache, over a store in memory which can be away."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gunicorn_cluster_ext import cache as module
from gunicorn_cluster_ext import logs
from gunicorn_cluster_ext.cache import Cache, single_flight
from gunicorn_cluster_ext.cache.locks import LockTimeout
from gunicorn_cluster_ext.cache.single_flight import CachedValue, pack
from gunicorn_cluster_ext.codec import UnknownType
from gunicorn_cluster_ext.runtime import counters
from gunicorn_cluster_ext.stores.contract import StoreAway, StoreError
from tests.harness.fakes.store import MemoryStore, MemoryStores
from tests.harness.waiting import wait_until


@pytest.fixture
def cache(stores: MemoryStores) -> Cache:
    return Cache(stores=stores)


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The counts that a test expects in the end, beyond those of the process before."""
    before = module.stats()
    seen: dict[str, int] = {}
    yield seen
    for name, number in seen.items():
        assert module.stats()[name] - before[name] == number, name


# --- values -----------------------------------------------------------------------------------


def test_a_value_comes_back(cache: Cache, counts: dict[str, int]) -> None:
    counts |= {"hits": 1, "misses": 2, "errors": 0}
    assert cache.get("key") is None
    assert cache.set("key", {"a": (1, 2)}) is True
    assert cache.get("key") == {"a": (1, 2)}
    assert cache.get("other", "default") == "default"


def test_none_is_a_value(cache: Cache, counts: dict[str, int]) -> None:
    counts |= {"hits": 2, "misses": 0}
    cache.set("key", None)
    assert cache.get("key", "default") is None
    assert cache.get_many(["key"]) == {"key": None}


def test_keys_may_be_bytes_long_and_odd(cache: Cache) -> None:
    keys = ["", "ü", "\ud800", b"\xff", "a" * 5000, "a" * 5001, b"a" * 200, "\0", "x:y", " "]
    for number, key in enumerate(keys):
        cache.set(key, number)
    assert [cache.get(key) for key in keys] == list(range(len(keys)))
    assert cache.get_many(keys) == {key: number for number, key in enumerate(keys)}


def test_keys_fit_into_any_store(cache: Cache, memory: MemoryStore) -> None:
    cache.namespace("n" * 40).get_or_set("a" * 5000, lambda: 1)
    cache.lock("b" * 5000, 5).acquire()
    assert max(map(len, memory.items)) < 400


def test_text_and_its_bytes_are_one_key(cache: Cache) -> None:
    cache.set("key", 1)
    assert cache.get(b"key") == 1


def test_times_to_live(cache: Cache, memory: MemoryStore) -> None:
    cache.set("default", 1)
    cache.set("own", 1, ttl=5)
    cache.set("none", 1, ttl=None)
    cache.set_many({"many": 1}, ttl=7)
    cache.add("added", 1, 9)
    left = {key.split(b":")[-1]: memory.ttl(key) for key in memory.items}
    rounded = {key: ttl and round(ttl) for key, ttl in left.items()}
    assert rounded == {b"default": 300, b"own": 5, b"none": None, b"many": 7, b"added": 9}
    assert cache.touch("own", ttl=60) is True
    assert cache.touch("absent") is False
    memory.ahead = 30
    assert cache.get("own") == 1
    assert cache.get("many") is None


@pytest.mark.parametrize("ttl", [0, -1])
def test_a_time_to_live_is_more_than_nothing(cache: Cache, ttl: int) -> None:
    with pytest.raises(ValueError, match="ttl"):
        cache.set("key", 1, ttl=ttl)
    with pytest.raises(ValueError, match="ttl"):
        cache.lock("key", ttl)


def test_an_unknown_type_is_refused_where_it_is_stored(cache: Cache, memory: MemoryStore) -> None:
    for store in (
        lambda: cache.set("basket", object()),
        lambda: cache.add("basket", object()),
        lambda: cache.set_many({"fine": 1, "basket": object()}),
        lambda: cache.get_or_set("basket", object),
    ):
        with pytest.raises(UnknownType, match=r"'basket'.*builtins.object"):
            store()
    assert memory.items == {}


def test_add_sets_once(cache: Cache) -> None:
    assert cache.add("key", 1) is True
    assert cache.add("key", 2) is False
    assert cache.get("key") == 1


def test_many(cache: Cache, memory: MemoryStore, counts: dict[str, int]) -> None:
    counts |= {"hits": 2, "misses": 1}
    assert cache.set_many({"a": 1, "b": [2]}) is True
    assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": [2]}
    assert cache.delete("a") is True
    assert cache.delete("a") is False
    assert cache.delete_many(["a", "b"]) == 1
    assert memory.calls == ["set_many", "get_many", "delete", "delete", "delete"]


def test_counting(cache: Cache, memory: MemoryStore) -> None:
    assert [cache.incr("n"), cache.incr("n", 5), cache.incr("n", -2)] == [1, 6, 4]
    assert cache.get("n") == 4
    cache.set("n", 41, ttl=None)
    assert cache.incr("n") == 42
    assert cache.incr("short", ttl=5) == 1
    assert cache.incr("short", ttl=50) == 2
    memory.ahead = 6
    assert cache.incr("short") == 1


def test_what_is_no_number_is_not_counted(cache: Cache, counts: dict[str, int]) -> None:
    counts |= {"errors": 1}
    cache.set("text", "5")
    with pytest.raises(StoreError):
        cache.incr("text")


def test_namespaces_are_apart(cache: Cache) -> None:
    users, posts = cache.namespace("users"), cache.namespace("posts")
    for number, each in enumerate((cache, users, posts)):
        each.set("key", number)
        each.get_or_set("other", lambda: 0)
    assert [each.get("key") for each in (cache, users, posts)] == [0, 1, 2]
    assert users.clear() == 2
    assert [each.get("key") for each in (cache, users, posts)] == [0, None, 2]
    cache.clear()
    assert [each.get("key") for each in (cache, users, posts)] == [None] * 3
    with pytest.raises(ValueError, match="colon"):
        cache.namespace("a:b")


def test_clearing_leaves_locks_alone(cache: Cache) -> None:
    with cache.lock("name", 5):
        cache.clear()
        assert cache.lock("name", 5, wait=0).acquire() is False


# --- what is corrupt --------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xc1" + b"x" * 16, b"\xff\xff secret", b"5x"])
def test_a_corrupt_value_is_a_miss_and_a_line_without_it(
    cache: Cache, memory: MemoryStore, data: bytes, caplog: Any, counts: dict[str, int]
) -> None:
    counts |= {"hits": 0, "misses": 4, "errors": 5}  # get_or_set looks again when it has the lease
    memory.items[b"cache::key"] = data, None
    with caplog.at_level(logging.WARNING, "gunicorn.error"):
        assert cache.get("key", "default") == "default"
    assert len(caplog.records) == 1
    assert "cache::key" in caplog.text and "secret" not in caplog.text
    assert cache.get_many(["key"]) == {}
    assert asyncio.run(cache.aget("key")) is None
    assert cache.get_or_set("key", lambda: "new") == "new"


# --- the store is away ------------------------------------------------------------------------


def test_without_its_store_it_misses_and_drops(
    cache: Cache, memory: MemoryStore, counts: dict[str, int]
) -> None:
    counts |= {"hits": 0, "misses": 4, "errors": 8}
    memory.away = True
    assert cache.get("key", "default") == "default"
    assert cache.get_many(["a", "b"]) == {}
    assert cache.set("key", 1) is False
    assert cache.set_many({"key": 1}) is False
    assert cache.delete("key") is False
    assert cache.touch("key") is False
    assert cache.get_or_set("key", lambda: "computed") == "computed"
    memory.away = False
    assert memory.items == {}


def test_what_decides_something_says_that_the_store_is_away(
    cache: Cache, memory: MemoryStore, counts: dict[str, int]
) -> None:
    counts |= {"errors": 3}
    memory.away = True
    for ask in (
        lambda: cache.add("key", 1),
        lambda: cache.incr("key"),
        cache.clear,
        lambda: cache.lock("key", 5).acquire(),
    ):
        with pytest.raises(StoreAway):
            ask()


@pytest.mark.parametrize("name", ["get", "add", "set", "compare_and_delete"])
@pytest.mark.parametrize("when", [1, 2])
def test_a_store_that_goes_away_meanwhile_costs_no_answer(
    cache: Cache, memory: MemoryStore, name: str, when: int
) -> None:
    def leave(called: str) -> None:
        memory.away = memory.away or [*memory.calls, called].count(name) == when

    memory.before = leave
    assert cache.get_or_set("key", lambda: 5) == 5


# --- single flight ----------------------------------------------------------------------------


def test_many_who_want_it_compute_it_once(cache: Cache, memory: MemoryStore) -> None:
    calls = []

    def compute() -> int:
        calls.append(threading.get_ident())
        time.sleep(0.1)
        return 42

    with ThreadPoolExecutor(32) as crowd:
        answers = list(crowd.map(lambda _: cache.get_or_set("key", compute, 60), range(64)))
    assert answers == [42] * 64
    assert len(calls) == 1
    assert list(memory.items) == [b"cache::key"]
    assert cache.get("key") == 42


def test_so_it_is_in_an_event_loop(cache: Cache) -> None:
    calls = []

    async def compute() -> int:
        calls.append(1)
        await asyncio.sleep(0.1)
        return 42

    async def ask() -> list[int]:
        return await asyncio.gather(*(cache.aget_or_set("key", compute, 60) for _ in range(64)))

    assert asyncio.run(ask()) == [42] * 64
    assert len(calls) == 1


def test_none_and_errors(cache: Cache, counts: dict[str, int]) -> None:
    counts |= {"hits": 1, "misses": 2}
    answers = iter([ValueError("first"), None])

    def compute() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ValueError, match="first"):
        cache.get_or_set("key", compute)
    assert cache.get_or_set("key", compute) is None
    assert cache.get_or_set("key", compute) is None


def test_the_next_one_computes_after_an_error(cache: Cache, memory: MemoryStore) -> None:
    began = threading.Event()

    def fail() -> None:
        began.set()
        time.sleep(0.1)
        raise ValueError("no luck")

    with ThreadPoolExecutor(1) as other:
        failing = other.submit(cache.get_or_set, "key", fail)
        began.wait(5)
        assert cache.get_or_set("key", lambda: "mine") == "mine"
        assert isinstance(failing.exception(), ValueError)
    assert list(memory.items) == [b"cache::key"]


def test_too_old_is_computed_again(cache: Cache, memory: MemoryStore) -> None:
    memory.items[b"cache::key"] = pack(CachedValue("old", time.time() - 5, 0.1), ""), None
    assert cache.get("key", "miss") == "miss"
    assert cache.get_or_set("key", lambda: "new") == "new"


def test_the_others_may_have_the_stale_value(cache: Cache, memory: MemoryStore) -> None:
    memory.items[b"cache::key"] = pack(CachedValue("old", time.time() - 5, 0.1), ""), None
    memory.items[b"cache::\0lease:key"] = b"somebody", None
    assert cache.get_or_set("key", lambda: "new", stale=60) == "old"
    assert cache.get_or_set("key", lambda: "new", stale=1, wait=0.05) == "new"
    assert cache.get("key", "miss") == "miss"  # without the lease it is not stored


def test_stale_values_are_kept_for_that_long(cache: Cache, memory: MemoryStore) -> None:
    cache.get_or_set("key", lambda: 1, 10, stale=20)
    assert round(memory.ttl(b"cache::key") or 0) == 30


def test_a_costly_value_is_computed_ahead_of_its_time(
    cache: Cache, memory: MemoryStore, counts: dict[str, int]
) -> None:
    counts |= {"hits": 3}
    soon = time.time() + 60
    memory.items[b"cache::cheap"] = pack(CachedValue("old", soon, 0.001), ""), None
    memory.items[b"cache::costly"] = pack(CachedValue("old", soon, 1e9), ""), None
    assert cache.get_or_set("cheap", lambda: "new") == "old"
    assert cache.get_or_set("costly", lambda: "new") == "new"
    memory.items[b"cache::costly"] = pack(CachedValue("old", soon, 1e9), ""), None
    memory.items[b"cache::\0lease:costly"] = b"somebody", None
    assert cache.get_or_set("costly", lambda: "new") == "old"


def test_an_error_ahead_of_time_harms_nobody(
    cache: Cache, memory: MemoryStore, caplog: Any
) -> None:
    def fail() -> None:
        raise ValueError("no luck")

    memory.items[b"cache::key"] = pack(CachedValue("old", time.time() + 60, 1e9), ""), None
    assert cache.get_or_set("key", fail) == "old"
    assert "no luck" in caplog.text
    assert list(memory.items) == [b"cache::key"]


def test_a_delete_meanwhile_wins(cache: Cache, memory: MemoryStore) -> None:
    """A value that was computed from the old state is not stored."""

    def compute() -> str:
        cache.delete("key")
        return "from before"

    assert cache.get_or_set("key", compute) == "from before"
    assert memory.items == {}


def test_a_clear_meanwhile_wins(cache: Cache, memory: MemoryStore) -> None:
    users = cache.namespace("users")

    def compute() -> str:
        users.clear()
        return "from before"

    assert users.get_or_set("key", compute) == "from before"
    assert memory.items == {}


def test_the_lease_of_a_dead_worker_ends_soon(
    cache: Cache, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.add(b"cache::\0lease:key", b"a dead worker", 0.2)
    began = time.monotonic()
    assert cache.get_or_set("key", lambda: 1) == 1
    assert 0.1 < time.monotonic() - began < 2


def test_the_lease_of_the_living_is_kept(cache: Cache, memory: MemoryStore) -> None:
    """It is renewed for longer than its time to live."""
    cache.get_or_set("warm", lambda: time.sleep(single_flight.LEASE_TTL_S + 1))
    touched = memory.calls.count("touch")
    assert touched >= 3
    asyncio.run(cache.aget_or_set("async", lambda: asyncio.sleep(2.5)))
    assert memory.calls.count("touch") > touched
    assert set(memory.items) == {b"cache::warm", b"cache::async"}


def test_no_thread_is_left(cache: Cache) -> None:
    cache.get_or_set("key", lambda: 1)
    deadline = time.monotonic() + 5
    while any(thread.name == "cluster-renewer" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cancelled_task_releases_its_lease(cache: Cache, memory: MemoryStore) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(cache.aget_or_set("key", lambda: asyncio.sleep(60)))
        await asyncio.sleep(0.05)
        assert list(memory.items) == [b"cache::\0lease:key"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert memory.items == {}


# --- the decorator ----------------------------------------------------------------------------


def test_a_function_is_called_once_for_the_same_arguments(cache: Cache) -> None:
    calls = []

    @cache.cached(ttl=60)
    def price(article: int, *, tax: bool = False) -> int | None:
        """What it costs."""
        calls.append((article, tax))
        return None if article == 0 else article * 10

    assert [price(1), price(1), price(2), price(1, tax=True), price(0), price(0)] == [
        10, 10, 20, 10, None, None,
    ]  # fmt: skip
    assert calls == [(1, False), (2, False), (1, True), (0, False)]
    assert price.__doc__ == "What it costs."
    assert price.delete(1) is True  # type: ignore[attr-defined]
    price(1)
    assert calls[-1] == (1, False)


def test_arguments_of_different_types_differ(cache: Cache) -> None:
    @cache.cached()
    def name(value: Any) -> str:
        return type(value).__name__

    assert [name(1), name(1.0), name(True), name("1"), name((1,)), name([1])] == [
        "int", "float", "bool", "str", "tuple", "list",
    ]  # fmt: skip


def test_an_argument_that_makes_no_key_is_named(cache: Cache) -> None:
    class Shop:
        @cache.cached()
        def price(self) -> int:
            return 1

    with pytest.raises(UnknownType, match=r"argument of .*Shop.price.*Shop"):
        Shop().price()


def test_the_key_can_be_chosen(cache: Cache, memory: MemoryStore) -> None:
    @cache.cached(60, key=lambda user: f"user-{user['id']}")
    def load(user: dict[str, Any]) -> str:
        return user["name"]

    assert load({"id": 1, "name": "one"}) == "one"
    assert load({"id": 1, "name": "other"}) == "one"
    assert list(memory.items) == [b"cache::user-1"]


def test_asynchronous_functions_too(cache: Cache) -> None:
    calls = []

    @cache.cached(60)
    async def price(article: int) -> int:
        calls.append(article)
        await asyncio.sleep(0.01)
        return article * 10

    async def ask() -> list[Any]:
        first = await asyncio.gather(*(price(1) for _ in range(10)))
        gone = await price.adelete(1)  # type: ignore[attr-defined]
        return [*first, gone, await price(1)]

    assert asyncio.run(ask()) == [10] * 10 + [True, 10]
    assert calls == [1, 1]


# --- locks ------------------------------------------------------------------------------------


def test_a_lock_excludes(cache: Cache, memory: MemoryStore) -> None:
    inside, most = 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with cache.lock("name", 10):
            inside += 1
            most = max(most, inside)
            time.sleep(0.002)
            inside -= 1

    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(work, range(24)))
    assert most == 1
    assert list(memory.items) == [b"lock:cache::name\0token"]


def test_a_lock_that_is_held_is_waited_for_in_vain(cache: Cache) -> None:
    with cache.lock("name", 10):
        with pytest.raises(LockTimeout, match=r"'name'.*0.05 s"), cache.lock("name", 10, wait=0.05):
            pass
        with cache.lock("other", 10, wait=0):
            pass


def test_tokens_grow(cache: Cache, memory: MemoryStore) -> None:
    tokens = []
    for _ in range(3):
        with cache.lock("name", 10) as lock:
            assert lock.token is not None
            tokens.append(lock.token)
    memory.items.clear()  # evicted
    before = time.time()
    wait_until(lambda: time.time() > before + 0.001, 5, "the clock, which tokens begin with")
    with cache.lock("name", 10) as lock:
        assert lock.token is not None
        tokens.append(lock.token)
    assert tokens == sorted(set(tokens))
    assert lock.token is None


def test_only_the_holder_releases(cache: Cache, memory: MemoryStore, caplog: Any) -> None:
    slow, quick = cache.lock("name", 0.05), cache.lock("name", 10)
    with slow:
        assert quick.acquire()
    assert "held for longer than its 0.05 s" in caplog.text
    assert cache.lock("name", 10, wait=0).acquire() is False
    assert quick.release() is True
    assert quick.release() is False


def test_a_lock_that_cannot_be_given_back_ends_by_itself(
    cache: Cache, memory: MemoryStore, caplog: Any
) -> None:
    with cache.lock("name", 10):
        memory.away = True
    assert "free in 10 s only" in caplog.text
    memory.away, memory.ahead = False, 11
    assert cache.lock("name", 10, wait=0).acquire() is True


def test_what_is_wrong_with_the_store_is_said_now_and_then(
    cache: Cache, memory: MemoryStore, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.warn_throttled, "_next", 0.0)
    memory.away = True
    for _ in range(20):
        cache.get("key")
        cache.set("key", 1)
    assert [record.getMessage() for record in caplog.records] == ["away (said at most every 10 s)"]


def test_a_lock_that_ends_while_it_is_taken_is_not_had(cache: Cache, memory: MemoryStore) -> None:
    """The store stalls between the two steps: the token might be larger than a later holder's."""
    memory.before = lambda name: time.sleep(0.1) if name == "incr" else None
    assert cache.lock("name", 0.05, wait=0).acquire() is False


def test_locks_in_an_event_loop(cache: Cache) -> None:
    inside, most = 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with cache.lock("name", 10):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.002)
            inside -= 1

    async def crowd() -> None:
        await asyncio.gather(*(work() for _ in range(24)))
        async with cache.lock("name", 10):
            with pytest.raises(LockTimeout):
                async with cache.lock("name", 10, wait=0.01):
                    pass

    asyncio.run(crowd())
    assert most == 1


# --- the asynchronous methods -------------------------------------------------------------------


def test_the_asynchronous_methods_is_the_same_cache(cache: Cache) -> None:
    async def use() -> None:
        assert await cache.aset("key", [1]) is True
        assert await cache.aget("key") == cache.get("key") == [1]
        assert await cache.aadd("key", 2) is False
        assert await cache.atouch("key", 5) is True
        assert await cache.aset_many({"a": 1, "b": 2}) is True
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        assert await cache.aincr("n", 5) == 5
        assert await cache.adelete("key") is True
        assert await cache.adelete_many(["a", "b"]) == 2
        assert await cache.aclear() == 1

    asyncio.run(use())


def test_and_as_brave_without_its_store(cache: Cache, memory: MemoryStore) -> None:
    async def use() -> None:
        assert await cache.aget("key", 5) == 5
        assert await cache.aset("key", 1) is False
        assert await cache.aget_or_set("key", lambda: 3) == 3
        with pytest.raises(StoreAway):
            await cache.aincr("key")

    memory.away = True
    asyncio.run(use())


# --- the module -------------------------------------------------------------------------------


def test_the_module_is_a_cache() -> None:
    import gunicorn_cluster_ext

    assert gunicorn_cluster_ext.__name__ == "gunicorn_cluster_ext"
    public = {name for name in vars(Cache) if not name.startswith("_")}
    assert all(getattr(module, name).__self__ is module._default for name in public)


def test_counts_are_published_on_the_board() -> None:
    from gunicorn_cluster_ext.runtime.board.board import Board
    from gunicorn_cluster_ext.runtime.board.layout import Word

    board, count = Board.create(2), counters.Counter(Word.CACHE_HITS)
    count.add()
    count.publish(board, 3)
    count.add(2)
    assert board.get(3, Word.CACHE_HITS) == count.value == 3
    count.forget()
    count.add()
    assert board.get(3, Word.CACHE_HITS) == 3
