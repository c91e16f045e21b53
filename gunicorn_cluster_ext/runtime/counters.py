"""What this process counts besides requests, published on the board."""

from __future__ import annotations

import threading

from gunicorn_cluster_ext.logs import warn_throttled
from gunicorn_cluster_ext.runtime import forks
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Word


class Count:
    """How often something has happened in this process. Threads may add at once."""

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
        """Show the count in ``seat``'s row from now on."""
        self._board, self._seat = board, seat

    def add(self, times: int = 1) -> None:
        with self._lock:
            self.value += times
            if self._board is not None:
                self._board.set(self._seat, self.word, self.value)


cache_hits = Count(Word.CACHE_HITS)
cache_misses = Count(Word.CACHE_MISSES)
cache_errors = Count(Word.CACHE_ERRORS)
bus_sent = Count(Word.BUS_SENT)
bus_received = Count(Word.BUS_RECEIVED)
bus_lost = Count(Word.BUS_LOST)
session_reads = Count(Word.SESSION_READS)
session_writes = Count(Word.SESSION_WRITES)
session_errors = Count(Word.SESSION_ERRORS)
websockets = Count(Word.WEBSOCKETS)

_COUNTS = (
    *(cache_hits, cache_misses, cache_errors),
    *(bus_sent, bus_received, bus_lost),
    *(session_reads, session_writes, session_errors),
    websockets,
)


def publish(board: Board, seat: int) -> None:
    """Show all counts in ``seat``'s row. Called in the worker, after its fork."""
    for count in _COUNTS:
        count.publish(board, seat)


def cache_failed(error: Exception) -> None:
    """Count and log a failure of the store that the cache hides from its caller."""
    cache_errors.add()
    warn_throttled(error)
