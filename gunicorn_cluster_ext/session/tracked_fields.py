"""Named values over stored bytes, which know their changes, also those inside a value."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from gunicorn_cluster_ext import codec

#: The types of values that cannot change in place, so they need not be compared.
_IMMUTABLE = frozenset(
    {type(None), bool, int, float, str, bytes, frozenset}
    | {datetime, date, time, timedelta, Decimal, UUID}
)


class Changes(NamedTuple):
    """Fields to put and to remove."""

    put: dict[bytes, bytes]
    remove: list[bytes]

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


class Fields(MutableMapping[str, Any]):
    """A dictionary over a store's field map. Raises CorruptValue.

    A value is encoded when it is set, so that one that cannot be stored is refused there. If it is
    mutable and was read, it is encoded once more in ``changes``, and compared.
    """

    def __init__(self, stored: Mapping[bytes, bytes]) -> None:
        try:
            self._stored = {
                str(key, "utf-8", "surrogatepass"): data for key, data in stored.items()
            }
        except UnicodeDecodeError:
            raise codec.CorruptValue("the name of a field") from None
        self._values = {name: codec.decode(data) for name, data in self._stored.items()}
        self._fixed: dict[str, bytes] = {}
        self._was_read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if type(value) not in _IMMUTABLE:
            self._was_read.add(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("\0"):
            raise TypeError(f"{name!r} is no name for a value: it must be a string")
        data = codec.encode(value, name)
        self._values[name] = value
        self._fixed.pop(name, None)
        self._was_read.discard(name)
        if type(value) in _IMMUTABLE:
            self._fixed[name] = data
        else:
            self._was_read.add(name)

    def __delitem__(self, name: str) -> None:
        del self._values[name]
        self._fixed.pop(name, None)
        self._was_read.discard(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __ior__(self, other: Any) -> Fields:
        self.update(other)
        return self

    def changes(self) -> Changes:
        """Return the differences from the stored fields. Raises UnknownType."""
        now = {name: codec.encode(self._values[name], name) for name in self._was_read}
        put = {
            _key(name): data
            for name, data in (*self._fixed.items(), *now.items())
            if data != self._stored.get(name)
        }
        return Changes(put, [_key(name) for name in self._stored if name not in self._values])

    def stored(self, changes: Changes) -> None:
        """Note that the changes were stored, so that only later ones are differences."""
        self._stored |= {_name(key): data for key, data in changes.put.items()}
        for key in changes.remove:
            self._stored.pop(_name(key), None)


@functools.lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return name.encode(errors="surrogatepass")


@functools.lru_cache(maxsize=1024)
def _name(key: bytes) -> str:
    return key.decode(errors="surrogatepass")
