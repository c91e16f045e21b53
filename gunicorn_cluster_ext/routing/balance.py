"""TODO routing.balance."""

from __future__ import annotations

from typing import NamedTuple


class Load(NamedTuple):
    """Its requests in progress, and the sessions begun on it.

    The second breaks ties: a burst of new sessions arrives before the first one is busy.
    """

    busy: int
    sessions: int
    threads: int


def least_loaded(loads: dict[int, Load], me: int, *, strictly: bool) -> int:
    """The seat that should take a request of nobody; ``me`` is the seat that holds it.

    ``loads`` has the workers that serve; ``me`` is not among them while it drains.

    Moving a request costs more than serving it, so it moves only when all threads here are
    busy and a sibling has a free one, or when ``strictly`` the emptiest is wanted.
    """
    mine = loads.get(me)
    if mine is not None and not strictly and mine.busy < mine.threads:
        return me
    free = [seat for seat, load in loads.items() if load.busy < load.threads]
    if not free and (mine is not None or not loads):
        return me
    return min(free or loads, key=lambda seat: (loads[seat].busy, loads[seat].sessions, seat != me))


def clearly_less_loaded(loads: dict[int, Load], me: int) -> int:
    """The seat that should take a request that may begin a learned session; ``me`` holds it.

    What a request without a value begins shows only in its response, if anything. So most are not
    worth a hand-off: it moves when another worker has clearly less to do, or has begun clearly
    fewer sessions, so that those end up even.
    """
    seat = least_loaded(loads, me, strictly=True)
    mine, other = loads.get(me), loads.get(seat)
    if mine is None or other is None:
        return seat
    if mine.busy > other.busy + 1 or mine.sessions > other.sessions * 9 // 8 + 1:
        return seat
    return me
