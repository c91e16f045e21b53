"""Between the board and the life cycle: which process has which seat. Runs in the arbiter."""

from __future__ import annotations

import time
from collections.abc import Set as AbstractSet

from gunicorn_cluster_ext.runtime import prometheus_files
from gunicorn_cluster_ext.runtime.board import exits, ledger
from gunicorn_cluster_ext.runtime.board.layout import Place, State, Word
from gunicorn_cluster_ext.runtime.directory import bus_socket
from gunicorn_cluster_ext.supervisor.actions import Action
from gunicorn_cluster_ext.supervisor.cluster import Cluster
from gunicorn_cluster_ext.supervisor.exits import Exit
from gunicorn_cluster_ext.supervisor.lifecycle import ExitOutcome
from gunicorn_cluster_ext.supervisor.slots import Process


class Seats:
    """Gives processes their seats, reads what they publish there, and clears up after them."""

    #: The slot that the next process to be forked is for. None: the lowest empty one.
    reserved_slot: int | None = None

    def __init__(self, cluster: Cluster) -> None:
        self._lifecycle, self._reporter = cluster.lifecycle, cluster.reporter
        self._board, self._directory = cluster.board, cluster.directory

    def assign(self, key: int, target: int) -> Process:
        """Give the process ``key``, about to be forked, its seat. ``target`` workers are wanted."""
        slot, self.reserved_slot = self.reserved_slot, None
        if slot is None:
            slot = self._lifecycle.empty_slot(target) or 0
        process = self._lifecycle.add(key, slot, time.monotonic())
        self._reporter.booting(process)
        self._board.clear(process.place.seat, process.place.generation, time.monotonic_ns())
        return process

    def observe(self, now: float) -> None:
        """Report to the life cycle what the processes have published."""
        for process in self._lifecycle:
            state = self._board.state(process.place.seat)
            if state is not None and state is not process.state:
                was_ready = process.ready_at is not None
                self._lifecycle.note_state(process, state, now)
                if process.ready_at is not None and not was_ready:
                    self._reporter.ready(process, self._board.get(process.place.seat, Word.PID))

    def drop_vanished(self, present: AbstractSet[int], now: float) -> None:
        """Forget processes whose key is not ``present``: their fork failed, or gunicorn lost
        them because it did not reap them."""
        for process in self._lifecycle:
            if process.key not in present:
                self._lifecycle.vanished(process, now)
                self._vacate(process.place)

    def start_failed(self, key: int, slot: int, reason: str, now: float) -> list[Action]:
        """Record that the process ``key`` for ``slot`` could not be started."""
        process = self._lifecycle.get(key)
        actions = self._lifecycle.start_failed(key, slot, reason, now)
        if process is not None:
            self._vacate(process.place)
        return actions

    def exited(self, key: int, pid: int, exit: Exit, now: float) -> ExitOutcome | None:
        """Record that the process ``key`` was reaped. Return None if it had no seat."""
        process, outcome = self._lifecycle.get(key), self._lifecycle.exited(key, exit, now)
        if process is None or outcome is None:
            return None
        self._reporter.exited(process, pid, exit, outcome)
        cause, reason = exit.cause(process), exit.reason(process)
        exits.note(self._board, process.place.seat, cause, reason, time.monotonic_ns())
        self._vacate(process.place)
        return outcome

    def _vacate(self, place: Place) -> None:
        ledger.settle(self._board, place.seat)
        prometheus_files.forget_live(self._board.master_pid, place.seat)
        self._board.set(place.seat, Word.STATE, State.GONE)
        if self._board.get(place.seat, Word.BUS_LISTENS) and self._directory is not None:
            self._board.set(place.seat, Word.BUS_LISTENS, 0)
            bus_socket(self._directory, place.seat, place.generation).unlink(missing_ok=True)
