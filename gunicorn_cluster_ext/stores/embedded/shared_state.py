"""The state that all processes which use an embedded store share, besides its entries.

    state    cells of 64 bits, mapped by every process; its flock is the writers' lock
    users    every process holds a shared flock; one that gets the exclusive flock is alone

**The writers' lock** is taken before LMDB's own, because it can be tried: no process waits for ever
for one that was stopped in the middle of a write, and an event loop never blocks. The kernel
releases it when its holder dies.

**The clock** is the machine's time since boot plus an offset that is fixed at the first use after a
boot. So times to live continue over restarts and reboots, and setting the wall clock has no
effect in between. The store's clock never goes backwards.

**Trust.** Nothing is synced to disk while the store is used (see ``environment``), so after a power
cut the entries may be any mixture of old and new, and LMDB, which has no checksums, could crash on
them. The kernel's boot id tells whether there was one: a file that was in use during another boot
and was not closed is not opened again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

from gunicorn_cluster_ext.runtime.directory import allocate

MAGIC = int.from_bytes(b"gce-st01", "little")
_PAUSE_S = 0.01
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: Counts time while the machine sleeps, which CLOCK_MONOTONIC does on macOS only.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


since_boot: Callable[[], float] = partial(time.clock_gettime, _BOOT_CLOCK)


class Cell:
    """The numbers of the cells. Plain ints: an IntEnum member costs 40 ns more as an index."""

    MAGIC: Final = 0
    GENERATION: Final = 1  # of the file of entries; when it changes, the file is opened again
    LENGTH: Final = 2  # of that file in bytes; a shorter file was truncated
    CLOSED: Final = 3  # 1: all is on disk, and no process has the file open
    USED: Final = 4  # about how many bytes the entries take
    HOLDER: Final = 5  # process id of the last writer
    OFFSET: Final = 6  # a float: the store's time minus the time since boot
    LATEST: Final = 7  # a float: the store's time at the last write
    BOOT: Final = 8  # and 9: the id of the boot during which the store was last used


class SharedState:
    """The two files in ``directory``, opened. It must not be used across a fork.

    Raises OSError when the directory cannot be used, or its file system is full.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.clock = since_boot
        self._thread = threading.Lock()
        self._joined = False
        with ExitStack() as undo:
            self._file = self._open("state")
            undo.callback(os.close, self._file)
            self._users = self._open("users")
            undo.callback(os.close, self._users)
            if os.fstat(self._file).st_size < mmap.PAGESIZE:
                allocate(self._file, mmap.PAGESIZE)
            self._map = mmap.mmap(self._file, mmap.PAGESIZE)
            undo.pop_all()
        self.cells = memoryview(self._map).cast("Q")
        self.reals = memoryview(self._map).cast("d")

    def _open(self, name: str) -> int:
        return os.open(os.path.join(self.directory, name), os.O_RDWR | os.O_CREAT, 0o600)

    def now(self) -> float:
        """Return the store's time, in seconds."""
        return self.clock() + self.offset

    @property
    def offset(self) -> float:
        """The store's time minus the time since boot. Fixed while any process uses the store."""
        return self.reals[Cell.OFFSET]

    @property
    def path(self) -> str:
        """The path of the file of entries."""
        return os.path.join(self.directory, f"{self.cells[Cell.GENERATION]}.mdb")

    # --- the writers' lock ---------------------------------------------------------------

    def try_enter(self) -> bool:
        """Become the writer of all threads and processes, if there is no other."""
        if not self._thread.acquire(blocking=False):
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._thread.release()
            return False
        self.cells[Cell.HOLDER] = os.getpid()
        return True

    def leave(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._thread.release()

    # --- the users of the store ------------------------------------------------------------

    def join(self) -> bool:
        """Become a user. Return whether the file of entries can be trusted. For writers only."""
        trusted = True
        if self._is_alone():
            trusted = self._resume()
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self._joined = True
        if self.cells[Cell.CLOSED]:
            self.cells[Cell.CLOSED] = 0
            self._map.flush()  # before any entry is written
        return trusted

    def _is_alone(self) -> bool:
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _resume(self) -> bool:
        """Be the first user, perhaps after a reboot. Return whether the entries can be trusted."""
        if self.cells[Cell.MAGIC] != MAGIC:
            self._map[:] = bytes(len(self._map))
            self.cells[Cell.MAGIC] = MAGIC
        same = self._is_of_this_boot()
        if not same:
            self.cells[Cell.BOOT], self.cells[Cell.BOOT + 1] = _boot_id()
            latest = self.reals[Cell.LATEST]
            # LATEST may be NaN, for which this comparison is false.
            start = latest if latest >= time.time() else time.time()
            self.reals[Cell.OFFSET] = start - self.clock()
        return same or self.cells[Cell.CLOSED] == 1

    def _is_of_this_boot(self) -> bool:
        low, high = _boot_id()
        return bool(low) and (low, high) == (self.cells[Cell.BOOT], self.cells[Cell.BOOT + 1])

    def quit(self) -> None:
        """Stop being a user; the last user syncs all to disk. For writers only."""
        if self._joined and self._is_alone():
            self._sync()
        fcntl.flock(self._users, fcntl.LOCK_UN)

    def settle(self) -> bool:
        """Sync what killed users have left. Return False if there still is a user, so that it was
        not done. For a writer that is no user."""
        if self.cells[Cell.MAGIC] != MAGIC or self.cells[Cell.CLOSED]:
            return True
        if not self._is_alone():
            return False
        if self._is_of_this_boot():
            self._sync()
        return True

    def _sync(self) -> None:
        """Sync the file of entries to disk, and note that it was closed."""
        try:
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return  # it was removed, so there is nothing to keep
        try:
            os.fsync(file)
        finally:
            os.close(file)
        self.cells[Cell.CLOSED] = 1
        self._map.flush()

    def close(self) -> None:
        self.cells.release()
        self.reals.release()
        self._map.close()
        os.close(self._file)
        os.close(self._users)

    # --- around a fork -------------------------------------------------------------------

    def pause_writers(self) -> bool:
        """Keep out the writers among our threads: a child would inherit their flock."""
        return self._thread.acquire(timeout=1)

    def resume_writers(self) -> None:
        self._thread.release()


def settle(directory: str, timeout_s: float) -> None:
    """Sync what the users of a store have left, if all of them end within ``timeout_s`` seconds.

    A store that was used before a reboot is left as it is. Raises OSError.
    """
    if not os.path.exists(os.path.join(directory, "state")):
        return
    state, deadline = SharedState(directory), time.monotonic() + timeout_s

    def is_settled() -> bool:
        if not state.try_enter():
            return False
        try:
            return state.settle()
        finally:
            state.leave()

    try:
        while not is_settled() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
    finally:
        state.close()


def _boot_id() -> tuple[int, int]:
    """Return the two halves of the boot id. Zeros where the system has none: then only a store that
    was closed is trusted."""
    try:
        with open(_BOOT_ID) as file:
            boot = int(file.read().strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0, 0
    return boot & (1 << 64) - 1, boot >> 64
