"""What happens to workers, and what follows from it. No I/O; the caller passes ``now``.

The arbiter reports what it sees (``add``, ``note_state``, ``exited``, ``vanished``, ``abort``,
``kill``, ``unhealthy``, ``recycle``, ``server_stops``) and asks in each turn what to do
(``plan``). Each answer is a list of actions, in order. The rest are views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.layout import State
from gunicorn_cluster_ext.supervisor.actions import Abort, Action, Kill, RollPolicy, RollProgress
from gunicorn_cluster_ext.supervisor.backoff import RestartLimits, RestartPolicy
from gunicorn_cluster_ext.supervisor.exits import SERVER_STOPS, SIGNALLED, Exit
from gunicorn_cluster_ext.supervisor.rolling import Replacer
from gunicorn_cluster_ext.supervisor.slots import Process, Role, SlotTable


class ExitOutcome(NamedTuple):
    """What follows from an exit.

    ``delay``: for how many seconds a replacement waits, or None where the slot needs none.
    ``halt``: the exit code with which the whole server is to end, or 0.
    """

    text: str
    expected: bool
    delay: float | None
    halt: int
    actions: list[Action]


class Lifecycle:
    """The workers of one server, from their forks to their exits."""

    def __init__(self, capacity: int, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self._table = SlotTable(capacity)
        self._limits = RestartLimits(policy, random)
        self._replacer = Replacer(self._table, self._limits)
        self._has_served = False

    def use(self, policy: RestartPolicy) -> None:
        """Delay and limit restarts by ``policy`` from now on."""
        self._limits.policy = policy

    # --- what has happened to a process -----------------------------------------------------

    def add(self, key: int, slot: int, now: float) -> Process:
        """Return the record of the process ``key``, which is about to be forked for ``slot``."""
        return self._table.add(key, slot, self._replacer.version, now)

    def note_state(self, process: Process, state: State, now: float) -> None:
        """Record the state that ``process`` has published."""
        self._table.note_state(process, state, now)
        self._has_served = self._has_served or process.ready_at is not None
        if state is State.DRAINING and process.retired_at is None:
            process.retired_at, process.retire_reason = now, SIGNALLED
            self._table.set_role(process, Role.RETIRED)

    def exited(self, key: int, exit: Exit, now: float) -> ExitOutcome | None:
        """Record that a process was reaped. Return None if it had no slot."""
        process = self._table.remove(key)
        if process is None:
            return None
        slot, text = process.place.slot, exit.describe(process, now)
        served = None if process.ready_at is None else now - process.ready_at
        if exit.is_expected(process):
            self._limits.note_finished(slot, served, now)
            return ExitOutcome(text, True, None, 0, [])
        actions = self._replacer.process_failed(process, text, now)
        delay = self._limits.note_failure(slot, served, now)
        halt = exit.code or 0 if exit.failed_to_boot and not self._has_served else 0
        replaced = self._table.current(slot) is None
        return ExitOutcome(text, False, delay if replaced else None, halt, actions)

    def start_failed(self, key: int, slot: int, reason: str, now: float) -> list[Action]:
        """Record that the process ``key`` for ``slot`` could not be started.

        It may not even have had a seat. A roll fails on it, as on a process that exits.
        """
        self._table.remove(key)
        self._limits.note_failure(slot, None, now)
        return self._replacer.fail_roll(f"worker {slot} {reason}", now)

    def vanished(self, process: Process, now: float) -> None:
        """Record that ``process`` was never forked, or was reaped by somebody else."""
        self._table.remove(process.key)
        self._limits.note_failure(process.place.slot, None, now)

    def abort(self, process: Process, reason: str, now: float) -> list[Action]:
        """End ``process``, which hangs, by force."""
        if process.kill_reason:
            return []
        process.kill_reason, process.retired_at = reason, now
        return [Abort(process, reason), *self._replacer.process_failed(process, reason, now)]

    def kill(self, process: Process, reason: str, now: float) -> list[Action]:
        """End ``process`` at once."""
        actions = self.abort(process, reason, now)[1:]
        process.killed = True
        return [Kill(process, reason), *actions]

    def unhealthy(self, process: Process, reason: str, now: float) -> list[Action]:
        """Replace ``process``, which has failed too many health checks."""
        actions = self._replacer.process_failed(process, reason, now)
        if process.role is Role.NEXT:
            self._limits.note_failure(process.place.slot, None, now)
            return [*actions, *self._replacer.retire(process, reason, now)]
        self._replacer.mark_due(process, reason, now)
        return actions

    def recycle(self, process: Process, reason: str, now: float) -> None:
        """Have ``process`` replaced by a fresh one."""
        self._replacer.mark_due(process, reason, now)

    def server_stops(self, now: float) -> None:
        """Record that every process is retired, because the whole server ends."""
        for process in self._table:
            if process.retired_at is None:
                process.retired_at, process.retire_reason = now, SERVER_STOPS

    # --- what to do ---------------------------------------------------------------------------

    def plan(self, policy: RollPolicy, now: float) -> list[Action]:
        """Return what is to be done now.

        Nothing else is planned in a turn that may end a roll: after that the policy can be
        another one.
        """
        late = [
            each
            for each in self._table
            if each.ready_at is None and each.retired_at is None
            if 0 < policy.startup < now - each.forked_at
        ]
        reason = f"did not become ready within {policy.startup:g} s (cluster_startup_timeout)"
        aborts = [action for each in late for action in self.abort(each, reason, now)]
        return aborts or self._replacer.plan(policy, now)

    def begin_roll(self, target: int, before: int, now: float) -> list[Action]:
        """Replace every process; ``target`` workers are wanted instead of ``before``."""
        return self._replacer.begin_roll(target, before, now)

    def fail_roll(self, reason: str, now: float) -> list[Action]:
        """End the roll that is under way, if there is one."""
        return self._replacer.fail_roll(reason, now)

    def refuse_roll(self, reason: str, target: int, now: float) -> bool:
        """Record a refused reload as a failed roll; return False if a roll is under way."""
        return self._replacer.refuse_roll(reason, target, now)

    # --- views --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Process]:
        """Iterate over a copy of the list of processes, in slot order."""
        return iter(list(self._table))

    def get(self, key: int) -> Process | None:
        return self._table.get(key)

    def current(self, slot: int) -> Process | None:
        return self._table.current(slot)

    def empty_slot(self, target: int) -> int | None:
        """Return the lowest of ``target`` slots that has no process and a free seat."""
        empty = (slot for slot in range(target) if self._table.current(slot) is None)
        return next((slot for slot in empty if self._table.has_free_seat(slot)), None)

    @property
    def has_served(self) -> bool:
        """Return whether any process has been ready since the start of the server."""
        return self._has_served

    @property
    def roll(self) -> RollProgress | None:
        """The roll that is under way, or else the last one."""
        return self._replacer.roll

    @property
    def serving(self) -> int:
        """The number of slots in which a process serves."""
        return self._table.serving()

    @property
    def active(self) -> int:
        """The number of processes that hold a slot: they boot or serve."""
        return self._table.count(Role.CURRENT)

    def is_settled(self, target: int) -> bool:
        """Return whether nothing is under way that the next turn must look at soon."""
        if self.roll is not None and self.roll.is_active:
            return False
        return not self._table.count(Role.NEXT) and self.serving == self.active == target

    def recent_exits(self, now: float) -> int:
        """Return the number of unexpected exits that count towards cluster_restart_limit."""
        return self._limits.recent_exits(now)

    def halt_reason(self, target: int, now: float) -> str:
        """Return why the server is to end, or ""."""
        return self._limits.halt_reason(target, now)
