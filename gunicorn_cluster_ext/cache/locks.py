"""Locks that all workers share. Only the holder releases, and whoever dies loses it in time.

    with cache.lock("invoice-7", ttl=30) as lock:
        ...                                          # lock.token: larger than any before

A process that was stopped for longer than ``ttl`` believes that it still holds the lock. What it
writes then can be told by its token: whoever is written to refuses one that is smaller than one
that it has seen.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from typing import Any

from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.drivers import Asynchronous, Blocking
from gunicorn_cluster_ext.stores.handles import Stores
from gunicorn_cluster_ext.stores.script import Script, arun, run, sleep

_DAY_S = 86_400.0


class LockTimeout(TimeoutError):
    """Somebody else has the lock, and kept it for longer than we would wait."""


class Lock:
    """Made by ``Cache.lock``. One object for each holder; it is not reentrant."""

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
        """Whether we have it now; False after ``wait`` seconds. Raises StoreAway."""
        return run(self._acquire(), Blocking(self._stores))

    def release(self) -> bool:
        """Whether we had it until now. Raises StoreAway; then it is free after ``ttl``."""
        return run(self._release(), Blocking(self._stores))

    async def aacquire(self) -> bool:
        return await arun(self._acquire(), Asynchronous(self._stores))

    async def arelease(self) -> bool:
        return await arun(self._release(), Asynchronous(self._stores))

    def __enter__(self) -> Lock:
        return self._had(self.acquire())

    def __exit__(self, *_: object) -> None:
        run(self._leave(), Blocking(self._stores))

    async def __aenter__(self) -> Lock:
        return self._had(await self.aacquire())

    async def __aexit__(self, *_: object) -> None:
        await arun(self._leave(), Asynchronous(self._stores))

    def _had(self, acquired: bool) -> Lock:
        if not acquired:
            raise LockTimeout(f"lock {self.name!r} was not free within {self.wait:g} s")
        return self

    def _leave(self) -> Script[None]:
        """What was done under the lock is done: nothing is raised for it any more."""
        try:
            if not (yield from self._release()):
                log.warning("Lock %r was held for longer than its %g s", self.name, self.ttl)
        except StoreError as error:
            log.warning("Lock %r is free in %g s only: %s", self.name, self.ttl, error)

    def _acquire(self) -> Script[bool]:
        deadline = time.monotonic() + self.wait
        for pause in pauses():
            began = time.monotonic()
            if (yield lambda face: face.store.add(self._key, self._mark, self.ttl)):
                token = yield from self._count()
                # Nobody can have had it since we began, so no other holder's token is larger.
                if time.monotonic() - began < self.ttl:
                    self.token = token
                    return True
            left = deadline - time.monotonic()
            if left <= 0:
                break
            yield sleep(min(pause, left))
        return False

    def _count(self) -> Script[int]:
        """The next token. The clock keeps it growing where the last one has been forgotten."""
        key = self._key + b"\0token"
        token: int = yield lambda face: face.store.incr(key, 1, _DAY_S)
        if token == 1:
            milliseconds = int(time.time() * 1_000)
            token = yield lambda face: face.store.incr(key, milliseconds)
        return token

    def _release(self) -> Script[bool]:
        self.token = None
        held: Any = yield lambda face: face.store.compare_and_delete(self._key, self._mark)
        return bool(held)


def pauses(longest: float = 0.1) -> Iterator[float]:
    """How long to wait before asking again: from a millisecond on longer and longer, and never
    in step with others."""
    pause = 0.001
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(pause * 1.5, longest)
