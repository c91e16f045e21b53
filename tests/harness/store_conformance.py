"""What every store does: inherited by the tests of each backend, blocking and asynchronous."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_async_store, open_store
from gunicorn_cluster_ext.stores.contract import NotANumber, StoreError
from tests.harness.waiting import wait_until

#: A time to live: short enough to wait for, long enough for a busy machine. In seconds.
TTL = 0.4
LONG = 1_000.0
#: The limit of a call in tests that are not about time.
CALL_TIMEOUT_S = 10.0
ODD = [b"\0", b"\xff\xfe", b"a b\r\n", b"*?[^a]\\", b"{tag}x", b"k" * 399, b"k" * 5_000]


class Awaited:
    """An asynchronous store with the methods of a blocking one."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = open_async_store(settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.store, name)
        return lambda *args, **kwargs: self.loop.run_until_complete(method(*args, **kwargs))

    def rest(self) -> None:
        """Let the loop handle what has happened meanwhile."""
        self.loop.run_until_complete(asyncio.sleep(0.05))

    def close(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.close()


def open_in_mode(mode: str, settings: Settings) -> Any:
    return open_store(settings) if mode == "sync" else Awaited(settings)


class Conformance:
    """A subclass has a fixture `settings`. Its store may hold anything, which is deleted."""

    @pytest.fixture(params=["sync", "async"])
    def store(self, request: pytest.FixtureRequest, settings: Settings) -> Iterator[Any]:
        opened = open_in_mode(request.param, settings)
        try:
            opened.clear(b"")
            yield opened
        finally:
            opened.close()

    # --- values -------------------------------------------------------------------------

    def test_what_was_set_is_there(self, store: Any) -> None:
        assert store.get(b"a") is None
        store.set(b"a", b"1")
        assert store.get(b"a") == b"1"
        store.set(b"a", b"2", ttl=LONG)
        assert store.get(b"a") == b"2"

    @pytest.mark.parametrize("key", ODD, ids=lambda key: repr(key[:8]))
    def test_any_bytes_are_a_key(self, store: Any, key: bytes) -> None:
        store.set(key, key)
        store.set(key + b"x", b"another")
        assert store.get(key) == key
        assert store.delete([key]) == 1
        assert store.get(key + b"x") == b"another"

    @pytest.mark.parametrize("value", [b"", b"\0\xff", b"x" * 1_000_000], ids=len)
    def test_any_bytes_are_a_value(self, store: Any, value: bytes) -> None:
        store.set(b"a", value)
        assert store.get(b"a") == value
        assert store.get_many([b"a"]) == [value]

    def test_many_at_once_in_their_order(self, store: Any) -> None:
        store.set_many({b"%d" % number: b"v%d" % number for number in range(500)})
        store.change(b"map", {b"f": b"1"})
        keys = [b"499", b"none", b"0", b"map", b"0"]
        assert store.get_many(keys) == [b"v499", None, b"v0", None, b"v0"]
        assert store.get_many(iter(keys[:1])) == [b"v499"]
        assert store.get_many([]) == []
        store.set_many({})

    def test_many_with_a_time_to_live(self, store: Any) -> None:
        store.set_many({b"a": b"1", b"b": b"2"}, ttl=TTL)
        assert store.get_many([b"a", b"b"]) == [b"1", b"2"]
        wait_until(lambda: store.get_many([b"a", b"b"]) == [None, None], 5, "the end of both")

    def test_it_ends_with_its_time(self, store: Any) -> None:
        store.set(b"a", b"1", ttl=TTL)
        store.set(b"b", b"1", ttl=LONG)
        store.set(b"c", b"1", ttl=TTL)
        store.set(b"c", b"2")
        assert store.get(b"a") == b"1"
        wait_until(lambda: store.get(b"a") is None, 5, "the end of a")
        assert store.delete([b"a"]) == 0
        assert store.get_many([b"b", b"c"]) == [b"1", b"2"]

    def test_the_shortest_time_to_live(self, store: Any) -> None:
        store.set(b"a", b"1", ttl=0.000_1)
        wait_until(lambda: store.get(b"a") is None, 5, "the end of a")

    def test_add_only_where_nothing_is(self, store: Any) -> None:
        assert store.add(b"a", b"1", ttl=TTL) is True
        assert store.add(b"a", b"2", ttl=LONG) is False
        assert store.get(b"a") == b"1"
        wait_until(lambda: store.add(b"a", b"3") is True, 5, "the end of a")
        assert store.get(b"a") == b"3"

    def test_touch_gives_a_new_time(self, store: Any) -> None:
        def touched_in_time() -> bool:
            """False if it took so long that some may have come to their end before."""
            begun = time.monotonic()
            store.set_many({b"shorter": b"1", b"longer": b"1"}, ttl=LONG)
            store.set(b"ever", b"1", ttl=TTL)
            store.change(b"map", {b"f": b"1"}, ttl=TTL)
            keys = {b"ever": None, b"map": LONG, b"shorter": TTL}
            touched = [store.touch(key, ttl) for key, ttl in keys.items()]
            in_time = time.monotonic() - begun < TTL
            assert touched == [True, True, True] or not in_time
            return in_time

        wait_until(touched_in_time, 20, "three in time")
        assert store.touch(b"ever", None) is True
        assert store.touch(b"none", LONG) is False
        assert store.touch(b"none", None) is False
        wait_until(lambda: store.get(b"shorter") is None, 5, "the end of one")
        assert store.get_many([b"longer", b"ever"]) == [b"1", b"1"]
        assert store.fields(b"map") == {b"f": b"1"}

    def test_delete_counts_what_was_there(self, store: Any) -> None:
        store.set_many({b"a": b"1", b"b": b"1", b"c": b"1"})
        store.change(b"map", {b"f": b"1"})
        assert store.delete([b"a", b"map", b"none"]) == 2
        assert store.delete(iter([b"a", b"b"])) == 1
        assert store.delete([]) == 0
        assert store.get_many([b"a", b"b", b"c"]) == [None, None, b"1"]

    # --- numbers ------------------------------------------------------------------------

    def test_incr_counts_from_nothing(self, store: Any) -> None:
        assert [store.incr(b"n"), store.incr(b"n", 41), store.incr(b"n", -50)] == [1, 42, -8]
        assert store.get(b"n") == b"-8"
        store.set(b"n", b"9223372036854775806")
        assert store.incr(b"n") == (1 << 63) - 1
        with pytest.raises(NotANumber):
            store.incr(b"n")
        assert store.get(b"n") == b"9223372036854775807"

    def test_incr_gives_a_time_only_to_what_it_makes(self, store: Any) -> None:
        assert store.incr(b"a", 1, TTL) == 1
        assert store.incr(b"a", 1, LONG) == 2
        store.set(b"b", b"5")
        assert store.incr(b"b", 1, TTL) == 6
        wait_until(lambda: store.get(b"a") is None, 5, "the end of a")
        assert store.get(b"b") == b"6"
        assert store.incr(b"a", 7, LONG) == 7

    @pytest.mark.parametrize("value", [b"", b"x", b"1.5", b" 1", b"+1", b"01", b"9" * 30])
    def test_incr_of_what_is_no_number(self, store: Any, value: bytes) -> None:
        store.set(b"a", value)
        with pytest.raises(NotANumber):
            store.incr(b"a")
        with pytest.raises(NotANumber):
            store.incr(b"a", 1, TTL)
        assert store.get(b"a") == value

    # --- locks --------------------------------------------------------------------------

    def test_only_the_holder_releases(self, store: Any) -> None:
        assert store.add(b"lock", b"mine", ttl=LONG)
        assert store.compare_and_delete(b"lock", b"yours") is False
        assert store.get(b"lock") == b"mine"
        assert store.compare_and_delete(b"lock", b"mine") is True
        assert store.compare_and_delete(b"lock", b"mine") is False
        assert store.get(b"lock") is None

    # --- namespaces ---------------------------------------------------------------------

    @pytest.mark.parametrize("prefix", [b"a:", b"*", b"[a]?\\", b"\xff\xff", b"{x}"], ids=repr)
    def test_clear_only_what_begins_so(self, store: Any, prefix: bytes) -> None:
        mine = [prefix + b"%d" % number for number in range(700)]
        other = [b"b:1", b"a", prefix[:-1] or b"c", b"x" + prefix, b"\xff"]
        store.set_many(dict.fromkeys(mine + other, b"1"))
        store.change(prefix, {b"f": b"1"})
        assert store.clear(prefix) == 701
        assert store.get_many(mine) == [None] * 700
        assert store.fields(prefix) == {}
        assert store.get_many(other) == [b"1"] * len(other)
        assert store.clear(prefix) == 0

    # --- field maps ---------------------------------------------------------------------

    def test_fields_are_put_and_removed(self, store: Any) -> None:
        assert store.fields(b"m") == {}
        assert store.change(b"m", {b"a": b"1", b"b": b"", b"\0": b"\xff"}) is True
        assert store.change(b"m", {b"a": b"2", b"c": b"3"}, [b"b", b"none"], ttl=LONG) is True
        assert store.fields(b"m") == {b"a": b"2", b"c": b"3", b"\0": b"\xff"}

    def test_a_field_that_is_removed_and_put_is_put(self, store: Any) -> None:
        store.change(b"m", {b"a": b"1"})
        assert store.change(b"m", {b"a": b"2"}, iter([b"a"]), must_exist=True) is True
        assert store.fields(b"m") == {b"a": b"2"}

    def test_a_map_without_fields_is_nothing(self, store: Any) -> None:
        assert store.change(b"m", {}) is True
        assert store.change(b"m", {}, [b"a"]) is True
        assert store.touch(b"m", LONG) is False
        store.change(b"m", {b"a": b"1"})
        assert store.change(b"m", {}, [b"a"]) is True
        assert store.change(b"m", {b"a": b"1"}, must_exist=True) is False
        assert store.add(b"m", b"a value") is True

    def test_a_map_that_is_gone_is_not_made_again(self, store: Any) -> None:
        assert store.change(b"m", {b"a": b"1"}, must_exist=True) is False
        assert store.fields(b"m") == {}
        store.change(b"m", {b"a": b"1"}, ttl=TTL)
        assert store.change(b"m", {b"b": b"2"}, ttl=TTL, must_exist=True) is True
        wait_until(lambda: store.fields(b"m") == {}, 5, "the end of the map")
        assert store.change(b"m", {b"a": b"1"}, must_exist=True) is False

    def test_a_change_sets_the_time_of_the_whole_map(self, store: Any) -> None:
        store.change(b"shorter", {b"a": b"1"})
        store.change(b"shorter", {b"b": b"2"}, ttl=TTL)
        store.change(b"ever", {b"a": b"1"}, ttl=TTL)
        store.change(b"ever", {}, ttl=None)
        wait_until(lambda: store.fields(b"shorter") == {}, 5, "the end of the map")
        assert store.fields(b"ever") == {b"a": b"1"}

    def test_many_fields(self, store: Any) -> None:
        fields = {b"f%d" % number: b"v" * 50 for number in range(10_000)}
        store.change(b"m", fields, ttl=LONG)
        assert store.fields(b"m") == fields
        store.change(b"m", {b"last": b"1"}, fields, ttl=LONG)
        assert store.fields(b"m") == {b"last": b"1"}

    # --- the two kinds ------------------------------------------------------------------

    def test_a_key_holds_one_kind(self, store: Any) -> None:
        store.set(b"v", b"1")
        store.change(b"m", {b"f": b"1"})
        for wrong in (
            lambda: store.get(b"m"),
            lambda: store.incr(b"m"),
            lambda: store.compare_and_delete(b"m", b"1"),
            lambda: store.fields(b"v"),
            lambda: store.change(b"v", {b"f": b"1"}),
        ):
            with pytest.raises(StoreError):
                wrong()
        assert store.add(b"m", b"1") is False
        assert store.get(b"v") == b"1"
        store.set(b"m", b"2")
        assert store.get(b"m") == b"2"

    # --- concurrency --------------------------------------------------------------------

    def test_no_field_is_lost(self, store: Any, settings: Settings) -> None:
        """Eight threads put different fields into one map at the same time."""

        def put(number: int) -> None:
            with contextlib.closing(open_store(settings)) as mine:
                for turn in range(20):
                    mine.change(b"m", {b"%d:%d" % (number, turn): b"1"}, ttl=LONG)

        in_threads(8, put)
        assert len(store.fields(b"m")) == 160

    def test_one_of_many_adds(self, store: Any, settings: Settings) -> None:
        won = []

        def add(number: int) -> None:
            with contextlib.closing(open_store(settings)) as mine:
                if mine.add(b"lock", b"%d" % number, ttl=LONG):
                    won.append(b"%d" % number)

        in_threads(8, add)
        assert won == [store.get(b"lock")]

    def test_it_opens_again(self, store: Any, settings: Settings) -> None:
        again = open_store(settings)
        again.set(b"a", b"1")
        again.close()
        again.close()
        assert again.get(b"a") == b"1"
        again.close()


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Call `work` in so many threads at once. A failure in one fails the test."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
