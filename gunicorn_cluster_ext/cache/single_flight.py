"""Single flight: of many who want a missing value one computes it, and the others wait.

    have it, fresh ------------------------------------------------> return it
      | absent, too old, or soon too old (see CachedValue.is_due)
    take the lease: store.add(lease, mark), atomic over all workers
      | got it                              | another has it
    is it there by now? then return it      | have it, fresh or within `stale` --> return it
    compute, while the lease is renewed     | wait, longer each time, and look again
    set it                                  | after `wait` seconds: compute, and do not store it
    release the lease
      | it was no longer ours: the key was deleted meanwhile, or another took the lease
    delete what we have set, for it may be older than what they know

A lease lives for three seconds and is renewed each second. So when a worker dies in the middle, the
others wait no longer than that. When the function raises, its caller gets the exception and the
next one computes.
"""

from __future__ import annotations

import math
import random
import secrets
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gunicorn_cluster_ext import codec
from gunicorn_cluster_ext.cache.locks import pauses
from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime.counters import cache_failed
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.sync_async import IO

LEASE_TTL_S = 3.0

#: No MessagePack begins with this byte.
_MARK = b"\xc1"
_HEAD = struct.Struct(">cdd")


class CachedValue(NamedTuple):
    """A value that was computed: it is fresh until ``until`` (Unix time), and took ``cost``
    seconds."""

    value: Any
    until: float
    cost: float

    def is_fresh(self) -> bool:
        return time.time() < self.until

    def is_due(self) -> bool:
        """Return whether to compute it again already, so that nobody has to wait when it expires.

        The more it costs and the closer the end, the likelier; one of those who ask comes first
        (A. Vattani et al., Optimal Probabilistic Cache Stampede Prevention, VLDB 2015).
        """
        return time.time() + self.cost * random.expovariate(1) >= self.until


def pack(cached: CachedValue, key: str) -> bytes:
    """Return the bytes for the store. Raises UnknownType, which names ``key``."""
    return _HEAD.pack(_MARK, cached.until, cached.cost) + codec.encode(cached.value, key)


def unpack(data: bytes) -> CachedValue:
    """Parse what ``pack`` made, or a bare value, which is fresh while the store has it.

    Raises CorruptValue.
    """
    if data[:1] != _MARK:
        return CachedValue(codec.decode(data), math.inf, 0.0)
    if len(data) <= _HEAD.size:
        raise codec.CorruptValue("it is too short")
    _, until, cost = _HEAD.unpack_from(data)
    return CachedValue(codec.decode(data[_HEAD.size :]), until, cost)


@dataclass(eq=False)
class Computation:
    """One call of ``get_or_set``.

    ``name`` and ``lease`` are keys in the store, ``key`` the caller's word for the value, and
    ``read`` looks the value up. ``ttl``, ``stale`` and ``wait`` are in seconds.
    """

    io: IO
    name: bytes
    lease: bytes
    key: str
    function: Callable[[], Any]
    ttl: float | None
    stale: float
    wait: float
    read: Callable[[IO, bytes], Awaitable[CachedValue | None]]
    mark: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    async def run(self, seen: CachedValue | None) -> Any:
        """Return the value. ``seen`` is what the store had, if anything."""
        deadline = time.monotonic() + self.wait
        for pause in pauses():
            leased = await self._take_lease()
            if leased:
                return await self._compute(seen)
            if seen is not None and time.time() < seen.until + self.stale:
                return seen.value
            if leased is None or time.monotonic() >= deadline:
                return await self.io.call(self.function)
            await self.io.sleep(pause)
            seen = await self.read(self.io, self.name)
            if seen is not None and seen.is_fresh():
                return seen.value

    async def _take_lease(self) -> bool | None:
        """Return whether the lease is ours. None without a store: then nobody waits."""
        try:
            return await self.io.store.add(self.lease, self.mark, LEASE_TTL_S)
        except StoreError as error:
            cache_failed(error)
            return None

    async def _compute(self, seen: CachedValue | None) -> Any:
        """Compute and store the value, unless the last holder of the lease has stored it between
        our look and our lease."""
        is_stored = False
        try:
            now = await self.read(self.io, self.name)
            if now is not None and now.is_fresh() and (seen is None or now.until > seen.until):
                value = now.value
            else:
                began = time.monotonic()
                value = await self.io.call_while_renewing(self.lease, LEASE_TTL_S, self.function)
                await self._store(value, time.monotonic() - began)
                is_stored = True
        except GeneratorExit:  # the coroutine is closed, and may await nothing more
            raise
        except BaseException as error:
            await self._release_lease(is_stored)
            if seen is None or not seen.is_fresh() or not isinstance(error, Exception):
                raise
            log.warning("%r could not be computed ahead of its expiry", self.key, exc_info=True)
            return seen.value
        await self._release_lease(is_stored)
        return value

    async def _store(self, value: Any, cost: float) -> None:
        until = math.inf if self.ttl is None else time.time() + self.ttl
        data = pack(CachedValue(value, until, cost), self.key)
        ttl = None if self.ttl is None else self.ttl + self.stale
        try:
            await self.io.store.set(self.name, data, ttl)
        except StoreError as error:
            cache_failed(error)

    async def _release_lease(self, is_stored: bool) -> None:
        try:
            is_ours = await self.io.store.compare_and_delete(self.lease, self.mark)
            if is_stored and not is_ours:
                await self.io.store.delete([self.name])
        except StoreError as error:
            cache_failed(error)
