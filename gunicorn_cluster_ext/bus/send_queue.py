"""What waits for one worker whose lane of the bus is full: kept, waited for, or lost. No I/O."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

#: As soon as so many bytes wait for one worker, or are not read by it of large messages, no more
#: is kept for it.
ROOM: Final = 8 << 20
#: Large messages under way to one worker. Each takes an open file of those that a user may have
#: under way (unix(7), ETOOMANYREFS), and hand-offs need some.
UNDER_WAY: Final = 8
#: What a message takes in memory besides its bytes, about.
OVERHEAD: Final = 250
#: What is written at once.
CHUNK: Final = 64 << 10
_MOST: Final = 512  # buffers at once; the kernel takes 1,024


class Parcel(NamedTuple):
    """A message on its way: its frame, the file that has its body if that is large, its size.

    A frame with a file is never written in part: it is small, and the kernel does not divide it.
    """

    frame: bytearray
    file: Any
    size: int


class Verdict(enum.Enum):
    """What becomes of a message."""

    KEPT = enum.auto()
    WAIT = enum.auto()  # ask again, when something has changed or the time is over
    LOST = enum.auto()


class Backlog:
    """What waits for one worker, in order.

    While something waits, all that follows must wait behind it. A worker that has been waited for
    in vain is not waited for again until it has read something.
    """

    def __init__(self) -> None:
        self.waiting: deque[Parcel] = deque()  # empty for most, most of the time
        self._gone = 0  # bytes of the first one
        self._bytes = 0
        self._unread: deque[int] = deque()  # sizes of large messages under way
        self._unread_bytes = 0
        #: Messages since it was waited for in vain.
        self.lost = 0

    @property
    def is_unread(self) -> bool:
        """Whether large messages are under way."""
        return bool(self._unread)

    @property
    def is_pending(self) -> bool:
        """Whether something waits or is under way."""
        return bool(self.waiting or self._unread)

    def offer(self, parcel: Parcel, now: float, deadline: float) -> Verdict:
        """Keep it if there is room. ``deadline`` is when its publisher stops waiting for that."""
        # However large it is, or a large one would wait while small ones go past.
        if self._bytes + self._unread_bytes < ROOM:
            self.keep(parcel)
            return Verdict.KEPT
        if not self.lost and now < deadline:
            return Verdict.WAIT
        self.lost += 1
        return Verdict.LOST

    def resume(self) -> int:
        """It reads: wait for it again. How many messages were lost meanwhile."""
        lost, self.lost = self.lost, 0
        return lost

    def keep(self, parcel: Parcel, gone: int = 0) -> None:
        """It waits; so many bytes of its frame have gone already."""
        if gone:
            self._gone = gone
        self.waiting.append(parcel)
        self._bytes += parcel.size

    def chunk(self) -> tuple[Sequence[bytearray | memoryview], Any] | None:
        """What to write next, and the file that goes with it. None: first it must read."""
        first = self.waiting[0]
        if first.file is not None:
            return ((first.frame,), first.file) if self._may_go else None
        buffers: list[bytearray | memoryview] = []
        size = 0
        for parcel in islice(self.waiting, _MOST):
            if parcel.file is not None or size >= CHUNK:
                break
            buffers.append(parcel.frame)
            size += len(parcel.frame)
        buffers[0] = memoryview(first.frame)[self._gone :]
        return buffers, None

    @property
    def _may_go(self) -> bool:
        """Whether a large message may be under way beside those that are."""
        return len(self._unread) < UNDER_WAY and self._unread_bytes < ROOM

    def written(self, count: int) -> None:
        """So many bytes of that have gone: the worker reads."""
        self._gone += count
        while self.waiting and self._gone >= len(self.waiting[0].frame):
            parcel = self.waiting.popleft()
            self._gone -= len(parcel.frame)
            self._bytes -= parcel.size
            if parcel.file is not None:
                self._unread.append(parcel.size)
                self._unread_bytes += parcel.size

    def read(self, count: int) -> None:
        """So many large messages have been read."""
        for _ in range(min(count, len(self._unread))):
            self._unread_bytes -= self._unread.popleft()
