"""A worker whose event loop serves many requests at once."""

from __future__ import annotations

from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.workers.base import StickyWorker
from gunicorn_cluster_ext.workers.handoff import C


class EventLoopWorker(StickyWorker[C]):
    """Keeps account of the connections: ``conns`` are all, ``idle_conns`` await a request."""

    nr: int
    worker_connections: int

    def open_loop(self) -> None:
        self.words[self.row + Word.THREADS] = self.worker_connections
        self.conns: set[C] = set()
        self.idle_conns: set[C] = set()
        #: Calls of the application in progress.
        self.calls = 0

    def idle(self) -> list[C]:
        return [conn for conn in self.idle_conns if conn.can_move()]

    def has_room(self) -> bool:
        # Calls that wait for something count, not those that are answered at once.
        return self.membership.serves and self.is_fair_share(self.calls)

    def publish(self) -> None:
        """Publish how much this worker does."""
        words, row = self.words, self.row
        words[row + Word.CONNECTIONS] = len(self.conns)
        words[row + Word.REQUESTS] = self.nr
        self.publish_busy()

    def publish_busy(self) -> None:
        """Publish what siblings decide by: a burst is shared out before its first answer."""
        if self.head_reader.are_readable:
            busy = len(self.conns) - len(self.idle_conns) - len(self.blocked)
        else:
            busy = self.calls
        self.words[self.row + Word.BUSY] = busy
