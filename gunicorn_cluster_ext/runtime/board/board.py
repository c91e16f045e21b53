"""The board: shared memory of 64-bit words in which arbiter and workers publish their state.

A slot has two *seats*, because two processes may hold it at once: the one that serves and
one that drains. One value per aligned word, one writer per word at any time: a reader sees
whole values without a lock (several words written by one ``pack_into`` tore in 3.7 % of
reads; single words in none of 4.2 million). Words that belong together are guarded by a seqlock:
a sequence number that is odd while they are being written. The arbiter writes a row while no
process holds the seat, the process from its fork to its exit.

The memory is a file in a private directory, so that other processes of the same user can
read it; where no file can be made, it is anonymous. ``layout`` numbers the words.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, overload

from gunicorn_cluster_ext.routing.balance import Load
from gunicorn_cluster_ext.runtime.board.layout import (
    BOARD_MAGIC,
    HEADER_WORDS,
    LAYOUT_VERSION,
    NO_INBOX,
    READY,
    ROW_WORDS,
    SEATS_PER_SLOT,
    STALLED_NS,
    WORD_BYTES,
    WORD_NAMES,
    Roll,
    RollState,
    ServerWord,
    State,
    Word,
)
from gunicorn_cluster_ext.runtime.directory import allocate, give_away

T = TypeVar("T")

_STATES: Final = {int(state): state for state in State}
_ALIVE: Final = (int(State.READY), int(State.DRAINING), int(State.PARKED))
#: A reader waits this often, and this long, for a writer that was preempted while it wrote.
_READ_TRIES: Final = 1_000
_READ_PAUSE_S: Final = 0.0002


class Row(NamedTuple):
    """A seat's words at one moment."""

    slot: int
    seat: int
    state: State
    words: dict[str, int]


class _ServerAttribute:
    """A descriptor: a word of the server as an attribute of its board."""

    def __init__(self, index: int) -> None:
        self._index = index

    @overload
    def __get__(self, board: None, owner: type) -> _ServerAttribute: ...
    @overload
    def __get__(self, board: Board, owner: type) -> int: ...
    def __get__(self, board: Board | None, owner: type) -> _ServerAttribute | int:
        return self if board is None else board.words[self._index]

    def __set__(self, board: Board, value: int) -> None:
        board.words[self._index] = value


class Board:
    """The board of a server; its words are ints. Implements ``routing.rules.SeatLookup``.

    ``create`` and ``attach`` make one.
    """

    master_pid = _ServerAttribute(ServerWord.MASTER_PID)
    #: The wanted number of workers.
    target = _ServerAttribute(ServerWord.TARGET)
    #: The longest turn of the arbiter's loop so far, in ns, not counting its forks.
    slowest_turn = _ServerAttribute(ServerWord.SLOWEST_TURN)
    #: Failures inside the arbiter that have cost one piece of its work.
    faults = _ServerAttribute(ServerWord.FAULTS)
    #: Unexpected exits that count towards cluster_restart_limit.
    recent_exits = _ServerAttribute(ServerWord.RECENT_EXITS)

    def __init__(self, memory: mmap.mmap, path: Path | None = None) -> None:
        self._memory = memory
        self.path = path
        words = memoryview(memory).cast("Q")
        self.capacity = words[ServerWord.CAPACITY]
        rows_end = HEADER_WORDS + self.capacity * SEATS_PER_SLOT * ROW_WORDS
        self.words, self.ledger = words[:rows_end], words[rows_end:]
        self._states = self.words[HEADER_WORDS + Word.STATE :: ROW_WORDS]

    @classmethod
    def create(cls, capacity: int, path: Path | None = None) -> Board:
        """Return a new board for ``capacity`` slots, in the new file ``path`` or anonymous.

        The arbiter calls this before its first fork. Raise OSError if the file cannot be made.
        """
        size = _size(capacity)
        memory = mmap.mmap(-1, size) if path is None else _map_new_file(path, size)
        words = memoryview(memory).cast("Q")
        words[ServerWord.LAYOUT], words[ServerWord.CAPACITY] = LAYOUT_VERSION, capacity
        words[ServerWord.ROW_WORDS], words[ServerWord.MASTER_PID] = ROW_WORDS, os.getpid()
        words[ServerWord.MAGIC] = BOARD_MAGIC
        words.release()
        return cls(memory, path)

    @classmethod
    def attach(cls, path: Path) -> Board:
        """Return the board of a running server, read-only.

        Raise OSError, or ValueError if the file is not a board of this version.
        """
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not _is_board(memory):
            raise ValueError(f"{path} is not a board of this version")
        return cls(memory, path)

    @property
    def stopping(self) -> bool:
        """True if the whole server is stopping. The arbiter writes it."""
        return bool(self.words[ServerWord.STOPPING])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.words[ServerWord.STOPPING] = value

    @property
    def roll(self) -> Roll:
        """The last roll. The arbiter writes it."""
        words = self.words
        return self.read_consistent(
            ServerWord.ROLL_SEQUENCE,
            lambda: Roll(
                RollState(words[ServerWord.ROLL_STATE]),
                words[ServerWord.ROLL_NUMBER],
                words[ServerWord.ROLL_REPLACED],
                words[ServerWord.ROLL_TOTAL],
                self.text(ServerWord.ROLL_REASON),
            ),
        )

    @roll.setter
    def roll(self, roll: Roll) -> None:
        words = self.words
        with self.writing(ServerWord.ROLL_SEQUENCE):
            self.set_text(ServerWord.ROLL_REASON, roll.reason)
            words[ServerWord.ROLL_STATE], words[ServerWord.ROLL_NUMBER] = roll.state, roll.number
            words[ServerWord.ROLL_REPLACED], words[ServerWord.ROLL_TOTAL] = (
                roll.replaced,
                roll.total,
            )

    @property
    def rolls(self) -> tuple[int, int]:
        """The number of rolls that were committed, and of those that failed."""
        return self.words[ServerWord.ROLLS_COMMITTED], self.words[ServerWord.ROLLS_FAILED]

    def count_roll(self, *, committed: bool) -> None:
        """Count a roll that has ended. The arbiter calls this."""
        self.words[ServerWord.ROLLS_COMMITTED if committed else ServerWord.ROLLS_FAILED] += 1

    # --- seqlock and text ---------------------------------------------------------------------

    def read_consistent(self, sequence: int, read: Callable[[], T]) -> T:
        """Return the result of ``read``, which reads words that a seqlock guards.

        The word ``sequence`` is odd while the writer changes them. A reader waits at most 0.2 s
        for a writer that was preempted; if the writer was killed, the reader returns what it left.
        """
        for _ in range(_READ_TRIES):
            before = self.words[sequence]
            found = read()
            if before % 2 == 0 and self.words[sequence] == before:
                break
            time.sleep(_READ_PAUSE_S)
        return found

    @contextmanager
    def writing(self, sequence: int) -> Iterator[None]:
        """Guard a change of words by the seqlock in word ``sequence``. They have one writer."""
        self.words[sequence] += 1
        yield
        self.words[sequence] += 1

    def text(self, where: slice) -> str:
        """Return the text in the words ``where``."""
        return self.words[where].tobytes().rstrip(b"\0").decode(errors="ignore")

    def set_text(self, where: slice, text: str) -> None:
        """Write ``text`` into the words ``where``, cut to their size."""
        size = (where.stop - where.start) * WORD_BYTES
        data = text.encode(errors="replace")[:size].ljust(size, b"\0")
        self.words[where] = memoryview(data).cast("Q")

    # --- rows -------------------------------------------------------------------------------

    def row_start(self, seat: int) -> int:
        """Return the index of ``seat``'s first word."""
        return HEADER_WORDS + seat * ROW_WORDS

    def get(self, seat: int, word: int) -> int:
        return self.words[HEADER_WORDS + seat * ROW_WORDS + word]

    def set(self, seat: int, word: int, value: int) -> None:
        self.words[HEADER_WORDS + seat * ROW_WORDS + word] = value

    def clear(self, seat: int, generation: int, now: int) -> None:
        """Prepare ``seat`` for a process that is about to be forked at ``now`` (monotonic, ns)."""
        for word in WORD_NAMES:
            # GENERATION never becomes 0 again, which would mean that the seat was never used.
            self.set(seat, word, generation if word == Word.GENERATION else 0)
        self.set(seat, Word.STARTED, now)
        self.set(seat, Word.STATE, State.BOOTING)

    def state(self, seat: int) -> State | None:
        """Return the state of the process in ``seat``; None for a word that is no state.

        The processes write the words, and a process may be broken.
        """
        return _STATES.get(self.get(seat, Word.STATE) & ~NO_INBOX)

    def rows(self) -> Iterator[Row]:
        """Yield the row of every seat that a process holds, in slot order."""
        for seat in range(self.capacity * SEATS_PER_SLOT):
            state = self.state(seat)
            if state not in (None, State.GONE):
                words = {name: self.get(seat, word) for word, name in WORD_NAMES.items()}
                yield Row(seat // SEATS_PER_SLOT, seat, state, words)

    def used_slots(self) -> list[int]:
        """Return the slots that have had a process."""
        first_seats = range(0, self.capacity * SEATS_PER_SLOT, SEATS_PER_SLOT)
        return [seat // SEATS_PER_SLOT for seat in first_seats if self.get(seat, Word.GENERATION)]

    # --- routing.rules.SeatLookup: read by every worker for every routed request ------------

    def seat_of_slot(self, slot: int) -> int | None:
        """Return the seat of the newest process of ``slot`` that is ready, or None."""
        if slot >= self.capacity:
            return None
        words, seat = self.words, slot * SEATS_PER_SLOT
        row = HEADER_WORDS + seat * ROW_WORDS
        first = words[row + Word.STATE] == READY
        second = words[row + ROW_WORDS + Word.STATE] == READY
        if first and second:
            return seat + (words[row + ROW_WORDS + Word.GENERATION] > words[row + Word.GENERATION])
        return seat if first else seat + 1 if second else None

    def seat_of_process(self, slot: int, generation: int) -> int | None:
        """Return the seat where that very process serves, drains or is parked, or None."""
        if slot >= self.capacity:
            return None
        seat = slot * SEATS_PER_SLOT
        for candidate in (seat, seat + 1):
            row = HEADER_WORDS + candidate * ROW_WORDS
            if self.words[row + Word.GENERATION] == generation:
                alive = self.words[row + Word.STATE] in _ALIVE
                return candidate if alive else None
        return None

    def successor(self, seat: int) -> int | None:
        """Return the slot's other seat if its process is ready and reads its inbox, or None."""
        other = seat ^ 1
        return other if self.get(other, Word.STATE) == State.READY else None

    def any_without_inbox(self) -> bool:
        """Return whether a ready process reads no inbox (a roll changed the worker class)."""
        seats = range(self.capacity * SEATS_PER_SLOT)
        return any(self.get(seat, Word.STATE) == State.READY | NO_INBOX for seat in seats)

    def slots(self) -> Sequence[int]:
        """Return the slots in which a process is ready."""
        states = self._states.tolist()
        return [
            slot
            for slot, pair in enumerate(zip(states[::2], states[1::2], strict=True))
            if READY in pair
        ]

    def beat(self, seat: int) -> None:
        """Write the heartbeat of the process in ``seat``. Each turn of its loop calls this."""
        self.words[HEADER_WORDS + seat * ROW_WORDS + Word.BEAT] = time.monotonic_ns()

    def loads(self) -> dict[int, Load]:
        """Return how busy each ready process is, by seat.

        A process whose loop is stalled is left out: it would look idle, but serve nothing.
        """
        words, loads = self.words, {}
        oldest = time.monotonic_ns() - STALLED_NS
        # One copy in C: most seats are empty, and every worker asks for many requests.
        for seat, state in enumerate(self._states.tolist()):
            if state != READY:
                continue
            row = HEADER_WORDS + seat * ROW_WORDS
            if words[row + Word.BEAT] > oldest:
                loads[seat] = Load(
                    words[row + Word.BUSY], words[row + Word.SESSIONS], words[row + Word.THREADS]
                )
        return loads

    def vacated_seats(self) -> Iterator[int]:
        """Yield the used seats that no process holds now. One may be about to be forked there."""
        for seat in range(self.capacity * SEATS_PER_SLOT):
            if self.get(seat, Word.GENERATION) and self.get(seat, Word.STATE) == State.GONE:
                yield seat

    def bus_listeners(self) -> bytes:
        """Return a 64-bit number per seat: the generation of a process that reads the bus, or 0.

        Every message needs this, so it is a single copy in C.
        """
        return self.words[HEADER_WORDS + Word.BUS_LISTENS :: ROW_WORDS].tobytes()


def _is_board(memory: mmap.mmap) -> bool:
    if len(memory) < HEADER_WORDS * WORD_BYTES or len(memory) % WORD_BYTES:
        return False
    words = memoryview(memory).cast("Q")
    if words[ServerWord.MAGIC] != BOARD_MAGIC or words[ServerWord.LAYOUT] != LAYOUT_VERSION:
        return False
    return len(memory) == _size(words[ServerWord.CAPACITY])


def _size(capacity: int) -> int:
    return (HEADER_WORDS + capacity * (SEATS_PER_SLOT + 1) * ROW_WORDS) * WORD_BYTES


def _map_new_file(path: Path, size: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        allocate(file, size)
        give_away(file, path.parent)
        return mmap.mmap(file, size)
    finally:
        os.close(file)
