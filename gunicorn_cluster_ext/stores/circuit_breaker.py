"""A circuit breaker: calls to a store that does not answer fail at once. No I/O.

CLOSED  --- several calls in a row fail --->  OPEN: every call fails at once
  ^                                             |  after a pause
  |                                             v
  `------- it succeeds ----------------------  one call is the probe; the others still fail
                                               (it fails: OPEN again)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Breaker:
    """Opens after ``failures`` failures in a row, for ``pause_s`` seconds.

    A probe that has neither succeeded nor failed after ``probe_timeout_s`` seconds (its task was
    cancelled, its thread killed) is given up, and another call becomes the probe. The defaults
    bound what an outage costs: three slow calls, then one probe in half a second.
    """

    failures: int = 3
    pause_s: float = 0.5
    probe_timeout_s: float = 5.0
    _failed: int = 0
    _retry_at: float = 0.0

    @property
    def is_closed(self) -> bool:
        return self._failed < self.failures

    def admits(self, now: float) -> bool:
        """Return whether this call may be made. While open, an admitted call is the probe."""
        if self.is_closed:
            return True
        if now < self._retry_at:
            return False
        self._retry_at = now + self.probe_timeout_s
        return True

    def succeeded(self) -> None:
        """Close, because a call was answered."""
        self._failed = 0

    def failed(self, now: float) -> None:
        """Count a call that was not answered."""
        self._failed = min(self._failed + 1, self.failures)
        self._retry_at = now + self.pause_s
