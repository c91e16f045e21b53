"""A worker's part in its cluster: what it says of itself, what it is told, and who follows it.

It knows the board and no connections. All methods run in the worker.
"""

from __future__ import annotations

from typing import Any, Final

from gunicorn_cluster_ext.runtime import proctitle
from gunicorn_cluster_ext.runtime.board.layout import Order, Place, State, Word
from gunicorn_cluster_ext.runtime.shared import Shared

#: How long kept-alive connections stay open in a stopping worker (gthread in gunicorn 27).
STOP_TIMEOUT: Final = 2.0
#: How long a process that has begun sessions of hard affinity stays after its last request: a
#: client that polls asks again at once, and only this process knows it.
HARD_QUIET: Final = 5.0


class Member:
    """The worker in ``place``."""

    #: Whether requests that others could serve as well are served here: not while it drains or
    #: is parked.
    serves = False

    def __init__(self, shared: Shared, place: Place, cfg: Any) -> None:
        self.shared, self.place, self.cfg = shared, place, cfg
        self.board, self.seat = shared.board, place.seat
        self._order = self.board.row_start(self.seat) + Word.ORDER

    def become(self, state: State) -> None:
        self.serves = state is State.READY
        proctitle.show_state(state)
        self.board.set(self.seat, Word.STATE, state)

    def obey(self) -> None:
        """Serve or be parked, as the arbiter has ordered.

        A parked worker is one that drains without an end, and can be called back.
        """
        serve = self.board.words[self._order] == Order.SERVE
        if serve != self.serves:
            self.become(State.READY if serve else State.PARKED)

    def awaits_siblings(self) -> bool:
        """Whether the server's first workers are not all ready.

        After a restart all clients come at once. The first worker to be ready would take them
        all, and sticky clients stay.
        """
        return self.place.generation == 1 and len(self.board.slots()) < self.board.target

    def is_sweeper(self) -> bool:
        """Whether it looks after inboxes that nobody reads: who serves in the lowest slot does."""
        slots = self.board.slots()
        return bool(slots) and self.board.seat_of_slot(slots[0]) == self.seat

    # --- leaving ------------------------------------------------------------------------------

    def heir(self) -> int:
        """The seat that takes over what this worker leaves.

        Who serves in the same slot, if there is somebody, or the worker that is least busy.
        Otherwise this very seat: what is in its inbox is read by the process that takes it next.
        """
        successor = self.board.successor(self.seat)
        if successor is not None:
            return successor
        loads = self.board.loads()
        return min(loads, key=lambda seat: loads[seat].busy) if loads else self.seat

    def can_leave_to(self, heir: int) -> bool:
        """Whether idle connections can be left to ``heir``.

        Not when the whole server ends or nobody else serves; and not TLS sessions.
        """
        return heir != self.seat and not self.board.stopping and not self.cfg.is_ssl

    def drain_timeout(self) -> float:
        """Seconds in which what was begun is to be finished."""
        if self.board.stopping:
            return float(self.cfg.graceful_timeout)
        return self.shared.settings.drain(self.cfg)

    def is_expected(self, since: float, now: float) -> bool:
        """Whether sessions that only this process knows may still go on here.

        ``since`` is when it was last heard of one. A learned session may be silent for long, and
        nothing says when it is over, before it is forgotten.
        """
        if not self.board.get(self.seat, Word.SESSIONS):
            return False
        memory = self.shared.learned
        return now - since < HARD_QUIET or (memory is not None and memory.has_own_sessions())

    def lingers(self) -> bool:
        """Whether idle connections are kept for a while that nobody will take over.

        For requests that are on their way, as in gunicorn 27. Otherwise somebody will.
        """
        return self.board.stopping or bool(self.cfg.is_ssl) or self.board.any_without_inbox()


class Drain:
    """A member that leaves since ``begun``."""

    def __init__(self, member: Member, begun: float) -> None:
        self._member, self._begun = member, begun

    def is_over(self, now: float) -> bool:
        """Whether what is not finished is given up."""
        return now >= self._begun + self._member.drain_timeout()

    def may_go(self, connections: int, unbegun: int, finished: float, now: float) -> bool:
        """Whether there is nothing left to do.

        Of the ``connections``, ``unbegun`` have no request in progress; the last request was
        ``finished`` then.
        """
        if self._member.can_leave_to(self._member.heir()):
            since = max(self._begun, finished)
            return not connections and not self._member.is_expected(since, now)
        if connections > unbegun:
            return False
        return now >= self._begun + STOP_TIMEOUT or not unbegun or not self._member.lingers()
