"""Reading and writing the entries of an embedded store.

**A full file** never fails a request. Each write first removes what has expired and, when there is
more than ``cluster_store_size`` should hold, the least recently used entries. A part of the file
stays free, because LMDB's tree never overwrites a page in use. If the file is full all the same
(large values need neighbouring pages, readers that were killed hold old ones), more and more is
removed until the write fits.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import lmdb

from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.stores.circuit_breaker import Breaker
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.embedded.entries import (
    HEADER,
    KEY,
    LONGEST,
    Writer,
    WrongKind,
    fold,
)
from gunicorn_cluster_ext.stores.embedded.environment import BROKEN, Environment
from gunicorn_cluster_ext.stores.embedded.shared_state import Cell, SharedState

T = TypeVar("T")

# A write takes 10 us, so a writer that waits for the lock looks often at first.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.000_05, 0.001
_READER_CHECK_S = 10.0
#: Uses are written together, once so many have come together or so much time has passed.
_MARKS, _MARK_S = 256, 5.0
#: How many entries one write removes at most: expired ones (some 10 us) or, when the store holds
#: too much, old ones (a millisecond).
_PURGED, _EVICTED = 4, 200
#: Shares of the file: what the entries may cost, how many pages may be in use before old entries
#: are removed, and the cost of the largest entry. The rest is room for copies of changed pages.
_FULL, _CROWDED, _LARGEST = 0.7, 0.8, 1 / 8
#: The shares of all entries that are removed when the file is full, until the write fits.
_SHARES = (1 / 16, 1 / 4, 1 / 2, 1.0)
_RECOVERABLE = (lmdb.ReadersFullError, lmdb.BadRslotError)

_unpack, _HEADER_SIZE = HEADER.unpack_from, HEADER.size
_GENERATION = Cell.GENERATION


class Transactions:
    """Reads and writes in one environment. ``sleep`` waits for another writer."""

    def __init__(self, environment: Environment, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._environment = environment
        self._sleep = sleep
        self._budget = int(environment.size * _FULL)
        self._crowded = int(environment.size * _CROWDED)
        self._largest = int(environment.size * _LARGEST)
        self._breaker = Breaker()
        self._used: set[bytes] = set()
        self._marked = self._checked = 0.0

    # --- reading --------------------------------------------------------------------------

    def read(self, key: bytes, kind: int) -> bytes | None:
        """Return the data under ``key``. Raises StoreError if it is of the other kind."""
        name = KEY + (key if 0 < len(key) <= LONGEST else fold(key))
        environment = self._environment
        # Unrolled, because calls would take half of the time (measured: 0.9 us, or 1.5).
        while True:
            environment.acquire()
            try:
                if (view := environment.view) is not None:
                    begin, cells, generation, clock, offset = view
                    if cells[_GENERATION] == generation:
                        record = begin().get(name)  # which ends it, a third faster than `with`
                        break
            except lmdb.Error as error:
                record = self._get_again(name, error)
                break
            finally:
                environment.release()
            environment.open()
        if record is None:
            return None
        expires, fresh, found = _unpack(record)
        now = clock() + offset
        if now >= expires:
            return None
        if now > fresh:
            self._note_use(name[1:])
        if found != kind:
            raise WrongKind()
        return record[_HEADER_SIZE:]  # type: ignore[no-any-return]

    def _get_again(self, name: bytes, error: lmdb.Error) -> bytes | None:
        """Read after an error. None if the file is broken: the next write will notice it too."""
        if isinstance(error, BROKEN):
            log.error("The embedded store in %s: %s.", self._environment.directory, error)
            return None
        opened = self._environment.opened()
        if opened is None or not isinstance(error, _RECOVERABLE):
            raise self._environment.failure(error) from error
        try:
            opened[0].reader_check()
            with opened[0].begin() as transaction:
                return transaction.get(name)  # type: ignore[no-any-return]
        except lmdb.Error as again:
            raise self._environment.failure(again) from again

    def _note_use(self, key: bytes) -> None:
        """Remember that an entry was used, and mark all that were once there are enough."""
        self._used.add(key)
        now = time.monotonic()
        if len(self._used) < _MARKS and now < self._marked + _MARK_S:
            return
        self._marked = now
        if (state := self._environment.try_enter()) is None:
            self._used.clear()  # others write; one mark in many is enough
            return
        try:
            self._commit(state, lambda writer: None)
        except StoreError as error:
            log.debug("Uses not marked: %s", error)
        finally:
            state.leave()

    # --- writing --------------------------------------------------------------------------

    async def write(self, change: Callable[[Writer], T]) -> T:
        """Return ``change(writer)``, made in a transaction of its own.

        ``change`` may be called several times. Raises StoreAway when other writers keep the lock.
        """
        environment, now = self._environment, time.monotonic()
        if not self._breaker.admits(now):
            raise environment.held()
        deadline, pause = now + environment.timeout, _FIRST_PAUSE_S
        while (state := environment.try_enter()) is None:
            if (now := time.monotonic()) >= deadline:
                self._breaker.failed(now)
                raise environment.held()
            await self._sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        try:
            self._breaker.succeeded()
            return self._commit(state, change)
        finally:
            state.leave()

    def _commit(self, state: SharedState, change: Callable[[Writer], T]) -> T:
        with self._environment.lock:  # or another thread could close the file
            try:
                opened, _ = self._environment.open_inside(state)
                try:
                    return self._fit(opened, state, change)
                except BROKEN as error:
                    opened, _ = self._environment.replace_broken(state, str(error))
                    return self._fit(opened, state, change)
            except lmdb.Error as error:
                raise self._environment.failure(error) from error

    def _fit(self, opened: Any, state: SharedState, change: Callable[[Writer], T]) -> T:
        now = time.monotonic()
        if now >= self._checked + _READER_CHECK_S:
            self._checked = now
            opened.reader_check()
        for share in _SHARES:
            try:
                return self._transact(opened, state, change)
            except lmdb.MapFullError:
                self._make_room(opened, state, share)
        return self._transact(opened, state, change)

    def _transact(self, opened: Any, state: SharedState, change: Callable[[Writer], T]) -> T:
        main = opened.open_db()
        with opened.begin(write=True) as transaction:
            writer = Writer(transaction, main, state.now(), self._largest)
            self._tidy(writer, state.cells[Cell.USED] - self._budget)
            result = change(writer)
        _account(state, writer)
        return result

    def _tidy(self, writer: Writer, excess: int) -> None:
        if self._used:
            used, self._used = self._used, set()
            writer.mark(tuple(used))  # other threads may still add
        if excess < 0 and writer.pages() > self._crowded:
            excess = self._budget // 16
        writer.purge(_PURGED if excess < 0 else _EVICTED)
        if excess + writer.grown > 0:
            writer.evict(excess + writer.grown, _EVICTED)

    def _make_room(self, opened: Any, state: SharedState, share: float) -> None:
        """Remove expired entries and a share of the others. Readers that were killed are dropped
        first, because they may hold old pages."""
        opened.reader_check()
        main = opened.open_db()
        with opened.begin(write=True) as transaction:
            writer = Writer(transaction, main, state.now(), 0)
            if share < 1:
                entries = transaction.stat(main)["entries"]
                writer.purge(entries)
                writer.evict(int(state.cells[Cell.USED] * share), entries)
            else:
                transaction.drop(main, delete=False)
                writer.grown = -state.cells[Cell.USED]
        _account(state, writer)


def _account(state: SharedState, writer: Writer) -> None:
    """Publish what a write has changed. A process that is killed between its commit and this makes
    the account wrong by one write, no more."""
    state.cells[Cell.USED] = max(0, state.cells[Cell.USED] + writer.grown)
    state.reals[Cell.LATEST] = writer.now
