import os
import stat
import time
from pathlib import Path

import pytest

from gunicorn_cluster_ext.routing.balance import Load
from gunicorn_cluster_ext.runtime.board import ledger
from gunicorn_cluster_ext.runtime.board.board import Board, Row
from gunicorn_cluster_ext.runtime.board.layout import (
    BOARD_MAGIC,
    COUNTERS,
    LAYOUT_VERSION,
    NO_INBOX,
    SEATS_PER_SLOT,
    STALLED_NS,
    WORD_NAMES,
    Order,
    Roll,
    RollState,
    State,
    Word,
    decision_word,
)
from tests.harness.forks import in_child, repeated, spawn, status_of

GONE, BOOTING, READY, DRAINING, PARKED = State
HEADER, ROW = 128, 64


@pytest.fixture
def board() -> Board:
    return Board.create(4)


def put(board: Board, slot: int, generation: int, state: State, seat: int = 0) -> int:
    """Put a process of `generation` into `slot`, and return its seat."""
    there = slot * SEATS_PER_SLOT + seat
    board.set(there, Word.GENERATION, generation)
    board.beat(there)
    board.set(there, Word.STATE, state)
    return there


# --- words ------------------------------------------------------------------------------------


def test_the_header() -> None:
    board = Board.create(4)
    assert list(board.words[:6]) == [BOARD_MAGIC, LAYOUT_VERSION, 4, ROW, os.getpid(), 0]
    assert (board.capacity, board.master_pid) == (4, os.getpid())
    assert len(board.words) == HEADER + 2 * 4 * ROW
    assert board.path is None


def test_the_magic_is_readable_in_a_dump() -> None:
    assert BOARD_MAGIC.to_bytes(8, "big") == b"gunclust"


def test_no_two_words_share_a_place(board: Board) -> None:
    cells = [(seat, word) for seat in range(8) for word in WORD_NAMES]
    for number, (seat, word) in enumerate(cells):
        board.set(seat, word, number + 1)
    board.target, board.slowest_turn = 7, 8
    board.roll = Roll(RollState.FAILED, 2**63, 3, 4, "x" * 1_000)
    assert [board.get(seat, word) for seat, word in cells] == list(range(1, len(cells) + 1))
    assert board.words[board.row_start(3) + Word.PID] == board.get(3, Word.PID)
    assert list(board.words[:8]) == [BOARD_MAGIC, LAYOUT_VERSION, 4, ROW, os.getpid(), 7, 0, 8]


def test_every_word_fits_into_a_row() -> None:
    assert max(WORD_NAMES) < ROW
    assert len(WORD_NAMES) == sum(isinstance(word, int) for word in vars(Word).values())


def test_a_seat_is_cleared_for_the_next_process(board: Board) -> None:
    for word in WORD_NAMES:
        board.set(5, word, 99)
    board.clear(5, generation=3, now=12345)
    words = {word: board.get(5, word) for word in WORD_NAMES}
    expected = {Word.STATE: BOOTING, Word.GENERATION: 3, Word.STARTED: 12345}
    assert words == {word: expected.get(word, 0) for word in WORD_NAMES}


def test_there_is_no_seat_beyond_the_last(board: Board) -> None:
    with pytest.raises(IndexError):
        board.set(8, Word.STATE, READY)


# --- routing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "serves", "is_alive"),
    [
        (GONE, False, False),
        (BOOTING, False, False),
        (READY, True, True),
        (DRAINING, False, True),
        (PARKED, False, True),
    ],
)
def test_which_states_serve_and_which_are_alive(
    board: Board, state: State, serves: bool, is_alive: bool
) -> None:
    seat = put(board, 2, 7, state, seat=1)
    assert board.seat_of_slot(2) == (seat if serves else None)
    assert board.seat_of_process(2, 7) == (seat if is_alive else None)
    assert board.slots() == ([2] if serves else [])
    assert list(board.loads()) == ([seat] if serves else [])


@pytest.mark.parametrize(("age", "counts"), [(STALLED_NS - 10**9, True), (STALLED_NS + 1, False)])
def test_a_stalled_process_has_no_load(board: Board, age: int, counts: bool) -> None:
    seat = put(board, 2, 7, READY)
    board.set(seat, Word.BEAT, max(time.monotonic_ns() - age, 0))
    assert board.seat_of_slot(2) == seat
    assert list(board.loads()) == ([seat] if counts else [])


def test_a_board_at_the_start_is_empty(board: Board) -> None:
    assert board.slots() == []
    assert board.loads() == {}
    assert list(board.rows()) == []
    assert board.seat_of_process(0, 0) is None, "generation 0 is that of a seat never used"


@pytest.mark.parametrize("seat", [0, 1])
def test_the_newer_of_two_ready_processes_serves(board: Board, seat: int) -> None:
    """A successor is ready before its predecessor drains."""
    old = put(board, 1, 4, READY, seat=1 - seat)
    new = put(board, 1, 5, READY, seat=seat)
    assert board.seat_of_slot(1) == new
    assert board.seat_of_process(1, 4) == old
    assert board.seat_of_process(1, 5) == new
    assert board.slots() == [1]
    assert set(board.loads()) == {old, new}


def test_the_predecessor_serves_until_the_successor_is_ready(board: Board) -> None:
    old = put(board, 1, 4, READY, seat=0)
    put(board, 1, 5, BOOTING, seat=1)
    assert board.seat_of_slot(1) == old


def test_an_unknown_generation_has_no_seat(board: Board) -> None:
    put(board, 1, 4, READY)
    assert board.seat_of_process(1, 3) is None
    assert board.seat_of_process(1, 5) is None
    assert board.seat_of_process(2, 4) is None


@pytest.mark.parametrize("slot", [4, 5, 9999, 10**30])
def test_an_unknown_slot_has_no_seat(board: Board, slot: int) -> None:
    """Tags come from clients."""
    assert board.seat_of_slot(slot) is None
    assert board.seat_of_process(slot, 1) is None
    assert board.seat_of_process(0, 10**30) is None


@pytest.mark.parametrize(
    ("state", "follows"),
    [(GONE, False), (BOOTING, False), (READY, True), (DRAINING, False), (PARKED, False)],
)
@pytest.mark.parametrize("generation", [3, 5])
@pytest.mark.parametrize("seat", [0, 1])
def test_the_successor_of_a_process(
    board: Board, seat: int, generation: int, state: State, follows: bool
) -> None:
    """It may be an older process: a roll that fails resumes it."""
    leaving = put(board, 1, 4, DRAINING, seat=seat)
    other = put(board, 1, generation, state, seat=1 - seat)
    assert board.successor(leaving) == (other if follows else None)
    assert board.successor(other) is None


def test_vacated_seats(board: Board) -> None:
    put(board, 0, 0, GONE)
    put(board, 1, 4, GONE)
    put(board, 1, 5, BOOTING, seat=1)
    put(board, 2, 1, READY)
    put(board, 3, 1, GONE, seat=1)
    assert list(board.vacated_seats()) == [2, 7]


@pytest.mark.parametrize("state", [READY, DRAINING])
def test_routing_ignores_a_process_without_inbox(board: Board, state: State) -> None:
    seat = put(board, 1, 4, state)
    board.set(seat, Word.STATE, state | NO_INBOX)
    assert board.state(seat) is state
    assert board.seat_of_slot(1) is None
    assert board.seat_of_process(1, 4) is None
    assert board.successor(seat ^ 1) is None
    assert list(board.slots()) == list(board.loads()) == list(board.vacated_seats()) == []
    assert [row.state for row in board.rows()] == [state]


@pytest.mark.parametrize("order", Order)
def test_a_new_process_is_not_parked(board: Board, order: Order) -> None:
    board.set(3, Word.ORDER, order)
    board.clear(3, generation=2, now=1)
    assert Order(board.get(3, Word.ORDER)) is Order.SERVE


def test_stopping(board: Board) -> None:
    assert board.stopping is False
    board.stopping = True
    assert board.stopping is True
    assert board.target == 0


def test_the_slowest_turn(board: Board) -> None:
    assert board.slowest_turn == 0
    board.slowest_turn = 12_345
    assert board.slowest_turn == 12_345


@pytest.mark.parametrize("reason", ["", "worker 2 died", "Prüfung fehlgeschlagen: 503"])
@pytest.mark.parametrize("state", RollState)
def test_the_last_roll(board: Board, state: RollState, reason: str) -> None:
    assert board.roll == Roll(RollState.NONE, 0, 0, 0, "")
    board.roll = Roll(RollState.FAILED, 6, 4, 4, "a longer reason than the next, " * 4)
    roll = Roll(state, 7, 2, 4, reason)
    board.roll = roll
    assert board.roll == roll


@pytest.mark.parametrize("sign", ["x", "ü", "€", "𝄞"])
def test_a_long_reason_is_cut_between_characters(board: Board, sign: str) -> None:
    board.roll = Roll(RollState.FAILED, 1, 0, 4, "1" + sign * 1_000)
    reason = board.roll.reason
    assert len(reason) > 60 and reason == "1" + sign * (len(reason) - 1)


def test_the_loads_of_ready_processes(board: Board) -> None:
    seat = put(board, 3, 1, READY)
    for word, value in ((Word.BUSY, 2), (Word.SESSIONS, 5), (Word.THREADS, 8)):
        board.set(seat, word, value)
    assert board.loads() == {seat: Load(busy=2, sessions=5, threads=8)}


def test_rows_are_in_slot_order(board: Board) -> None:
    put(board, 3, 1, READY)
    put(board, 1, 2, DRAINING, seat=0)
    put(board, 1, 3, BOOTING, seat=1)
    put(board, 0, 9, GONE)
    rows = list(board.rows())
    assert [(row.slot, row.seat, row.state) for row in rows] == [
        (1, 2, DRAINING),
        (1, 3, BOOTING),
        (3, 6, READY),
    ]
    assert isinstance(rows[0], Row)
    assert rows[0].words["generation"] == 2
    assert set(rows[0].words) == set(WORD_NAMES.values())


# --- counters --------------------------------------------------------------------------


def test_the_counts_of_a_process_stay_after_its_exit(board: Board) -> None:
    put(board, 2, 1, READY, seat=0)
    put(board, 2, 2, READY, seat=1)
    for number, word in enumerate(COUNTERS):
        board.set(4, word, 100 + number)
        board.set(5, word, 1_000)
    expected = {word: 1_100 + number for number, word in enumerate(COUNTERS)}
    assert ledger.totals(board)[2] == expected
    ledger.settle(board, 4)
    assert ledger.totals(board)[2] == expected
    board.clear(4, generation=3, now=1)
    board.set(4, Word.REQUESTS, 7)
    assert ledger.totals(board)[2] == expected | {Word.REQUESTS: expected[Word.REQUESTS] + 7}
    ledger.settle(board, 5)
    ledger.settle(board, 4)
    assert ledger.totals(board)[2] == expected | {Word.REQUESTS: expected[Word.REQUESTS] + 7}
    assert [sum(counted.values()) for counted in ledger.totals(board)][:2] == [0, 0]


def test_only_counters_go_into_the_ledger(board: Board) -> None:
    for word in WORD_NAMES:
        board.set(0, word, 9)
    ledger.settle(board, 0)
    assert {word for word in WORD_NAMES if board.get(0, word) == 0} == set(COUNTERS)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("engineio", Word.ROUTED_ENGINEIO),
        ("cookie", Word.ROUTED_COOKIE),
        ("learn:header:Mcp-Session-Id", Word.ROUTED_LEARN),
        ("hash:ip", Word.ROUTED_HASH_IP),
        ("hash:cookie:session", Word.ROUTED_HASH_COOKIE),
        ("hash:path:^/(a:b)", Word.ROUTED_HASH_PATH),
        ("shop.rules:owner", Word.ROUTED_FUNCTION),
        ("none", Word.ROUTED_NONE),
    ],
)
def test_where_decisions_are_counted(rule: str, word: int) -> None:
    assert decision_word(rule) == word
    assert word in COUNTERS


def test_used_slots(board: Board) -> None:
    assert board.used_slots() == []
    put(board, 0, 1, READY)
    put(board, 3, 1, GONE)
    assert board.used_slots() == [0, 3]


def test_a_slot_stays_used_while_the_next_process_comes(board: Board) -> None:
    board.clear(2, generation=1, now=1)

    def write() -> None:
        board.clear(2, generation=2, now=1)

    with repeated(write):
        assert {tuple(board.used_slots()) for _ in range(50_000)} == {(1,)}


def test_rolls_are_counted(board: Board) -> None:
    board.count_roll(committed=False)
    board.count_roll(committed=True)
    board.count_roll(committed=True)
    assert board.rolls == (2, 1)
    assert ledger.totals(board)[0][Word.REQUESTS] == 0


def test_nothing_is_ever_counted_twice_or_missed(board: Board) -> None:
    """The arbiter updates the ledger while another process reads."""

    def write() -> None:
        ledger.settle(board, 0)
        board.set(0, Word.REQUESTS, 1_000)

    with repeated(write):
        seen, deadline = [0], time.monotonic() + 10
        while seen[-1] < 1_000_000 and time.monotonic() < deadline:
            seen.append(ledger.totals(board)[0][Word.REQUESTS])
        assert seen == sorted(seen), "it went backwards"
        assert seen[-1] >= 1_000_000 and not {each % 1_000 for each in seen} - {0}


def test_an_unfinished_ledger_entry_is_readable(board: Board) -> None:
    """The arbiter was killed while it wrote."""
    board.set(0, Word.REQUESTS, 5)
    board.words[64] += 1
    assert ledger.totals(board)[0][Word.REQUESTS] == 5


# --- between processes ------------------------------------------------------------------------


def test_a_parent_reads_what_its_child_writes(board: Board) -> None:
    assert status_of(spawn(lambda: board.set(3, Word.PID, os.getpid()))) == 0
    assert board.get(3, Word.PID) != 0


def test_no_word_is_ever_read_half_written(board: Board) -> None:
    none, all_bits = 0, 2**64 - 1

    def write() -> None:
        board.set(0, Word.REQUESTS, all_bits)
        board.set(0, Word.REQUESTS, none)

    with repeated(write):
        words, index = board.words, board.row_start(0) + Word.REQUESTS
        seen: set[int] = set()
        deadline = time.monotonic() + 10
        while len(seen) < 2 and time.monotonic() < deadline:
            seen.update(words[index] for _ in range(100_000))
        assert seen == {none, all_bits}


def test_a_reason_that_is_not_valid_text(board: Board) -> None:
    """File names may not be valid UTF-8."""
    board.roll = Roll(RollState.FAILED, 1, 0, 4, "no file \udcff.py")
    assert board.roll.reason == "no file ?.py"


def test_no_reason_is_ever_read_half_written(board: Board) -> None:
    first, second = (Roll(RollState.FAILED, 1, 0, 4, sign * 150) for sign in "ab")

    def write() -> None:
        board.roll = first
        board.roll = second

    with repeated(write):
        seen: set[str] = set()
        deadline = time.monotonic() + 10
        while len(seen) < 2 and time.monotonic() < deadline:
            seen.update({board.roll.reason for _ in range(1_000)} - {""})
        assert seen == {first.reason, second.reason}


# --- files ------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_board_in_a_file_is_read_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "board"
    board = Board.create(2, path)
    put(board, 1, 3, READY)
    board.target = 2

    def read() -> list[object]:
        attached = Board.attach(path)
        return [attached.capacity, attached.master_pid, attached.target, attached.slots()]

    assert in_child(read) == [2, os.getpid(), 2, [1]]
    assert board.path == path


def test_a_board_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        Board.create(1, tmp_path / "board")
    finally:
        os.umask(mask)
    assert mode(tmp_path / "board") == 0o600


def test_a_board_does_not_overwrite_a_file(tmp_path: Path) -> None:
    path = tmp_path / "board"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        Board.create(1, path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        Board.create(1, path)
    assert not (tmp_path / "target").exists()


def test_an_attached_board_is_read_only(tmp_path: Path) -> None:
    Board.create(1, tmp_path / "board")
    attached = Board.attach(tmp_path / "board")
    with pytest.raises(TypeError):
        attached.set(0, Word.STATE, READY)
    with pytest.raises(TypeError):
        attached.target = 9


def words(*values: int, length: int = HEADER + 3 * ROW) -> bytes:
    padded = (*values, *[0] * (length - len(values)))
    return b"".join(value.to_bytes(8, "little") for value in padded)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"12345678",
        b"a text of some length, but of no whole number of words, as most of them are" * 9 + b".",
        words(0, LAYOUT_VERSION, 1, ROW),
        words(BOARD_MAGIC, LAYOUT_VERSION + 1, 1, ROW),
        words(BOARD_MAGIC, LAYOUT_VERSION, 1, ROW, length=8),
        words(BOARD_MAGIC, LAYOUT_VERSION, 1, ROW, length=HEADER + 3 * ROW - 1),
        words(BOARD_MAGIC, LAYOUT_VERSION, 1000, ROW),
        words(BOARD_MAGIC, LAYOUT_VERSION, 2**64 - 1, ROW),
    ],
    ids=[
        "empty",
        "short text",
        "a word",
        "text",
        "not yet made",
        "other layout",
        "half a header",
        "half a row",
        "too few rows",
        "absurd capacity",
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "board"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        Board.attach(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Board.attach(tmp_path / "board")
    with pytest.raises(OSError):
        Board.attach(tmp_path)


def test_a_board_has_all_of_its_memory(tmp_path: Path) -> None:
    """A hole in a file system that is full later would be SIGBUS at the first touch."""
    board = Board.create(100, tmp_path / "board")
    assert board.path is not None
    assert board.path.stat().st_blocks * 512 >= board.path.stat().st_size > 100 * 3 * 512
