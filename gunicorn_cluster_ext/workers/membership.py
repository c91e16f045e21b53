"""A worker's part in its cluster: its state, its orders, and the process that follows it.

It knows the board and no connections. All methods run in the worker.

A retiring worker hands each connection on when it carries no request: to its successor in the
slot, else to the least loaded sibling, else to its own inbox, for the next process in that seat.
One that has started Engine.IO sessions stays until none has asked for five seconds (a polling
client asks again at once). One whose values were learned stays until all of them are forgotten,
because a client may be silent for long and no protocol says reliably when it is finished.
``cluster_drain_timeout`` bounds both.

``alive`` stays true as long as there is an heir, so gunicorn adds no ``Connection: close``.
Without an heir (the whole server stops, TLS, or a worker class that reads no inbox follows) it is
right, and is left to gunicorn.
"""

from __future__ import annotations

from typing import Any, Final

from gunicorn_cluster_ext.runtime import proctitle
from gunicorn_cluster_ext.runtime.board.layout import Order, Place, State, Word
from gunicorn_cluster_ext.runtime.shared import Shared

#: How long kept-alive connections stay open in a stopping worker (gthread in gunicorn 27).
IDLE_CLOSE_TIMEOUT_S: Final = 2.0
#: How long a process that has begun sessions of hard affinity stays after its last request: a
#: client that polls asks again at once, and only this process knows it.
SESSION_QUIET_S: Final = 5.0


class Membership:
    """The worker in ``place``."""

    #: True while requests that others could serve as well are served here: not while it drains or
    #: is parked.
    serves = False

    def __init__(self, shared: Shared, place: Place, cfg: Any) -> None:
        self.shared, self.place, self.cfg = shared, place, cfg
        self.board, self.seat = shared.board, place.seat
        self._order = self.board.row_start(self.seat) + Word.ORDER

    def set_state(self, state: State) -> None:
        """Publish ``state``, on the board and in the process's title."""
        self.serves = state is State.READY
        proctitle.show_state(state)
        self.board.set(self.seat, Word.STATE, state)

    def apply_order(self) -> None:
        """Serve or be parked, as the arbiter has ordered.

        A parked worker is one that drains without an end, and can be called back.
        """
        serve = self.board.words[self._order] == Order.SERVE
        if serve != self.serves:
            self.set_state(State.READY if serve else State.PARKED)

    def awaits_siblings(self) -> bool:
        """Return True while the server's first workers are not all ready.

        After a restart all clients come at once. The first worker to be ready would take them
        all, and sticky clients stay.
        """
        return self.place.generation == 1 and len(self.board.slots()) < self.board.target

    def is_sweeper(self) -> bool:
        """Return True if this worker serves in the lowest slot: it empties abandoned inboxes."""
        slots = self.board.slots()
        return bool(slots) and self.board.seat_of_slot(slots[0]) == self.seat

    # --- leaving ------------------------------------------------------------------------------

    def heir(self) -> int:
        """Return the seat that takes over what this worker leaves.

        This is the process that serves in the same slot, if there is one, or the least busy one.
        Otherwise it is this very seat: the process that takes it next reads its inbox.
        """
        successor = self.board.successor(self.seat)
        if successor is not None:
            return successor
        loads = self.board.loads()
        return min(loads, key=lambda seat: loads[seat].busy) if loads else self.seat

    def can_leave_to(self, heir: int) -> bool:
        """Return True if idle connections can be left to ``heir``.

        They cannot when the whole server ends, nor when no other process serves; and a TLS session
        cannot change the process.
        """
        return heir != self.seat and not self.board.stopping and not self.cfg.is_ssl

    def drain_timeout(self) -> float:
        """Return the seconds in which requests in progress have to finish."""
        if self.board.stopping:
            return float(self.cfg.graceful_timeout)
        return self.shared.settings.drain(self.cfg)

    def has_live_sessions(self, since: float, now: float) -> bool:
        """Return True if sessions that only this process knows may still be in use.

        ``since`` is when the last request ended (monotonic). A learned session may be silent for
        long, and nothing says when it is over before it is forgotten.
        """
        if not self.board.get(self.seat, Word.SESSIONS):
            return False
        learned = self.shared.learned
        return now - since < SESSION_QUIET_S or (learned is not None and learned.has_own_sessions())

    def keeps_idle_open(self) -> bool:
        """Return True if idle connections stay open for a while because no heir takes them.

        This is for requests that are on their way, as in gunicorn 27.
        """
        return self.board.stopping or bool(self.cfg.is_ssl) or self.board.any_without_inbox()


class Drain:
    """The drain of a worker, which began at ``begun`` (monotonic)."""

    def __init__(self, membership: Membership, begun: float) -> None:
        self._membership, self._begun = membership, begun

    def is_over(self, now: float) -> bool:
        """Return True if requests still in progress are to be given up."""
        return now >= self._begun + self._membership.drain_timeout()

    def may_exit(self, connections: int, idle: int, finished: float, now: float) -> bool:
        """Return True if nothing is left to do.

        ``idle`` of the ``connections`` have no request in progress. The last request ended at
        ``finished`` (monotonic).
        """
        membership = self._membership
        if membership.can_leave_to(membership.heir()):
            since = max(self._begun, finished)
            return not connections and not membership.has_live_sessions(since, now)
        if connections > idle:
            return False
        is_late = now >= self._begun + IDLE_CLOSE_TIMEOUT_S
        return is_late or not idle or not membership.keeps_idle_open()
