"""What the learn rules remember, in memory that all workers of a server share.

The arbiter makes it before a fork, when there is a learn rule. Values are not kept, only a keyed
hash of 64 bits: clients choose values, and must not be able to choose where they meet.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from hashlib import blake2b
from typing import Final

from gunicorn_cluster_ext.logs import ThrottledLog
from gunicorn_cluster_ext.routing.learned_table import LearnedTable, words_for
from gunicorn_cluster_ext.routing.tags import ProcessTag

#: An entry is renewed when this part of its time has passed, so that few uses write.
_PART: Final = 16
_WORD: Final = 8
#: How old the answer to a question that takes milliseconds may be.
_HELD_S: Final = 1.0


class LearnedSessions:
    """For ``size`` values at most, each for ``ttl`` seconds after its last use."""

    def __init__(self, size: int, ttl: float) -> None:
        """Called in the arbiter."""
        self.ttl = ttl
        self._words = memoryview(mmap.mmap(-1, words_for(size) * _WORD)).cast("Q")
        self._secret = os.urandom(32)
        # Between the threads of one process. Processes do not wait for each other.
        self._writing = threading.Lock()
        self._complain = ThrottledLog()

    def join(self, process: ProcessTag, seat: int) -> None:
        """What is learned from now on, ``process`` knows. Called in the worker."""
        self._process = process
        self._table = LearnedTable(self._words, preferred_way=seat)
        self._held = (0.0, False)

    def recall(self, rule: str, value: bytes) -> ProcessTag | None:
        """The process that knows ``value``. To ask is to use it."""
        return self._recall(self._key(rule, value), time.monotonic())

    def learn(self, rule: str, value: bytes) -> bool:
        """This process knows ``value``. Returns whether that is news."""
        key, now = self._key(rule, value), time.monotonic()
        if self._recall(key, now) == self._process:
            return False
        with self._writing:
            lost = self._table.put(key, self._process, self._expiry(now), int(now))
        if lost:
            self._complain(
                LearnTableFull("cluster_learn_size is too small: a session was forgotten")
            )
        return True

    def has_own_sessions(self) -> bool:
        """Whether this process knows a value that is still remembered, or did a second ago."""
        now = time.monotonic()
        asked, held = self._held
        if now - asked >= _HELD_S:
            held = self._table.holds(self._process, int(now))
            self._held = (now, held)
        return held

    def _recall(self, key: int, now: float) -> ProcessTag | None:
        entry = self._table.find(key, int(now))
        if entry is None:
            return None
        expiry = self._expiry(now)
        if expiry - entry.expires > self.ttl / _PART:
            with self._writing:
                self._table.renew(key, expiry)
        return entry.process

    def _expiry(self, now: float) -> int:
        """In whole seconds; rather a second too late."""
        return int(now + self.ttl) + 1

    def _key(self, rule: str, value: bytes) -> int:
        text = b"%s\0%s" % (rule.encode(), value)  # no rule contains a zero byte
        return int.from_bytes(blake2b(text, digest_size=_WORD, key=self._secret).digest(), "little")


class LearnTableFull(Exception):
    """A value that was in use had to go for another."""
