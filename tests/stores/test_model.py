"""Any sequence of operations has the same effect on a store as on a dictionary."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_store
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.embedded import environment, shared_state
from tests.harness.servers.redis import Redis

NAMES = [b"a", b"a:1", b"\xff", b"k" * 700, b"k" * 701]
KEYS = st.sampled_from(NAMES)
VALUES = st.sampled_from([b"", b"0", b"-7", b"y" * 3_000])
FIELDS = st.sampled_from([b"f", b"g", b"\0"])
MAPS = st.dictionaries(FIELDS, VALUES, max_size=3)
TTLS = st.sampled_from([None, 1.0, 60.0])

Item = bytes | dict[bytes, bytes]


class WrongKind(Exception):
    pass


class Model:
    """A dictionary whose entries expire."""

    def __init__(self) -> None:
        self.now = 0.0
        self.entries: dict[bytes, tuple[Item, float | None]] = {}

    def item(self, key: bytes, kind: type) -> Any:
        item, ends = self.entries.get(key, (None, None))
        if item is None or (ends is not None and ends <= self.now):
            self.entries.pop(key, None)
            return None
        if not isinstance(item, kind):
            raise WrongKind
        return item

    def put(self, key: bytes, item: Item, ttl: float | None) -> None:
        if item == {}:
            self.entries.pop(key, None)
        else:
            self.entries[key] = item, None if ttl is None else self.now + ttl

    def keys(self) -> list[bytes]:
        return [key for key in list(self.entries) if self.item(key, object) is not None]

    def incr(self, key: bytes, by: int, ttl: float | None) -> int:
        old = self.item(key, bytes)
        if old not in (None, b"0", b"-7") and not old.lstrip(b"-").isdigit():
            raise WrongKind
        total = int(old or 0) + by
        if old is None:
            self.put(key, b"%d" % total, ttl)
        else:
            self.entries[key] = b"%d" % total, self.entries[key][1]
        return total


class Machine(RuleBasedStateMachine):
    """`open` creates an empty store, and returns how to advance its clock, or None."""

    open: Callable[
        [], contextlib.AbstractContextManager[tuple[Any, Callable[[float], None] | None]]
    ]

    @initialize()
    def begin(self) -> None:
        self.stack = contextlib.ExitStack()
        self.store, self.put_forward = self.stack.enter_context(type(self).open())
        self.model = Model()

    def teardown(self) -> None:
        self.stack.close()

    def both(self, real: Callable[[], Any], expected: Callable[[], Any]) -> None:
        try:
            wanted = expected()
        except WrongKind:
            with pytest.raises(StoreError):
                real()
        else:
            assert real() == wanted

    @precondition(lambda self: self.put_forward)
    @rule(seconds=st.sampled_from([2.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.put_forward(seconds)
        self.model.now += seconds

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, key: bytes, value: bytes, ttl: float | None) -> None:
        self.store.set(key, value, ttl)
        self.model.put(key, value, ttl)

    @rule(items=st.dictionaries(KEYS, VALUES), ttl=TTLS)
    def set_many(self, items: dict[bytes, bytes], ttl: float | None) -> None:
        self.store.set_many(items, ttl)
        for key, value in items.items():
            self.model.put(key, value, ttl)

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def add(self, key: bytes, value: bytes, ttl: float | None) -> None:
        free = self.model.item(key, object) is None
        assert self.store.add(key, value, ttl) is free
        if free:
            self.model.put(key, value, ttl)

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: bytes, ttl: float | None) -> None:
        item = self.model.item(key, object)
        assert self.store.touch(key, ttl) is (item is not None)
        if item is not None:
            self.model.put(key, item, ttl)

    @rule(keys=st.sets(KEYS))
    def delete(self, keys: frozenset[bytes]) -> None:
        there = keys & set(self.model.keys())
        assert self.store.delete(keys) == len(there)
        for key in there:
            del self.model.entries[key]

    @rule(key=KEYS, by=st.sampled_from([1, -3, 1_000]), ttl=TTLS)
    def incr(self, key: bytes, by: int, ttl: float | None) -> None:
        self.both(lambda: self.store.incr(key, by, ttl), lambda: self.model.incr(key, by, ttl))

    @rule(key=KEYS, value=VALUES)
    def compare_and_delete(self, key: bytes, value: bytes) -> None:
        def expected() -> bool:
            same: bool = self.model.item(key, bytes) == value
            if same:
                del self.model.entries[key]
            return same

        self.both(lambda: self.store.compare_and_delete(key, value), expected)

    @rule(prefix=st.sampled_from([b"a", b"a:", b"\xff", b"none", b"k" * 300, b""]))
    def clear(self, prefix: bytes) -> None:
        gone = [key for key in self.model.keys() if key.startswith(prefix)]  # noqa: SIM118
        assert self.store.clear(prefix) == len(gone)
        for key in gone:
            del self.model.entries[key]

    @rule(key=KEYS, put=MAPS, remove=st.lists(FIELDS), ttl=TTLS, must_exist=st.booleans())
    def change(
        self,
        key: bytes,
        put: dict[bytes, bytes],
        remove: list[bytes],
        ttl: float | None,
        must_exist: bool,
    ) -> None:
        def expected() -> bool:
            old = self.model.item(key, dict)
            if old is None and must_exist:
                return False
            kept = {name: data for name, data in (old or {}).items() if name not in remove}
            self.model.put(key, {**kept, **put}, ttl)
            return True

        self.both(
            lambda: self.store.change(key, put, remove, ttl=ttl, must_exist=must_exist), expected
        )

    @rule(key=KEYS)
    def read(self, key: bytes) -> None:
        self.both(lambda: self.store.get(key), lambda: self.model.item(key, bytes))
        self.both(lambda: self.store.fields(key), lambda: self.model.item(key, dict) or {})

    @invariant()
    def all_values_are_there(self) -> None:
        if not hasattr(self, "model"):
            return
        items = [self.model.item(key, object) for key in NAMES]
        wanted = [item if isinstance(item, bytes) else None for item in items]
        assert self.store.get_many(NAMES) == wanted


def run(open_one: Callable[[], Any], examples: int) -> None:
    machine = type("Chosen", (Machine,), {"open": staticmethod(open_one)})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@contextlib.contextmanager
def opened_embedded() -> Iterator[tuple[Any, Callable[[float], None]]]:
    now = 1_000.0
    directory = tempfile.mkdtemp()

    def put_forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    with mock.patch.object(shared_state, "since_boot", lambda: now):  # noqa: PT008
        store = open_store(Settings(store_path=directory))
        try:
            yield store, put_forward
            check_places(store)
        finally:
            store.close()
            del environment._environments[directory]
            shutil.rmtree(directory)


def check_places(store: Any) -> None:
    """Check that each entry has its places in the orders, and that the file has no others."""
    store.get(b"x")
    with store.coroutines._environment._lmdb.begin() as transaction:
        nodes = [bytes(key) for key, _ in transaction.cursor()]
    entries = {node[1:] for node in nodes if node[:1] == b"k"}
    uses = [node[9:] for node in nodes if node[:1] == b"u"]
    expiries = [node[9:] for node in nodes if node[:1] == b"e"]
    assert sorted(uses) == sorted(entries)
    assert len(expiries) == len(set(expiries)) and set(expiries) <= entries


def test_the_embedded_store() -> None:
    run(opened_embedded, 200)


def test_redis(shared_redis: Redis) -> None:
    @contextlib.contextmanager
    def opened() -> Iterator[tuple[Any, None]]:
        """Redis's clock cannot be advanced, so no entry may expire by itself during the test."""
        with contextlib.closing(open_store(Settings(store=shared_redis.url))) as store:
            store.clear(b"")
            yield Longer(store), None

    run(opened, 15)


class Longer:
    """A store whose times to live are hours in place of seconds."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in ("set", "add", "set_many", "incr", "touch") and isinstance(args[-1], float):
                args = (*args[:-1], args[-1] * 3_600)
            if kwargs.get("ttl"):
                kwargs["ttl"] *= 3_600
            return method(*args, **kwargs)

        return call
