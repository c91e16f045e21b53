"""The layout of the board: the index of every shared word. No I/O.

    words 0-127        the server; the arbiter writes them, except the control request
    words 128-...      a row of 64 words per seat; slot s has the seats 2s and 2s+1
    after the rows     the ledger, 64 words per slot: counts of processes that have exited

The words are plain ints, because adding an IntEnum member to a base costs 40 ns more and every
request does that several times; a plain class attribute costs 4 ns.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

SEATS_PER_SLOT: Final = 2

#: Version of this layout. A board with another version is not read.
LAYOUT_VERSION: Final = 5
BOARD_MAGIC: Final = int.from_bytes(b"gunclust", "big")

WORD_BYTES: Final = 8
HEADER_WORDS: Final = 128
ROW_WORDS: Final = 64

#: A process whose loop has not turned for this long is stalled. An idle loop turns each second.
STALLED_NS: Final = 3_000_000_000


class ServerWord:
    """The server's words. The arbiter writes them, except those that a command writes."""

    MAGIC: Final = 0
    LAYOUT: Final = 1
    CAPACITY: Final = 2  # slots
    ROW_WORDS: Final = 3
    MASTER_PID: Final = 4
    TARGET: Final = 5  # the wanted number of workers
    STOPPING: Final = 6  # 1: the whole server is stopping
    SLOWEST_TURN: Final = 7  # ns
    # The last roll, guarded by a seqlock.
    ROLL_STATE: Final = 8
    ROLL_NUMBER: Final = 9
    ROLL_REPLACED: Final = 10
    ROLL_TOTAL: Final = 11
    ROLL_SEQUENCE: Final = 12
    RECENT_EXITS: Final = 13  # unexpected exits that count towards cluster_restart_limit
    FAULTS: Final = 14  # failures in the arbiter that were contained
    ROLL_REASON: Final = slice(16, 48)  # text
    # The control request. A command writes its number, kind and argument.
    REQUEST_NUMBER: Final = 48  # never used twice
    REQUEST_KIND: Final = 49  # 0: the request was withdrawn or is being written; written last
    REQUEST_ARGUMENT: Final = 50  # signed
    REPLY_NUMBER: Final = 51  # the last request that has a reply; written last
    REPLY_OK: Final = 52
    REPLY_RESULT: Final = 53
    REPLY_TEXT: Final = slice(54, 64)  # text
    LEDGER_SEQUENCE: Final = 64
    ROLLS_COMMITTED: Final = 65
    ROLLS_FAILED: Final = 66


class Word:
    """The words of a row.

    The arbiter writes GENERATION (0: the seat was never used), STARTED (monotonic, ns), ORDER and
    RATE. The process writes the others, from its fork on.
    """

    STATE: Final = 0
    GENERATION: Final = 1
    STARTED: Final = 2
    PID: Final = 3
    BUSY: Final = 4  # requests in progress
    THREADS: Final = 5
    CONNECTIONS: Final = 6
    REQUESTS: Final = 7
    SESSIONS: Final = 8  # Engine.IO and learned sessions that began in this process
    HANDED_OUT: Final = 9
    HANDED_IN: Final = 10
    INBOX_FULL: Final = 11  # hand-offs refused because the owner's inbox was full
    TIMED_OUT: Final = 12  # request heads that were not complete in time
    ORDER: Final = 13
    MAX_REQUESTS: Final = 14  # the process is replaced after this many REQUESTS; 0: never
    CACHE_HITS: Final = 15
    CACHE_MISSES: Final = 16
    CACHE_ERRORS: Final = 17
    WEBSOCKETS: Final = 18  # open now
    BUS_LISTENS: Final = 19  # the generation while the process reads the bus, else 0
    BUS_SENT: Final = 20  # messages, counted once for each receiving worker
    BUS_RECEIVED: Final = 21
    BUS_LOST: Final = 22  # messages to workers that read too slowly
    SESSION_READS: Final = 23  # from the store
    SESSION_WRITES: Final = 24
    SESSION_ERRORS: Final = 25
    # Requests, by the kind of rule that found their owner.
    ROUTED_ENGINEIO: Final = 26
    ROUTED_COOKIE: Final = 27
    ROUTED_LEARN: Final = 28
    ROUTED_HASH_IP: Final = 29
    ROUTED_HASH_HEADER: Final = 30
    ROUTED_HASH_QUERY: Final = 31
    ROUTED_HASH_COOKIE: Final = 32
    ROUTED_HASH_PATH: Final = 33
    ROUTED_FUNCTION: Final = 34
    ROUTED_NONE: Final = 35  # no owner
    BEAT: Final = 36  # heartbeat: when the process's loop last turned (monotonic, ns)
    RATE: Final = 37  # requests per 1000 seconds, over the last few seconds


#: The names of the words above, by number.
WORD_NAMES: Final[dict[int, str]] = {
    number: name.lower() for name, number in vars(Word).items() if isinstance(number, int)
}


class ExitWord:
    """The words of a row that count how its processes exited.

    The arbiter writes them. They stay when the next process takes the seat.
    """

    COUNTS: Final = 41  # to 46: one word per Cause
    LAST_AT: Final = 47  # monotonic, ns
    SEQUENCE: Final = 48  # of the seqlock around LAST_AT and LAST_REASON
    LAST_REASON: Final = slice(49, 56)  # text


#: The words that a process counts up from 0. The ledger keeps the sums of processes that have
#: exited, so a slot's total never shrinks.
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
    *range(Word.ROUTED_ENGINEIO, Word.ROUTED_NONE + 1),
)

#: The word that counts the decisions of each kind of rule; the kinds as in ``cluster_sticky``.
DECISION_WORDS: Final = {
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


def decision_word(rule: str) -> int:
    """Return the word that counts the decisions of ``rule`` ("none": no rule found an owner)."""
    parts = rule.split(":")
    kind = ":".join(parts[:2]) if parts[0] == "hash" else parts[0]
    return DECISION_WORDS.get(kind, Word.ROUTED_FUNCTION)


class State(enum.IntEnum):
    """The state of the process in a seat."""

    GONE = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3  # finishes what is in progress, then exits
    PARKED = 4  # takes nothing new, but can be resumed: a roll may still fail


#: State.READY and State.GONE for code that every request runs.
READY: Final = int(State.READY)
GONE: Final = int(State.GONE)

#: Added to the state of a process that reads no inbox (gunicorn's own worker classes). Routing
#: compares whole words, so it never hands such a process anything, at no extra cost.
NO_INBOX: Final = 0x100


class Order(enum.IntEnum):
    """The arbiter's order to a process that is ready. (SIGTERM tells a process to retire.)"""

    SERVE = 0
    PARK = 1


class RollState(enum.IntEnum):
    """The state of the last roll."""

    NONE = 0
    ROLLING = 1
    OBSERVING = 2  # every worker is replaced; the new ones are on probation
    COMMITTED = 3
    FAILED = 4


class Roll(NamedTuple):
    """The last roll: how many of its workers are replaced, and why it failed, if it did."""

    state: RollState
    number: int
    replaced: int
    total: int
    reason: str


class Place(NamedTuple):
    """The place of a process: its slot, its seat on the board, its generation."""

    slot: int
    seat: int
    generation: int


class Cause(enum.IntEnum):
    """Why a process exited. The first three causes are unexpected."""

    BOOT = 0  # it exited before it was ready
    CRASH = 1  # it exited by itself or by a signal
    FORCE = 2  # the arbiter killed it: it hung, or used far too much memory
    ROLL = 3
    RECYCLE = 4  # a limit on requests, memory or age, or a failed health check
    REQUEST = 5  # a command or a signal asked for it
