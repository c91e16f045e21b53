"""Load balancing: which worker takes a request that no sticky rule assigns. No I/O."""

from __future__ import annotations

from typing import Final, NamedTuple

#: A learned session moves only for a difference of more than one request or session: a hand-off
#: for every small difference would cost more than it evens out.
_TOLERANCE: Final = 1
#: With many sessions, an eighth more than another worker has counts as even too.
_SESSIONS_PART: Final = 8


class Load(NamedTuple):
    """The work of one worker.

    ``busy`` counts its requests in progress, ``sessions`` those that started on it (of Engine.IO
    and of the learn rules), and ``threads`` is the number of requests that it serves at once.
    Sessions break ties: a burst of new sessions arrives before the first one is busy.
    """

    busy: int
    sessions: int
    threads: int


def least_loaded(loads: dict[int, Load], me: int, *, strictly: bool) -> int:
    """Return the seat that should take a request without an owner.

    ``me`` is the seat that holds the request. ``loads`` has the workers that accept requests, so
    ``me`` is missing while it drains. Moving a request costs more than serving it: it moves only
    when all threads of ``me`` are busy and another worker has a free one. With ``strictly`` it
    always goes to the worker with the least to do.
    """
    mine = loads.get(me)
    if mine is not None and not strictly and mine.busy < mine.threads:
        return me
    free = [seat for seat, load in loads.items() if load.busy < load.threads]
    if not free and (mine is not None or not loads):
        return me
    return min(free or loads, key=lambda seat: (loads[seat].busy, loads[seat].sessions, seat != me))


def clearly_less_loaded(loads: dict[int, Load], me: int) -> int:
    """Return the seat that should take a request that may start a learned session.

    Only the response shows whether such a request starts a session, and most do not, so most are
    not worth a hand-off. The request moves when another worker has clearly fewer requests in
    progress or clearly fewer sessions; that is enough to spread the sessions evenly.
    """
    seat = least_loaded(loads, me, strictly=True)
    mine, other = loads.get(me), loads.get(seat)
    if mine is None or other is None:
        return seat
    even_sessions = other.sessions + other.sessions // _SESSIONS_PART + _TOLERANCE
    if mine.busy > other.busy + _TOLERANCE or mine.sessions > even_sessions:
        return seat
    return me
