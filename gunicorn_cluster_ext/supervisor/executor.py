"""Carries out what the life cycle decides: forks and signals. Runs in the arbiter."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.runtime.board.layout import Order, State, Word
from gunicorn_cluster_ext.supervisor.actions import (
    Abort,
    Action,
    Kill,
    Park,
    Resume,
    Retire,
    RollEnded,
    Spawn,
)
from gunicorn_cluster_ext.supervisor.arbiter_protocol import SupervisedArbiter
from gunicorn_cluster_ext.supervisor.cluster import Cluster
from gunicorn_cluster_ext.supervisor.exits import BOOT_ERROR
from gunicorn_cluster_ext.supervisor.faults import Faults
from gunicorn_cluster_ext.supervisor.seats import Seats
from gunicorn_cluster_ext.supervisor.slots import Process

#: How often a process that boots is asked to finish.
RETIRE_INTERVAL_S = 0.25
#: How long a process that boots may take to exit while the server stops, before it is killed.
BOOTING_STOP_TIMEOUT_S = 1.0


class Executor:
    """Forks and signals the workers of ``arbiter``; it waits for none of them.

    ``roll_ended`` is called with each RollEnded. ``fork_time`` is for how many seconds forks have
    kept the arbiter busy so far.
    """

    def __init__(
        self,
        arbiter: SupervisedArbiter,
        cluster: Cluster,
        seats: Seats,
        faults: Faults,
        roll_ended: Callable[[RollEnded], None],
    ) -> None:
        self._arbiter, self._log = arbiter, arbiter.log
        self._lifecycle, self._board, self._seats = cluster.lifecycle, cluster.board, seats
        self._faults, self._roll_ended = faults, roll_ended
        self.fork_time = 0.0
        self._to_reopen: set[int] = set()
        self._retired_again_at = 0.0
        # Workers that were forked before the arbiter was adopted, by a reload. They have no slot.
        self._strangers = set(arbiter.WORKERS)

    def execute(self, actions: Iterable[Action]) -> None:
        may_spawn = True
        for action in actions:
            match action:
                case Spawn(slot):
                    # A failed start may have ended the roll that the other starts were for. What
                    # is still wanted is planned again in the next turn.
                    may_spawn = may_spawn and self._spawn(slot)
                case Retire(process):
                    self._signal(process, signal.SIGTERM)
                case Park(process):
                    self._order(process, Order.PARK)
                case Resume(process):
                    self._order(process, Order.SERVE)
                case Abort(process, reason):
                    self._abort(process, reason)
                case Kill(process, reason):
                    pid, _ = self._find(process)
                    slot = process.place.slot
                    self._log.warning("Worker %s (pid:%s) %s; killing it", slot, pid, reason)
                    self._signal(process, signal.SIGKILL)
                case RollEnded():
                    self._roll_ended(action)

    def _spawn(self, slot: int) -> bool:
        """Start a process for ``slot``. Return False if that failed."""
        began, started = time.monotonic(), True
        self._seats.reserved_slot = slot
        try:
            self._arbiter.spawn_worker()
        except Exception as error:
            if os.getpid() != self._arbiter.pid:
                os._exit(BOOT_ERROR)  # a child that failed before gunicorn catches exceptions
            if not (isinstance(error, OSError) or self._lifecycle.has_served):
                raise  # a hook or a worker class that has never worked ends the server
            started = False
            self._faults.note(f"Starting worker {slot}", error)
            now, reason = time.monotonic(), f"could not be started: {one_line(error)}"
            failed = self._seats.start_failed(self._arbiter.worker_age, slot, reason, now)
            self.execute(failed)
        self._seats.reserved_slot = None
        self.fork_time += time.monotonic() - began
        return started

    def drop_vanished(self, now: float) -> None:
        """Forget processes that gunicorn does not know."""
        self._seats.drop_vanished({worker.age for worker in self._arbiter.WORKERS.values()}, now)

    def _find(self, process: Process) -> tuple[int | None, Any]:
        """Return the pid of ``process`` and gunicorn's worker object, or None for both."""
        workers = self._arbiter.WORKERS.items()
        return next((each for each in workers if each[1].age == process.key), (None, None))

    def _signal(self, process: Process, number: int) -> None:
        pid, _ = self._find(process)
        if pid is not None:
            self._arbiter.kill_worker(pid, number)

    def _order(self, process: Process, order: Order) -> None:
        self._board.set(process.place.seat, Word.ORDER, order)
        # It only wakes the worker's loop, which then looks at the board.
        self._signal(process, signal.SIGWINCH)

    def _abort(self, process: Process, reason: str) -> None:
        pid, worker = self._find(process)
        if worker is not None:
            worker.aborted = True
            self._log.critical("WORKER TIMEOUT (pid:%s)", pid)
        slot = process.place.slot
        self._log.error("Worker %s (pid:%s) %s; aborting it", slot, pid, reason)
        self._signal(process, signal.SIGABRT)

    # --- processes that could not take a signal before ----------------------------------------

    def reopen_when_ready(self) -> None:
        """Have the workers that boot now open their log files again once they are ready."""
        self._to_reopen = {each.key for each in self._lifecycle if each.ready_at is None}

    def send_late_signals(self, now: float) -> None:
        """Signal workers that could not take the signal when it was due. Called in each turn."""
        if now - self._retired_again_at >= RETIRE_INTERVAL_S:
            self._retired_again_at = now
            for process in self._lifecycle:
                # A signal that came before its handlers were installed is lost.
                exits = process.state in (State.DRAINING, State.GONE)
                if process.retired_while_booting and not exits:
                    self._signal(process, signal.SIGTERM)
        for process in self._lifecycle:
            if process.key in self._to_reopen and process.ready_at is not None:
                self._to_reopen.discard(process.key)
                self._signal(process, signal.SIGUSR1)
        if self._strangers and self._lifecycle.serving >= self._arbiter.num_workers:
            for pid in self._strangers & self._arbiter.WORKERS.keys():
                self._arbiter.kill_worker(pid, signal.SIGTERM)
            self._strangers.clear()

    def end_booting(self, waited: float) -> None:
        """End the workers that boot, which have nothing to finish; the server has been stopping for
        ``waited`` seconds."""
        force = waited >= BOOTING_STOP_TIMEOUT_S
        for process in self._lifecycle:
            if process.ready_at is None:
                self._signal(process, signal.SIGKILL if force else signal.SIGQUIT)
