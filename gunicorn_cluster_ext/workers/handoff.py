"""Connections between workers: how a worker sends, receives and leaves them.

The receiver trusts the sender's decision and does not scan the head again. What gunicorn needs of
the connection travels in the message: addresses, the bytes, and the number of requests served (the
PROXY protocol is read on the first one only).

A sender may read the board, lose the processor, and send to a process that has exited meanwhile.
So it reads the board again after sending, and an exiting process empties its inbox after it has
published that it is gone: one of the two finds the connection. What killed processes leave is
taken by the process that serves in the lowest slot, which looks into the inboxes of empty seats
once a second; a replacement has one second to come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from gunicorn_cluster_ext.routing.balance import Load
from gunicorn_cluster_ext.runtime.board.layout import GONE, Word
from gunicorn_cluster_ext.runtime.inboxes import MAX_RECEIVED, HandoffMessage, LostDescriptor
from gunicorn_cluster_ext.workers.connection import Connection
from gunicorn_cluster_ext.workers.membership import Membership

SWEEP_INTERVAL_S: Final = 1.0

C = TypeVar("C", bound=Connection)


class Handoff(Generic[C]):
    """The hand-offs of one worker.

    ``unpack(message, fd)`` makes a connection of a message; ``resume`` continues with one that was
    received; ``drop`` closes this process's end of it, without a word to the client.
    """

    def __init__(
        self,
        membership: Membership,
        log: Any,
        *,
        unpack: Callable[[HandoffMessage, int], C],
        resume: Callable[[C], None],
        drop: Callable[[C], None],
    ) -> None:
        self._membership, self._log = membership, log
        self._unpack, self._resume, self._drop = unpack, resume, drop
        self._inboxes = membership.shared.inboxes
        self._words, self._row = membership.board.words, membership.board.row_start(membership.seat)
        self._swept = 0.0
        self._abandoned: set[int] = set()

    def fileno(self) -> int:
        """Return the descriptor that is readable when a connection was handed over."""
        return self._inboxes.reader(self._membership.seat).fileno()

    def loads(self) -> dict[int, Load]:
        """Return how busy each ready process is, by seat, as soon as it has read its inbox.

        Some milliseconds after a burst the board would still name one worker the emptiest of all,
        and it would be sent everything.
        """
        queued = self._inboxes.queued
        loads = self._membership.board.loads()
        return {seat: load._replace(busy=load.busy + queued(seat)) for seat, load in loads.items()}

    # --- to others ----------------------------------------------------------------------------

    def send(self, conn: C, seat: int) -> bool:
        """Hand ``conn`` to the process in ``seat``. Return False if there is no room in its inbox.

        Between the look at the board and the hand-off, the process may have ended. It empties its
        inbox after it has published that. So either it finds what was sent, or this look finds it
        gone.
        """
        if not self._put(conn, seat):
            return False
        if self._words[self._membership.board.row_start(seat) + Word.STATE] == GONE:
            self._take_all(seat)
        return True

    def _put(self, conn: C, seat: int) -> bool:
        if len(conn.received) > MAX_RECEIVED or not conn.can_move():
            return False
        if not self._inboxes.send(seat, conn.pack(), conn.fd):
            return False
        self._words[self._row + Word.HANDED_OUT] += 1
        self._drop(conn)  # the connection stays open: the other worker has it too
        return True

    # --- from others --------------------------------------------------------------------------

    def receive(self) -> C | None:
        """Return the next connection that was handed to this worker, or None."""
        return self._receive(self._membership.seat)

    def _receive(self, seat: int) -> C | None:
        try:
            arrived = self._inboxes.receive(seat)
        except LostDescriptor as error:
            self._log.error("%s", error)
            return self._receive(seat)
        if arrived is None:
            return None
        self._words[self._row + Word.HANDED_IN] += 1
        return self._unpack(*arrived)

    def sweep(self, now: float) -> None:
        """Take connections from inboxes that no process reads. Do so once a second at most.

        Workers that were killed leave them. A replacement is to have what was queued for its
        predecessor, so it is given until the next sweep to come.
        """
        if now - self._swept < SWEEP_INTERVAL_S:
            return
        self._swept = now
        board, before = self._membership.board, self._abandoned
        self._abandoned = set(board.vacated_seats()) if self._membership.is_sweeper() else set()
        for seat in self._abandoned:
            if seat in before or board.successor(seat) is not None:
                self._take_all(seat)

    def _take_all(self, seat: int) -> None:
        """Empty the inbox of ``seat``, in which there is no process."""
        while (conn := self._receive(seat)) is not None:
            conn.owned = False  # by this worker
            self._resume(conn)

    # --- the end ------------------------------------------------------------------------------

    def evacuate_idle(self, idle: Iterable[C]) -> bool:
        """Send ``idle`` connections to the heir. Return False if there is none."""
        heir = self._membership.heir()
        if not self._membership.can_leave_to(heir):
            return False
        for conn in idle:
            if not self.send(conn, heir):
                break  # its inbox is full: the next turn tries again
        return True

    def close(self, remaining: Callable[[], Iterable[C]]) -> None:
        """Leave nothing behind: neither what is in the inbox, nor the ``remaining`` connections.

        This is called when the state on the board is GONE. A worker that sends to this seat after
        that sees it, and takes its connection back: see ``send``.
        """
        heir, seat = self._membership.heir(), self._membership.seat
        while heir != seat and (late := self._receive(seat)) is not None:
            if not self._send_to_heir(late, heir):
                break
        for conn in remaining():
            self._send_to_heir(conn, heir)

    def _send_to_heir(self, conn: C, heir: int) -> bool:
        """Put ``conn`` into the heir's inbox. If that is full, put it into this seat's own.

        Return True if the heir has got it.
        """
        conn.owned = False  # the heir must find the owner of its request itself
        is_ssl = self._membership.cfg.is_ssl
        if heir != self._membership.seat and not is_ssl and self._put(conn, heir):
            return True
        # The next process in this seat may be of a worker class that reads no inbox.
        is_lost = is_ssl or self._membership.board.any_without_inbox()
        if is_lost or not self._put(conn, self._membership.seat):
            self._drop(conn)
        return False
