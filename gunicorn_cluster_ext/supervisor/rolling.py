"""Replacing workers: what to do next, given which processes there are. No I/O.

The caller passes ``now``. Every replacement is the same machine. A process that is *due* (all of
them in a roll; otherwise one that has served its requests, uses too much memory or is unhealthy)
stays until its successor in the same slot serves; only with ``surge`` 0 is it retired first.
``surge`` and ``unavailable`` mean what Kubernetes means by maxSurge and maxUnavailable: retired
and parked processes do not count. With ``surge`` 0, for tight memory, retired processes do.

    roll   ROLLING --all replaced--> OBSERVING --observe seconds--> COMMITTED
              `----- a new process fails -----'--------> FAILED: the new ones that have not
                     taken over are retired; with ``full`` the replaced ones are resumed
"""

from __future__ import annotations

from collections.abc import Iterator

from gunicorn_cluster_ext.runtime.board.layout import RollState, State
from gunicorn_cluster_ext.supervisor.actions import (
    Action,
    Kill,
    Park,
    Resume,
    Retire,
    RollEnded,
    RollPolicy,
    RollProgress,
    Spawn,
)
from gunicorn_cluster_ext.supervisor.backoff import RestartLimits
from gunicorn_cluster_ext.supervisor.exits import ANOTHER_ROLL, FEWER, REPLACED, ROLL, ROLL_FAILED
from gunicorn_cluster_ext.supervisor.slots import Process, Role, SlotTable

#: How long a process may take to exit that was retired while it booted, or that was aborted:
#: neither finishes anything.
EXIT_TIMEOUT_S = 2.0
#: A process that drains keeps to its own time; this is added for one that cannot.
DRAIN_SLACK_S = 1.0
#: While no process is there at all, one is tried this often whatever the backoff says.
RESCUE_INTERVAL_S = 1.0


class Replacer:
    """Decides which process is replaced, and when. It changes the table and returns actions."""

    def __init__(self, table: SlotTable, limits: RestartLimits) -> None:
        self.table = table
        self.limits = limits
        self.roll: RollProgress | None = None
        self.version = 0
        self._rescued_at = 0.0

    # --- rolls ----------------------------------------------------------------------------

    def begin_roll(self, target: int, before: int, now: float) -> list[Action]:
        """Begin to replace every process; ``target`` workers are wanted instead of ``before``.

        The caller must have failed the roll that is under way.
        """
        self.version += 1
        self.roll = RollProgress(self.version, now, target, before)
        self.limits.reset()
        actions: list[Action] = []
        for process in list(self.table):
            if process.role is Role.NEXT and process.ready_at is None:
                actions += self.retire(process, ANOTHER_ROLL, now)
            elif process.role in (Role.CURRENT, Role.NEXT):
                self.mark_due(process, ROLL, now)
        return actions

    def refuse_roll(self, reason: str, target: int, now: float) -> bool:
        """Record a reload that was refused as a failed roll.

        Return False, and record nothing, if a roll is under way.
        """
        if self.roll is not None and self.roll.is_active:
            return False
        self.version += 1
        self.roll = RollProgress(self.version, now, target, target, RollState.FAILED)
        self.roll.reason = f"the reload was refused: {reason}"
        return True

    def fail_roll(self, reason: str, now: float) -> list[Action]:
        """End the roll that is under way, if there is one, and undo what its policy says."""
        roll = self.roll
        if roll is None or not roll.is_active:
            return []
        roll.state, roll.reason = RollState.FAILED, reason
        actions: list[Action] = []
        for process in list(self.table):
            if process.replace_reason == ROLL:
                process.replace_reason = ""
            is_new = process.version == roll.version
            if is_new and (process.role is Role.NEXT or process.ready_at is None):
                actions += self.retire(process, ROLL_FAILED, now)
        for process in [each for each in self.table if each.role is Role.PARKED]:
            if process.retired_at is None:
                # It takes over again as any successor does: when it serves.
                process.replace_reason = ""
                self.table.set_role(process, Role.NEXT)
                actions.append(Resume(process))
        undone = not any(
            each.version == roll.version
            for each in self.table
            if each.role is Role.CURRENT
            and each.place.slot < roll.before
            and self.table.next(each.place.slot) is None
        )
        return [*actions, RollEnded(roll, undone)]

    def process_failed(self, process: Process, reason: str, now: float) -> list[Action]:
        """Fail the roll that ``process`` belongs to, because the process has failed."""
        roll = self.roll
        if roll is None or process.version != roll.version:
            return []
        return self.fail_roll(f"worker {process.place.slot} {reason}", now)

    # --- single processes -----------------------------------------------------------------

    def mark_due(self, process: Process, reason: str, now: float) -> None:
        """Have ``process`` replaced as soon as the policy allows. The first reason is kept,
        unless a roll replaces it."""
        if not process.replace_reason or reason == ROLL:
            process.replace_reason, process.due_since = reason, now

    def retire(self, process: Process, reason: str, now: float) -> list[Action]:
        """Have ``process`` finish. One that is being ended by force is only given the role."""
        if process.role is Role.RETIRED:
            return []
        self.table.set_role(process, Role.RETIRED)
        process.replace_reason = ""
        if process.retired_at is not None:
            return []
        process.retired_at, process.retire_reason = now, reason
        process.retired_while_booting = process.ready_at is None
        return [Retire(process)]

    # --- each turn ------------------------------------------------------------------------

    def plan(self, policy: RollPolicy, now: float) -> list[Action]:
        """Return what is to be done now. Each call goes one step further, at any time."""
        actions = [
            *self._kill_overdue(policy, now),
            *self._retire_surplus(policy, now),
            *self._take_over(policy, now),
            *self._advance_roll(policy, now),
        ]
        spawns = list(self._fill_empty_slots(policy, now))
        room = self._room(policy) - len(spawns)
        return [*actions, *spawns, *self._replace_due(policy, room, now)]

    def _kill_overdue(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        for process in self.table:
            if process.retired_at is None or process.killed:
                continue
            drains = process.ready_at is not None and not process.kill_reason
            timeout = policy.drain + DRAIN_SLACK_S if drains else EXIT_TIMEOUT_S
            if now - process.retired_at > timeout:
                process.killed = True
                yield Kill(process, f"did not finish within {timeout:g} s")

    def _retire_surplus(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        """Retire the highest slots. One that serves stays while too few of the others do."""
        for process in reversed(list(self.table)):
            is_surplus = process.place.slot >= policy.target and process.role is not Role.RETIRED
            if is_surplus and not self.is_held(process, policy):
                if not process.serves or self._can_spare(process, policy):
                    yield from self.retire(process, FEWER, now)

    def is_held(self, process: Process, policy: RollPolicy) -> bool:
        """Return whether ``process`` is kept although the reload wants fewer workers.

        It is needed again if the roll fails.
        """
        roll = self.roll
        if roll is None or not policy.target <= process.place.slot < roll.before:
            return False
        may_fail = roll.state is RollState.ROLLING or (roll.is_active and policy.full)
        return may_fail and process.serves and process.version != roll.version

    def _take_over(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        """Dismiss each process whose successor is up."""
        for slot in range(policy.target):
            successor, current = self.table.next(slot), self.table.current(slot)
            if successor and current and self._is_up(successor, policy):
                yield from self._dismiss(current, policy, now)

    def _is_up(self, process: Process, policy: RollPolicy) -> bool:
        return process.serves and (process.healthy or not policy.probing)

    def _dismiss(self, process: Process, policy: RollPolicy, now: float) -> list[Action]:
        """Park ``process`` if the roll may still need it again, otherwise retire it."""
        roll, successor = self.roll, self.table.next(process.place.slot)
        # A process from before the roll that is being resumed never makes its successor park.
        is_replaced_by_roll = (
            roll is not None
            and roll.is_active
            and process.version != roll.version
            and (successor is None or successor.version == roll.version)
        )
        if policy.full and is_replaced_by_roll and process.can_park and process.serves:
            self.table.set_role(process, Role.PARKED)
            return [Park(process)]
        return self.retire(process, process.replace_reason or REPLACED, now)

    # --- the progress of the roll -----------------------------------------------------------

    def _advance_roll(self, policy: RollPolicy, now: float) -> list[Action]:
        roll = self.roll
        if roll is None or not roll.is_active:
            return []
        current = [self.table.current(slot) for slot in range(policy.target)]
        up = [each for each in current if each is not None and self._is_up(each, policy)]
        roll.total = policy.target
        roll.replaced = sum(each.version == roll.version for each in up)
        if roll.state is RollState.ROLLING and roll.replaced == policy.target:
            roll.state, roll.observed_until = RollState.OBSERVING, now + policy.observe
        if roll.state is not RollState.OBSERVING or now < roll.observed_until:
            return []
        roll.state = RollState.COMMITTED
        parked = [each for each in self.table if each.role is Role.PARKED]
        retired = [action for each in parked for action in self.retire(each, ROLL, now)]
        return [*retired, RollEnded(roll, undone=False)]

    # --- new processes ------------------------------------------------------------------------

    def _room(self, policy: RollPolicy) -> int:
        """Return how many more processes there may be."""
        roles = [Role.CURRENT, Role.NEXT]
        if policy.surge == 0:
            roles.append(Role.RETIRED)
        there = [each for each in self.table if not self.is_held(each, policy)]
        return policy.target + policy.surge - sum(each.role in roles for each in there)

    def _fill_empty_slots(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        """Spawn a process in each empty slot whose backoff has passed."""
        room = self._room(policy)
        for slot in range(policy.target):
            if room > 0 and self.table.current(slot) is None and self.table.has_free_seat(slot):
                if now >= self.limits.not_before(slot) or self._is_rescue_due(now):
                    room -= 1
                    yield Spawn(slot)

    def _is_rescue_due(self, now: float) -> bool:
        """Return whether to spawn despite the backoff, because the whole server is down."""
        since_last = now - self._rescued_at
        if since_last < RESCUE_INTERVAL_S or self.table.count(Role.CURRENT, Role.NEXT):
            return False
        self._rescued_at = now
        return True

    def _replace_due(self, policy: RollPolicy, room: int, now: float) -> Iterator[Action]:
        for process in self._next_due(policy, now):
            slot = process.place.slot
            if not process.serves and process.ready_at is None:
                yield from self.retire(process, process.replace_reason, now)
            elif policy.surge and room > 0 and self.table.has_free_seat(slot):
                if now >= self.limits.not_before(slot):
                    room -= 1
                    yield Spawn(slot)
            elif policy.unavailable and self._can_spare(process, policy):
                yield from self._dismiss(process, policy, now)

    def _can_spare(self, process: Process, policy: RollPolicy) -> bool:
        """Return whether enough others serve for ``process`` to be retired before its successor.

        Proven processes count for any process, unproven ones only for an unproven one. A
        successor that has not taken over never counts, because it may be retired instead.
        """
        is_proven = self._is_proven(process, policy)
        others = {
            each.place.slot
            for each in self.table
            if each.role is Role.CURRENT and each.serves
            if self._is_proven(each, policy) or not is_proven
        }
        return len(others - {process.place.slot}) >= policy.target - policy.unavailable

    def _is_proven(self, process: Process, policy: RollPolicy) -> bool:
        """Return whether ``process`` serves, and is healthy if it is of the last roll.

        Older ones need not have passed a health check: it may be what the roll brings.
        """
        return process.serves and (process.version != self.version or self._is_up(process, policy))

    def _next_due(self, policy: RollPolicy, now: float) -> list[Process]:
        """Return the processes to replace now: all of them in a roll, otherwise at most one."""
        current = [self.table.current(slot) for slot in range(policy.target)]
        due = [
            each
            for each in current
            if each is not None and each.replace_reason and self.table.next(each.place.slot) is None
        ]
        if self.roll is not None and self.roll.state is RollState.ROLLING:
            return [each for each in due if each.replace_reason == ROLL]
        due = [each for each in due if now >= self.limits.not_before(each.place.slot)]

        def urgency(process: Process) -> tuple[bool, float]:
            # A slot whose other process still drains has to wait, so it lets others pass.
            return not self.table.has_free_seat(process.place.slot), process.due_since

        return [] if self._is_busy(policy, now) else sorted(due, key=urgency)[:1]

    def _is_busy(self, policy: RollPolicy, now: float) -> bool:
        """Return whether a process boots, or is about to be spawned, in any slot."""
        for slot in range(policy.target):
            current = self.table.current(slot)
            if current is None and now >= self.limits.not_before(slot):
                return True
            if self.table.next(slot) or (current and current.state is State.BOOTING):
                return True
        return False
