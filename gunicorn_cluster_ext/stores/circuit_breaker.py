"""When a store is not even asked any more. No I/O; the caller passes ``now``.

How it goes::

    CLOSED  --- some calls in a row fail --->  OPEN: every call fails at once
      ^                                          |  after a pause
      |                                          v
      `------- it succeeds ----------------  one call probes; the others still fail at once
                                             (it fails: OPEN again)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Breaker:
    """``failures`` in a row open it, for ``pause`` seconds. A probe that gives no sign of life
    for ``patience`` seconds (its task was cancelled, its thread killed) makes way for another."""

    failures: int = 3
    pause: float = 0.5
    patience: float = 5.0
    _failed: int = 0
    _retry_at: float = 0.0

    @property
    def is_closed(self) -> bool:
        return self._failed < self.failures

    def admits(self, now: float) -> bool:
        """Whether this call may be made. While open, whoever is told so makes the probe."""
        if self.is_closed:
            return True
        if now < self._retry_at:
            return False
        self._retry_at = now + self.patience
        return True

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self, now: float) -> None:
        """A call was not answered."""
        self._failed = min(self._failed + 1, self.failures)
        self._retry_at = now + self.pause
