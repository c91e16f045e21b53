"""Entries in LMDB: how they are written, and which are removed when room is needed.

One tree holds three kinds of node, so that a write changes as few pages as possible:

    k KEY              expires, fresh until (seconds), kind, data
    e SECOND KEY       in the order of expiry, for those that expire
    u TICK KEY         in the order of use, the least recent first

Readers write nothing. An entry is fresh for 15 s after its use. A process remembers which entries
it reads later than that; its next write, or every 256th such entry, moves them in the order of use
(``Writer.mark``).
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from gunicorn_cluster_ext.stores.contract import StoreError

HEADER = struct.Struct("<ddB")
_INDEX = struct.Struct(">cQ")
VALUE, MAP = 0, 1
KEY, EXPIRY, USE = b"k", b"e", b"u"

FOR_EVER = math.inf
#: The order of use has ticks of 4 ms; within a tick it is the order of the keys.
_TICKS_PER_S = 256
_FRESH_S = 15

#: In bytes. LMDB's keys have at most 511; a longer one of ours is cut and ends in a digest.
LONGEST = 400
_PAGE_BYTES = 4096


def fold(key: bytes) -> bytes:
    """Return ``key`` as it is written in the tree. Raises StoreError for an empty one."""
    if not key:
        raise StoreError("A key has at least one byte.")
    if len(key) <= LONGEST:
        return key
    return key[:LONGEST] + blake2b(key, digest_size=32).digest()


class WrongKind(StoreError):
    """The key holds a field map where a value was asked for, or the reverse."""

    def __init__(self) -> None:
        super().__init__("The key holds the other kind: values and field maps do not mix")


def cost(key: bytes, size: int) -> int:
    """Return about how many bytes of the file an entry with ``size`` bytes takes, its places in the
    orders included.

    LMDB puts what is larger than about half a page on pages of its own. The others' pages are half
    empty when keys are added and removed at random (measured: 46 to 65 % full, for 20 to 1,900
    bytes).
    """
    places = 3 * len(key) + 64
    if size + len(key) > _PAGE_BYTES // 2 - 16:
        return -(-(size + 16) // _PAGE_BYTES) * _PAGE_BYTES + 2 * places
    return 2 * (size + places)


class StoredEntry(NamedTuple):
    """A value or a field map, with its expiry and the end of its freshness (store's time, in s)."""

    expires: float
    fresh: float
    kind: int
    data: bytes


def _parse(record: bytes) -> StoredEntry:
    expires, fresh, kind = HEADER.unpack_from(record)
    return StoredEntry(expires, fresh, kind, record[HEADER.size :])


def _places(key: bytes, expires: float, fresh: float) -> tuple[bytes, ...]:
    """Return the nodes of an entry in the orders of use and of expiry."""
    use = _INDEX.pack(USE, int(fresh * _TICKS_PER_S)) + key
    if expires == FOR_EVER:
        return (use,)
    return use, _INDEX.pack(EXPIRY, math.ceil(min(expires, 2.0**60))) + key


class Writer:
    """Changes entries in one transaction. ``grown``: by how many bytes their cost has grown."""

    def __init__(self, transaction: Any, main: Any, now: float, largest: int) -> None:
        self._tree = transaction
        self._main = main  # LMDB's handle of the only tree
        self.now = now
        self._fresh = now + _FRESH_S
        self._largest = largest
        self.grown = 0

    def expiry(self, ttl: float | None) -> float:
        return FOR_EVER if ttl is None else self.now + ttl

    def find(self, key: bytes) -> StoredEntry | None:
        record = self._tree.get(KEY + key)
        if record is None:
            return None
        entry = _parse(record)
        return entry if entry.expires > self.now else None

    def put(self, key: bytes, kind: int, data: bytes, expires: float) -> None:
        record = HEADER.pack(expires, self._fresh, kind) + data
        price = cost(key, len(record))
        if price > self._largest:
            raise StoreError(
                f"{len(data)} bytes are too many for one entry: cluster_store_size allows "
                f"{self._largest}"
            )
        places = _places(key, expires, self._fresh)
        had = self._forget(key, places)
        self._tree.put(KEY + key, record)
        for place in places:
            if place not in had:
                self._tree.put(place, b"")
        self.grown += price

    def _forget(self, key: bytes, keep: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
        """Delete the places of an entry that is removed or replaced, except those to ``keep``.
        Return the places that it had."""
        record = self._tree.get(KEY + key)
        if record is None:
            return ()
        had = _places(key, *HEADER.unpack_from(record)[:2])
        for place in had:
            if place not in keep:
                self._tree.delete(place)
        self.grown -= cost(key, len(record))
        return had

    def remove(self, key: bytes) -> bool:
        """Remove an entry. Return whether there was one that had not expired."""
        exists = self.find(key) is not None
        self._forget(key)
        self._tree.delete(KEY + key)
        return exists

    def mark(self, keys: Iterable[bytes]) -> None:
        """Note that entries were used just now."""
        for key in keys:
            entry = self.find(key)
            if entry is not None and entry.fresh < self.now:
                with contextlib.suppress(StoreError):  # too large, if the limit was lowered since
                    self.put(key, entry.kind, entry.data, entry.expires)

    def pages(self) -> int:
        """Return how many bytes the pages in use have."""
        stat = self._tree.stat(self._main)
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages * stat["psize"])

    # --- in some order --------------------------------------------------------------------

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix, expired ones too. Nothing may be changed meanwhile."""
        begin = KEY + prefix
        with self._tree.cursor() as cursor:
            found = cursor.set_range(begin)
            while found and cursor.key().startswith(begin):
                yield cursor.key()[1:]
                found = cursor.next()

    def _first(self, order: bytes) -> tuple[int, bytes] | None:
        with self._tree.cursor() as cursor:
            if not cursor.set_range(order) or not (found := cursor.key()).startswith(order):
                return None
        return _INDEX.unpack_from(found)[1], found[_INDEX.size :]

    def purge(self, most: int) -> int:
        """Remove at most ``most`` expired entries. Return how many were removed."""
        for done in range(most):
            first = self._first(EXPIRY)
            if first is None or first[0] > self.now:
                return done
            self._drop(EXPIRY, *first)
        return most

    def evict(self, room: int, most: int) -> None:
        """Remove at most ``most`` entries, the least recently used first, to free ``room``
        bytes."""
        enough = self.grown - room
        while self.grown > enough and most > 0 and (first := self._first(USE)):
            self._drop(USE, *first)
            most -= 1

    def _drop(self, order: bytes, when: int, key: bytes) -> None:
        self.remove(key)
        # Already deleted with its entry, unless the two disagreed.
        self._tree.delete(_INDEX.pack(order, when) + key)
