from gunicorn_cluster_ext.runtime.board import exits
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.exits import ExitCounts
from gunicorn_cluster_ext.runtime.board.layout import WORD_NAMES, Cause

NONE = dict.fromkeys(Cause, 0)


def test_no_process_has_exited() -> None:
    assert exits.of_slot(Board.create(2), 1) == ExitCounts(NONE, "", 0)


def test_exits_of_both_seats_and_the_later_reason() -> None:
    board = Board.create(3)
    exits.note(board, 2, Cause.CRASH, "was ended by SIGKILL", 30)
    exits.note(board, 3, Cause.ROLL, "the reload replaced it", 20)
    exits.note(board, 2, Cause.CRASH, "was ended by SIGSEGV", 40)
    found = exits.of_slot(board, 1)
    counts = NONE | {Cause.CRASH: 2, Cause.ROLL: 1}
    assert found == ExitCounts(counts, "was ended by SIGSEGV", 40)
    assert found.total == 3
    assert exits.of_slot(board, 0) == exits.of_slot(board, 2) == ExitCounts(NONE, "", 0)


def test_the_next_process_in_the_seat_keeps_them() -> None:
    board = Board.create(1)
    exits.note(board, 1, Cause.BOOT, "could not load the application", 5)
    board.clear(1, generation=2, now=6)
    for word in WORD_NAMES:
        board.set(1, word, 99)
    assert exits.of_slot(board, 0) == ExitCounts(
        NONE | {Cause.BOOT: 1}, "could not load the application", 5
    )


def test_a_long_reason_is_cut_and_the_next_row_is_untouched() -> None:
    board = Board.create(2)
    exits.note(board, 0, Cause.FORCE, "x" * 1_000, 5)
    assert exits.of_slot(board, 0).reason == "x" * 56
    assert list(board.words[board.row_start(1) :]) == [0] * 3 * 64
