"""Connections between workers, as a worker sends, receives and leaves them.

The same for every worker class: what a connection is there, three functions tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from gunicorn_cluster_ext.routing.balance import Load
from gunicorn_cluster_ext.runtime.board.layout import GONE, Word
from gunicorn_cluster_ext.runtime.inboxes import MAX_RECEIVED, HandoffMessage, LostDescriptor
from gunicorn_cluster_ext.workers.connection import Arrival
from gunicorn_cluster_ext.workers.membership import Member

SWEEP_INTERVAL: Final = 1.0

C = TypeVar("C", bound=Arrival)


class Post(Generic[C]):
    """The post of one worker.

    ``unpack(message, fd)`` makes a connection of what has arrived; ``consider`` decides where
    one goes; ``drop`` closes this process's end of it, without a word to the client.
    """

    def __init__(
        self,
        member: Member,
        log: Any,
        *,
        unpack: Callable[[HandoffMessage, int], C],
        consider: Callable[[C], None],
        drop: Callable[[C], None],
    ) -> None:
        self._member, self._log = member, log
        self._unpack, self._consider, self._drop = unpack, consider, drop
        self._inboxes = member.shared.inboxes
        self._words, self._row = member.board.words, member.board.row_start(member.seat)
        self._swept = 0.0
        self._abandoned: set[int] = set()

    def fileno(self) -> int:
        """Readable when something has arrived."""
        return self._inboxes.reader(self._member.seat).fileno()

    def loads(self) -> dict[int, Load]:
        """How busy each ready process is, by seat, as soon as it has read its inbox.

        Some milliseconds after a burst the board would still name one worker the emptiest of all,
        and it would be sent everything.
        """
        queued = self._inboxes.queued
        loads = self._member.board.loads()
        return {seat: load._replace(busy=load.busy + queued(seat)) for seat, load in loads.items()}

    # --- to others ----------------------------------------------------------------------------

    def hand_over(self, conn: C, seat: int) -> bool:
        """Hand ``conn`` to the process in ``seat``. False when there is no room in its inbox.

        Between the look at the board and the hand-off, the process may have gone. It empties its
        inbox after it has said so. So either it finds what was sent, or this look finds it gone.
        """
        if not self._send(conn, seat):
            return False
        if self._words[self._member.board.row_start(seat) + Word.STATE] == GONE:
            self._take_all(seat)
        return True

    def _send(self, conn: C, seat: int) -> bool:
        if len(conn.received) > MAX_RECEIVED or not conn.can_leave():
            return False
        if not self._inboxes.send(seat, conn.pack(), conn.fd):
            return False
        self._words[self._row + Word.HANDED_OUT] += 1
        self._drop(conn)  # the connection lives on: the other worker has it too
        return True

    # --- from others --------------------------------------------------------------------------

    def receive(self) -> C | None:
        """The next connection that was handed to this worker."""
        return self._receive(self._member.seat)

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
        """Take connections from inboxes that nobody reads. Does something once a second.

        Such are left by workers that were killed. A replacement is to have what was queued for
        its predecessor, so it is given until the next sweep to come.
        """
        if now - self._swept < SWEEP_INTERVAL:
            return
        self._swept = now
        board, before = self._member.board, self._abandoned
        self._abandoned = set(board.vacated_seats()) if self._member.is_sweeper() else set()
        for seat in self._abandoned:
            if seat in before or board.successor(seat) is not None:
                self._take_all(seat)

    def _take_all(self, seat: int) -> None:
        """Take what is in the inbox of ``seat``, where nobody is."""
        while (conn := self._receive(seat)) is not None:
            self._consider(conn)

    # --- the end ------------------------------------------------------------------------------

    def hand_on(self, unbegun: Iterable[C]) -> bool:
        """Leave connections on which no request is in progress to the heir.

        False when there is none that could take them.
        """
        heir = self._member.heir()
        if not self._member.can_leave_to(heir):
            return False
        for conn in unbegun:
            if not self.hand_over(conn, heir):
                break  # its inbox is full: go on at the next turn
        return True

    def close(self, left: Callable[[], Iterable[C]]) -> None:
        """Leave nothing behind: neither what is in the inbox, nor the connections ``left``.

        Called when the state on the board is GONE. Whoever sends to this seat after that sees it,
        and takes it back: see ``hand_over``.
        """
        heir, seat = self._member.heir(), self._member.seat
        while heir != seat and (late := self._receive(seat)) is not None:
            if not self._bequeath(late, heir):
                break
        for conn in left():
            self._bequeath(conn, heir)

    def _bequeath(self, conn: C, heir: int) -> bool:
        """Hand ``conn`` to the heir. Where it finds no room, to whom reads this seat's inbox next.

        Returns whether the heir has got it.
        """
        conn.owned = False  # the heir must see for itself whose request it is
        is_ssl = self._member.cfg.is_ssl
        if heir != self._member.seat and not is_ssl and self._send(conn, heir):
            return True
        # Who comes next may be of a worker class that reads no inbox.
        is_lost = is_ssl or self._member.board.any_without_inbox()
        if is_lost or not self._send(conn, self._member.seat):
            self._drop(conn)
        return False
