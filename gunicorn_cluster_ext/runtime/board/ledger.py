"""What the processes of each slot have counted, those that have exited included.

A process counts in its own row. When it has exited, the arbiter adds its counts to its slot's
ledger, so that a slot's sum never shrinks.
"""

from __future__ import annotations

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import (
    COUNTERS,
    ROW_WORDS,
    SEATS_PER_SLOT,
    ServerWord,
)


def settle(board: Board, seat: int) -> None:
    """Move the counts of the process that was in ``seat`` to the ledger. Called in the arbiter."""
    entry = seat // SEATS_PER_SLOT * ROW_WORDS
    with board.writing(ServerWord.LEDGER_SEQUENCE):
        for word in COUNTERS:
            board.ledger[entry + word] += board.get(seat, word)
            board.set(seat, word, 0)


def totals(board: Board) -> list[dict[int, int]]:
    """Return what each slot has counted since the server's start, by word."""
    return board.read_consistent(
        ServerWord.LEDGER_SEQUENCE,
        lambda: [_of_slot(board, slot) for slot in range(board.capacity)],
    )


def _of_slot(board: Board, slot: int) -> dict[int, int]:
    seat, entry = slot * SEATS_PER_SLOT, slot * ROW_WORDS
    return {
        word: board.ledger[entry + word] + board.get(seat, word) + board.get(seat + 1, word)
        for word in COUNTERS
    }
