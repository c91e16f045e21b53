"""The sessions that the learn rules have learned, in memory that all workers of a server share.

The arbiter makes it before a fork, if there is a learn rule. It keeps no values, only their keyed
64-bit hashes: clients choose values, and must not be able to choose values that collide.

A lookup takes 2 to 4 us, most of it hashing. Among 65,536 values an unknown one is taken for a
known one once in 3e14 times; its request then reaches a worker that knows neither.
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

#: A use renews an entry after this fraction of its lifetime, so that few uses write.
_RENEW_AFTER: Final = 1 / 16
_WORD_BYTES: Final = 8
#: ``has_own_sessions`` takes milliseconds, so its result is reused for this long.
_OWN_SESSIONS_S: Final = 1.0


class LearnedSessions:
    """Which process has the session of a value, for each value until ``ttl`` s after its last use.

    The arbiter makes it, with room for ``size`` values; the workers use it.
    """

    def __init__(self, size: int, ttl: float) -> None:
        self.ttl = ttl
        self._words = memoryview(mmap.mmap(-1, words_for(size) * _WORD_BYTES)).cast("Q")
        self._secret = os.urandom(32)
        # It serializes the threads of one process. Processes do not wait for each other.
        self._writing = threading.Lock()
        self._warn = ThrottledLog()

    def join(self, process: ProcessTag, seat: int) -> None:
        """Make this process ``process``, whose sessions ``learn`` learns. The worker calls this."""
        self._process = process
        self._table = LearnedTable(self._words, preferred_way=seat)
        self._own_sessions = (0.0, False)  # when this was found out, and the result

    def recall(self, rule: str, value: bytes) -> ProcessTag | None:
        """Return the process that has the session of ``value``, or None. This is a use of it."""
        return self._recall(self._key(rule, value), time.monotonic())

    def learn(self, rule: str, value: bytes) -> bool:
        """Learn that this process has the session of ``value``. Return whether that is new."""
        key, now = self._key(rule, value), time.monotonic()
        if self._recall(key, now) == self._process:
            return False
        with self._writing:
            lost = self._table.put(key, self._process, self._expiry(now), int(now))
        if lost:
            self._warn("cluster_learn_size is too small: a session was forgotten")
        return True

    def has_own_sessions(self) -> bool:
        """Return whether this process has learned sessions, or had some up to a second ago."""
        now = time.monotonic()
        found_at, found = self._own_sessions
        if now - found_at >= _OWN_SESSIONS_S:
            found = self._table.holds(self._process, int(now))
            self._own_sessions = (now, found)
        return found

    def _recall(self, key: int, now: float) -> ProcessTag | None:
        entry = self._table.find(key, int(now))
        if entry is None:
            return None
        expiry = self._expiry(now)
        if expiry - entry.expires > self.ttl * _RENEW_AFTER:
            with self._writing:
                self._table.renew(key, expiry)
        return entry.process

    def _expiry(self, now: float) -> int:
        """Return when a value used ``now`` expires, in whole seconds, at most a second too late."""
        return int(now + self.ttl) + 1

    def _key(self, rule: str, value: bytes) -> int:
        text = b"%s\0%s" % (rule.encode(), value)  # no rule contains a zero byte
        return int.from_bytes(
            blake2b(text, digest_size=_WORD_BYTES, key=self._secret).digest(), "little"
        )
