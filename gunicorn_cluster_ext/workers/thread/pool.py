"""The threads of a worker, and how their results come back to the main loop.

``concurrent.futures`` costs a future, two semaphores and a wake-up of the main loop for each
request; and each request wakes a thread, which then waits for the interpreter's lock. Here

* the main loop is woken only while it sleeps;
* while requests are quick (``QUICK_S``), a thread that is awake takes one after the other, and
  another is woken only when no request was taken for ``WAKE_AFTER_S``. With requests of 0.1 ms,
  eight of ten system calls of gthread are about which thread may run next.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Below this average duration of a request, waiting for the thread that is awake is cheaper than
#: waking another.
QUICK_S: Final = 0.0005
#: After this time without a request being taken further threads are woken all the same. It is the
#: resolution of epoll's timeout.
WAKE_AFTER_S: Final = 0.001
_SMOOTHING: Final = 1 / 16


class Pool(Generic[T]):
    """Up to ``size`` threads that call ``work`` with each item given to ``submit``.

    All methods run in the main thread unless they say otherwise. Threads are started when they are
    needed. They are no daemon threads, so that the process ends only after what they do: ``close``
    must be called.
    """

    def __init__(self, size: int, work: Callable[[T], bool]) -> None:
        self.size = size
        self.busy = 0  # submitted and not yet given back
        self._work = work
        self._lock = threading.Lock()  # for the next three
        self._queue: deque[T] = deque()
        self._awake = 0
        self._ending = False
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._threads = 0
        self._done: deque[tuple[T, bool]] = deque()
        self._duration = 0.0
        self._taken = 0.0
        self._sleeping = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)

    # --- giving work --------------------------------------------------------------------

    def submit(self, item: T) -> None:
        self.busy += 1
        with self._lock:
            self._queue.append(item)
            wanted = 1 if self._duration > QUICK_S or not self._awake else 0
        if wanted:
            self._wake_threads(wanted)

    def waiting(self) -> int:
        """Return how many items wait because all threads are busy."""
        return max(self.busy - self.size, 0)

    def withdraw(self) -> Iterator[T]:
        """Take out and yield what no thread has taken yet, the oldest first."""
        while self._queue:
            try:
                item = self._queue.popleft()
            except IndexError:  # a thread was faster
                return
            self.busy -= 1
            yield item

    def requeue(self, items: list[T]) -> None:
        """Undo ``withdraw`` of ``items``: threads take them next."""
        self.busy += len(items)
        with self._lock:
            self._queue.extendleft(reversed(items))

    def wake_more(self, now: float) -> None:
        """Wake more threads if those that are awake have taken nothing for ``WAKE_AFTER_S``.

        The main loop calls this at each turn, and does not sleep longer than ``max_sleep``.
        """
        if self._queue and now - self._taken > WAKE_AFTER_S:
            self._wake_threads(len(self._queue))

    def max_sleep(self, timeout: float) -> float:
        """Return how long the main loop may sleep if it wants to sleep for ``timeout`` seconds."""
        if self._queue and self._awake < self.size:
            return min(timeout, WAKE_AFTER_S)
        return timeout

    def _wake_threads(self, wanted: int) -> None:
        with self._lock:
            wanted = min(wanted, self.size - self._awake)
            self._awake += wanted
            idle = self._threads - (self._awake - wanted)
        for number in range(wanted):
            if number < idle:
                self._tokens.put(None)
            else:
                self._threads += 1
                threading.Thread(target=self._run, name=f"request-{self._threads}").start()

    # --- in the threads -----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            item = None
            with self._lock:
                if self._queue:
                    item = self._queue.popleft()
                else:
                    self._awake -= 1
            if item is None:
                if self._ending:
                    return
                self._tokens.get()
                continue
            started = self._taken = time.monotonic()
            keep = self._work(item)
            self._duration += (time.monotonic() - started - self._duration) * _SMOOTHING
            self._done.append((item, keep))
            # Only after the item is stored: see ``may_sleep``.
            if self._sleeping:
                self._sleeping = False
                self.wake()

    # --- taking results -----------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor that is readable when ``wake`` was called."""
        return self._wake_reader

    def wake(self) -> None:
        """Wake the main loop. Also called by threads and signal handlers."""
        try:
            os.write(self._wake_writer, b"\0")
        except (BlockingIOError, BrokenPipeError):
            pass  # the pipe is full, so the main loop is about to wake; or there is none any more

    def may_sleep(self) -> bool:
        """Return True if the main loop may wait now. It calls ``is_awake`` afterwards.

        No wake-up is lost: here the flag is set before the results are looked at; in a thread the
        result is stored before the flag is looked at. So one of the two sees the other.
        """
        self._sleeping = True
        return not self._done

    def is_awake(self) -> None:
        """Note that the main loop waits no more."""
        self._sleeping = False

    def drain_wakeups(self) -> None:
        """Called when ``fileno`` is readable."""
        try:
            os.read(self._wake_reader, 4096)
        except BlockingIOError:
            pass  # it was read already

    def finished(self) -> Iterator[tuple[T, bool]]:
        """Take out and yield each item that is done, with what ``work`` returned."""
        done = self._done
        while done:
            self.busy -= 1
            yield done.popleft()

    # --- the end ------------------------------------------------------------------------

    def shutdown(self, wait: bool = False) -> None:
        """Let each thread end after its present item. Gunicorn's ``handle_quit`` calls this."""
        self._ending = True
        for _ in range(self._threads):
            self._tokens.put(None)

    def close(self) -> None:
        """Close, after the main loop. The writer stays open: threads may still finish items."""
        self.shutdown()
        os.close(self._wake_reader)
