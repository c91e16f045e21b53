"""The threads of a worker, and how they give back what they have finished.

``concurrent.futures`` costs a future, two semaphores and a wake-up of the main loop for each
request; here a request costs two queue operations, and a wake-up only while the main loop
sleeps.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Up to ``size`` threads that call ``work`` with each item given to ``submit``.

    All methods run in the main thread. Threads are started when they are needed. They are no
    daemons, so that the process ends only after what they do; ``stop`` must be called.
    """

    def __init__(self, size: int, work: Callable[[T], bool]) -> None:
        self.size = size
        self.busy = 0
        self._work = work
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._done: deque[tuple[T, bool]] = deque()
        self._threads = 0
        self._sleeping = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)

    def fileno(self) -> int:
        """Readable when something was finished while the main loop slept."""
        return self._wake_reader

    def waiting(self) -> int:
        """How many items no thread has taken yet, as far as the main thread can know."""
        return max(self.busy - self.size, 0)

    def take_back(self) -> Iterator[T]:
        """Take out what no thread has taken yet, the oldest first."""
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                return
            if item is not None:
                self.busy -= 1
                yield item

    def submit(self, item: T) -> None:
        self.busy += 1
        if self._threads < self.busy and self._threads < self.size:
            self._threads += 1
            threading.Thread(target=self._run, name=f"request-{self._threads}").start()
        self._queue.put(item)

    def _run(self) -> None:
        """Runs in a thread of the pool."""
        while (item := self._queue.get()) is not None:
            self._done.append((item, self._work(item)))
            # Only after the item is there: see ``may_sleep``.
            if self._sleeping:
                self._sleeping = False
                self.wake()

    def wake(self) -> None:
        """Wake the main loop. Also called by threads and signal handlers."""
        try:
            os.write(self._wake_writer, b"\0")
        except BlockingIOError:
            pass  # the pipe is full, so the main loop is about to wake

    def may_sleep(self) -> bool:
        """Whether the main loop may wait now; it then says ``is_awake`` afterwards.

        No wake-up is lost: here the flag is set before the queue is looked at, in a thread the
        item is put before the flag is looked at. So one of the two sees the other.
        """
        self._sleeping = True
        return not self._done

    def is_awake(self) -> None:
        self._sleeping = False

    def drain_wakeups(self) -> None:
        """Called when ``fileno`` is readable."""
        try:
            os.read(self._wake_reader, 4096)
        except BlockingIOError:
            pass  # somebody was faster

    def finished(self) -> Iterator[tuple[T, bool]]:
        """Take out each item that is done, with what ``work`` returned."""
        done = self._done
        while done:
            self.busy -= 1
            yield done.popleft()

    def shutdown(self, wait: bool = False) -> None:
        """Let each thread end after what it does now. Gunicorn's ``handle_quit`` calls this."""
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0

    def close(self) -> None:
        """Only when the main loop runs no more. The writer stays: threads may still finish."""
        self.shutdown()
        os.close(self._wake_reader)
