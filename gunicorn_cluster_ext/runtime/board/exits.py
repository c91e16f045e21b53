"""How the processes of each seat have ended, on the board. Written by the arbiter.

Words 41 to 55 of a seat's row; the next process in the seat leaves them as they are:

    41-46   how many ended so, by ``Cause``
    47      when the last one ended (monotonic, ns)
    48      odd while 47 and 49-55 are being changed
    49-55   why it did, as text
"""

from __future__ import annotations

from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import SEATS_PER_SLOT, Board
from gunicorn_cluster_ext.supervisor.exits import Cause

_COUNTS = 41
_AT = 47
_CHANGES = 48
_TEXT, _TEXT_END = 49, 56


class Restarts(NamedTuple):
    """The ends of a slot's processes: how many by cause, and the last: why, when (ns; 0: none)."""

    counts: dict[Cause, int]
    reason: str
    at: int

    @property
    def unwanted(self) -> int:
        """How many of them nobody wanted."""
        return sum(self.counts[cause] for cause in (Cause.BOOT, Cause.CRASH, Cause.FORCE))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def note(board: Board, seat: int, cause: Cause, reason: str, now: int) -> None:
    """A process that sat in ``seat`` has ended, ``now`` (monotonic, ns)."""
    row = board.row(seat)
    board.words[row + _COUNTS + cause] += 1
    with board.changing(row + _CHANGES):
        board.words[row + _AT] = now
        board.set_text(row + _TEXT, row + _TEXT_END, reason)


def of_slot(board: Board, slot: int) -> Restarts:
    """Those of both seats."""
    seats = range(slot * SEATS_PER_SLOT, (slot + 1) * SEATS_PER_SLOT)
    rows = [board.row(seat) for seat in seats]
    counts = {cause: sum(board.words[row + _COUNTS + cause] for row in rows) for cause in Cause}
    at, reason = max(_last(board, row) for row in rows)
    return Restarts(counts, reason, at)


def _last(board: Board, row: int) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        return board.words[row + _AT], board.text(row + _TEXT, row + _TEXT_END)

    return board.together(row + _CHANGES, read)
