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
    DEAF,
    HEADER_WORDS,
    LAYOUT,
    MAGIC,
    READY,
    ROW_WORDS,
    SEATS_PER_SLOT,
    STALLED_NS,
    WORD_BYTES,
    WORD_NAMES,
    Roll,
    RollState,
    Server,
    State,
    Word,
)
from gunicorn_cluster_ext.runtime.directory import give_away

T = TypeVar("T")

_ALIVE: Final = (int(State.READY), int(State.DRAINING), int(State.PARKED))
#: How often, and how long, a reader waits for a writer that lost the processor while it wrote.
_READ_TRIES: Final = 1_000
_READ_PAUSE_S: Final = 0.0002


class Row(NamedTuple):
    """A seat's words at one moment."""

    slot: int
    seat: int
    state: State
    words: dict[str, int]


class _ServerWord:
    """A word of the server, as an attribute of its board."""

    def __init__(self, index: int) -> None:
        self._index = index

    @overload
    def __get__(self, board: None, owner: type) -> _ServerWord: ...
    @overload
    def __get__(self, board: Board, owner: type) -> int: ...
    def __get__(self, board: Board | None, owner: type) -> _ServerWord | int:
        return self if board is None else board.words[self._index]

    def __set__(self, board: Board, value: int) -> None:
        board.words[self._index] = value


class Board:
    """The words, as ints, and ``routing.rules.SeatLookup``. Made by ``create`` or ``attach``."""

    master_pid = _ServerWord(Server.MASTER_PID)
    #: How many workers the server wants.
    target = _ServerWord(Server.TARGET)
    #: The longest turn of the arbiter's loop so far, in ns, without its forks.
    slowest_turn = _ServerWord(Server.SLOWEST_TURN)
    #: Unexpected exits that count towards cluster_restart_limit.
    recent_exits = _ServerWord(Server.RECENT_EXITS)

    def __init__(self, memory: mmap.mmap, path: Path | None = None) -> None:
        self._memory = memory
        self.path = path
        words = memoryview(memory).cast("Q")
        self.capacity = words[Server.CAPACITY]
        rows_end = HEADER_WORDS + self.capacity * SEATS_PER_SLOT * ROW_WORDS
        self.words, self.ledger = words[:rows_end], words[rows_end:]

    @classmethod
    def create(cls, capacity: int, path: Path | None = None) -> Board:
        """Return a new board for ``capacity`` slots, in the new file ``path`` or anonymous.

        Called in the arbiter, before the first fork. Raises OSError when the file cannot be made.
        """
        size = _size(capacity)
        memory = mmap.mmap(-1, size) if path is None else _map_new_file(path, size)
        words = memoryview(memory).cast("Q")
        words[Server.LAYOUT], words[Server.CAPACITY] = LAYOUT, capacity
        words[Server.ROW_WORDS], words[Server.MASTER_PID] = ROW_WORDS, os.getpid()
        words[Server.MAGIC] = MAGIC
        words.release()
        return cls(memory, path)

    @classmethod
    def attach(cls, path: Path) -> Board:
        """Return another server's board, read-only.

        Raises OSError, or ValueError if the file is no board of this version.
        """
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not _is_board(memory):
            raise ValueError(f"{path} is no board of this version")
        return cls(memory, path)

    @property
    def stopping(self) -> bool:
        """Whether the whole server ends. Written by the arbiter."""
        return bool(self.words[Server.STOPPING])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.words[Server.STOPPING] = value

    @property
    def roll(self) -> Roll:
        """The last roll. Written by the arbiter."""
        words = self.words
        return self.read_consistent(
            Server.ROLL_SEQUENCE,
            lambda: Roll(
                RollState(words[Server.ROLL_STATE]),
                words[Server.ROLL_NUMBER],
                words[Server.ROLL_REPLACED],
                words[Server.ROLL_TOTAL],
                self.text(Server.ROLL_REASON),
            ),
        )

    @roll.setter
    def roll(self, roll: Roll) -> None:
        words = self.words
        with self.writing(Server.ROLL_SEQUENCE):
            self.set_text(Server.ROLL_REASON, roll.reason)
            words[Server.ROLL_STATE], words[Server.ROLL_NUMBER] = roll.state, roll.number
            words[Server.ROLL_REPLACED], words[Server.ROLL_TOTAL] = roll.replaced, roll.total

    @property
    def rolls(self) -> tuple[int, int]:
        """How many rolls were committed, and how many failed."""
        return self.words[Server.ROLLS_COMMITTED], self.words[Server.ROLLS_FAILED]

    def count_roll(self, *, committed: bool) -> None:
        """Count a roll that has ended. Called in the arbiter."""
        self.words[Server.ROLLS_COMMITTED if committed else Server.ROLLS_FAILED] += 1

    # --- words that belong together: a seqlock and text -----------------------------------

    def read_consistent(self, sequence: int, read: Callable[[], T]) -> T:
        """Return what ``read`` finds in words that the seqlock in word ``sequence`` guards.

        The word is odd while its writer changes them. A writer that lost the processor meanwhile
        is waited for, 0.2 s at most; if it was killed there, what it left is returned.
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
        """Guard a change of words by the seqlock in word ``sequence``. For their only writer."""
        self.words[sequence] += 1
        yield
        self.words[sequence] += 1

    def text(self, where: slice) -> str:
        """Return the text in the words ``where``."""
        return self.words[where].tobytes().rstrip(b"\0").decode(errors="ignore")

    def set_text(self, where: slice, text: str) -> None:
        """Write ``text`` into the words ``where``. What does not fit is cut off."""
        size = (where.stop - where.start) * WORD_BYTES
        data = text.encode(errors="replace")[:size].ljust(size, b"\0")
        self.words[where] = memoryview(data).cast("Q")

    # --- rows -------------------------------------------------------------------------------

    def row(self, seat: int) -> int:
        """Return the index of ``seat``'s first word."""
        return HEADER_WORDS + seat * ROW_WORDS

    def get(self, seat: int, word: int) -> int:
        return self.words[HEADER_WORDS + seat * ROW_WORDS + word]

    def set(self, seat: int, word: int, value: int) -> None:
        self.words[HEADER_WORDS + seat * ROW_WORDS + word] = value

    def clear(self, seat: int, generation: int, now: int) -> None:
        """Prepare ``seat`` for a process that is about to be forked at ``now`` (monotonic, ns)."""
        for word in WORD_NAMES:
            # GENERATION is never 0 again: that would mean that the seat was never used.
            self.set(seat, word, generation if word == Word.GENERATION else 0)
        self.set(seat, Word.STARTED, now)
        self.set(seat, Word.STATE, State.BOOTING)

    def state(self, seat: int) -> State:
        return State(self.get(seat, Word.STATE) & ~DEAF)

    def rows(self) -> Iterator[Row]:
        """Yield every seat that a process holds, in slot order."""
        for seat in range(self.capacity * SEATS_PER_SLOT):
            state = self.state(seat)
            if state is not State.GONE:
                words = {name: self.get(seat, word) for word, name in WORD_NAMES.items()}
                yield Row(seat // SEATS_PER_SLOT, seat, state, words)

    def used_slots(self) -> list[int]:
        """Return the slots that a process has held."""
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
        """Return the other seat of the slot if a process serves there that reads its inbox."""
        other = seat ^ 1
        return other if self.get(other, Word.STATE) == State.READY else None

    def has_deaf(self) -> bool:
        """Return whether a process serves that reads no inbox (a roll brought another class)."""
        seats = range(self.capacity * SEATS_PER_SLOT)
        return any(self.get(seat, Word.STATE) == State.READY | DEAF for seat in seats)

    def slots(self) -> Sequence[int]:
        """Return the slots in which a process is ready."""
        return [slot for slot in range(self.capacity) if self.seat_of_slot(slot) is not None]

    def beat(self, seat: int) -> None:
        """Note that the loop of the process in ``seat`` turns. Called in that process."""
        self.words[HEADER_WORDS + seat * ROW_WORDS + Word.BEAT] = time.monotonic_ns()

    def loads(self) -> dict[int, Load]:
        """Return how busy each ready process is, by seat.

        A process whose loop is stalled is left out: it would look idle, and serve nobody.
        """
        words, loads = self.words, {}
        oldest = time.monotonic_ns() - STALLED_NS
        for seat in range(self.capacity * SEATS_PER_SLOT):
            row = HEADER_WORDS + seat * ROW_WORDS
            if words[row + Word.STATE] == READY and words[row + Word.BEAT] > oldest:
                loads[seat] = Load(
                    words[row + Word.BUSY], words[row + Word.SESSIONS], words[row + Word.THREADS]
                )
        return loads

    def abandoned(self) -> Iterator[int]:
        """Yield the seats that a process has held and none holds now; one may be being forked."""
        for seat in range(self.capacity * SEATS_PER_SLOT):
            if self.get(seat, Word.GENERATION) and self.get(seat, Word.STATE) == State.GONE:
                yield seat

    def listening(self) -> bytes:
        """Return who reads the bus: a 64-bit number per seat, its process's generation or 0.

        This is one copy in C, because every message needs it.
        """
        return self.words[HEADER_WORDS + Word.BUS_LISTENS :: ROW_WORDS].tobytes()


def _is_board(memory: mmap.mmap) -> bool:
    if len(memory) < HEADER_WORDS * WORD_BYTES or len(memory) % WORD_BYTES:
        return False
    words = memoryview(memory).cast("Q")
    if words[Server.MAGIC] != MAGIC or words[Server.LAYOUT] != LAYOUT:
        return False
    return len(memory) == _size(words[Server.CAPACITY])


def _size(capacity: int) -> int:
    return (HEADER_WORDS + capacity * (SEATS_PER_SLOT + 1) * ROW_WORDS) * WORD_BYTES


def _map_new_file(path: Path, size: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(file, size)
        give_away(file, path.parent)
        return mmap.mmap(file, size)
    finally:
        os.close(file)
