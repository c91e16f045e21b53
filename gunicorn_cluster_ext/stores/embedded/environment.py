"""The open file of an embedded store in this process: LMDB, which must not cross a fork.

A process opens a file once for all its users, because LMDB's locks belong to the process. It opens
the file on first use, closes it before a fork, and opens it again on the next use. (A child that
closes, or only drops, an inherited LMDB wipes its parent's places in the table of readers.)

**Nothing is synced** to disk until the last process closes the file. The kernel keeps what was
written, so a process, or all of them, may be killed at any time: LMDB's lock is robust, and a write
that was not committed has not happened. Syncing each commit was measured at 23 to 38 times its cost
(6 us; 140 without, 230 with the meta page) on a disk that is quick to sync, with the lock held, and
would save sessions from power cuts only; ``shared_state`` says what happens after one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lmdb

from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime.directory import allocate
from gunicorn_cluster_ext.stores.contract import StoreAway, StoreError
from gunicorn_cluster_ext.stores.embedded.shared_state import Cell, SharedState

#: LMDB's errors for a file that proves damaged in use, and for one that it cannot open.
BROKEN = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)
_FOREIGN = (*BROKEN, lmdb.InvalidError, lmdb.VersionMismatchError)

#: LMDB's first page: a header, a magic number, the version of the format.
_META = struct.Struct("16x2I")
_VERSIONS = range(1, 4)

_READERS = 1024
#: The size of LMDB's table of readers: 64 bytes for each, and 128 before them.
_READERS_BYTES = 64 * _READERS + 128
_PAUSE_S = 0.001


class View(NamedTuple):
    """All that a reader needs, behind one attribute."""

    begin: Callable[[], Any]
    cells: memoryview
    generation: int
    clock: Callable[[], float]
    offset: float


class Environment:
    """``size`` bounds the file, in bytes; ``timeout`` the wait for other writers, in seconds.

    The writers' lock (``SharedState.try_enter``) is always taken before ``lock``.
    """

    def __init__(self, directory: str, size: int, timeout: float) -> None:
        self.directory = directory
        self.size = size
        self.timeout = timeout
        self._forget()

    def _forget(self) -> None:
        """Start with nothing open."""
        #: Held while LMDB is used, never while waiting for another process.
        self.lock = threading.RLock()
        self.acquire, self.release = self.lock.acquire, self.lock.release
        self.state: SharedState | None = None
        self._lmdb: Any = None
        self._generation = -1
        self.view: View | None = None

    def __repr__(self) -> str:
        return f"<Environment {self.directory} {'closed' if self._lmdb is None else 'open'}>"

    def opened(self) -> tuple[Any, SharedState] | None:
        """Return LMDB and the shared state if both are open and up to date. Call it with
        ``lock``."""
        state = self.state
        if self._lmdb is None or state is None:
            return None
        return (self._lmdb, state) if state.cells[Cell.GENERATION] == self._generation else None

    def open(self) -> None:
        """Open the file. Call it without any lock. Raises StoreError."""
        state = self.enter()
        try:
            self.open_inside(state)
        finally:
            state.leave()

    def open_inside(self, state: SharedState) -> tuple[Any, SharedState]:
        """Open the file unless it is open. Only the writer may call this."""
        with self.lock:
            if (opened := self.opened()) is None:
                # An older generation may be open. No thread reads it, because we hold the lock.
                self._close_lmdb()
                opened = self._lmdb, _ = self._open_file(state), state
                self._generation = state.cells[Cell.GENERATION]
                self.view = View(
                    self._lmdb.begin, state.cells, self._generation, state.clock, state.offset
                )
            return opened

    # --- the writers' lock ----------------------------------------------------------------

    def try_enter(self) -> SharedState | None:
        """Become the writer, if there is no other. Raises StoreError for an unusable directory."""
        with self.lock:
            if self.state is None:
                try:
                    self.state = SharedState(self.directory)
                except OSError as error:
                    where = f"Embedded store in {self.directory}"
                    raise StoreError(f"{where}: {error}") from error
            state = self.state
        return state if state.try_enter() else None

    def enter(self) -> SharedState:
        """Become the writer, and block the thread until then. Only for opening and closing."""
        deadline = time.monotonic() + self.timeout
        while (state := self.try_enter()) is None:
            if time.monotonic() >= deadline:
                raise self.held()
            time.sleep(_PAUSE_S)
        return state

    def held(self) -> StoreAway:
        """Return the error for a writers' lock that stays taken."""
        with self.lock:
            holder = self.state.cells[Cell.HOLDER] if self.state is not None else "?"
        return StoreAway(
            f"The embedded store in {self.directory} has been locked by process {holder} for "
            f"{self.timeout:g} s"
        )

    # --- the file -------------------------------------------------------------------------

    def _open_file(self, state: SharedState) -> Any:
        if not state.join():
            self._discard(state, "the machine went down while it was in use")
        elif (bad := self._fault(state)) is not None:
            self._discard(state, bad)
        try:
            return self._open_lmdb(state)
        except _FOREIGN as error:
            self._discard(state, str(error))
        except (OSError, lmdb.Error) as error:
            raise self.failure(error) from error
        try:
            return self._open_lmdb(state)
        except (OSError, lmdb.Error) as error:
            raise self.failure(error) from error

    def _open_lmdb(self, state: SharedState) -> Any:
        """Open LMDB without ``writemap``, with which a full disk would be a SIGBUS, not an error.

        The size of a file is never reduced: LMDB needs room to remove entries.
        """
        path = state.path
        _allocate_readers(path)
        opened = lmdb.open(
            path,
            map_size=max(self.size, state.cells[Cell.LENGTH]),
            subdir=False,
            sync=False,
            metasync=False,
            mode=0o600,
            max_readers=_READERS,
            max_spare_txns=1,
        )
        opened.reader_check()
        # Extend the file to its largest size with a hole, so that a truncation shows.
        length = max(opened.info()["map_size"], os.stat(path).st_size)
        os.truncate(path, length)
        state.cells[Cell.LENGTH] = length
        return opened

    def _fault(self, state: SharedState) -> str | None:
        """Return why the file cannot be opened, as far as its length and first bytes tell."""
        try:
            with open(state.path, "rb") as file:
                _, version = _META.unpack(file.read(_META.size).ljust(_META.size, b"\0"))
                length = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return "it was removed" if state.cells[Cell.LENGTH] else None
        if length < state.cells[Cell.LENGTH]:
            return "it was truncated"
        return None if version in _VERSIONS else f"its format has the version {version}"

    def replace_broken(self, state: SharedState, why: str) -> tuple[Any, SharedState]:
        """Replace a file that proved broken in use. Only the writer may call this; the other
        processes see that the generation has changed."""
        with self.lock:
            if self._generation == state.cells[Cell.GENERATION]:
                self._discard(state, why)
            return self.open_inside(state)

    def _discard(self, state: SharedState, why: str) -> None:
        """Set the file aside as broken.mdb, replacing an older one. Only the writer may call
        this."""
        path = state.path
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, os.path.join(self.directory, "broken.mdb"))
            log.error("The embedded store in %s starts empty: %s.", self.directory, why)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + "-lock")
        state.cells[Cell.GENERATION] += 1
        state.cells[Cell.USED] = state.cells[Cell.LENGTH] = 0

    def failure(self, error: OSError | lmdb.Error) -> StoreError:
        """Return the StoreError for an error of LMDB or of the file system."""
        hint = ""
        if isinstance(error, lmdb.MapFullError):
            hint = " (a process that was stopped while it read may hold old pages)"
        elif isinstance(error, lmdb.MapResizedError):
            hint = " (another process has a larger cluster_store_size)"
        return StoreError(f"Embedded store in {self.directory}: {error}{hint}")

    # --- closing ----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. The last process that closes it syncs it to disk."""
        if self.state is None:
            return
        state = self.enter()
        with self.lock:
            try:
                self._close_lmdb()
                state.quit()
            finally:
                self.state = None
                # The writers' lock is not released: threads that still know this state find it
                # taken, and open another.
                state.close()

    def _close_lmdb(self) -> None:
        if self._lmdb is not None:
            self._lmdb.close()
        self._lmdb = self.view = None

    # --- around a fork ----------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close LMDB and keep writers out: a child must inherit neither LMDB nor a held lock."""
        state = self.state
        self._paused = state if state is not None and state.pause_writers() else None
        self.lock.acquire()
        self._close_lmdb()

    def after_fork_in_parent(self) -> None:
        self.lock.release()
        if self._paused is not None:
            self._paused.resume_writers()

    def after_fork_in_child(self) -> None:
        state = self.state
        self._forget()
        if state is not None:
            state.close()  # closes the child's copies; the parent's locks stay


_environments: dict[str, Environment] = {}
_lock = threading.Lock()


def _allocate_readers(path: str) -> None:
    """Make LMDB's table of readers without holes. It is mapped: a hole on a full disk is SIGBUS.

    LMDB takes a table that is there already as it is. One that is in use must not grow.
    """
    file = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not os.fstat(file).st_size:
            allocate(file, _READERS_BYTES)
    finally:
        os.close(file)


def environment(directory: str, size: int, timeout: float) -> Environment:
    """Return this process's environment for ``directory``. The first caller's size and timeout
    count."""
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
