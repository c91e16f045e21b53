"""Replacing workers: what to do next, given who is there. No I/O; the caller passes ``now``.

Every replacement is the same machine. A process that is *due* (all of them in a roll; one that
has served its requests, uses too much memory, is not healthy) stays until its successor in the
same slot serves; only with ``surge`` 0 it goes first. ``surge`` and ``unavailable`` mean what
Kubernetes means by maxSurge and maxUnavailable: processes that finish, or are parked, do not
count. With ``surge`` 0, for tight memory, those that finish do.

    roll   ROLLING --all replaced--> OBSERVING --observe seconds--> COMMITTED
              `----- a new process fails -----'--------> FAILED: the new ones that have not
                     taken over go; with ``full`` those that were replaced come back
"""

from __future__ import annotations

from collections.abc import Iterator

from gunicorn_cluster_ext.runtime.board.layout import RollState, State
from gunicorn_cluster_ext.supervisor.actions import (
    Action,
    Ended,
    Kill,
    Park,
    Resume,
    RollPolicy,
    RollProgress,
    Spawn,
    Tell,
)
from gunicorn_cluster_ext.supervisor.backoff import Limits
from gunicorn_cluster_ext.supervisor.exits import ANOTHER_ROLL, FEWER, REPLACED, ROLL, ROLL_FAILED
from gunicorn_cluster_ext.supervisor.slots import Process, Role, SlotTable

#: A process that was told to go while it booted has nothing to finish.
BOOTING_LEAVES = 2.0
#: A process that was told, by SIGABRT, that it is ended by force.
BLAMED_LEAVES = 2.0
#: One that drains keeps to its time by itself; this is for one that cannot.
DRAIN_SLACK = 1.0
#: When nobody serves, one process is tried so often whatever the delays say.
RESCUE_INTERVAL = 1.0


class Replacer:
    """Who is replaced by whom. Changes the table, and says what is to be done."""

    def __init__(self, table: SlotTable, limits: Limits) -> None:
        self.table = table
        self.limits = limits
        self.roll: RollProgress | None = None
        self.version = 0
        self._rescued = 0.0

    # --- rolls ----------------------------------------------------------------------------

    def begin(self, target: int, before: int, now: float) -> list[Action]:
        """Replace every process; ``target`` are wanted instead of ``before``.

        A roll that is under way is to be failed first.
        """
        self.version += 1
        self.roll = RollProgress(self.version, now, target, before)
        self.limits.forgive()
        actions: list[Action] = []
        for process in list(self.table):
            if process.role is Role.NEXT and process.ready is None:
                actions += self.tell(process, ANOTHER_ROLL, now)
            elif process.role in (Role.CURRENT, Role.NEXT):
                self.want(process, ROLL, now)
        return actions

    def refuse(self, reason: str, target: int, now: float) -> bool:
        """A reload that cannot begin is a roll that has failed, unless another is under way.

        Whether it is.
        """
        if self.roll is not None and self.roll.is_active:
            return False
        self.version += 1
        self.roll = RollProgress(self.version, now, target, target, RollState.FAILED)
        self.roll.reason = f"the reload was refused: {reason}"
        return True

    def fail(self, reason: str, now: float) -> list[Action]:
        """Give up the roll that is under way, if one is: as its policy says, undo it."""
        roll = self.roll
        if roll is None or not roll.is_active:
            return []
        roll.state, roll.reason = RollState.FAILED, reason
        actions: list[Action] = []
        for process in list(self.table):
            if process.due == ROLL:
                process.due = ""
            is_new = process.version == roll.version
            if is_new and (process.role is Role.NEXT or process.ready is None):
                actions += self.tell(process, ROLL_FAILED, now)
        parked = [each for each in self.table if each.role is Role.PARKED and each.told is None]
        actions += [self._resume(each) for each in parked]
        return [*actions, Ended(roll, undone=self._is_undone(roll))]

    def _resume(self, process: Process) -> Action:
        """It takes over again as any successor does: when it says that it serves."""
        process.due = ""
        self.table.change(process, Role.NEXT)
        return Resume(process)

    def _is_undone(self, roll: RollProgress) -> bool:
        """Whether every slot goes on as it was before."""
        return not any(
            each.version == roll.version
            for each in self.table
            if each.role is Role.CURRENT
            and each.place.slot < roll.before
            and self.table.next(each.place.slot) is None
        )

    def failed(self, process: Process, reason: str, now: float) -> list[Action]:
        """A process has failed: that is the end of the roll that it belongs to."""
        roll = self.roll
        if roll is None or process.version != roll.version:
            return []
        return self.fail(f"worker {process.place.slot} {reason}", now)

    def want(self, process: Process, why: str, now: float) -> None:
        """``process`` is to be replaced when its turn comes."""
        if not process.due or why == ROLL:
            process.due, process.due_since = why, now

    # --- each turn ------------------------------------------------------------------------

    def plan(self, policy: RollPolicy, now: float) -> list[Action]:
        """What is to be done now. May be called at any time; each call goes one step further."""
        actions = [
            *self._overdue(policy, now),
            *self._surplus(policy, now),
            *self._take_over(policy, now),
            *self._advance(policy, now),
        ]
        spawns = list(self._fill(policy, now))
        room = self._room(policy) - len(spawns)
        return [*actions, *spawns, *self._replace(policy, room, now)]

    def _overdue(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        for process in self.table:
            if process.told is not None:
                patience = BOOTING_LEAVES
                if process.blamed:
                    patience = BLAMED_LEAVES
                elif process.ready is not None:
                    patience = policy.drain + DRAIN_SLACK
                if now - process.told > patience and not process.killed:
                    process.killed = True
                    yield Kill(process, f"did not finish within {patience:g} s")

    def _surplus(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        """The highest slots go, unless they serve while too few of the others do."""
        for process in reversed(list(self.table)):
            is_surplus = process.place.slot >= policy.target and process.role is not Role.LEAVING
            if is_surplus and not self.is_held(process, policy):
                if not process.serves or self._may_go(process, policy):
                    yield from self.tell(process, FEWER, now)

    def is_held(self, process: Process, policy: RollPolicy) -> bool:
        """Whether it is kept although a reload wants fewer workers: the reload may still fail."""
        roll = self.roll
        if roll is None or not policy.target <= process.place.slot < roll.before:
            return False
        may_fail = roll.state is RollState.ROLLING or (roll.is_active and policy.full)
        return may_fail and process.serves and process.version != roll.version

    def _take_over(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        """A successor that serves replaces its predecessor."""
        for slot in range(policy.target):
            successor, current = self.table.next(slot), self.table.current(slot)
            if successor and current and self._is_up(successor, policy):
                yield from self._dismiss(current, policy, now)

    def _is_up(self, process: Process, policy: RollPolicy) -> bool:
        return process.serves and (process.healthy or not policy.probing)

    def _dismiss(self, process: Process, policy: RollPolicy, now: float) -> list[Action]:
        """Park it if it may be needed again; otherwise it is to finish."""
        if policy.full and self._is_undoable(process) and process.can_park and process.serves:
            self.table.change(process, Role.PARKED)
            return [Park(process)]
        return self.tell(process, process.due or REPLACED, now)

    def _is_undoable(self, process: Process) -> bool:
        """Whether the roll replaces it, and not one from before the roll that comes back."""
        roll, successor = self.roll, self.table.next(process.place.slot)
        if roll is None or not roll.is_active or process.version == roll.version:
            return False
        return successor is None or successor.version == roll.version

    def tell(self, process: Process, why: str, now: float) -> list[Action]:
        """``process`` is to finish; one that is being ended by force need not be told."""
        if process.role is not Role.LEAVING:
            self.table.change(process, Role.LEAVING)
            process.due = ""
            if process.told is None:
                process.told, process.why = now, why
                process.told_early = process.ready is None
                return [Tell(process)]
        return []

    # --- how far the roll is ----------------------------------------------------------------

    def _advance(self, policy: RollPolicy, now: float) -> list[Action]:
        roll = self.roll
        if roll is None or not roll.is_active:
            return []
        current = [self.table.current(slot) for slot in range(policy.target)]
        up = [each for each in current if each is not None and self._is_up(each, policy)]
        roll.total = policy.target
        roll.replaced = sum(each.version == roll.version for each in up)
        if roll.state is RollState.ROLLING and roll.replaced == policy.target:
            roll.state, roll.observed_until = RollState.OBSERVING, now + policy.observe
        if roll.state is RollState.OBSERVING and now >= roll.observed_until:
            return self._commit(roll, now)
        return []

    def _commit(self, roll: RollProgress, now: float) -> list[Action]:
        roll.state = RollState.COMMITTED
        parked = [each for each in self.table if each.role is Role.PARKED]
        told = [action for each in parked for action in self.tell(each, ROLL, now)]
        return [*told, Ended(roll, undone=False)]

    # --- new processes ------------------------------------------------------------------------

    def _room(self, policy: RollPolicy) -> int:
        """How many more processes there may be."""
        roles = [Role.CURRENT, Role.NEXT]
        if policy.surge == 0:
            roles.append(Role.LEAVING)
        there = [each for each in self.table if not self.is_held(each, policy)]
        return policy.target + policy.surge - sum(each.role in roles for each in there)

    def _fill(self, policy: RollPolicy, now: float) -> Iterator[Action]:
        """Where nobody is, somebody comes."""
        room = self._room(policy)
        for slot in range(policy.target):
            if room > 0 and self.table.current(slot) is None and self.table.has_seat(slot):
                if now >= self.limits.not_before(slot) or self._rescues(now):
                    room -= 1
                    yield Spawn(slot)

    def _rescues(self, now: float) -> bool:
        """Whether a process is tried before its time, because the whole site is down."""
        if now - self._rescued < RESCUE_INTERVAL or self.table.count(Role.CURRENT, Role.NEXT):
            return False
        self._rescued = now
        return True

    def _replace(self, policy: RollPolicy, room: int, now: float) -> Iterator[Action]:
        for process in self._due(policy, now):
            slot = process.place.slot
            if not process.serves and process.ready is None:
                yield from self.tell(process, process.due, now)
            elif policy.surge and room > 0 and self.table.has_seat(slot):
                if now >= self.limits.not_before(slot):
                    room -= 1
                    yield Spawn(slot)
            elif policy.unavailable and self._may_go(process, policy):
                yield from self._dismiss(process, policy, now)

    def _may_go(self, process: Process, policy: RollPolicy) -> bool:
        """Whether enough others serve, so that it can go before a successor is there.

        One that is known to be good does not go for others that have yet to show it. Nor does
        anyone for a successor that has not taken over: it may be told to go instead.
        """
        is_good = self._is_good(process, policy)
        others = {
            each.place.slot
            for each in self.table
            if each.role is Role.CURRENT and each.serves
            if self._is_good(each, policy) or not is_good
        }
        return len(others - {process.place.slot}) >= policy.target - policy.unavailable

    def _is_good(self, process: Process, policy: RollPolicy) -> bool:
        """Those from before a roll need not have passed a check: it may be new, or not for them."""
        return process.serves and (process.version != self.version or self._is_up(process, policy))

    def _due(self, policy: RollPolicy, now: float) -> list[Process]:
        """Whom to replace now: in a roll all that it is to replace, otherwise one at a time."""
        current = [self.table.current(slot) for slot in range(policy.target)]
        due = [
            each
            for each in current
            if each is not None and each.due and self.table.next(each.place.slot) is None
        ]
        if self.roll is not None and self.roll.state is RollState.ROLLING:
            return [each for each in due if each.due == ROLL]
        due = [each for each in due if now >= self.limits.not_before(each.place.slot)]
        return [] if self._is_busy(policy, now) else sorted(due, key=self._urgency)[:1]

    def _is_busy(self, policy: RollPolicy, now: float) -> bool:
        """Whether a slot is about to have a process that serves, and nobody need wait for long."""
        for slot in range(policy.target):
            current = self.table.current(slot)
            if current is None and now >= self.limits.not_before(slot):
                return True
            if self.table.next(slot) or (current and current.state is State.BOOTING):
                return True
        return False

    def _urgency(self, process: Process) -> tuple[bool, float]:
        """The longest due first, but whose predecessor still drains makes nobody wait."""
        return not self.table.has_seat(process.place.slot), process.due_since
