"""The store of one machine: LMDB in a private directory, no server to run.

Reads wait for nobody. Writers are one at a time, over all processes. In an event loop both are
done where they are called (a few microseconds), and only the wait for another writer is awaited.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import AsyncStore, NotANumber, StoreError
from gunicorn_cluster_ext.stores.embedded import location
from gunicorn_cluster_ext.stores.embedded.entries import (
    LONGEST,
    MAP,
    VALUE,
    StoredEntry,
    Writer,
    WrongKind,
    fold,
)
from gunicorn_cluster_ext.stores.embedded.environment import Environment, environment
from gunicorn_cluster_ext.stores.embedded.transactions import Transactions
from gunicorn_cluster_ext.stores.sync_async import BlockingStore, blocking_sleep

_NUMBER = re.compile(rb"0|-?[1-9]\d{0,18}")
_INT64 = range(-(1 << 63), 1 << 63)
# A transaction that others wait for takes about a millisecond at most.
_BATCH = 200
_BATCH_BYTES = 1 << 20

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode


class EmbeddedStore:
    """An AsyncStore, which suspends only in ``sleep``. A write is a function of a Writer."""

    def __init__(self, environment: Environment, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._environment = environment
        self._transactions = Transactions(environment, sleep)
        self.read = self._transactions.read

    def __repr__(self) -> str:
        return f"<EmbeddedStore {self._environment.directory}>"

    async def get(self, key: bytes) -> bytes | None:
        return self.read(key, VALUE)

    async def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for key in keys:
            try:
                values.append(self.read(key, VALUE))
            except WrongKind:
                values.append(None)
        return values

    async def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        key = fold(key)

        def change(writer: Writer) -> None:
            writer.put(key, VALUE, value, writer.expiry(ttl))

        await self._transactions.write(change)

    async def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> None:
        for batch in _batches((fold(key), value) for key, value in items.items()):

            def change(writer: Writer, batch: list[tuple[bytes, bytes]] = batch) -> None:
                for key, value in batch:
                    writer.put(key, VALUE, value, writer.expiry(ttl))

            await self._transactions.write(change)

    async def add(self, key: bytes, value: bytes, ttl: float | None = None) -> bool:
        key = fold(key)

        def change(writer: Writer) -> bool:
            if writer.find(key) is not None:
                return False
            writer.put(key, VALUE, value, writer.expiry(ttl))
            return True

        return await self._transactions.write(change)

    async def touch(self, key: bytes, ttl: float | None) -> bool:
        key = fold(key)

        def change(writer: Writer) -> bool:
            entry = writer.find(key)
            if entry is None:
                return False
            writer.put(key, entry.kind, entry.data, writer.expiry(ttl))
            return True

        return await self._transactions.write(change)

    async def delete(self, keys: Iterable[bytes]) -> int:
        return await self._delete(map(fold, keys))

    async def _delete(self, folded: Iterable[bytes]) -> int:
        rest, deleted = iter(folded), 0
        while batch := list(islice(rest, _BATCH)):

            def change(writer: Writer, batch: list[bytes] = batch) -> int:
                return sum(map(writer.remove, batch))

            deleted += await self._transactions.write(change)
        return deleted

    async def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> int:
        key = fold(key)

        def change(writer: Writer) -> int:
            entry = writer.find(key)
            total = _number(entry) + by
            if total not in _INT64:
                raise NotANumber("The sum has more than 64 bits")
            expires = writer.expiry(ttl) if entry is None else entry.expires
            writer.put(key, VALUE, b"%d" % total, expires)
            return total

        return await self._transactions.write(change)

    async def compare_and_delete(self, key: bytes, value: bytes) -> bool:
        key = fold(key)

        def change(writer: Writer) -> bool:
            return _value(writer.find(key)) == value and writer.remove(key)

        return await self._transactions.write(change)

    async def clear(self, prefix: bytes) -> int:
        if len(prefix) > LONGEST:
            raise StoreError(f"A prefix has at most {LONGEST} bytes")

        def next_keys(writer: Writer) -> list[bytes]:
            return list(islice(writer.keys(prefix), _BATCH))

        cleared = 0
        while keys := await self._transactions.write(next_keys):
            cleared += await self._delete(keys)
        return cleared

    async def fields(self, key: bytes) -> dict[bytes, bytes]:
        data = self.read(key, MAP)
        return {} if data is None else _unpack(data)

    async def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> bool:
        key, removed = fold(key), frozenset(remove)

        def change(writer: Writer) -> bool:
            entry = writer.find(key)
            if entry is None:
                if must_exist:
                    return False
                fields = dict(put)
            elif entry.kind != MAP:
                raise WrongKind()
            else:
                stored = _unpack(entry.data).items()
                fields = {name: data for name, data in stored if name not in removed}
                fields.update(put)
            if fields:
                writer.put(key, MAP, _pack(fields), writer.expiry(ttl))
            else:
                writer.remove(key)
            return True

        return await self._transactions.write(change)

    async def close(self) -> None:
        self._environment.close()


class BlockingEmbeddedStore(BlockingStore):
    """The embedded store of a thread."""

    def __init__(self, store: EmbeddedStore) -> None:
        super().__init__(store)
        self._read = store.read

    def get(self, key: bytes) -> bytes | None:
        # Without a coroutine, which would take a quarter of the time.
        return self._read(key, VALUE)

    def fields(self, key: bytes) -> dict[bytes, bytes]:
        data = self._read(key, MAP)
        return {} if data is None else _unpack(data)


def open_store(settings: Settings) -> BlockingStore:
    """Return the embedded store for threads. Raises StoreError."""
    return BlockingEmbeddedStore(EmbeddedStore(_environment(settings), blocking_sleep))


def open_async_store(settings: Settings) -> AsyncStore:
    """Return the embedded store for an event loop. Raises StoreError."""
    return EmbeddedStore(_environment(settings), asyncio.sleep)


def _environment(settings: Settings) -> Environment:
    return environment(location.of(settings), settings.store_size, settings.store_timeout)


def _value(entry: StoredEntry | None) -> bytes | None:
    if entry is None:
        return None
    if entry.kind != VALUE:
        raise WrongKind()
    return entry.data


def _number(entry: StoredEntry | None) -> int:
    data = _value(entry)
    if data is None:
        return 0
    if not _NUMBER.fullmatch(data) or int(data) not in _INT64:
        raise NotANumber("The value is no integer of 64 bits")
    return int(data)


def _batches(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Group items so that no batch holds up other writers for long."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for item in items:
        if batch and (len(batch) == _BATCH or size + len(item[1]) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[1])
    if batch:
        yield batch
