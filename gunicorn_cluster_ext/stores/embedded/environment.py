"""The file of an embedded store as this process has it open: LMDB, which must not cross a fork.

A process opens one file once, whoever uses it there: LMDB's locks belong to the process. It is
opened when it is first used, closed before a fork, and opened again when it is used again. (A
child that closes, or only forgets, what it inherited wipes its parent's places in LMDB's table of
readers.)

**Nothing is synced** to disk until the last process closes the file. The kernel has what was
written, so a process, or all of them, may be killed at any time: LMDB's lock is robust, and a write
that was not committed has not happened. Syncing each commit was measured at 23 to 38 times its cost
(6 us; 140 without, 230 with the meta page) on a disk that is quick to sync, with the lock held, and
would save sessions from power cuts only; see state.py for what happens after one.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lmdb

from gunicorn_cluster_ext.stores.contract import StoreAway, StoreError
from gunicorn_cluster_ext.stores.embedded.shared_state import State, Word

log = logging.getLogger("gunicorn.error")

#: What LMDB says of a file that it cannot go on with, and of one that it cannot open.
BROKEN = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)
_FOREIGN = (*BROKEN, lmdb.InvalidError, lmdb.VersionMismatchError)

#: LMDB's first page: a header, a magic number, the version of the format.
_META = struct.Struct("16x2I")
_VERSIONS = range(1, 4)

_READERS = 1024
_PAUSE = 0.001


class View(NamedTuple):
    """What a reader needs, so that it looks up one attribute."""

    begin: Callable[[], Any]
    words: memoryview
    generation: int
    clock: Callable[[], float]
    offset: float


class Environment:
    """``size`` in bytes bounds the file, ``timeout`` in seconds the wait for other writers.

    Whoever needs both locks takes the writers' (``State.try_enter``) first.
    """

    def __init__(self, directory: str, size: int, timeout: float) -> None:
        self.directory = directory
        self.size = size
        self.timeout = timeout
        self._forget()

    def _forget(self) -> None:
        #: Held by whoever uses what is open, never while waiting for another process.
        self.lock = threading.RLock()
        self.acquire, self.release = self.lock.acquire, self.lock.release
        self.state: State | None = None
        self._lmdb: Any = None
        self._generation = -1
        self.view: View | None = None

    def __repr__(self) -> str:
        return f"<Environment {self.directory} {'closed' if self._lmdb is None else 'open'}>"

    def opened(self) -> tuple[Any, State] | None:
        """LMDB, and what is shared, if both are open and up to date. With ``lock`` held."""
        state = self.state
        if self._lmdb is None or state is None:
            return None
        return (self._lmdb, state) if state.words[Word.GENERATION] == self._generation else None

    def open(self) -> None:
        """Without any lock held. Raises StoreError."""
        state = self.enter()
        try:
            self.open_inside(state)
        finally:
            state.leave()

    def open_inside(self, state: State) -> tuple[Any, State]:
        """The same for the writer. Does nothing if it is open."""
        with self.lock:
            if (opened := self.opened()) is None:
                self._close_lmdb()  # of a former generation: nobody reads it, we have the lock
                opened = self._lmdb, _ = self._open_file(state), state
                self._generation = state.words[Word.GENERATION]
                self.view = View(
                    self._lmdb.begin, state.words, self._generation, state.clock, state.offset
                )
            return opened

    # --- the writers' lock ----------------------------------------------------------------

    def try_enter(self) -> State | None:
        """Become the writer, or not. Raises StoreError when the directory cannot be used."""
        with self.lock:
            state = self.state = self.state or _state(self.directory)
        return state if state.try_enter() else None

    def enter(self) -> State:
        """Become the writer, waiting in this thread: to open and close only."""
        deadline = time.monotonic() + self.timeout
        while (state := self.try_enter()) is None:
            if time.monotonic() >= deadline:
                raise self.held()
            time.sleep(_PAUSE)
        return state

    def held(self) -> StoreAway:
        with self.lock:
            holder = self.state.words[Word.HOLDER] if self.state is not None else "?"
        return StoreAway(
            f"The embedded store in {self.directory} has been locked by process {holder} for "
            f"{self.timeout:g} s"
        )

    # --- the file -------------------------------------------------------------------------

    def _open_file(self, state: State) -> Any:
        if not state.join():
            self._discard(state, "the machine went down while it was in use")
        elif (bad := self._fault(state)) is not None:
            self._discard(state, bad)
        try:
            return self._open_lmdb(state)
        except _FOREIGN as error:
            self._discard(state, str(error))
        except lmdb.Error as error:
            raise self.failure(error) from error
        try:
            return self._open_lmdb(state)
        except lmdb.Error as error:
            raise self.failure(error) from error

    def _open_lmdb(self, state: State) -> Any:
        """Without ``writemap``: with it a full disk would be a SIGBUS, not an error. A file that
        was allowed to be larger remains so: to take less it needs room."""
        path = state.path
        opened = lmdb.open(
            path,
            map_size=max(self.size, state.words[Word.LENGTH]),
            subdir=False,
            sync=False,
            metasync=False,
            mode=0o600,
            max_readers=_READERS,
            max_spare_txns=1,
        )
        opened.reader_check()
        # A hole as large as it may become: so a file that was truncated can be told.
        length = max(opened.info()["map_size"], os.stat(path).st_size)
        os.truncate(path, length)
        state.words[Word.LENGTH] = length
        return opened

    def _fault(self, state: State) -> str | None:
        """What keeps this file from being opened, as far as its length and first bytes tell."""
        try:
            with open(state.path, "rb") as file:
                _, version = _META.unpack(file.read(_META.size).ljust(_META.size, b"\0"))
                length = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return "it has gone" if state.words[Word.LENGTH] else None
        if length < state.words[Word.LENGTH]:
            return "it was truncated"
        return None if version in _VERSIONS else f"its format has the version {version}"

    def begin_anew(self, state: State, why: str) -> tuple[Any, State]:
        """The file proved broken in use. Called by the writer; the others see the generation."""
        with self.lock:
            if self._generation == state.words[Word.GENERATION]:
                self._discard(state, why)
            return self.open_inside(state)

    def _discard(self, state: State, why: str) -> None:
        """Set the file aside, one at most. Called by the writer."""
        path = state.path
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, os.path.join(self.directory, "broken.mdb"))
            log.error("The embedded store in %s begins anew: %s.", self.directory, why)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + "-lock")
        state.words[Word.GENERATION] += 1
        state.words[Word.USED] = state.words[Word.LENGTH] = 0

    def failure(self, error: lmdb.Error) -> StoreError:
        hint = ""
        if isinstance(error, lmdb.MapFullError):
            hint = " (a process that was stopped while it read may hold old pages)"
        elif isinstance(error, lmdb.MapResizedError):
            hint = " (another process has a larger cluster_store_size)"
        return StoreError(f"Embedded store in {self.directory}: {error}{hint}")

    # --- closing ----------------------------------------------------------------------------

    def close(self) -> None:
        """The last process that does so puts all on disk."""
        if self.state is None:
            return
        state = self.enter()
        with self.lock:
            try:
                self._close_lmdb()
                state.quit()
            finally:
                self.state = None
                # Not left: threads that still know this state find it taken, and take another.
                state.close()

    def _close_lmdb(self) -> None:
        if self._lmdb is not None:
            self._lmdb.close()
        self._lmdb = self.view = None

    # --- around a fork ----------------------------------------------------------------------

    def before_fork(self) -> None:
        """A child must not inherit LMDB, nor a lock that it would keep from everybody."""
        state = self.state
        self._still = state if state is not None and state.hold_still() else None
        self.lock.acquire()
        self._close_lmdb()

    def after_fork_in_parent(self) -> None:
        self.lock.release()
        if self._still is not None:
            self._still.go_on()

    def after_fork_in_child(self) -> None:
        state = self.state
        self._forget()
        if state is not None:
            state.close()  # our copies: the parent's locks stay


def _state(directory: str) -> State:
    try:
        return State(directory)
    except OSError as error:
        raise StoreError(f"Embedded store in {directory}: {error}") from error


_environments: dict[str, Environment] = {}
_lock = threading.Lock()


def environment(directory: str, size: int, timeout: float) -> Environment:
    """The one of this process for ``directory``; its size and limit are those of the first."""
    with _lock:
        if directory not in _environments:
            _environments[directory] = Environment(directory, size, timeout)
        return _environments[directory]


def _close_all() -> None:
    for each in _environments.values():
        with contextlib.suppress(StoreError):
            each.close()


def _before_fork() -> None:
    _lock.acquire()
    for each in _environments.values():
        each.before_fork()


def _after_fork_in_parent() -> None:
    for each in reversed(_environments.values()):
        each.after_fork_in_parent()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for each in _environments.values():
        each.after_fork_in_child()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
atexit.register(_close_all)
