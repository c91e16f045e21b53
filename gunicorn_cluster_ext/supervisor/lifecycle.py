"""What happens to workers, and what follows from it. No I/O; the caller passes ``now``.

The arbiter reports (``seat``, ``saw``, ``ended``, ``blame``, ``unhealthy``, ``recycle``) and asks
at each ``turn`` what to do. Each answer is a list of actions, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.layout import State
from gunicorn_cluster_ext.supervisor.actions import Abort, Action, Kill, RollPolicy
from gunicorn_cluster_ext.supervisor.backoff import Limits, RestartPolicy
from gunicorn_cluster_ext.supervisor.exits import ASKED, Exit
from gunicorn_cluster_ext.supervisor.rolling import Replacer
from gunicorn_cluster_ext.supervisor.slots import Process, Role, SlotTable


class Verdict(NamedTuple):
    """What is to be said of an exit. ``delay``: until a replacement comes, if there is one due.

    ``halt`` is the exit code with which the whole server is to end, or 0.
    """

    words: str
    expected: bool
    delay: float
    halt: int
    actions: list[Action]


class Supervisor:
    """All workers of one server."""

    def __init__(self, capacity: int, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self.table = SlotTable(capacity)
        self.limits = Limits(policy, random)
        self.replacer = Replacer(self.table, self.limits)
        self.has_served = False

    def seat(self, key: int, slot: int, now: float) -> Process:
        """A process is about to be forked for ``slot``."""
        return self.table.seat(key, slot, self.replacer.version, now)

    def saw(self, process: Process, state: State, now: float) -> None:
        """A process says that its state is ``state``."""
        self.table.saw(process, state, now)
        self.has_served = self.has_served or process.ready is not None
        if state is State.DRAINING and process.told is None:
            process.told, process.why = now, ASKED
            self.table.change(process, Role.LEAVING)

    def ended(self, key: int, exit: Exit, now: float) -> Verdict | None:
        """A process was reaped; None if it had no slot."""
        process = self.table.leave(key)
        if process is None:
            return None
        words = exit.words(process, now)
        served = None if process.ready is None else now - process.ready
        if exit.is_expected(process):
            self.limits.finished(process.place.slot, served, now)
            return Verdict(words, True, 0.0, 0, [])
        actions = self.replacer.failed(process, words, now)
        delay = self.limits.failed(process.place.slot, served, now)
        halt = exit.code or 0 if exit.failed_to_boot and not self.has_served else 0
        return Verdict(words, False, delay, halt, actions)

    def blame(self, process: Process, reason: str, now: float) -> list[Action]:
        """``process`` hangs, and is ended by force."""
        if process.blamed:
            return []
        process.blamed, process.told = reason, now
        return [Abort(process, reason), *self.replacer.failed(process, reason, now)]

    def kill(self, process: Process, reason: str, now: float) -> list[Action]:
        """``process`` is to end at once."""
        actions = self.blame(process, reason, now)[1:]
        process.killed = True
        return [Kill(process, reason), *actions]

    def unhealthy(self, process: Process, reason: str, now: float) -> list[Action]:
        """``process`` has failed too many health checks."""
        actions = self.replacer.failed(process, reason, now)
        if process.role is Role.NEXT:
            self.limits.failed(process.place.slot, None, now)
            return [*actions, *self.replacer.tell(process, reason, now)]
        self.replacer.want(process, reason, now)
        return actions

    def recycle(self, process: Process, why: str, now: float) -> None:
        """``process`` is to be replaced by a fresh one."""
        self.replacer.want(process, why, now)

    def turn(self, policy: RollPolicy, now: float) -> list[Action]:
        """What is to be done now.

        Nothing is planned in a turn that may end a roll: the policy can be another after that.
        """
        late = [each for each in self.table if self._boots_too_long(each, policy, now)]
        reason = f"did not become ready within {policy.startup:g} s (cluster_startup_timeout)"
        blamed = [action for each in late for action in self.blame(each, reason, now)]
        return blamed or self.replacer.plan(policy, now)

    def _boots_too_long(self, process: Process, policy: RollPolicy, now: float) -> bool:
        is_booting = process.ready is None and process.told is None
        return bool(policy.startup) and is_booting and now - process.forked > policy.startup

    def is_settled(self, target: int) -> bool:
        """Whether nothing is under way that a turn must look at soon."""
        roll = self.replacer.roll
        if roll is not None and roll.is_active:
            return False
        roles = {each.role for each in self.table}
        serving = self.table.serving()
        return Role.NEXT not in roles and serving == self.table.count(Role.CURRENT) == target
