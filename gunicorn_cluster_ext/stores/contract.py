"""TODO stores.contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    pass


class StoreError(Exception):
    """A store could not do what was asked; the message says which, and why."""


class StoreAway(StoreError):
    """The store cannot be reached, or did not answer in time. Try again later.

    What was asked may have been done all the same, if the answer is what was lost.
    """


class NotANumber(StoreError, TypeError):
    """``incr`` of a value that is no integer of 64 bits, or a sum that would be none."""


class Store(Protocol):
    """The contract. ``ttl`` is in seconds, more than 0; None: for ever. A key has at least one
    byte, and holds a value or a field map; to ask for the other kind is a StoreError. Every method
    may raise StoreError, and StoreAway within ``cluster_store_timeout``.

    An ``AsyncStore`` has the same methods, to be awaited.
    """

    # --- values -------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``; None also for a field map."""

    def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        """Whatever was there, and its time to live, is gone."""

    def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None:
        """One ``set`` after the other, in fewer round trips."""

    def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool:
        """Set unless there is something, atomically with its time to live. Whether it was set."""

    def touch(self, key: bytes, ttl: float | None) -> bool:
        """Give a value, or a field map, a new time to live. Whether there is one."""

    def delete(self, keys: Iterable[bytes]) -> int:
        """How many there were, values and field maps alike."""

    def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int:
        """Add to the number under ``key`` (decimal, 64 bits, as Redis has it; 0 if there is
        nothing), atomically. ``ttl`` counts only for a number that is made. Returns the sum.
        """

    def compare_and_delete(self, key: bytes, value: bytes) -> bool:
        """Delete what is under ``key`` if it is ``value``. Whether it was. For locks."""

    def clear(self, prefix: bytes) -> int:
        """Delete all keys that begin so, values and field maps. About how many there were.

        This may take longer than the limit, in steps that do not.
        """

    # --- field maps: small dictionaries under one key --------------------------------------

    def fields(self, key: bytes) -> dict[bytes, bytes]:
        """All fields; empty if there is nothing. A map without fields is nothing."""

    def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool:
        """Remove and put fields (one that is in both is put) and set the time to live of the map,
        all or nothing.

        With ``must_exist`` nothing is done if there is no map (any more), and that is False.
        """

    def close(self) -> None:
        """Give back what is open. A store that is used again opens again."""


class AsyncStore(Protocol):
    """See Store. It belongs to the event loop in which it is first used."""

    async def get(self, key: bytes) -> bytes | None: ...
    async def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]: ...
    async def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None: ...
    async def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None: ...
    async def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool: ...
    async def touch(self, key: bytes, ttl: float | None) -> bool: ...
    async def delete(self, keys: Iterable[bytes]) -> int: ...
    async def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int: ...
    async def compare_and_delete(self, key: bytes, value: bytes) -> bool: ...
    async def clear(self, prefix: bytes) -> int: ...
    async def fields(self, key: bytes) -> dict[bytes, bytes]: ...
    async def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool: ...
    async def close(self) -> None: ...
