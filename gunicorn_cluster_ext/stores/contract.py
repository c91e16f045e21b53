"""What a store can do, and the errors that it raises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol


class StoreError(Exception):
    """A store could not do what was asked. The message says which store, and why."""


class StoreAway(StoreError):
    """The store cannot be reached, or did not answer in time. Try again later.

    If only the answer was lost, the operation may have been carried out all the same.
    """


class NotANumber(StoreError, TypeError):
    """``incr`` of a value that is no 64-bit integer, or whose sum would be none."""


class AsyncStore(Protocol):
    """Bytes under keys. ``ttl`` is in seconds, more than 0; None means for ever.

    A key has at least one byte, and holds a value or a field map; to ask for the other kind raises
    StoreError. Every method may raise StoreError, and raises StoreAway within
    ``cluster_store_timeout``. An AsyncStore belongs to the event loop in which it is first used; a
    ``BlockingStore`` has the same methods for threads.
    """

    # --- values -------------------------------------------------------------------------

    async def get(self, key: bytes) -> bytes | None: ...

    async def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values in the order of ``keys``; None also for a field map."""

    async def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        """Replace whatever the key holds, and its time to live."""

    async def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None:
        """Set one after the other, in fewer round trips."""

    async def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool:
        """Set unless the key exists, atomically with the time to live. Return whether it was
        set."""

    async def touch(self, key: bytes, ttl: float | None) -> bool:
        """Give a value or a field map a new time to live. Return whether the key exists."""

    async def delete(self, keys: Iterable[bytes]) -> int:
        """Delete values and field maps. Return how many there were."""

    async def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int:
        """Add to the number under ``key`` atomically, and return the sum.

        The number is decimal and has 64 bits, as in Redis, and 0 if the key does not exist. ``ttl``
        counts only for a number that is created. Raises NotANumber.
        """

    async def compare_and_delete(self, key: bytes, value: bytes) -> bool:
        """Delete the key if it holds ``value``. Return whether it did. Used by locks."""

    async def clear(self, prefix: bytes) -> int:
        """Delete every key with this prefix. Return about how many there were.

        This may take longer than ``cluster_store_timeout``, in steps that do not.
        """

    # --- field maps: small dictionaries under one key --------------------------------------

    async def fields(self, key: bytes) -> dict[bytes, bytes]:
        """Return all fields; none if the key does not exist. A map without fields does not."""

    async def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool:
        """Remove and put fields and set the time to live of the map, all or nothing.

        A field that is removed and put is put. With ``must_exist``, do nothing and return False if
        there is no map.
        """

    async def close(self) -> None:
        """Close connections and files. A store that is used again opens them again."""
