"""Reading and writing the entries of an embedded store.

**A full file** never fails a request. Each write first removes what has expired and, when there is
more than ``cluster_store_size`` should hold, what was used least recently; a part of the file stays
free for a tree that never overwrites a page in use. Should it be full all the same (large values
need neighbouring pages, readers that were killed hold old ones), more and more goes until the
write fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

import lmdb

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
from gunicorn_cluster_ext.stores.embedded.environment import BROKEN, Environment, log
from gunicorn_cluster_ext.stores.embedded.shared_state import State, Word
from gunicorn_cluster_ext.stores.script import Script, sleep

T = TypeVar("T")

# A write takes 10 us, so whoever waits for the lock looks often at first.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.000_05, 0.001
_READER_CHECK_S = 10.0
_MARKS, _MARK_S = 256, 5.0
# What a write does for the store at most: some 10 us, or a millisecond when there is too much.
_PURGED, _EVICTED = 4, 200
#: What entries may take of the file by their cost, and by what they have come to take; and the
#: largest one.
_FULL, _CROWDED, _LARGEST = 0.7, 0.8, 1 / 8
#: What is removed when the file is full, in parts of all, until the write fits.
_SHARES = (1 / 16, 1 / 4, 1 / 2, 1.0)
_unpack, _HEADER_SIZE = HEADER.unpack_from, HEADER.size
_GENERATION = int(Word.GENERATION)
_USUAL = (lmdb.ReadersFullError, lmdb.BadRslotError)


class Transactions:
    """On an environment. Reads wait for nobody; there is one writer over all processes."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._budget = int(environment.size * _FULL)
        self._crowded = int(environment.size * _CROWDED)
        self._largest = int(environment.size * _LARGEST)
        self._breaker = Breaker()
        self._used: set[bytes] = set()
        self._marked = self._checked = 0.0

    # --- reading --------------------------------------------------------------------------

    def read(self, key: bytes, kind: int) -> bytes | None:
        """What is under ``key``. Raises StoreError if it is not of that kind."""
        name = KEY + (key if 0 < len(key) <= LONGEST else fold(key))
        environment = self._environment
        # Unrolled, because half of the time would be for calls (measured: 0.9 us, or 1.5).
        while True:
            environment.acquire()
            try:
                if (view := environment.view) is not None:
                    begin, words, generation, clock, offset = view
                    if words[_GENERATION] == generation:
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
            self._remember(name[1:])
        if found != kind:
            raise WrongKind()
        return record[_HEADER_SIZE:]  # type: ignore[no-any-return]

    def _get_again(self, name: bytes, error: lmdb.Error) -> bytes | None:
        """After an error. Nothing, if the file is broken: the next write finds that as well."""
        if isinstance(error, BROKEN):
            log.error("The embedded store in %s: %s.", self._environment.directory, error)
            return None
        opened = self._environment.opened()
        if opened is None or not isinstance(error, _USUAL):
            raise self._environment.failure(error) from error
        try:
            opened[0].reader_check()
            with opened[0].begin() as transaction:
                return transaction.get(name)  # type: ignore[no-any-return]
        except lmdb.Error as again:
            raise self._environment.failure(again) from again

    def keys(self, prefix: bytes, most: int) -> Script[list[bytes]]:
        """Up to so many that begin so, expired ones too."""
        return (yield from self.write(lambda writer: list(islice(writer.keys(prefix), most))))

    def _remember(self, key: bytes) -> None:
        """Have it marked as used, together with others."""
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

    def write(self, change: Callable[[Writer], T]) -> Script[T]:
        """Have ``change`` done in a transaction of its own. It may be called several times."""
        state = yield from self._enter()
        try:
            return self._commit(state, change)
        finally:
            state.leave()

    def _enter(self) -> Script[State]:
        now = time.monotonic()
        if not self._breaker.admits(now):
            raise self._environment.held()
        deadline, pause = now + self._environment.timeout, _FIRST_PAUSE
        while (state := self._environment.try_enter()) is None:
            if (now := time.monotonic()) >= deadline:
                self._breaker.failed(now)
                raise self._environment.held()
            yield sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._breaker.succeeded()
        return state

    def _commit(self, state: State, change: Callable[[Writer], T]) -> T:
        with self._environment.lock:  # or another thread could close the file
            try:
                opened, _ = self._environment.open_inside(state)
                try:
                    return self._fit(opened, state, change)
                except BROKEN as error:
                    opened, _ = self._environment.begin_anew(state, str(error))
                    return self._fit(opened, state, change)
            except lmdb.Error as error:
                raise self._environment.failure(error) from error

    def _fit(self, opened: Any, state: State, change: Callable[[Writer], T]) -> T:
        self._check_readers(opened)
        for share in _SHARES:
            try:
                return self._transact(opened, state, change)
            except lmdb.MapFullError:
                self._make_room(opened, state, share)
        return self._transact(opened, state, change)

    def _transact(self, opened: Any, state: State, change: Callable[[Writer], T]) -> T:
        main = opened.open_db()
        with opened.begin(write=True) as transaction:
            writer = Writer(transaction, main, state.now(), self._largest)
            self._tidy(writer, state.words[Word.USED] - self._budget)
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

    def _make_room(self, opened: Any, state: State, share: float) -> None:
        """Readers that were killed may hold old pages; and something has to go."""
        opened.reader_check()
        main = opened.open_db()
        with opened.begin(write=True) as transaction:
            writer = Writer(transaction, main, state.now(), 0)
            if share < 1:
                entries = transaction.stat(main)["entries"]
                writer.purge(entries)
                writer.evict(int(state.words[Word.USED] * share), entries)
            else:
                transaction.drop(main, delete=False)
                writer.grown = -state.words[Word.USED]
        _account(state, writer)

    def _check_readers(self, opened: Any) -> None:
        now = time.monotonic()
        if now >= self._checked + _READER_CHECK_S:
            self._checked = now
            opened.reader_check()


def _account(state: State, writer: Writer) -> None:
    """A process that is killed between commit and this makes it wrong by one write, no more."""
    state.words[Word.USED] = max(0, state.words[Word.USED] + writer.grown)
    state.reals[Word.LATEST] = writer.now
