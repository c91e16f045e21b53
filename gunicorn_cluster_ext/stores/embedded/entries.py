"""Entries in LMDB: what is written for each, and which goes when room is needed.

One tree holds three kinds of node, so that a write changes as few pages as possible:

    k KEY              expires, fresh until (seconds), kind, data
    e SECOND KEY       in the order of expiry, for those that expire
    u TICK KEY         in the order of use, the least recent first

Readers write nothing. An entry is fresh for 15 s after its use; a process remembers those that it
reads later, and its next write, or every 256th such entry, tells the tree (``Writer.mark``).
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
#: Ticks of 4 ms order the uses: what is written in one goes in the order of the keys.
_TICKS = 256
_FRESH_S = 15

# LMDB's keys have at most 511 bytes; a longer one of ours ends in a digest.
LONGEST = 400
_PAGE = 4096


def fold(key: bytes) -> bytes:
    """``key`` as it is written. Raises StoreError."""
    if not key:
        raise StoreError("A key has at least one byte.")
    if len(key) <= LONGEST:
        return key
    return key[:LONGEST] + blake2b(key, digest_size=32).digest()


class WrongKind(StoreError):
    def __init__(self) -> None:
        super().__init__("The key holds the other kind: values and field maps do not mix")


def cost(key: bytes, size: int) -> int:
    """About how many bytes of the file an entry with ``size`` bytes takes, its places in the orders
    included.

    LMDB puts what is larger than about half a page on pages of its own. The others' pages are half
    empty when keys come and go at random (measured: 46 to 65 % full, for 20 to 1,900 bytes).
    """
    places = 3 * len(key) + 64
    if size + len(key) > _PAGE // 2 - 16:
        return -(-(size + 16) // _PAGE) * _PAGE + 2 * places
    return 2 * (size + places)


class Entry(NamedTuple):
    expires: float
    fresh: float
    kind: int
    data: bytes


def parse(record: bytes) -> Entry:
    expires, fresh, kind = HEADER.unpack_from(record)
    return Entry(expires, fresh, kind, record[HEADER.size :])


def _places(key: bytes, expires: float, fresh: float) -> tuple[bytes, ...]:
    use = _INDEX.pack(USE, int(fresh * _TICKS)) + key
    if expires == FOR_EVER:
        return (use,)
    return use, _INDEX.pack(EXPIRY, math.ceil(min(expires, 2.0**60))) + key


class Writer:
    """Changes entries in one transaction. ``grown`` is what they have come to cost more."""

    def __init__(self, transaction: Any, main: Any, now: float, largest: int) -> None:
        self._tree = transaction
        self._main = main  # LMDB's name for the one tree that there is
        self.now = now
        self._fresh = now + _FRESH_S
        self._largest = largest
        self.grown = 0

    def expiry(self, ttl: float | None) -> float:
        return FOR_EVER if ttl is None else self.now + ttl

    def find(self, key: bytes) -> Entry | None:
        record = self._tree.get(KEY + key)
        if record is None:
            return None
        entry = parse(record)
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
        """Drop the places of an entry that goes or is replaced, but not those to ``keep``. Returns
        those that it had."""
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
        """Whether there was one that had not expired."""
        there = self.find(key) is not None
        self._forget(key)
        self._tree.delete(KEY + key)
        return there

    def mark(self, keys: Iterable[bytes]) -> None:
        """These were used just now."""
        for key in keys:
            entry = self.find(key)
            if entry is not None and entry.fresh < self.now:
                with contextlib.suppress(StoreError):  # too large, since it may be less
                    self.put(key, entry.kind, entry.data, entry.expires)

    def pages(self) -> int:
        """How many bytes the pages in use have."""
        stat = self._tree.stat(self._main)
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages * stat["psize"])

    # --- in some order --------------------------------------------------------------------

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Those that begin so. They must not be changed meanwhile."""
        begin = KEY + prefix
        with self._tree.cursor() as cursor:
            there = cursor.set_range(begin)
            while there and cursor.key().startswith(begin):
                yield cursor.key()[1:]
                there = cursor.next()

    def _first(self, order: bytes) -> tuple[int, bytes] | None:
        with self._tree.cursor() as cursor:
            if not cursor.set_range(order) or not (found := cursor.key()).startswith(order):
                return None
        return _INDEX.unpack_from(found)[1], found[_INDEX.size :]

    def purge(self, most: int) -> int:
        """Remove up to so many that have expired. How many there were."""
        for done in range(most):
            first = self._first(EXPIRY)
            if first is None or first[0] > self.now:
                return done
            self._drop(EXPIRY, *first)
        return most

    def evict(self, room: int, most: int) -> None:
        """Remove what was used least recently, until ``room`` bytes less are taken."""
        enough = self.grown - room
        while self.grown > enough and most > 0 and (first := self._first(USE)):
            self._drop(USE, *first)
            most -= 1

    def _drop(self, order: bytes, when: int, key: bytes) -> None:
        self.remove(key)
        # It has gone with its entry, unless the two did not agree.
        self._tree.delete(_INDEX.pack(order, when) + key)
