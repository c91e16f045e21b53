"""How soon a worker that died is replaced. No I/O; the caller passes ``now``.

Per slot a *backoff*: each unexpected exit doubles the delay, until a process has served for
``min_uptime``. Over the cluster a *budget*: so many unexpected exits in so many seconds.

The two agree: a backoff alone keeps a single slot below any budget (systemd's trap), so a
cluster in which every slot waits the longest delay has spent its budget as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

#: Delays vary by so much, or all slots would crash, and boot, together.
JITTER = 0.2


@dataclass(frozen=True)
class RestartPolicy:
    """Seconds, except for ``limit``: exits in ``window`` (0: any number); ``halt`` or go on."""

    delay: float
    delay_max: float
    min_uptime: float
    limit: int
    window: float
    halt: bool


@dataclass
class _Backoff:
    failures: int = 0
    last: float = 0.0
    not_before: float = 0.0
    longest: bool = False


@dataclass
class Limits:
    """What unexpected exits have cost so far. ``random`` is uniform in [0, 1)."""

    policy: RestartPolicy
    random: Callable[[], float]
    _slots: dict[int, _Backoff] = field(default_factory=dict)
    _exits: deque[float] = field(default_factory=deque)

    def failed(self, slot: int, served: float | None, now: float) -> float:
        """A process of ``slot`` ended unexpectedly. Returns how long its replacement waits.

        ``served`` is for how long it was ready; None if it never was. The first exit after
        ``min_uptime`` is replaced at once.
        """
        self._exits.append(now)
        self.used(now)  # drops those that are too old
        backoff = self._slots.setdefault(slot, _Backoff())
        if served is not None and served >= self.policy.min_uptime:
            backoff.failures, backoff.longest, delay = 0, False, 0.0
        else:
            delay = self._delay(backoff, now)
            backoff.failures += 1
        backoff.last, backoff.not_before = now, now + delay
        return delay

    def finished(self, slot: int, served: float | None, now: float) -> None:
        """A process of ``slot`` ended as it should.

        If it was ready for ``min_uptime`` after the last that failed, all is forgotten.
        """
        backoff = self._slots.get(slot)
        if backoff is None or served is None or served < self.policy.min_uptime:
            return
        if now - served >= backoff.last:
            del self._slots[slot]

    def _delay(self, backoff: _Backoff, now: float) -> float:
        policy = self.policy
        # More doublings than floats have room for are no longer delay than the longest.
        nominal = policy.delay * 2.0 ** min(backoff.failures, 60)
        backoff.longest = nominal >= policy.delay_max or self.exhausted(now)
        if self.exhausted(now):
            return policy.delay_max
        return min(policy.delay_max, nominal * (1 + JITTER * (2 * self.random() - 1)))

    def not_before(self, slot: int) -> float:
        """When ``slot`` may have its next process."""
        backoff = self._slots.get(slot)
        return 0.0 if backoff is None else backoff.not_before

    def forgive(self) -> None:
        """Forget everything: there is new code."""
        self._slots.clear()
        self._exits.clear()

    def used(self, now: float) -> int:
        """How many unexpected exits the window holds."""
        while self._exits and self._exits[0] <= now - self.policy.window:
            self._exits.popleft()
        return len(self._exits)

    def exhausted(self, now: float) -> bool:
        """Whether the budget is spent."""
        return 0 < self.policy.limit < self.used(now)

    def halts(self, slots: int, now: float) -> str:
        """Why the server is to end, if it is; ``slots`` are wanted."""
        policy = self.policy
        if not policy.halt or not policy.limit:
            return ""
        if self.exhausted(now):
            return f"{self.used(now)} workers ended unexpectedly within {policy.window:g} s"
        waiting = [self._slots.get(slot) for slot in range(slots)]
        if slots and all(each and each.longest and each.not_before > now for each in waiting):
            return "every worker ends again and again"
        return ""
