"""The store of one machine: LMDB in a private directory, no server to run.

Reads wait for nobody. Writers are one at a time, over all processes. In an event loop both are
done where they are called (a few microseconds), and waiting for another writer is awaited.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import NotANumber, StoreError
from gunicorn_cluster_ext.stores.embedded import location
from gunicorn_cluster_ext.stores.embedded.entries import (
    LONGEST,
    MAP,
    VALUE,
    Entry,
    Writer,
    WrongKind,
    fold,
)
from gunicorn_cluster_ext.stores.embedded.environment import Environment, environment
from gunicorn_cluster_ext.stores.embedded.transactions import Transactions
from gunicorn_cluster_ext.stores.script import Script
from gunicorn_cluster_ext.stores.sync_async import Asynchronous, Blocking, immediate, operation

_NUMBER = re.compile(rb"0|-?[1-9]\d{0,18}")
_INT64 = range(-(1 << 63), 1 << 63)
# A transaction that others wait for takes about a millisecond at most.
_BATCH = 200
_BATCH_BYTES = 1 << 20

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode


def open_environment(settings: Settings) -> Environment:
    """Raises StoreError."""
    return environment(location.of(settings), settings.store_size, settings.store_timeout)


def _value(entry: Entry | None) -> bytes | None:
    if entry is None:
        return None
    if entry.kind != VALUE:
        raise WrongKind()
    return entry.data


def _number(entry: Entry | None) -> int:
    data = _value(entry)
    if data is None:
        return 0
    if not _NUMBER.fullmatch(data) or int(data) not in _INT64:
        raise NotANumber("The value is no integer of 64 bits")
    return int(data)


class _Operations:
    """The contract. What a write does is a function that gets a Writer."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._transactions = Transactions(environment)
        self._read = self._transactions.read

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._environment.directory}>"

    @immediate
    def get(self, key: bytes) -> bytes | None:
        return self._read(key, VALUE)

    @immediate
    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return [self._read_value(key) for key in keys]

    def _read_value(self, key: bytes) -> bytes | None:
        try:
            return self._read(key, VALUE)
        except WrongKind:
            return None

    @operation
    def set(self, key: bytes, value: bytes, ttl: float | None = None) -> Script[None]:
        key = fold(key)

        def change(writer: Writer) -> None:
            writer.put(key, VALUE, value, writer.expiry(ttl))

        yield from self._transactions.write(change)

    @operation
    def set_many(self, items: Mapping[bytes, bytes], ttl: float | None = None) -> Script[None]:
        for batch in _batches((fold(key), value) for key, value in items.items()):

            def change(writer: Writer, batch: list[tuple[bytes, bytes]] = batch) -> None:
                for key, value in batch:
                    writer.put(key, VALUE, value, writer.expiry(ttl))

            yield from self._transactions.write(change)

    @operation
    def add(self, key: bytes, value: bytes, ttl: float | None = None) -> Script[bool]:
        key = fold(key)

        def change(writer: Writer) -> bool:
            if writer.find(key) is not None:
                return False
            writer.put(key, VALUE, value, writer.expiry(ttl))
            return True

        return (yield from self._transactions.write(change))

    @operation
    def touch(self, key: bytes, ttl: float | None) -> Script[bool]:
        key = fold(key)

        def change(writer: Writer) -> bool:
            entry = writer.find(key)
            if entry is None:
                return False
            writer.put(key, entry.kind, entry.data, writer.expiry(ttl))
            return True

        return (yield from self._transactions.write(change))

    @operation
    def delete(self, keys: Iterable[bytes]) -> Script[int]:
        return (yield from self._delete(map(fold, keys)))

    def _delete(self, keys: Iterable[bytes]) -> Script[int]:
        rest, deleted = iter(keys), 0
        while batch := list(islice(rest, _BATCH)):

            def change(writer: Writer, batch: list[bytes] = batch) -> int:
                return sum(map(writer.remove, batch))

            deleted += yield from self._transactions.write(change)
        return deleted

    @operation
    def incr(self, key: bytes, by: int = 1, ttl: float | None = None) -> Script[int]:
        key = fold(key)

        def change(writer: Writer) -> int:
            entry = writer.find(key)
            total = _number(entry) + by
            if total not in _INT64:
                raise NotANumber("The sum has more than 64 bits")
            expires = writer.expiry(ttl) if entry is None else entry.expires
            writer.put(key, VALUE, b"%d" % total, expires)
            return total

        return (yield from self._transactions.write(change))

    @operation
    def compare_and_delete(self, key: bytes, value: bytes) -> Script[bool]:
        key = fold(key)

        def change(writer: Writer) -> bool:
            return _value(writer.find(key)) == value and writer.remove(key)

        return (yield from self._transactions.write(change))

    @operation
    def clear(self, prefix: bytes) -> Script[int]:
        if len(prefix) > LONGEST:
            raise StoreError(f"A prefix has at most {LONGEST} bytes")
        cleared = 0
        while keys := (yield from self._transactions.keys(prefix, _BATCH)):
            cleared += yield from self._delete(keys)
        return cleared

    @immediate
    def fields(self, key: bytes) -> dict[bytes, bytes]:
        data = self._read(key, MAP)
        return {} if data is None else _unpack(data)

    @operation
    def change(
        self,
        key: bytes,
        put: Mapping[bytes, bytes],
        remove: Iterable[bytes] = (),
        *,
        ttl: float | None = None,
        must_exist: bool = False,
    ) -> Script[bool]:
        key, gone = fold(key), frozenset(remove)

        def change(writer: Writer) -> bool:
            entry = writer.find(key)
            if entry is None and must_exist:
                return False
            fields = {name: data for name, data in _fields(entry).items() if name not in gone}
            fields.update(put)
            if fields:
                writer.put(key, MAP, _pack(fields), writer.expiry(ttl))
            else:
                writer.remove(key)
            return True

        return (yield from self._transactions.write(change))

    @immediate
    def close(self) -> None:
        self._environment.close()


def _fields(entry: Entry | None) -> dict[bytes, bytes]:
    if entry is None:
        return {}
    if entry.kind != MAP:
        raise WrongKind()
    return _unpack(entry.data)


def _batches(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
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


class EmbeddedStore(_Operations, Blocking):
    pass


class AsyncEmbeddedStore(_Operations, Asynchronous):
    pass
