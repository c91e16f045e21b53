"""The counters of this process besides requests, which are published on the board."""

from __future__ import annotations

import threading

from gunicorn_cluster_ext.logs import warn_throttled
from gunicorn_cluster_ext.runtime import forks
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Word


class Counter:
    """A counter of this process. It is thread-safe."""

    def __init__(self, word: int) -> None:
        self.word = word
        self.forget()
        forks.register(self)

    def forget(self) -> None:
        """Start again from 0, in a forked child."""
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._seat = 0
        self.value = 0

    def publish(self, board: Board, seat: int) -> None:
        """Write the count to the row of ``seat`` from now on."""
        self._board, self._seat = board, seat

    def add(self, times: int = 1) -> None:
        with self._lock:
            self.value += times
            if self._board is not None:
                self._board.set(self._seat, self.word, self.value)


cache_hits = Counter(Word.CACHE_HITS)
cache_misses = Counter(Word.CACHE_MISSES)
cache_errors = Counter(Word.CACHE_ERRORS)
bus_sent = Counter(Word.BUS_SENT)
bus_received = Counter(Word.BUS_RECEIVED)
bus_lost = Counter(Word.BUS_LOST)
session_reads = Counter(Word.SESSION_READS)
session_writes = Counter(Word.SESSION_WRITES)
session_errors = Counter(Word.SESSION_ERRORS)
websockets = Counter(Word.WEBSOCKETS)

_COUNTERS = (
    *(cache_hits, cache_misses, cache_errors),
    *(bus_sent, bus_received, bus_lost),
    *(session_reads, session_writes, session_errors),
    websockets,
)


def publish(board: Board, seat: int) -> None:
    """Publish all counters in the row of ``seat``. The worker calls this after its fork."""
    for count in _COUNTERS:
        count.publish(board, seat)


def cache_failed(error: Exception) -> None:
    """Counter and log a failure of the store, which the cache hides from its caller."""
    cache_errors.add()
    warn_throttled(error)
