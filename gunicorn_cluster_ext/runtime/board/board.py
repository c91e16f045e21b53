"""The board: shared memory of 64-bit words in which arbiter and workers say how they are.

    words 0-15         the server: magic, layout, capacity, words per row, master's pid,
                       workers wanted, whether the server stops, the roll
    words 16-47        why the last roll failed, as text
    words 48-63        wishes of the command line (wishes.py), and the crash budget
    words 64-66        whether the ledger is being written; rolls committed, and failed
    words 128-...      a row of 64 words per seat; slot s has the seats 2s and 2s+1. Those that
                       stay when the process goes are in restarts.py
    after the rows     the ledger, 64 words per slot: what its processes that are gone have counted

A slot has two *seats*, because two processes may hold it at once: the one that serves and
one that drains. One value per aligned word, one writer per word at any time: a reader sees
whole values without a lock (several words written by one ``pack_into`` tore in 3.7 % of
reads; single words in none of 4.2 million). Of several words that belong together a counter
says whether they are being changed (``together``). The arbiter writes a row while no process holds
the seat, the process from its fork to its end.

The memory is a file in a private directory, so that other processes of the same user can
look; where none can be made it is anonymous.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from gunicorn_cluster_ext.routing.load import Load
from gunicorn_cluster_ext.runtime.directory import give_away

T = TypeVar("T")

SEATS_PER_SLOT: Final = 2
#: A process whose loop has not gone round for so long (ns) stands still. An idle one's does each
#: second.
STILL: Final = 3_000_000_000
MAGIC: Final = int.from_bytes(b"gunclust", "big")
LAYOUT: Final = 4
_ROLL_CHANGES: Final = 12
_TEXT: Final = 16
_TEXT_END: Final = 48
_LEDGER_CHANGES: Final = 64
_COMMITTED: Final = 65
_FAILED: Final = 66
_HEADER: Final = 128
_ROW: Final = 64
_WORD: Final = 8


class State(enum.IntEnum):
    """What the process in a seat is doing."""

    GONE = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3  # it finishes what is in progress, and then goes
    PARKED = 4  # as long as a roll may fail: it takes nothing new, and can be resumed


#: Added to the state of a process that reads no inbox (gunicorn's own worker classes). Routing
#: compares whole words, so nothing is ever handed to it, and that costs no question.
DEAF: Final = 0x100


class Order(enum.IntEnum):
    """What the arbiter wants of a process that serves. (To go, it is sent SIGTERM.)"""

    SERVE = 0
    PARK = 1


class RollState(enum.IntEnum):
    """How the last roll stands."""

    NONE = 0
    ROLLING = 1
    OBSERVING = 2  # all are replaced, and must prove themselves
    COMMITTED = 3
    FAILED = 4


class Roll(NamedTuple):
    """The last roll: how many workers were replaced, of how many; and why, if it failed."""

    state: RollState
    number: int
    replaced: int
    total: int
    reason: str


class Word(enum.IntEnum):
    """The words of a row, by who writes them.

    Arbiter: GENERATION (0: the seat was never used), STARTED (monotonic, ns), ORDER, RATE.
    Process, from its fork on: the others.
    """

    STATE = 0
    GENERATION = 1
    STARTED = 2
    PID = 3
    BUSY = 4  # requests in progress
    THREADS = 5
    CONNECTIONS = 6
    REQUESTS = 7
    SESSIONS = 8  # Engine.IO sessions begun
    HANDED_OUT = 9
    HANDED_IN = 10
    INBOX_FULL = 11  # hand-offs refused because the owner's inbox was full
    TIMED_OUT = 12  # heads that did not end in time
    ORDER = 13
    MAX_REQUESTS = 14  # after so many REQUESTS it is to be replaced; 0: never
    CACHE_HITS = 15
    CACHE_MISSES = 16
    CACHE_ERRORS = 17
    WEBSOCKETS = 18  # open ones
    BUS_LISTENS = 19  # its generation, while it reads the bus; 0: nothing is sent to it
    BUS_SENT = 20  # messages, counted once for each worker that they went to
    BUS_RECEIVED = 21
    BUS_LOST = 22  # messages to workers that read too slowly
    SESSION_READS = 23  # of the store
    SESSION_WRITES = 24
    SESSION_ERRORS = 25
    RATE = 40  # requests in 1000 seconds, as it was in the last few
    # Requests by the kind of rule that found their owner.
    ROUTED_ENGINEIO = 26
    ROUTED_COOKIE = 27
    ROUTED_HASH_IP = 28
    ROUTED_HASH_HEADER = 29
    ROUTED_HASH_QUERY = 30
    ROUTED_NONE = 31  # anybody's
    ROUTED_HASH_COOKIE = 56
    ROUTED_HASH_PATH = 57
    ROUTED_FUNCTION = 58
    ROUTED_LEARN = 59
    BEAT = 60  # when its loop last went round (monotonic, ns)


#: What a process counts, from 0 on. The ledger adds up what those that are gone have counted, so
#: that a slot's sum never shrinks.
COUNTERS: Final = (
    Word.REQUESTS,
    Word.SESSIONS,
    Word.HANDED_OUT,
    Word.HANDED_IN,
    Word.INBOX_FULL,
    Word.TIMED_OUT,
    Word.CACHE_HITS,
    Word.CACHE_MISSES,
    Word.CACHE_ERRORS,
    Word.BUS_SENT,
    Word.BUS_RECEIVED,
    Word.BUS_LOST,
    Word.SESSION_READS,
    Word.SESSION_WRITES,
    Word.SESSION_ERRORS,
    Word.ROUTED_ENGINEIO,
    Word.ROUTED_COOKIE,
    Word.ROUTED_HASH_IP,
    Word.ROUTED_HASH_HEADER,
    Word.ROUTED_HASH_QUERY,
    Word.ROUTED_HASH_COOKIE,
    Word.ROUTED_HASH_PATH,
    Word.ROUTED_FUNCTION,
    Word.ROUTED_LEARN,
    Word.ROUTED_NONE,
)


#: The kinds of rules, as ``cluster_sticky`` has them.
ROUTED: Final = {
    "engineio": Word.ROUTED_ENGINEIO,
    "cookie": Word.ROUTED_COOKIE,
    "learn": Word.ROUTED_LEARN,
    "hash:ip": Word.ROUTED_HASH_IP,
    "hash:header": Word.ROUTED_HASH_HEADER,
    "hash:query": Word.ROUTED_HASH_QUERY,
    "hash:cookie": Word.ROUTED_HASH_COOKIE,
    "hash:path": Word.ROUTED_HASH_PATH,
    "function": Word.ROUTED_FUNCTION,
    "none": Word.ROUTED_NONE,
}


def counted_in(rule: str) -> int:
    """The word that counts what ``rule`` decides; "none" is for what no rule does."""
    parts = rule.split(":")
    kind = ":".join(parts[:2]) if parts[0] == "hash" else parts[0]
    return int(ROUTED.get(kind, Word.ROUTED_FUNCTION))


# Plain ints: adding an IntEnum member to a base costs 60 ns more, and this is the request path.
_STATE: Final = int(Word.STATE)
_GENERATION: Final = int(Word.GENERATION)
_BUSY: Final = int(Word.BUSY)
_THREADS: Final = int(Word.THREADS)
_SESSIONS: Final = int(Word.SESSIONS)
_BUS_LISTENS: Final = int(Word.BUS_LISTENS)
_BEAT: Final = int(Word.BEAT)
_READY: Final = int(State.READY)
_ALIVE: Final = (int(State.READY), int(State.DRAINING), int(State.PARKED))


class Row(NamedTuple):
    """A seat's words at one moment."""

    slot: int
    seat: int
    state: State
    words: dict[str, int]


class Board:
    """The words, as numbers. Implements ``routing.Roster``. Made by ``create`` or ``attach``."""

    def __init__(self, memory: mmap.mmap, path: Path | None = None) -> None:
        self._memory = memory
        self.path = path
        words = memoryview(memory).cast("Q")
        self.capacity = words[2]
        rows_end = _HEADER + self.capacity * SEATS_PER_SLOT * _ROW
        self.words, self._ledger = words[:rows_end], words[rows_end:]

    @classmethod
    def create(cls, capacity: int, path: Path | None = None) -> Board:
        """A new board for ``capacity`` slots, in the new file ``path`` or in anonymous memory.

        Called in the arbiter, before the first fork. Raises OSError when the file cannot be made.
        """
        size = _size(capacity)
        memory = mmap.mmap(-1, size) if path is None else _map_new_file(path, size)
        words = memoryview(memory).cast("Q")
        words[1], words[2], words[3], words[4] = LAYOUT, capacity, _ROW, os.getpid()
        words[0] = MAGIC
        words.release()
        return cls(memory, path)

    @classmethod
    def attach(cls, path: Path) -> Board:
        """Another server's board, to read. Raises OSError, or ValueError if it is none of ours."""
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not _is_board(memory):
            raise ValueError(f"{path} is no board of this version")
        return cls(memory, path)

    @property
    def master_pid(self) -> int:
        return self.words[4]

    @property
    def target(self) -> int:
        """How many workers the server wants. Written by the arbiter."""
        return self.words[5]

    @target.setter
    def target(self, value: int) -> None:
        self.words[5] = value

    @property
    def stopping(self) -> bool:
        """Whether the whole server ends. Written by the arbiter."""
        return bool(self.words[6])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.words[6] = value

    @property
    def slowest_turn(self) -> int:
        """The longest turn of the arbiter's loop so far, in ns, without its forks."""
        return self.words[7]

    @slowest_turn.setter
    def slowest_turn(self, value: int) -> None:
        self.words[7] = value

    @property
    def recent_exits(self) -> int:
        """Unexpected exits that count towards cluster_restart_limit. Written by the arbiter."""
        return self.words[54]

    @recent_exits.setter
    def recent_exits(self, value: int) -> None:
        self.words[54] = value

    @property
    def roll(self) -> Roll:
        """The last roll. Written by the arbiter."""
        words = self.words
        return self.together(
            _ROLL_CHANGES,
            lambda: Roll(
                RollState(words[8]), words[9], words[10], words[11], self.text(_TEXT, _TEXT_END)
            ),
        )

    @roll.setter
    def roll(self, roll: Roll) -> None:
        words = self.words
        with self.changing(_ROLL_CHANGES):
            self.set_text(_TEXT, _TEXT_END, roll.reason)
            words[8], words[9], words[10], words[11] = roll.state, *roll[1:4]

    # --- several words that belong together ---------------------------------------------

    def together(self, counter: int, read: Callable[[], T]) -> T:
        """What ``read`` finds in words that belong together, and not half of a change.

        The word ``counter`` is odd while they are being changed. A writer that lost the processor
        in it is waited for; should it never end, because the writer was stopped, what is there
        counts.
        """
        for _ in range(1_000):
            before = self.words[counter]
            found = read()
            if before % 2 == 0 and self.words[counter] == before:
                break
            time.sleep(0.0002)
        return found

    @contextmanager
    def changing(self, counter: int) -> Iterator[None]:
        """Words that belong together are changed in this block, by their only writer."""
        self.words[counter] += 1
        yield
        self.words[counter] += 1

    def text(self, begin: int, end: int) -> str:
        """The text in these words."""
        return self.words[begin:end].tobytes().rstrip(b"\0").decode(errors="ignore")

    def set_text(self, begin: int, end: int, text: str) -> None:
        """What does not fit is cut off."""
        size = (end - begin) * _WORD
        data = memoryview(text.encode(errors="replace")[:size].ljust(size, b"\0")).cast("Q")
        for index, word in enumerate(data, begin):
            self.words[index] = word

    def row(self, seat: int) -> int:
        """The index of ``seat``'s first word."""
        return _HEADER + seat * _ROW

    def get(self, seat: int, word: Word) -> int:
        return self.words[_HEADER + seat * _ROW + word]

    def set(self, seat: int, word: Word, value: int) -> None:
        self.words[_HEADER + seat * _ROW + word] = value

    def clear(self, seat: int, generation: int, now: int) -> None:
        """Prepare ``seat`` for a process that is about to be forked at ``now`` (monotonic, ns)."""
        for word in Word:
            # Never 0 again: then it would seem as if nobody had ever sat there.
            self.set(seat, word, generation if word is Word.GENERATION else 0)
        self.set(seat, Word.STARTED, now)
        self.set(seat, Word.STATE, State.BOOTING)

    # --- what is counted ----------------------------------------------------------------

    def enter(self, seat: int) -> None:
        """Enter what a process has counted, which is gone, in its slot's ledger.

        Called in the arbiter.
        """
        entry = seat // SEATS_PER_SLOT * _ROW
        with self.changing(_LEDGER_CHANGES):
            for word in COUNTERS:
                self._ledger[entry + word] += self.get(seat, word)
                self.set(seat, word, 0)

    def counted(self) -> list[dict[Word, int]]:
        """What the processes of each slot have counted since the server's start, by slot."""
        return self.together(_LEDGER_CHANGES, self._counted)

    def _counted(self) -> list[dict[Word, int]]:
        return [self._of_slot(slot) for slot in range(self.capacity)]

    def _of_slot(self, slot: int) -> dict[Word, int]:
        seat, entry = slot * SEATS_PER_SLOT, slot * _ROW
        return {
            word: self._ledger[entry + word] + self.get(seat, word) + self.get(seat + 1, word)
            for word in COUNTERS
        }

    def used_slots(self) -> list[int]:
        """The slots that a process has held."""
        first_seats = range(0, self.capacity * SEATS_PER_SLOT, SEATS_PER_SLOT)
        return [seat // SEATS_PER_SLOT for seat in first_seats if self.get(seat, Word.GENERATION)]

    @property
    def rolls(self) -> tuple[int, int]:
        """How many rolls were committed, and how many failed."""
        return self.words[_COMMITTED], self.words[_FAILED]

    def count_roll(self, *, committed: bool) -> None:
        """A roll has ended. Called in the arbiter."""
        self.words[_COMMITTED if committed else _FAILED] += 1

    def state(self, seat: int) -> State:
        return State(self.get(seat, Word.STATE) & ~DEAF)

    # --- routing.Roster: read by every worker for every routed request -----------------

    def serving(self, slot: int) -> int | None:
        """The seat of the newest process of ``slot`` that is ready."""
        if slot >= self.capacity:
            return None
        words, seat = self.words, slot * SEATS_PER_SLOT
        row = _HEADER + seat * _ROW
        first = words[row + _STATE] == _READY
        second = words[row + _ROW + _STATE] == _READY
        if first and second:
            return seat + (words[row + _ROW + _GENERATION] > words[row + _GENERATION])
        return seat if first else seat + 1 if second else None

    def process(self, slot: int, generation: int) -> int | None:
        """The seat where that very process serves, drains or is parked."""
        if slot >= self.capacity:
            return None
        seat = slot * SEATS_PER_SLOT
        for candidate in (seat, seat + 1):
            row = _HEADER + candidate * _ROW
            if self.words[row + _GENERATION] == generation:
                alive = self.words[row + _STATE] in _ALIVE
                return candidate if alive else None
        return None

    def successor(self, seat: int) -> int | None:
        """The other seat of ``seat``'s slot, if a process serves there that reads its inbox."""
        other = seat ^ 1
        return other if self.get(other, Word.STATE) == State.READY else None

    def has_deaf(self) -> bool:
        """Whether processes serve that read no inbox: a roll has brought another worker class."""
        seats = range(self.capacity * SEATS_PER_SLOT)
        return any(self.get(seat, Word.STATE) == State.READY | DEAF for seat in seats)

    def slots(self) -> Sequence[int]:
        """The slots in which a process is ready."""
        return [slot for slot in range(self.capacity) if self.serving(slot) is not None]

    def beat(self, seat: int) -> None:
        """The loop of the process in ``seat`` goes round. Called in that process."""
        self.words[_HEADER + seat * _ROW + _BEAT] = time.monotonic_ns()

    def loads(self) -> dict[int, Load]:
        """How busy each ready process is, by seat.

        Without those whose loop stands still: they would look idle, and serve nobody.
        """
        words, loads = self.words, {}
        oldest = time.monotonic_ns() - STILL
        for seat in range(self.capacity * SEATS_PER_SLOT):
            row = _HEADER + seat * _ROW
            if words[row + _STATE] == _READY and words[row + _BEAT] > oldest:
                loads[seat] = Load(
                    words[row + _BUSY], words[row + _SESSIONS], words[row + _THREADS]
                )
        return loads

    def abandoned(self) -> Iterator[int]:
        """The seats that a process has held and none holds now; one may be on its way."""
        for seat in range(self.capacity * SEATS_PER_SLOT):
            if self.get(seat, Word.GENERATION) and self.get(seat, Word.STATE) == State.GONE:
                yield seat

    def listening(self) -> bytes:
        """Who reads the bus: a number for each seat, its process's generation or 0.

        One copy in C, because every message asks.
        """
        return self.words[_HEADER + _BUS_LISTENS :: _ROW].tobytes()

    # --- for people ---------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """Every seat that a process holds, in slot order."""
        for seat in range(self.capacity * SEATS_PER_SLOT):
            state = self.state(seat)
            if state is not State.GONE:
                words = {word.name.lower(): self.get(seat, word) for word in Word}
                yield Row(seat // SEATS_PER_SLOT, seat, state, words)


def _is_board(memory: mmap.mmap) -> bool:
    if len(memory) < _HEADER * _WORD or len(memory) % _WORD:
        return False
    words = memoryview(memory).cast("Q")
    return words[0] == MAGIC and words[1] == LAYOUT and len(memory) == _size(words[2])


def _size(capacity: int) -> int:
    return (_HEADER + capacity * (SEATS_PER_SLOT + 1) * _ROW) * _WORD


def _map_new_file(path: Path, size: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(file, size)
        give_away(file, path.parent)
        return mmap.mmap(file, size)
    finally:
        os.close(file)
