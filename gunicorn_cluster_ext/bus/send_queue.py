"""What waits for one worker whose link is full: it is kept, waited for, or lost. No I/O."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

#: A queue takes no more messages once so many bytes wait for its worker or, of large messages, have
#: been sent to it and not read.
LIMIT_BYTES: Final = 8 << 20
#: The most large messages that a worker has not read. Each takes one of the open files that a user
#: may have in flight (unix(7), ETOOMANYREFS), and hand-offs need some of these.
MAX_UNREAD_FILES: Final = 8
#: What a message takes in memory besides its bytes, about.
OVERHEAD_BYTES: Final = 250
#: How much is written at once.
CHUNK_BYTES: Final = 64 << 10
#: How many buffers are written at once; the kernel takes 1,024.
_MAX_BUFFERS: Final = 512


class QueuedMessage(NamedTuple):
    """A message on its way: its frame, the file with its body if it is large, and its size.

    A frame with a file is never written in part: it is small, and the kernel does not split it.
    """

    frame: bytearray
    file: Any
    size: int


class SendResult(enum.Enum):
    """What has become of a message."""

    ACCEPTED = enum.auto()  # sent, or kept
    WAIT = enum.auto()  # to be offered again when something has changed or its time is over
    LOST = enum.auto()


class SendQueue:
    """The messages that wait for one worker, in order.

    While one waits, all that follow wait behind it. A worker that a publisher has waited for in
    vain is not waited for again until it has read something.
    """

    def __init__(self) -> None:
        self.waiting: deque[QueuedMessage] = deque()  # empty for most workers, most of the time
        self._waiting_bytes = 0
        self._written = 0  # bytes of the first message's frame
        self._unread: deque[int] = deque()  # sizes of large messages
        self._unread_bytes = 0
        #: How many messages were lost since a publisher has waited in vain.
        self.lost = 0

    @property
    def has_unread(self) -> bool:
        """Return whether the worker has yet to read large messages that were sent to it."""
        return bool(self._unread)

    @property
    def is_pending(self) -> bool:
        """Return whether messages wait, or large ones are unread."""
        return bool(self.waiting or self._unread)

    def offer(self, message: QueuedMessage, now: float, deadline: float) -> SendResult:
        """Keep the message if there is room; its publisher waits for room until ``deadline``."""
        # A large message needs no more room than a small one, or small ones would overtake it.
        if self._waiting_bytes + self._unread_bytes < LIMIT_BYTES:
            self.append(message)
            return SendResult.ACCEPTED
        if not self.lost and now < deadline:
            return SendResult.WAIT
        self.lost += 1
        return SendResult.LOST

    def resume(self) -> int:
        """Let publishers wait for the worker again, because it reads. Return how many messages it
        has lost."""
        lost, self.lost = self.lost, 0
        return lost

    def append(self, message: QueuedMessage, written: int = 0) -> None:
        """Keep the message, of whose frame ``written`` bytes have already been written."""
        if written:
            self._written = written
        self.waiting.append(message)
        self._waiting_bytes += message.size

    def next_chunk(self) -> tuple[Sequence[bytearray | memoryview], Any] | None:
        """Return the buffers to write next and the file that goes with them; None if the worker
        must first read."""
        first = self.waiting[0]
        if first.file is not None:
            has_room = len(self._unread) < MAX_UNREAD_FILES and self._unread_bytes < LIMIT_BYTES
            return ((first.frame,), first.file) if has_room else None
        buffers: list[bytearray | memoryview] = []
        size = 0
        for message in islice(self.waiting, _MAX_BUFFERS):
            if message.file is not None or size >= CHUNK_BYTES:
                break
            buffers.append(message.frame)
            size += len(message.frame)
        buffers[0] = memoryview(first.frame)[self._written :]
        return buffers, None

    def mark_written(self, count: int) -> None:
        """Remove the messages that are complete now that ``count`` more bytes are written."""
        self._written += count
        while self.waiting and self._written >= len(self.waiting[0].frame):
            message = self.waiting.popleft()
            self._written -= len(message.frame)
            self._waiting_bytes -= message.size
            if message.file is not None:
                self._unread.append(message.size)
                self._unread_bytes += message.size

    def mark_read(self, count: int) -> None:
        """Note that the worker has read ``count`` large messages."""
        for _ in range(min(count, len(self._unread))):
            self._unread_bytes -= self._unread.popleft()
