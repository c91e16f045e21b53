"""The counters of each slot, summed over its processes, those that have exited included.

A process counts in its own row. When it has exited, the arbiter adds its counts to its slot's
ledger, so a slot's total never shrinks.
"""

from __future__ import annotations

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import (
    COUNTERS,
    ROW_WORDS,
    SEATS_PER_SLOT,
    ServerWord,
)

_WORD_VALUES = 1 << 64


def settle(board: Board, seat: int) -> None:
    """Move the counts of the exited process in ``seat`` to the ledger. The arbiter calls this."""
    entry = seat // SEATS_PER_SLOT * ROW_WORDS
    with board.writing(ServerWord.LEDGER_SEQUENCE):
        for word in COUNTERS:
            # A broken process may have written anything.
            total = board.ledger[entry + word] + board.get(seat, word)
            board.ledger[entry + word] = total % _WORD_VALUES
            board.set(seat, word, 0)


def totals(board: Board) -> list[dict[int, int]]:
    """Return the counts of each slot since the start of the server, by word."""

    def of_slot(slot: int) -> dict[int, int]:
        seat, entry = slot * SEATS_PER_SLOT, slot * ROW_WORDS
        return {
            word: board.ledger[entry + word] + board.get(seat, word) + board.get(seat + 1, word)
            for word in COUNTERS
        }

    slots = range(board.capacity)
    return board.read_consistent(
        ServerWord.LEDGER_SEQUENCE, lambda: [of_slot(slot) for slot in slots]
    )
