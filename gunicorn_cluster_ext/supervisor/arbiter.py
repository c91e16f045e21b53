"""Gunicorn's own arbiter, with a supervisor. All of this runs in the arbiter's process.

A running arbiter is *adopted*: its class becomes a subclass of what it was, because
``Arbiter.run`` calls everything through ``self``. Each turn of its loop

    reap, read the board  -->  Supervisor (no I/O)  -->  actions  -->  fork, signals

and nothing in it waits: an reply of a worker is looked for in the next turn.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from gunicorn_cluster_ext.runtime import proctitle
from gunicorn_cluster_ext.runtime.board.layout import Order, Roll, RollState, State, Word
from gunicorn_cluster_ext.settings import Settings, of_config
from gunicorn_cluster_ext.supervisor.actions import (
    Abort,
    Action,
    Ended,
    Kill,
    Park,
    Resume,
    RollPolicy,
    Spawn,
    Tell,
)
from gunicorn_cluster_ext.supervisor.cluster import Cluster, roll_policy
from gunicorn_cluster_ext.supervisor.control import ControlRequests
from gunicorn_cluster_ext.supervisor.exits import SERVER_ENDS, Exit
from gunicorn_cluster_ext.supervisor.monitor import Checkup
from gunicorn_cluster_ext.supervisor.reload import Deployment
from gunicorn_cluster_ext.supervisor.reporter import Once
from gunicorn_cluster_ext.supervisor.slots import Process, Role

Install = Callable[[Any, Settings], None]

#: Seconds between two turns while something is under way; otherwise gunicorn's own second.
BUSY_INTERVAL = 0.03
#: How often a process that boots is told to go: a signal that comes before it has its handlers
#: is lost.
TELL_INTERVAL = 0.25


class ClusterArbiter(Arbiter):
    """An arbiter whose workers hold slots."""

    cluster: Cluster
    #: Chains our hooks into a configuration (hooks.install).
    install: Install
    _last_logged_active_worker_count: int | None
    reexec_pid: int
    pidfile: Any
    # Compared with exit codes: gunicorn would end the server, however many workers serve. In the
    # workers they have their values again (``in_worker``).
    WORKER_BOOT_ERROR = -1
    APP_LOAD_ERROR = -1

    def oversee(self, cluster: Cluster, install: Install) -> None:
        """Called once, when the arbiter has become one of this class."""
        self.cluster, self.install = cluster, install
        self._checkup = Checkup(cluster, self.log)
        self._slot: int | None = None
        self._strangers = set(self.WORKERS)
        self._to_reopen: set[int] = set()
        self._deployment = Deployment(self)
        self._published: Roll | None = None
        self._control = ControlRequests(self)
        self._told = self._stopped = 0.0
        self._turn_began: float | None = None  # the start is no turn
        self._forking = 0.0
        self._began, self._has_served = time.monotonic(), False
        self.log.error_log.addFilter(Once())
        cluster.reporter.event("start", f"{self.num_workers} workers are wanted")
        self._warn_of_limits()

    def in_worker(self) -> None:
        """Called in each worker: it is not the arbiter any more."""
        self.WORKER_BOOT_ERROR = Arbiter.WORKER_BOOT_ERROR
        self.APP_LOAD_ERROR = Arbiter.APP_LOAD_ERROR
        self._checkup.close()
        self._deployment.close_in_worker()

    @property
    def _has_inboxes(self) -> bool:
        """Whether the workers are of a class of this pack."""
        return bool(getattr(self.worker_class, "reads_inbox", False))

    def _warn_of_limits(self) -> None:
        settings = self.cluster.settings
        if not self._has_inboxes and settings.health_path:
            self._needs_pack("cluster_health_path")
        if not self._has_inboxes and settings.roll_rollback == "full":
            self._needs_pack('cluster_roll_rollback = "full"')
        if sys.platform != "linux" and (settings.max_memory or settings.max_memory_hard):
            self.log.warning("cluster_max_memory works on Linux only, and does nothing here.")

    def _needs_pack(self, setting: str) -> None:
        self.log.warning(
            "%s does nothing with the worker class %s: it needs one of this pack, such as "
            "gunicorn_cluster_ext.Sticky.",
            setting,
            self.cfg.worker_class_str,
        )

    # --- how many workers -------------------------------------------------------------------

    @property
    def num_workers(self) -> int:
        return int(self._get_num_workers() or 0)

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        """Set by TTIN, TTOU, a reload and the control socket alike."""
        capacity = self.cluster.shared.capacity
        if value > capacity:
            self.log.error(
                "%d workers wanted, but there are %d slots: set cluster_slots and restart.",
                value,
                capacity,
            )
            value = capacity
        if value != self.num_workers:
            what = f"{value} are wanted instead of {self.num_workers}"
            self.cluster.reporter.event("workers", what)
        self.cluster.board.target = value
        self._set_num_workers(value)

    # --- the loop -----------------------------------------------------------------------------

    def wait_for_signals(self, timeout: float = 1.0) -> list[Any]:
        """Here a turn of the loop ends, and the next begins."""
        self._note_duration()
        signals: list[Any] = super().wait_for_signals(timeout=self._patience(timeout))
        self._turn_began, self._forking = time.monotonic(), 0.0
        return signals

    def _note_duration(self) -> None:
        if self._turn_began is not None:
            duration = time.monotonic() - self._turn_began - self._forking
            board = self.cluster.board
            board.slowest_turn = max(board.slowest_turn, int(duration * 1e9))

    def _patience(self, timeout: float) -> float:
        if self._checkup.is_waiting or not self.cluster.supervisor.is_settled(self.num_workers):
            return BUSY_INTERVAL
        return timeout

    def manage_workers(self) -> None:
        """One turn: see how the workers are, and do what follows from it."""
        now = time.monotonic()
        self.cluster.observe(now)
        self._drop_vanished(now)
        self._control.turn()
        self._check(self._policy(), now)
        self._act(self.cluster.supervisor.turn(self._policy(), now))
        self._tell_again(now)
        self._reopen_late()
        self._tell_strangers()
        self.publish()
        self._say_that_all_serve(now)
        self._halt_if_hopeless(now)
        self._log_metrics()

    def _policy(self) -> RollPolicy:
        settings = self.cluster.settings
        probing = bool(settings.health_path) and self._has_inboxes
        return roll_policy(settings, self.cfg, self.num_workers, probing=probing)

    def publish(self) -> None:
        """Say how the server is, on the board and beside it."""
        roll = self.cluster.supervisor.replacer.roll
        if roll is not None:
            seen = Roll(roll.state, roll.version, roll.replaced, roll.total, roll.reason)
            if seen != self._published:
                self._published = self.cluster.board.roll = seen
                proctitle.show_roll(f"master [{self.proc_name}]", seen)
        self.cluster.describe(self)

    def _say_that_all_serve(self, now: float) -> None:
        if not self._has_served and self.cluster.supervisor.table.serving() >= self.num_workers:
            self._has_served = True
            self.cluster.reporter.serving(self.num_workers, now - self._began)

    def _halt_if_hopeless(self, now: float) -> None:
        limits = self.cluster.supervisor.limits
        self.cluster.board.recent_exits = limits.used(now)
        why = limits.halts(self.num_workers, now)
        if why:
            raise HaltServer(f"{why} (cluster_restart_limit, cluster_restart_policy)", 1)

    def _log_metrics(self) -> None:
        """What gunicorn's own manage_workers reports for statsd."""
        count = self.cluster.supervisor.table.count(Role.CURRENT)
        if self._last_logged_active_worker_count != count:
            self._last_logged_active_worker_count = count
            extra = {"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            self.log.debug("%d workers", count, extra=extra)
        if self.cfg.enable_backlog_metric:
            backlog = sum(sock.get_backlog() or 0 for sock in self.LISTENERS)
            extra = {"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"}
            self.log.debug("socket backlog: %d", backlog, extra=extra)

    # --- how the workers are ------------------------------------------------------------------

    def _check(self, policy: RollPolicy, now: float) -> None:
        address = self.LISTENERS[0].getsockname() if self.LISTENERS else ""
        self._act(self._checkup.turn(self._pids(), address, probing=policy.probing, now=now))

    def murder_workers(self) -> None:
        """End workers whose heart does not beat. One that boots has cluster_startup_timeout."""
        if not self.timeout:
            return
        now = time.monotonic()
        for worker in list(self.WORKERS.values()):
            process = self.cluster.supervisor.table.get(worker.age)
            if process is not None and process.ready is not None and self._is_silent(worker, now):
                reason = f"was silent for {self.timeout:g} s (timeout)"
                self._act(self.cluster.supervisor.blame(process, reason, now))

    def _is_silent(self, worker: Any, now: float) -> bool:
        try:
            return bool(now - worker.tmp.last_update() > self.timeout)
        except (OSError, ValueError):
            return False

    # --- actions ------------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(slot):
                    self._spawn(slot)
                case Tell(process):
                    self._signal(process, signal.SIGTERM)
                case Park(process):
                    self._order(process, Order.PARK)
                case Resume(process):
                    self._order(process, Order.SERVE)
                case Abort(process, why):
                    self._abort(process, why)
                case Kill(process, why):
                    self.log.warning("Worker %s %s, and is killed", self._name(process), why)
                    self._signal(process, signal.SIGKILL)
                case Ended():
                    self._roll_ended(action)

    def _pids(self) -> dict[int, int]:
        return {worker.age: pid for pid, worker in self.WORKERS.items()}

    def _name(self, process: Process) -> str:
        return f"{process.place.slot} (pid:{self._pids().get(process.key)})"

    def _signal(self, process: Process, number: int) -> None:
        pid = self._pids().get(process.key)
        if pid is not None:
            self.kill_worker(pid, number)

    def _order(self, process: Process, order: Order) -> None:
        """The signal only wakes the worker's loop, which then looks at the board."""
        self.cluster.board.set(process.place.seat, Word.ORDER, order)
        self._signal(process, signal.SIGWINCH)

    def _abort(self, process: Process, why: str) -> None:
        for pid, worker in self.WORKERS.items():
            if worker.age == process.key:
                worker.aborted = True
                self.log.critical("WORKER TIMEOUT (pid:%s)", pid)
        self.log.error("Worker %s %s, and is aborted", self._name(process), why)
        self._signal(process, signal.SIGABRT)

    def _tell_again(self, now: float) -> None:
        if now - self._told < TELL_INTERVAL:
            return
        self._told = now
        for process in self.cluster.supervisor.table:
            if process.told_early and process.state not in (State.DRAINING, State.GONE):
                self._signal(process, signal.SIGTERM)

    def handle_usr1(self) -> None:
        """Open log files anew. Workers that have no handler yet do so when they are ready."""
        super().handle_usr1()
        table = self.cluster.supervisor.table
        self._to_reopen = {each.key for each in table if each.ready is None}

    def _reopen_late(self) -> None:
        for process in self.cluster.supervisor.table:
            if process.key in self._to_reopen and process.ready is not None:
                self._to_reopen.discard(process.key)
                self._signal(process, signal.SIGUSR1)

    def _tell_strangers(self) -> None:
        """Workers that were forked before the arbiter was adopted (by a reload) are to go."""
        table = self.cluster.supervisor.table
        strangers = self._strangers & self.WORKERS.keys()
        if strangers and table.serving() >= self.num_workers:
            for pid in strangers:
                self.kill_worker(pid, signal.SIGTERM)
            self._strangers = set()

    # --- processes come -------------------------------------------------------------------

    def _spawn(self, slot: int) -> None:
        began = time.monotonic()
        self._slot = slot
        try:
            self.spawn_worker()
        except OSError as error:  # no memory, or no process left
            self.log.error("Worker %d cannot be started: %s", slot, error)
            self._drop_vanished(time.monotonic())
        self._slot = None
        self._forking += time.monotonic() - began

    def _drop_vanished(self, now: float) -> None:
        """Forget processes that gunicorn does not know: a fork failed, or others reaped them."""
        present = {worker.age for worker in self.WORKERS.values()}
        for process in list(self.cluster.supervisor.table):
            if process.key not in present:
                self.cluster.supervisor.table.leave(process.key)
                self.cluster.supervisor.limits.failed(process.place.slot, None, now)
                self.cluster.vacate(process.place)

    def spawn_worker(self) -> int | None:
        """Fork a worker for the slot that is wanted, or for the lowest that nobody has."""
        if self._slot is None:
            self._slot = self._empty_slot()
            if self._slot is None:
                return None
        pid: int = super().spawn_worker()
        self._slot = None
        return pid

    def _empty_slot(self) -> int | None:
        table = self.cluster.supervisor.table
        empty = (slot for slot in range(self.num_workers) if table.current(slot) is None)
        return next((slot for slot in empty if table.has_seat(slot)), None)

    def seat(self, worker: Any) -> None:
        """Called by ``pre_fork``: give the worker its place."""
        slot = self._slot if self._slot is not None else self._empty_slot()
        worker.shared = self.cluster.shared
        worker.place = self.cluster.seat(worker.age, slot or 0)
        self.cluster.describe(self)  # before it serves, so who sees it serve can read what it is
        process = self.cluster.supervisor.table.get(worker.age)
        if process is not None:
            process.can_park = self._has_inboxes

    # --- processes go ---------------------------------------------------------------------

    def reap_workers(self) -> None:
        """Like gunicorn's own, but says why, and no exit ends a server that has served."""
        while (ended := _next_ended()) is not None:
            pid, status = ended
            worker = self.WORKERS.pop(pid, None)
            if worker is not None:
                self._reaped(pid, worker, Exit.of_code(os.waitstatus_to_exitcode(status)))
            elif pid == self.reexec_pid:
                self.reexec_pid = 0
            elif pid == self.dirty_arbiter_pid:
                self._dirty_arbiter_ended(pid, status)
            else:
                self.log.debug("Reaped unknown child process (pid:%s, status:%s)", pid, status)
        if self.cluster.board.stopping:
            self._hurry()

    def _dirty_arbiter_ended(self, pid: int, status: int) -> None:
        self.log.info("Dirty arbiter (pid:%s) ended with status %s", pid, status)
        self.dirty_arbiter_pid = 0
        self.dirty_arbiter = None

    def _reaped(self, pid: int, worker: Any, exit: Exit) -> None:
        now = time.monotonic()
        self.cluster.observe(now)
        process = self.cluster.supervisor.table.get(worker.age)
        verdict = self.cluster.supervisor.ended(worker.age, exit, now)
        worker.tmp.close()
        if process is not None and verdict is not None:
            self.cluster.ended(process, pid, exit, verdict)
        self.cfg.child_exit(self, worker)
        if verdict is not None:
            self._act(verdict.actions)
            if verdict.halt:
                what = "Worker failed to boot." if verdict.halt == 3 else "App failed to load."
                raise HaltServer(what, verdict.halt)

    def _hurry(self) -> None:
        """The server ends: those that boot serve nobody, and need not finish."""
        now = time.monotonic()
        for process in self.cluster.supervisor.table:
            if process.ready is None:
                patient = now - self._stopped < 1
                self._signal(process, signal.SIGQUIT if patient else signal.SIGKILL)

    def stop(self, graceful: bool = True) -> None:
        if not self.cluster.board.stopping:
            self.cluster.reporter.event("stop", "")
        self._stopped = time.monotonic()
        self.cluster.board.stopping = True
        self.cluster.observe(self._stopped)
        self._checkup.close()
        for process in self.cluster.supervisor.table:
            if process.told is None:
                process.told, process.why = self._stopped, SERVER_ENDS
        self._deployment.is_over(undone=False)
        super().stop(graceful)

    # --- a new configuration ----------------------------------------------------------------

    def setup(self, app: Any) -> None:
        """Take a configuration. Our hooks go into it, for it knows only the user's."""
        self.cluster.take(of_config(app.cfg))
        self.install(app.cfg, self.cluster.settings)
        super().setup(app)
        app.cfg.set("workers", min(app.cfg.workers, self.cluster.shared.capacity))
        self._warn_of_limits()

    def reload(self) -> None:
        """Replace every worker, with a new configuration; if that is broken, do nothing.

        Unlike gunicorn's own this only begins: the turns that follow do the rest.
        """
        self._stats["reloads"] += 1
        now = time.monotonic()
        self.cluster.observe(now)
        wanted = self._deployment.read()
        if wanted is not None:
            self.fail_roll("another reload was asked for", now)
            if self._deployment.take(wanted):
                self._begin_roll(now)

    # --- a roll begins and ends ---------------------------------------------------------------

    def fail_roll(self, reason: str, now: float) -> None:
        """End the roll that is under way, if one is."""
        self._act(self.cluster.supervisor.replacer.fail(reason, now))

    def _begin_roll(self, now: float) -> None:
        policy, before = self._policy(), self._deployment.workers_before
        self._act(self.cluster.supervisor.replacer.begin(policy.target, before, now))
        self.cluster.reporter.roll_began(policy)

    def _roll_ended(self, ended: Ended) -> None:
        self.cluster.board.count_roll(committed=ended.roll.state is RollState.COMMITTED)
        self.cluster.reporter.roll_ended(ended)
        self.publish()
        self._deployment.is_over(undone=ended.undone)


def _next_ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def adopt(server: Any, settings: Settings, install: Install) -> ClusterArbiter:
    """Make ``server``, a running arbiter, a ClusterArbiter, once."""
    if not isinstance(server, ClusterArbiter):
        kind = type(server)
        bases = (ClusterArbiter,) if kind is Arbiter else (ClusterArbiter, kind)
        cluster = Cluster(settings, server.cfg, server.log)
        server.__class__ = type("ClusterArbiter", bases, {})
        server.oversee(cluster, install)
    arbiter: ClusterArbiter = server
    return arbiter
