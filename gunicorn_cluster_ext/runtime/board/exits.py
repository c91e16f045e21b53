"""How the processes of each seat have exited, on the board. Written by the arbiter."""

from __future__ import annotations

from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT, Cause, Exits


class ExitCounts(NamedTuple):
    """The exits of a slot's processes: how many by cause, and the last one's reason and time.

    ``at`` is monotonic, in ns; 0 means that there was none.
    """

    counts: dict[Cause, int]
    reason: str
    at: int

    @property
    def unexpected(self) -> int:
        """How many of them nobody asked for."""
        return sum(self.counts[cause] for cause in (Cause.BOOT, Cause.CRASH, Cause.FORCE))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def note(board: Board, seat: int, cause: Cause, reason: str, now: int) -> None:
    """Count the exit of the process that was in ``seat``, at ``now`` (monotonic, ns)."""
    row = board.row(seat)
    board.words[row + Exits.COUNTS + cause] += 1
    with board.writing(row + Exits.SEQUENCE):
        board.words[row + Exits.LAST_AT] = now
        board.set_text(_reason(row), reason)


def of_slot(board: Board, slot: int) -> ExitCounts:
    """Return the exits in both seats of ``slot``."""
    seats = range(slot * SEATS_PER_SLOT, (slot + 1) * SEATS_PER_SLOT)
    rows = [board.row(seat) for seat in seats]
    counts = {
        cause: sum(board.words[row + Exits.COUNTS + cause] for row in rows) for cause in Cause
    }
    at, reason = max(_last(board, row) for row in rows)
    return ExitCounts(counts, reason, at)


def _last(board: Board, row: int) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        return board.words[row + Exits.LAST_AT], board.text(_reason(row))

    return board.read_consistent(row + Exits.SEQUENCE, read)


def _reason(row: int) -> slice:
    return slice(row + Exits.LAST_REASON.start, row + Exits.LAST_REASON.stop)
