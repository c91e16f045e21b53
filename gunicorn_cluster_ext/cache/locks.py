"""Locks that all workers share. Only the holder releases a lock, and it expires if its holder dies.

    with cache.lock("invoice-7", ttl=30) as lock:
        ...                                          # lock.token: larger than any before

A process that was stopped for longer than ``ttl`` believes that it still holds the lock. Its writes
can be told by their token (a fencing token): a service refuses a token that is smaller than one
that it has seen.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator

from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.handles import Stores
from gunicorn_cluster_ext.stores.sync_async import IO, run

_DAY_S = 86_400.0


class LockTimeout(TimeoutError):
    """Another holder kept the lock for longer than we were to wait."""


class Lock:
    """A lock, made by ``Cache.lock``. Each holder needs an object of its own; it is not
    reentrant."""

    def __init__(self, stores: Stores, key: bytes, name: str, ttl: float, wait: float) -> None:
        if ttl <= 0:
            raise ValueError(f"lock {name!r}: ttl must be more than 0, not {ttl!r}")
        self.name = name
        self.ttl = ttl
        self.wait = wait
        self.token: int | None = None
        self._stores = stores
        self._key = key
        self._mark = secrets.token_bytes(16)

    def __repr__(self) -> str:
        return f"<Lock {self.name!r} token={self.token}>"

    def acquire(self) -> bool:
        """Return whether we have the lock: False after ``wait`` seconds. Raises StoreAway."""
        return run(self._acquire(self._stores.blocking_io))

    def release(self) -> bool:
        """Return whether we had the lock until now.

        Raises StoreAway; then the lock is free after ``ttl`` seconds.
        """
        return run(self._release(self._stores.blocking_io))

    async def aacquire(self) -> bool:
        return await self._acquire(self._stores.async_io)

    async def arelease(self) -> bool:
        return await self._release(self._stores.async_io)

    def __enter__(self) -> Lock:
        run(self._enter(self._stores.blocking_io))
        return self

    def __exit__(self, *_: object) -> None:
        run(self._exit(self._stores.blocking_io))

    async def __aenter__(self) -> Lock:
        await self._enter(self._stores.async_io)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit(self._stores.async_io)

    async def _enter(self, io: IO) -> None:
        if not await self._acquire(io):
            raise LockTimeout(f"lock {self.name!r} was not free within {self.wait:g} s")

    async def _exit(self, io: IO) -> None:
        """Release the lock. Only log a failure: the work under the lock is done."""
        try:
            if not await self._release(io):
                log.warning("Lock %r was held for longer than its %g s", self.name, self.ttl)
        except StoreError as error:
            log.warning("Lock %r is free in %g s only: %s", self.name, self.ttl, error)

    async def _acquire(self, io: IO) -> bool:
        deadline = time.monotonic() + self.wait
        for pause in pauses():
            began = time.monotonic()
            if await io.store.add(self._key, self._mark, self.ttl):
                token = await self._next_token(io)
                # Nobody can have had the lock since we began, so no other holder's token is larger.
                if time.monotonic() - began < self.ttl:
                    self.token = token
                    return True
            left = deadline - time.monotonic()
            if left <= 0:
                break
            await io.sleep(min(pause, left))
        return False

    async def _next_token(self, io: IO) -> int:
        """Return the next token. Where the last one has expired, the clock keeps tokens growing."""
        key = self._key + b"\0token"
        token = await io.store.incr(key, 1, _DAY_S)
        return token if token != 1 else await io.store.incr(key, int(time.time() * 1_000))

    async def _release(self, io: IO) -> bool:
        self.token = None
        return await io.store.compare_and_delete(self._key, self._mark)


def pauses(longest_s: float = 0.1) -> Iterator[float]:
    """Yield how long to wait before asking again, in seconds: from a millisecond on longer and
    longer, and at random, so that no two processes ask in step."""
    pause = 0.001
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(pause * 1.5, longest_s)
