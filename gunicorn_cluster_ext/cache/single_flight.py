"""One computes, the others wait: a cached value that many want at once (single flight).

    have it, fresh ------------------------------------------------> return it
      | absent, too old, or soon too old (see Entry.is_due)
    take the turn: store.add(turn, mark), atomic over all workers
      | got it                              | somebody else has it
    is it there by now? then return it      | have it, fresh or within `stale` --> return it
    compute, while the turn is kept         | wait, longer each time, and ask again
    set it                                  | after `wait` seconds: compute, and keep it to oneself
    give the turn back
      | it was no longer ours: somebody deleted the key meanwhile, or took the turn
    delete what we have set, for it may be older than what they know

A turn lives for three seconds and is renewed each second. So when a worker dies in the middle, the
others wait no longer than that. When the function raises, its caller gets the exception and the
next one computes.
"""

from __future__ import annotations

import math
import random
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gunicorn_cluster_ext import codec
from gunicorn_cluster_ext.cache.locks import pauses
from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime.counters import cache_failed
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.script import Script, sleep

TURN_TTL = 3.0

#: No MessagePack begins with this byte.
MARK = b"\xc1"
_HEAD = struct.Struct(">cdd")


class Entry(NamedTuple):
    """A value that was computed: until when it is fresh (Unix time), and what it cost (seconds)."""

    value: Any
    until: float
    cost: float

    def is_fresh(self) -> bool:
        return time.time() < self.until

    def is_due(self) -> bool:
        """Whether to compute it anew already, so that nobody has to wait when it is too old.

        The more it costs and the closer the end, the likelier; one of those who ask comes first
        (A. Vattani et al., Optimal Probabilistic Cache Stampede Prevention, VLDB 2015).
        """
        return time.time() + self.cost * random.expovariate(1) >= self.until


def pack(entry: Entry, key: str) -> bytes:
    """Raises UnknownType."""
    return _HEAD.pack(MARK, entry.until, entry.cost) + codec.encode(entry.value, key)


def unpack(data: bytes) -> Entry:
    """What was stored without a time is fresh as long as it is there. Raises CorruptValue."""
    if data[:1] != MARK:
        return Entry(codec.decode(data), math.inf, 0.0)
    if len(data) <= _HEAD.size:
        raise codec.CorruptValue("it is too short")
    _, until, cost = _HEAD.unpack_from(data)
    return Entry(codec.decode(data[_HEAD.size :]), until, cost)


@dataclass(eq=False)
class Flight:
    """One call of ``get_or_set``. ``name`` and ``turn`` are keys in the store, ``key`` is the
    caller's word for it; ``read`` looks up and counts what goes wrong."""

    name: bytes
    turn: bytes
    key: str
    function: Callable[[], Any]
    ttl: float | None
    stale: float
    wait: float
    read: Callable[[bytes], Script[Entry | None]]
    mark: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def fly(self, seen: Entry | None) -> Script[Any]:
        """``seen`` is what there was, if anything."""
        deadline = time.monotonic() + self.wait
        for pause in pauses():
            took = yield from self._take()
            if took:
                return (yield from self._compute(seen))
            if seen is not None and time.time() < seen.until + self.stale:
                return seen.value
            if took is None or time.monotonic() >= deadline:
                return (yield lambda face: face.call(self.function))
            yield sleep(pause)
            seen = yield from self.read(self.name)
            if seen is not None and seen.is_fresh():
                return seen.value

    def _take(self) -> Script[bool | None]:
        """Take the turn. None without a store: then nobody waits for anybody."""
        try:
            return bool((yield lambda face: face.store.add(self.turn, self.mark, TURN_TTL)))
        except StoreError as error:
            cache_failed(error)
            return None

    def _compute(self, seen: Entry | None) -> Script[Any]:
        try:
            value, stored = yield from self._compute_unless_done(seen)
        except GeneratorExit:  # nobody is there any more to take a step
            raise
        except BaseException as error:
            yield from self._give_back(False)
            if seen is None or not seen.is_fresh() or not isinstance(error, Exception):
                raise
            log.warning("%r could not be computed anew ahead of time", self.key, exc_info=True)
            return seen.value
        yield from self._give_back(stored)
        return value

    def _compute_unless_done(self, seen: Entry | None) -> Script[tuple[Any, bool]]:
        """The value, and whether it was stored by us. Whoever had the turn before us may have
        stored it between our look and our turn."""
        now = yield from self.read(self.name)
        if now is not None and now.is_fresh() and (seen is None or now.until > seen.until):
            return now.value, False
        began = time.monotonic()
        value = yield lambda face: face.keep(self.turn, TURN_TTL, self.function)
        yield from self._store(value, time.monotonic() - began)
        return value, True

    def _store(self, value: Any, cost: float) -> Script[None]:
        until = math.inf if self.ttl is None else time.time() + self.ttl
        data = pack(Entry(value, until, cost), self.key)
        ttl = None if self.ttl is None else self.ttl + self.stale
        try:
            yield lambda face: face.store.set(self.name, data, ttl)
        except StoreError as error:
            cache_failed(error)

    def _give_back(self, stored: bool) -> Script[None]:
        try:
            ours = yield lambda face: face.store.compare_and_delete(self.turn, self.mark)
            if stored and not ours:
                yield lambda face: face.store.delete([self.name])
        except StoreError as error:
            cache_failed(error)
