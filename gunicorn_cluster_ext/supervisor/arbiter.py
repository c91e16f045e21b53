"""Gunicorn's own arbiter, with a supervisor. All of this runs in the arbiter's process.

A running arbiter is *adopted*: its class becomes a subclass of what it was, because
``Arbiter.run`` calls everything through ``self``. Each turn of its loop

    reap, read the board  -->  Lifecycle (no I/O)  -->  actions  -->  Executor: fork, signals

and nothing in it waits: the reply of a worker is looked for in the next turn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.settings import Settings, of_config
from gunicorn_cluster_ext.supervisor.actions import RollEnded, RollPolicy
from gunicorn_cluster_ext.supervisor.cluster import Cluster
from gunicorn_cluster_ext.supervisor.control import ControlRequests
from gunicorn_cluster_ext.supervisor.executor import Executor
from gunicorn_cluster_ext.supervisor.exits import BOOT_ERROR, Exit
from gunicorn_cluster_ext.supervisor.faults import Faults
from gunicorn_cluster_ext.supervisor.monitor import Monitor
from gunicorn_cluster_ext.supervisor.reload import Reload, ReloadRefused
from gunicorn_cluster_ext.supervisor.seats import Seats
from gunicorn_cluster_ext.supervisor.status import Status

Install = Callable[[Any, Settings], None]

#: How long the loop sleeps at most while something is under way; otherwise gunicorn's second.
BUSY_SLEEP_S = 0.03


class ClusterArbiter(Arbiter):
    """An arbiter whose workers hold slots: gunicorn's methods, overridden."""

    dirty_arbiter: Any
    dirty_arbiter_pid: int
    reexec_pid: int
    # Compared with exit codes: gunicorn would end the server, however many workers serve. In the
    # workers they have their values again (``in_worker``).
    WORKER_BOOT_ERROR = -1
    APP_LOAD_ERROR = -1

    def supervise(self, cluster: Cluster, install: Install) -> None:
        """Begin to supervise the workers. Called once, when the arbiter has become one of this
        class. ``install`` chains the pack's hooks into a configuration."""
        self._cluster, self._install = cluster, install
        self._lifecycle, self._board = cluster.lifecycle, cluster.board
        self._seats = Seats(cluster)
        self._faults = Faults(cluster, self.log)
        self._executor = Executor(self, cluster, self._seats, self._faults, self._roll_ended)
        self._monitor = Monitor(cluster, self.log)
        self._control = ControlRequests(self, cluster)
        self._reload = Reload(self, self._faults)
        self._status = Status(self, cluster)
        self._stopped_at = 0.0
        cluster.reporter.event("start", f"{self.num_workers} workers are wanted")
        self._warn_of_settings()

    def in_worker(self) -> None:
        """Called in each worker, where this object is not the arbiter any more."""
        self.WORKER_BOOT_ERROR = Arbiter.WORKER_BOOT_ERROR
        self.APP_LOAD_ERROR = Arbiter.APP_LOAD_ERROR
        self._monitor.close()
        self._reload.close_in_worker()

    @property
    def _has_inboxes(self) -> bool:
        """Return whether the workers are of one of the pack's classes."""
        return bool(getattr(self.worker_class, "reads_inbox", False))

    def _warn_of_settings(self) -> None:
        settings, ineffective = self._cluster.settings, []
        if not self._has_inboxes and settings.health_path:
            ineffective.append("cluster_health_path")
        if not self._has_inboxes and settings.roll_rollback == "full":
            ineffective.append('cluster_roll_rollback = "full"')
        for setting in ineffective:
            self.log.warning(
                "%s has no effect with the worker class %s: it needs one of this pack, such as "
                "gunicorn_cluster_ext.Sticky.",
                setting,
                self.cfg.worker_class_str,
            )
        if sys.platform != "linux" and (settings.max_memory or settings.max_memory_hard):
            self.log.warning("cluster_max_memory works on Linux only, and has no effect here.")

    # --- the number of workers --------------------------------------------------------------

    @property
    def num_workers(self) -> int:
        return int(self._get_num_workers() or 0)

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        """Set by TTIN, TTOU, a reload, gunicorn's control socket and control requests."""
        capacity = self._board.capacity
        if value > capacity:
            self.log.error(
                "%d workers wanted, but there are %d slots: set cluster_slots and restart.",
                value,
                capacity,
            )
            value = capacity
        if value != self.num_workers:
            text = f"{value} are wanted instead of {self.num_workers}"
            self._cluster.reporter.event("workers", text)
        self._board.target = value
        try:
            self._set_num_workers(value)
        except Exception as error:  # of the hook nworkers_changed; the number itself is set
            if self._reload.is_applying:
                raise
            self._faults.note("The hook nworkers_changed", error)

    # --- the loop -----------------------------------------------------------------------------

    def wait_for_signals(self, timeout: float = 1.0) -> list[Any]:
        """End a turn of the loop, and begin the next when a signal comes or it is time."""
        self._status.turn_ends(self._executor.fork_time)
        if self._monitor.is_waiting or not self._lifecycle.is_settled(self.num_workers):
            timeout = BUSY_SLEEP_S
        signals: list[Any] = super().wait_for_signals(timeout=timeout)
        self._status.turn_begins(self._executor.fork_time)
        return signals

    def manage_workers(self) -> None:
        """Do one turn: see how the workers are, and do what follows from it."""
        now, contained = time.monotonic(), self._faults.contained
        with contained("Reading the board"):
            self._seats.observe(now)
        with contained("Looking for lost processes"):
            self._executor.drop_vanished(now)
        with contained("A control request"):
            self._control.turn()
        with contained("Monitoring the workers"):
            pids = {worker.age: pid for pid, worker in self.WORKERS.items()}
            address = self.LISTENERS[0].getsockname() if self.LISTENERS else ""
            probing = self._policy().probing
            self._executor.execute(self._monitor.turn(pids, address, probing=probing, now=now))
        with contained("Starting and retiring workers"):
            # The actions above may have ended a roll, after which another policy is in force.
            self._executor.execute(self._lifecycle.plan(self._policy(), now))
        with contained("Signalling the workers"):
            self._executor.send_late_signals(now)
        with contained("Publishing the status"):
            self._status.update(now)
        if reason := self._lifecycle.halt_reason(self.num_workers, now):
            raise HaltServer(f"{reason} (cluster_restart_limit, cluster_restart_policy)", 1)

    def _policy(self) -> RollPolicy:
        settings = self._cluster.settings
        probing = bool(settings.health_path) and self._has_inboxes
        return RollPolicy.of(settings, self.cfg, self.num_workers, probing=probing)

    def murder_workers(self) -> None:
        """Abort workers without a heartbeat. One that boots has cluster_startup_timeout."""
        if not self.timeout:
            return
        now = time.monotonic()
        for worker in list(self.WORKERS.values()):
            process = self._lifecycle.get(worker.age)
            try:
                silent = now - worker.tmp.last_update() > self.timeout
            except (OSError, ValueError):  # its heartbeat file is closed
                continue
            if silent and process is not None and process.ready_at is not None:
                reason = f"sent no heartbeat for {self.timeout:g} s (timeout)"
                self._executor.execute(self._lifecycle.abort(process, reason, now))

    def handle_usr1(self) -> None:
        """Open log files again. Workers that have no handler yet do so when they are ready."""
        with self._faults.contained("Reopening the log files"):
            super().handle_usr1()
        self._executor.reopen_when_ready()

    def kill_worker(self, pid: int, sig: int) -> None:
        with self._faults.contained("Signalling the workers"):
            super().kill_worker(pid, sig)

    def manage_dirty_arbiter(self) -> None:
        with self._faults.contained("Managing the dirty arbiter"):
            super().manage_dirty_arbiter()

    # --- a second master ----------------------------------------------------------------------

    def reexec(self) -> None:
        """Start a second master, on SIGUSR2. If that fails, this one continues."""
        master = os.getpid()
        try:
            super().reexec()
        except Exception as error:
            self._faults.note("Starting a second master", error)
            if os.getpid() != master:
                os._exit(1)  # the fork, in which the hook pre_exec or the exec itself failed

    def maybe_promote_master(self) -> None:
        with self._faults.contained("Taking the place of the first master"):
            super().maybe_promote_master()

    # --- forks and exits --------------------------------------------------------------------

    def assign_place(self, worker: Any) -> None:
        """Give ``worker``, about to be forked, its place. Called by the hook ``pre_fork``."""
        process = self._seats.assign(worker.age, self.num_workers)
        process.can_park = self._has_inboxes
        worker.shared, worker.place = self._cluster.shared, process.place
        # Before it serves, so that whoever sees it serve can read what the server is.
        self._status.describe()

    def reap_workers(self) -> None:
        """Reap like gunicorn, but say why; no exit ends a server that has served."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            worker = self.WORKERS.pop(pid, None)
            if worker is not None:
                with self._faults.contained("Handling the exit of a worker"):
                    self._reaped(pid, worker, Exit.of_code(os.waitstatus_to_exitcode(status)))
            elif pid == self.reexec_pid:
                self.log.warning("The second master (pid:%s) has exited; this one continues", pid)
                self.reexec_pid = 0
            elif pid == self.dirty_arbiter_pid:
                self.log.info("Dirty arbiter (pid:%s) ended with status %s", pid, status)
                self.dirty_arbiter_pid, self.dirty_arbiter = 0, None
            else:
                self.log.debug("Reaped unknown child process (pid:%s, status:%s)", pid, status)
        if self._board.stopping:
            self._executor.end_booting(time.monotonic() - self._stopped_at)

    def _reaped(self, pid: int, worker: Any, exit: Exit) -> None:
        now = time.monotonic()
        self._seats.observe(now)
        outcome = self._seats.exited(worker.age, pid, exit, now)
        worker.tmp.close()
        with self._faults.contained("The hook child_exit"):
            self.cfg.child_exit(self, worker)
        if outcome is not None:
            self._executor.execute(outcome.actions)
            if outcome.halt:
                is_boot_error = outcome.halt == BOOT_ERROR
                reason = "Worker failed to boot." if is_boot_error else "App failed to load."
                raise HaltServer(reason, outcome.halt)

    def stop(self, graceful: bool = True) -> None:
        with self._faults.contained("Preparing the stop of the server"):
            if not self._board.stopping:
                self._cluster.reporter.event("stop", "")
            self._stopped_at = time.monotonic()
            self._board.stopping = True
            self._seats.observe(self._stopped_at)
            self._monitor.close()
            self._lifecycle.server_stops(self._stopped_at)
            self._reload.roll_ended(undone=False)
        super().stop(graceful)

    # --- reloads and rolls ------------------------------------------------------------------

    def setup(self, app: Any) -> None:
        """Take a configuration. It has only the user's hooks, so ours are installed in it."""
        self._cluster.take(of_config(app.cfg))
        self._install(app.cfg, self._cluster.settings)
        super().setup(app)
        app.cfg.set("workers", min(app.cfg.workers, self._board.capacity))
        self._warn_of_settings()

    def reload(self) -> None:
        """Begin to replace every worker, with a new configuration; do nothing if it is broken.

        Unlike gunicorn's own this returns at once: the turns that follow do the rest.
        """
        self._stats["reloads"] += 1
        now = time.monotonic()
        self._seats.observe(now)
        try:
            wanted = self._reload.read()
            self.fail_roll("another reload was requested", now)
            self._reload.apply(wanted)
        except ReloadRefused as error:
            reason = str(error).rstrip(".")
            self._cluster.reporter.reload_refused(reason)
            if self._lifecycle.refuse_roll(reason, self.num_workers, now):
                self._board.count_roll(committed=False)
            return
        policy, before = self._policy(), self._reload.workers_before
        self._executor.execute(self._lifecycle.begin_roll(policy.target, before, now))
        self._cluster.reporter.roll_began(policy)

    def fail_roll(self, reason: str, now: float) -> None:
        """End the roll that is under way, if there is one."""
        self._executor.execute(self._lifecycle.fail_roll(reason, now))

    def _roll_ended(self, ended: RollEnded) -> None:
        self._board.count_roll(committed=ended.roll.state is RollState.COMMITTED)
        self._cluster.reporter.roll_ended(ended)
        self.publish()
        self._reload.roll_ended(undone=ended.undone)

    def publish(self) -> None:
        """Publish the roll at once, instead of at the end of the turn."""
        self._status.publish()


def adopt(server: Any, settings: Settings, install: Install) -> ClusterArbiter:
    """Make ``server``, a running arbiter, a ClusterArbiter, unless it is one. Return it."""
    if not isinstance(server, ClusterArbiter):
        kind = type(server)
        bases = (ClusterArbiter,) if kind is Arbiter else (ClusterArbiter, kind)
        cluster = Cluster(settings, server.cfg, server.log)
        server.__class__ = type("ClusterArbiter", bases, {})
        server.supervise(cluster, install)
    arbiter: ClusterArbiter = server
    return arbiter
