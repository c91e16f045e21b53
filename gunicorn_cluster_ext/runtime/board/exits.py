"""How the processes of each slot exited: counts by cause, and the last reason, on the board.

The arbiter writes them, per seat. ``layout.ExitWord`` numbers the words.
"""

from __future__ import annotations

from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT, Cause, ExitWord


class ExitCounts(NamedTuple):
    """The exits of a slot's processes: how many by cause, and the last one's reason and time.

    ``at`` is monotonic, in ns; 0 means that no process has exited.
    """

    counts: dict[Cause, int]
    reason: str
    at: int

    @property
    def unexpected(self) -> int:
        """The number of exits that nobody asked for."""
        return sum(self.counts[cause] for cause in (Cause.BOOT, Cause.CRASH, Cause.FORCE))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def note(board: Board, seat: int, cause: Cause, reason: str, now: int) -> None:
    """Count the exit of the process that was in ``seat``, at ``now`` (monotonic, ns)."""
    row = board.row_start(seat)
    board.words[row + ExitWord.COUNTS + cause] += 1
    with board.writing(row + ExitWord.SEQUENCE):
        board.words[row + ExitWord.LAST_AT] = now
        board.set_text(_reason_words(row), reason)


def of_slot(board: Board, slot: int) -> ExitCounts:
    """Return the exits in both seats of ``slot``."""
    seats = range(slot * SEATS_PER_SLOT, (slot + 1) * SEATS_PER_SLOT)
    rows = [board.row_start(seat) for seat in seats]
    counts = {
        cause: sum(board.words[row + ExitWord.COUNTS + cause] for row in rows) for cause in Cause
    }

    def last(row: int) -> tuple[int, str]:
        return board.read_consistent(
            row + ExitWord.SEQUENCE,
            lambda: (board.words[row + ExitWord.LAST_AT], board.text(_reason_words(row))),
        )

    at, reason = max(last(row) for row in rows)
    return ExitCounts(counts, reason, at)


def _reason_words(row: int) -> slice:
    return slice(row + ExitWord.LAST_REASON.start, row + ExitWord.LAST_REASON.stop)
