"""What was learned: the key of a value -> the process that knows the value. No I/O.

A table of fixed size in memory that all processes of a server read and write without a lock:

    bucket   16 entries; a key can stand in one bucket only
    entry    two words: key ^ owner | owner + expiry
    owner    slot (10 bits), generation (24 bits), thirty zeros; the expiry (seconds) fits there

Only a pair that belongs together gives its key back, so one that is half written, or written by
two at once, is nobody's entry (Hyatt and Mann, "A lock-less transposition table in parallel
chess programs"). The expiry is not part of that: an entry is renewed by writing one word, and no
reader ever misses it meanwhile.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gunicorn_cluster_ext.routing.tags import ProcessTag

#: Entries in a bucket.
WAYS: Final = 16
_STEP: Final = 2
_BUCKET: Final = WAYS * _STEP
_EXPIRY_BITS: Final = 30
_GENERATION_BITS: Final = 24
_EXPIRY: Final = (1 << _EXPIRY_BITS) - 1
_GENERATION: Final = (1 << _GENERATION_BITS) - 1
_OWNER: Final = (1 << 64) - 1 - _EXPIRY
#: So many words are looked at before what was found is judged.
_SLICE: Final = 8192
#: How often an entry is written that others wrote over at the same moment.
_ATTEMPTS: Final = 4

MAX_SLOT: Final = (1 << 64 - _EXPIRY_BITS - _GENERATION_BITS) - 1


class Entry(NamedTuple):
    """Who knows a value, and until when (monotonic seconds) that is kept."""

    process: ProcessTag
    expires: int


class Table:
    """The table in ``words``: 64-bit ones, as many as ``words_for`` says.

    Times are whole seconds of one clock of all processes, below 2**30 (34 years). ``favourite`` is
    the entry of a bucket that is taken first when several are free: if it differs from process
    to process, two that write at the same moment hardly ever choose the same.
    """

    def __init__(self, words: memoryview, favourite: int = 0) -> None:
        self._words = words
        self._buckets = len(words) // _BUCKET
        self._favourite = favourite

    def find(self, key: int, now: int) -> Entry | None:
        """The entry of ``key``, a 64-bit hash; None when there is none, or it has expired."""
        _, word = self._look(key)
        expires = word & _EXPIRY
        return Entry(_process(word), expires) if expires > now else None

    def renew(self, key: int, expires: int) -> None:
        """Keep the entry of ``key``, if there is one, until ``expires``."""
        at, word = self._look(key)
        if word:
            self._words[at + 1] = word & _OWNER | expires

    def put(self, key: int, process: ProcessTag, expires: int, now: int) -> bool:
        """Remember until ``expires`` that ``process`` knows the value of ``key``.

        In a full bucket, the entry goes that would expire first. Returns whether one had to go.
        """
        words, owner, lost = self._words, _owner(process), False
        for _ in range(_ATTEMPTS):
            at, word = self._look(key)
            if not word:
                at, word = self._cheapest(key, now)
                lost = word & _EXPIRY > now
            if words[at + 1] != word:
                continue  # another process has just taken it
            words[at] = key ^ owner
            words[at + 1] = owner | expires
            if self._look(key)[1]:
                break
        return lost

    def holds(self, process: ProcessTag, now: int) -> bool:
        """Whether ``process`` knows a value. If not, the whole table was looked at: 6 ms for 65,536
        values."""
        owner, words = _owner(process), self._words
        for first in range(1, len(words), _SLICE):
            part = words[first : first + _SLICE : _STEP].tolist()
            if any(word & _OWNER == owner and word & _EXPIRY > now for word in part):
                return True
        return False

    def _look(self, key: int) -> tuple[int, int]:
        """Where ``key`` stands, and its second word, which is 0 when it stands nowhere."""
        first = key % self._buckets * _BUCKET
        bucket = self._words[first : first + _BUCKET].tolist()  # word by word, each of them whole
        for at in range(0, _BUCKET, _STEP):
            word = bucket[at + 1]
            if bucket[at] ^ word & _OWNER == key and word:
                return first + at, word
        return 0, 0

    def _cheapest(self, key: int, now: int) -> tuple[int, int]:
        """Where to write ``key``: where nothing stands, or what would expire first. And what
        stands there as second word."""
        first = key % self._buckets * _BUCKET
        words = self._words[first + 1 : first + _BUCKET : _STEP].tolist()

        def cost(way: int) -> tuple[int, int]:
            expires = words[way] & _EXPIRY
            return (expires if expires > now else 0, (way - self._favourite) % WAYS)

        way = min(range(WAYS), key=cost)
        return first + way * _STEP, words[way]


def words_for(values: int) -> int:
    """How many words a table for that many values has.

    With two entries for each, hardly a bucket is full: of 65,536 values 41 had no room.
    """
    return -(-values * 2 // WAYS) * _BUCKET


def _owner(process: ProcessTag) -> int:
    generation = process.generation & _GENERATION
    return (process.slot << _GENERATION_BITS | generation) << _EXPIRY_BITS


def _process(word: int) -> ProcessTag:
    owner = word >> _EXPIRY_BITS
    return ProcessTag(owner >> _GENERATION_BITS, owner & _GENERATION)
