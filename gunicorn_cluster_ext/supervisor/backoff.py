"""How soon a worker that died is replaced. No I/O; the caller passes ``now``.

Per slot there is a *backoff*: each unexpected exit doubles the delay, until a process has served
for ``min_uptime``. Over all slots there is a *budget*: so many unexpected exits in a window.

The two must agree: a backoff alone keeps a single slot below any budget (systemd's trap), so a
server in which every slot waits the longest delay has spent its budget as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gunicorn_cluster_ext.settings import Settings

#: The share by which delays vary at random, or all slots would crash, and boot, together.
JITTER = 0.2


@dataclass(frozen=True)
class RestartPolicy:
    """Times in seconds. ``limit`` exits are allowed in ``window``, any number if it is 0.

    ``halt``: a server that has spent its budget ends.
    """

    delay: float
    delay_max: float
    min_uptime: float
    limit: int
    window: float
    halt: bool

    @classmethod
    def of(cls, settings: Settings) -> RestartPolicy:
        limit, window = settings.restart_limit or (0, 0.0)
        return cls(
            delay=settings.restart_delay,
            delay_max=settings.restart_delay_max,
            min_uptime=settings.min_uptime,
            limit=limit,
            window=window,
            halt=settings.restart_policy == "halt",
        )


@dataclass
class _Backoff:
    failures: int = 0
    last: float = 0.0
    not_before: float = 0.0
    longest: bool = False


@dataclass
class RestartLimits:
    """What unexpected exits have cost so far. ``random`` is uniform in [0, 1)."""

    policy: RestartPolicy
    random: Callable[[], float]
    _slots: dict[int, _Backoff] = field(default_factory=dict)
    _exits: deque[float] = field(default_factory=deque)

    def note_failure(self, slot: int, served: float | None, now: float) -> float:
        """Count an unexpected exit. Return for how many seconds the replacement waits.

        ``served``: for how many seconds the process was ready; None if it never was. The first
        exit after ``min_uptime`` is replaced at once.
        """
        self._exits.append(now)
        self.recent_exits(now)  # drops those that are too old
        backoff = self._slots.setdefault(slot, _Backoff())
        if served is not None and served >= self.policy.min_uptime:
            backoff.failures, backoff.longest, delay = 0, False, 0.0
        else:
            delay = self._delay(backoff, now)
            backoff.failures += 1
        backoff.last, backoff.not_before = now, now + delay
        return delay

    def note_finished(self, slot: int, served: float | None, now: float) -> None:
        """Record an expected exit.

        It resets the slot's backoff if the process was ready for ``min_uptime`` since the last
        failure.
        """
        backoff = self._slots.get(slot)
        if backoff is None or served is None or served < self.policy.min_uptime:
            return
        if now - served >= backoff.last:
            del self._slots[slot]

    def _delay(self, backoff: _Backoff, now: float) -> float:
        policy = self.policy
        # A float has no room for many more doublings, and the delay is the longest long before.
        nominal = policy.delay * 2.0 ** min(backoff.failures, 60)
        backoff.longest = nominal >= policy.delay_max or self.is_spent(now)
        if self.is_spent(now):
            return policy.delay_max
        return min(policy.delay_max, nominal * (1 + JITTER * (2 * self.random() - 1)))

    def not_before(self, slot: int) -> float:
        """Return when ``slot`` may have its next process."""
        backoff = self._slots.get(slot)
        return 0.0 if backoff is None else backoff.not_before

    def reset(self) -> None:
        """Forget every failure, because there is new code."""
        self._slots.clear()
        self._exits.clear()

    def recent_exits(self, now: float) -> int:
        """Return the number of unexpected exits in the window."""
        while self._exits and self._exits[0] <= now - self.policy.window:
            self._exits.popleft()
        return len(self._exits)

    def is_spent(self, now: float) -> bool:
        """Return whether there were more unexpected exits than the budget allows."""
        return 0 < self.policy.limit < self.recent_exits(now)

    def halt_reason(self, target: int, now: float) -> str:
        """Return why the server, of which ``target`` workers are wanted, is to end; or ""."""
        policy = self.policy
        if not policy.halt or not policy.limit:
            return ""
        if self.is_spent(now):
            return f"{self.recent_exits(now)} workers ended unexpectedly within {policy.window:g} s"
        waiting = [self._slots.get(slot) for slot in range(target)]
        if target and all(each and each.longest and each.not_before > now for each in waiting):
            return "every worker keeps failing"
        return ""
