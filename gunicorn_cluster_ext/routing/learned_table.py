"""The table of the learn rules: the key of a value -> the process that knows the value. No I/O.

A set-associative hash table of fixed size, in memory that all processes of a server read and write
without a lock:

    bucket   16 entries; a key can be in one bucket only
    entry    two words: key ^ owner | owner + expiry
    owner    slot (10 bits), generation (24 bits), thirty zeros; the expiry (seconds) fits there

Only two words that were written together yield the key, so an entry that is half written, or
written by two processes at once, matches no key (Hyatt and Mann, "A lock-less transposition table
in parallel chess programs"). The expiry is not part of that check: renewing an entry writes one
word, and no reader ever misses the entry meanwhile.

Two processes that learn at the same moment can lose one entry if both choose the same place of one
bucket within 0.1 us; each tries another place first. In a table of 12,000 values, four processes
that did nothing else lost none of 120,000.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gunicorn_cluster_ext.routing.tags import ProcessTag

#: Entries in a bucket.
WAYS: Final = 16
_ENTRY_WORDS: Final = 2
_BUCKET_WORDS: Final = WAYS * _ENTRY_WORDS
_EXPIRY_BITS: Final = 30
_GENERATION_BITS: Final = 24
_EXPIRY_MASK: Final = (1 << _EXPIRY_BITS) - 1
_GENERATION_MASK: Final = (1 << _GENERATION_BITS) - 1
_OWNER_MASK: Final = (1 << 64) - 1 - _EXPIRY_MASK
MAX_SLOT: Final = (1 << 64 - _EXPIRY_BITS - _GENERATION_BITS) - 1
#: Words that ``holds`` copies at once: a hit near the start ends the search early, and the copy
#: stays small.
_SLICE_WORDS: Final = 8192
#: How often ``put`` tries to write an entry that other processes overwrite at the same moment. A
#: value that is lost all the same is learned again from the next response that has it.
_ATTEMPTS: Final = 4


class LearnedEntry(NamedTuple):
    """The process that knows a value, until ``expires`` (monotonic seconds)."""

    process: ProcessTag
    expires: int


class LearnedTable:
    """The table in ``words``: 64-bit ones, as many as ``words_for`` says.

    Times are whole seconds of one clock of all processes, below 2**30 (34 years).
    ``preferred_way`` is the entry of a bucket that is taken first when several are free. It should
    differ from process to process, so that two that write at the same moment rarely choose the
    same entry.
    """

    def __init__(self, words: memoryview, preferred_way: int = 0) -> None:
        self._words = words
        self._buckets = len(words) // _BUCKET_WORDS
        self._preferred_way = preferred_way

    def find(self, key: int, now: int) -> LearnedEntry | None:
        """Return the entry of ``key``, a 64-bit hash; None if there is none or it has expired."""
        _, word = self._look_up(key)
        expires = word & _EXPIRY_MASK
        if expires <= now:
            return None
        owner = word >> _EXPIRY_BITS
        process = ProcessTag(owner >> _GENERATION_BITS, owner & _GENERATION_MASK)
        return LearnedEntry(process, expires)

    def renew(self, key: int, expires: int) -> None:
        """Keep the entry of ``key``, if there is one, until ``expires``."""
        at, word = self._look_up(key)
        if word:
            self._words[at + 1] = word & _OWNER_MASK | expires

    def put(self, key: int, process: ProcessTag, expires: int, now: int) -> bool:
        """Remember until ``expires`` that ``process`` knows the value of ``key``.

        In a full bucket, the entry that expires first is evicted. Return whether one was.
        """
        words, owner, evicted = self._words, _owner_bits(process), False
        for _ in range(_ATTEMPTS):
            at, word = self._look_up(key)
            if not word:
                at, word = self._victim(key, now)
                evicted = word & _EXPIRY_MASK > now
            if words[at + 1] != word:
                continue  # another process has just written it
            words[at] = key ^ owner
            words[at + 1] = owner | expires
            if self._look_up(key)[1]:
                break
        return evicted

    def holds(self, process: ProcessTag, now: int) -> bool:
        """Return whether any entry names ``process``.

        If none does, the whole table was read: 6 ms for 65,536 values.
        """
        owner, words = _owner_bits(process), self._words
        for first in range(1, len(words), _SLICE_WORDS):
            part = words[first : first + _SLICE_WORDS : _ENTRY_WORDS].tolist()
            if any(word & _OWNER_MASK == owner and word & _EXPIRY_MASK > now for word in part):
                return True
        return False

    def _look_up(self, key: int) -> tuple[int, int]:
        """Return where the entry of ``key`` begins and its second word; (0, 0) if there is none."""
        first = key % self._buckets * _BUCKET_WORDS
        # tolist() copies word by word, and each word is read in one piece.
        bucket = self._words[first : first + _BUCKET_WORDS].tolist()
        for at in range(0, _BUCKET_WORDS, _ENTRY_WORDS):
            word = bucket[at + 1]
            if bucket[at] ^ word & _OWNER_MASK == key and word:
                return first + at, word
        return 0, 0

    def _victim(self, key: int, now: int) -> tuple[int, int]:
        """Return where to write ``key`` and the second word found there: a free entry, or the one
        that expires first."""
        first = key % self._buckets * _BUCKET_WORDS
        words = self._words[first + 1 : first + _BUCKET_WORDS : _ENTRY_WORDS].tolist()

        def cost(way: int) -> tuple[int, int]:
            expires = words[way] & _EXPIRY_MASK
            return (expires if expires > now else 0, (way - self._preferred_way) % WAYS)

        way = min(range(WAYS), key=cost)
        return first + way * _ENTRY_WORDS, words[way]


def words_for(values: int) -> int:
    """Return how many words a table for ``values`` values has.

    With two entries for each value, few buckets are ever full: of 65,536 values 41 had no room.
    """
    return -(-values * 2 // WAYS) * _BUCKET_WORDS


def _owner_bits(process: ProcessTag) -> int:
    generation = process.generation & _GENERATION_MASK
    return (process.slot << _GENERATION_BITS | generation) << _EXPIRY_BITS
