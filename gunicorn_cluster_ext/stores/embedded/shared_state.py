"""What all processes that use an embedded store share, besides its entries.

    state    this file: words of 64 bits, mapped by everybody; its flock is the writers' lock
    users    everybody has a shared flock; who gets the exclusive one is alone

**The writers' lock** comes before LMDB's own, because it can be tried: nobody waits for ever for
a process that was stopped in the middle of a write, and an event loop never waits at all. The
kernel gives it back when its holder dies.

**The clock** is the machine's time since boot plus an offset that is fixed at the first use after a
boot. So times to live go on over restarts and reboots, and a wall clock that is set, or jumps,
changes nothing meanwhile. It never goes backwards.

**Trust.** Nothing is synced to disk while the store is used (see embedded.py), so after a power cut
the entries may be any mixture of old and new, and LMDB, which has no checksums, could crash on
them. The kernel's boot id tells whether there was one: what was in use during another boot and
was not closed is not opened again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from functools import partial

MAGIC = int.from_bytes(b"gce-st01", "little")
_PAUSE_S = 0.01
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: Counts time while the machine sleeps, which CLOCK_MONOTONIC does on macOS only.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


since_boot: Callable[[], float] = partial(time.clock_gettime, _BOOT_CLOCK)


class Word(IntEnum):
    MAGIC = 0
    GENERATION = 1  # of the file of entries; another one means: begin anew
    LENGTH = 2  # of that file in bytes: a shorter one was truncated
    CLOSED = 3  # 1: all is on disk, and nobody has it open
    USED = 4  # about how many bytes the entries take
    HOLDER = 5  # process id of the writer that had the lock last
    OFFSET = 6  # a float: the store's time less the time since boot
    LATEST = 7  # a float: the store's time at the last write
    BOOT = 8  # and 9


class State:
    """Opens the files in ``directory``. Not to be used over a fork: see ``inherited``."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.clock = since_boot
        self._thread = threading.Lock()
        self._joined = False
        self._file = self._open("state")
        self._users = self._open("users")
        if os.fstat(self._file).st_size < mmap.PAGESIZE:
            os.ftruncate(self._file, mmap.PAGESIZE)
        self._map = mmap.mmap(self._file, mmap.PAGESIZE)
        self.words = memoryview(self._map).cast("Q")
        self.reals = memoryview(self._map).cast("d")

    def _open(self, name: str) -> int:
        return os.open(os.path.join(self.directory, name), os.O_RDWR | os.O_CREAT, 0o600)

    def now(self) -> float:
        return self.clock() + self.offset

    @property
    def offset(self) -> float:
        """Fixed while anybody uses the store."""
        return self.reals[Word.OFFSET]

    @property
    def path(self) -> str:
        """Of the file of entries."""
        return os.path.join(self.directory, f"{self.words[Word.GENERATION]}.mdb")

    # --- the writers' lock ---------------------------------------------------------------

    def try_enter(self) -> bool:
        """Be the only writer of all threads and processes, if nobody else is."""
        if not self._thread.acquire(blocking=False):
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._thread.release()
            return False
        self.words[Word.HOLDER] = os.getpid()
        return True

    def leave(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._thread.release()

    # --- who uses it, since when ---------------------------------------------------------

    def join(self) -> bool:
        """Be one of its users. Whether all the others' work can be trusted. Called by a writer."""
        trusted = True
        if self._is_alone():
            trusted = self._resume()
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self._joined = True
        if self.words[Word.CLOSED]:
            self.words[Word.CLOSED] = 0
            self._map.flush()  # before any entry is written
        return trusted

    def _is_alone(self) -> bool:
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _resume(self) -> bool:
        """Take up what a former user, perhaps before a reboot, has left."""
        if self.words[Word.MAGIC] != MAGIC:
            self._map[:] = bytes(len(self._map))
            self.words[Word.MAGIC] = MAGIC
        same = self._is_of_this_boot()
        if not same:
            self.words[Word.BOOT], self.words[Word.BOOT + 1] = _boot_id()
            latest = self.reals[Word.LATEST]
            # Not a comparison that is true for NaN.
            start = latest if latest >= time.time() else time.time()
            self.reals[Word.OFFSET] = start - self.clock()
        return same or self.words[Word.CLOSED] == 1

    def _is_of_this_boot(self) -> bool:
        low, high = _boot_id()
        return bool(low) and (low, high) == (self.words[Word.BOOT], self.words[Word.BOOT + 1])

    def quit(self) -> None:
        """Be no user any more; the last one puts all on disk. Called by a writer."""
        if self._joined and self._is_alone():
            self._put_on_disk()
        fcntl.flock(self._users, fcntl.LOCK_UN)

    def settle(self) -> bool:
        """Put on disk what users that were killed have left. Whether nothing is left to do; not,
        if somebody uses it. Called by a writer that is no user."""
        if self.words[Word.MAGIC] != MAGIC or self.words[Word.CLOSED]:
            return True
        if not self._is_alone():
            return False
        if self._is_of_this_boot():
            self._put_on_disk()
        return True

    def _put_on_disk(self) -> None:
        try:
            _sync(self.path)
        except FileNotFoundError:
            return  # somebody has removed it, so there is nothing to keep
        self.words[Word.CLOSED] = 1
        self._map.flush()

    def close(self) -> None:
        self.words.release()
        self.reals.release()
        self._map.close()
        os.close(self._file)
        os.close(self._users)

    # --- around a fork -------------------------------------------------------------------

    def hold_still(self) -> bool:
        """Keep the writers among our threads out: a child would inherit their flock."""
        return self._thread.acquire(timeout=1)

    def go_on(self) -> None:
        self._thread.release()


def settle(directory: str, patience: float) -> None:
    """Put on disk what the users of this directory have left, if they are gone within ``patience``
    seconds. What was used before a reboot remains as it is. Raises OSError.
    """
    if not os.path.exists(os.path.join(directory, "state")):
        return
    state, deadline = State(directory), time.monotonic() + patience
    try:
        while not _settled(state) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
    finally:
        state.close()


def _settled(state: State) -> bool:
    if not state.try_enter():
        return False
    try:
        return state.settle()
    finally:
        state.leave()


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _boot_id() -> tuple[int, int]:
    """Zeros where the system has none: then only what was closed is trusted."""
    try:
        with open(_BOOT_ID) as file:
            boot = int(file.read().strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0, 0
    return boot & (1 << 64) - 1, boot >> 64
