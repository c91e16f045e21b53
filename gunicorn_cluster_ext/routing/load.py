"""How much a worker has to do. No I/O."""

from __future__ import annotations

from typing import NamedTuple


class Load(NamedTuple):
    """Its requests in progress, and the sessions begun on it.

    The second breaks ties: a burst of new sessions arrives before the first one is busy.
    """

    busy: int
    sessions: int
    threads: int
