"""A store in memory, which can be away, for the tests of codec, cache and session."""

import time
from collections.abc import Callable, Iterable, Mapping
from threading import RLock
from typing import Any

from gunicorn_cluster_ext.stores.contract import NotANumber, StoreAway
from gunicorn_cluster_ext.stores.handles import Stores

Item = bytes | dict[bytes, bytes]


class MemoryStore:
    """A store in memory, whose clock a test can advance by ``ahead`` seconds.

    ``calls`` are the names of the methods that were called; ``before`` is called with the name
    before each.
    """

    def __init__(self) -> None:
        self.items: dict[bytes, tuple[Item, float | None]] = {}
        self.away = False
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        self.ahead = 0.0
        self._lock = RLock()
        self.coroutines: Any = Coroutines(self)

    def _begin(self, name: str) -> None:
        self.before(name)
        self.calls.append(name)
        if self.away:
            raise StoreAway("away")

    def _now(self) -> float:
        return time.monotonic() + self.ahead

    def _find(self, key: bytes) -> Item | None:
        item, ends = self.items.get(key, (None, None))
        if ends is not None and ends <= self._now():
            del self.items[key]
            return None
        return item

    def _put(self, key: bytes, item: Item, ttl: float | None) -> None:
        assert ttl is None or ttl > 0
        self.items[key] = item, None if ttl is None else self._now() + ttl

    def ttl(self, key: bytes) -> float | None:
        """Return the remaining time to live."""
        ends = self.items[key][1]
        return None if ends is None else ends - self._now()

    def get(self, key: bytes) -> bytes | None:
        self._begin("get")
        item = self._find(key)
        assert not isinstance(item, dict)
        return item

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        self._begin("get_many")
        return [self._find(key) for key in keys]  # type: ignore[misc]

    def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        self._begin("set")
        self._put(key, value, ttl)

    def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None:
        self._begin("set_many")
        for key, value in items.items():
            self._put(key, value, ttl)

    def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool:
        self._begin("add")
        with self._lock:
            if self._find(key) is not None:
                return False
            self._put(key, value, ttl)
            return True

    def touch(self, key: bytes, ttl: float | None) -> bool:
        self._begin("touch")
        with self._lock:
            item = self._find(key)
            if item is None:
                return False
            self._put(key, item, ttl)
            return True

    def delete(self, keys: Iterable[bytes]) -> int:
        self._begin("delete")
        with self._lock:
            there = [key for key in keys if self._find(key) is not None]
            for key in there:
                del self.items[key]
            return len(there)

    def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int:
        self._begin("incr")
        with self._lock:
            old = self._find(key)
            if old is None:
                self._put(key, b"%d" % by, ttl)
                return by
            try:
                number = int(old) + by  # type: ignore[arg-type]
            except (ValueError, TypeError):
                raise NotANumber("it is no number") from None
            self.items[key] = b"%d" % number, self.items[key][1]
            return number

    def compare_and_delete(self, key: bytes, value: bytes) -> bool:
        self._begin("compare_and_delete")
        with self._lock:
            if self._find(key) != value:
                return False
            del self.items[key]
            return True

    def clear(self, prefix: bytes) -> int:
        self._begin("clear")
        with self._lock:
            keys = [key for key in self.items if key.startswith(prefix)]
            for key in keys:
                del self.items[key]
            return len(keys)

    def fields(self, key: bytes) -> dict[bytes, bytes]:
        self._begin("fields")
        item = self._find(key)
        assert item is None or isinstance(item, dict)
        return dict(item or {})

    def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool:
        self._begin("change")
        with self._lock:
            old = self._find(key)
            if must_exist and not old:
                return False
            assert old is None or isinstance(old, dict)
            gone = frozenset(remove)
            kept = {name: data for name, data in (old or {}).items() if name not in gone}
            self._put(key, {**kept, **put}, ttl)
            return True

    def close(self) -> None:
        self.items.clear()


class Coroutines:
    """The same store, to be awaited. It never suspends."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call


class MemoryStores(Stores):
    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryStore()

    @property
    def store(self) -> Any:
        return self.memory

    @property
    def async_store(self) -> Any:
        return self.memory.coroutines
