"""Between the board and the life cycle of the workers, in the arbiter."""

from __future__ import annotations

import atexit
import dataclasses
import os
import random
import shutil
import time
from math import ceil, floor
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.runtime import prometheus_files, server_info
from gunicorn_cluster_ext.runtime.board import exits, ledger
from gunicorn_cluster_ext.runtime.board.layout import Place, State, Word
from gunicorn_cluster_ext.runtime.directory import bus_socket, make_directory
from gunicorn_cluster_ext.runtime.event_log import Journal
from gunicorn_cluster_ext.runtime.shared import Shared
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.embedded import location
from gunicorn_cluster_ext.stores.embedded.shared_state import settle
from gunicorn_cluster_ext.supervisor.actions import RollPolicy
from gunicorn_cluster_ext.supervisor.backoff import RestartPolicy
from gunicorn_cluster_ext.supervisor.exits import Exit
from gunicorn_cluster_ext.supervisor.lifecycle import Supervisor, Verdict
from gunicorn_cluster_ext.supervisor.reporter import Reporter
from gunicorn_cluster_ext.supervisor.slots import Process

#: How long killed workers may take to be gone.
_KILLED_S = 0.5


class Cluster:
    """The arbiter's view of its server: what it shares with the workers, and their life cycle."""

    def __init__(self, settings: Settings, cfg: Any, log: Any) -> None:
        self._store_name = f"{cfg.chdir} {cfg.default_proc_name} {' '.join(cfg.bind)}"
        settings = self._with_store(settings)
        capacity = settings.capacity(cfg.workers)
        self.supervisor = Supervisor(capacity, restart_policy(settings), random.random)
        self.shared = Shared(settings, capacity, _make_directory(settings, cfg, log))
        self.board, self.directory = self.shared.board, self.shared.directory
        self.board.target = cfg.workers
        self.reporter = Reporter(log, Journal(self.directory, log))
        self._log = log
        self._described: Any = None
        self._pid, self._user = os.getpid(), (cfg.uid, cfg.gid)
        # Not gunicorn's on_exit, which does not run when the address is taken, for instance.
        atexit.register(self.close)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.shared.settings

    def take(self, settings: Settings) -> None:
        """Use other settings from now on. Those of what exists already need a restart."""
        self.supervisor.limits.policy = restart_policy(settings)
        self.shared.apply(self._with_store(settings))

    def _with_store(self, settings: Settings) -> Settings:
        """An embedded store that nobody has named stays the same as long as the server lives, over
        reloads that change what it was named after."""
        if settings.store_name is not None:
            return settings
        return dataclasses.replace(settings, store_name=self._store_name)

    def seat(self, key: int, slot: int) -> Place:
        """Give a process that is about to be forked its place. Called in the arbiter."""
        process = self.supervisor.seat(key, slot, time.monotonic())
        self.reporter.booting(process)
        place = process.place
        self.board.clear(place.seat, place.generation, time.monotonic_ns())
        return place

    def describe(self, arbiter: Any) -> None:
        """Let other processes read what the server is now, if its configuration is a new one."""
        if self.directory is not None and self._described is not arbiter.cfg:
            self._described = arbiter.cfg
            try:
                server_info.write(self.directory, server_info.of(arbiter, self.settings))
            except OSError as error:
                self._log.warning("The server's description cannot be written: %s", error)

    def close(self) -> None:
        """Remove the server's files, and settle what killed workers have left in its store. Called
        in the arbiter; nothing happens in a worker."""
        if os.getpid() != self._pid:
            return
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.settings.store == "embedded":
            self._settle_store()

    def _settle_store(self) -> None:
        """As the workers' user: it is their directory. The process ends after this."""
        uid, gid = self._user
        try:
            if os.geteuid() != uid:
                os.setegid(gid)
                os.seteuid(uid)
            for directory in location.existing(self.settings):
                settle(directory, _KILLED_S)
        except OSError as error:
            self._log.warning("The embedded store was not put on disk: %s", error)

    # --- between board and supervisor, in the arbiter -----------------------------------

    def observe(self, now: float) -> None:
        """Tell the supervisor what the processes say of themselves."""
        for process in list(self.supervisor.table):
            state = self.board.state(process.place.seat)
            if state is not process.state:
                was_ready = process.ready is not None
                self.supervisor.saw(process, state, now)
                if process.ready is not None and not was_ready:
                    self.reporter.ready(process, self.board.get(process.place.seat, Word.PID))

    def ended(self, process: Process, pid: int, exit: Exit, verdict: Verdict) -> None:
        """A process was reaped."""
        slot, seat, _ = process.place
        delay = ""
        if not verdict.expected and self.supervisor.table.current(slot) is None:
            delay = f"; its replacement waits {verdict.delay:.1f} s"
        self.reporter.ended(process, pid, exit, f"{verdict.words}{delay}")
        now = time.monotonic_ns()
        exits.note(self.board, seat, exit.cause(process), exit.reason(process), now)
        self.vacate(process.place)

    def vacate(self, place: Place) -> None:
        """Nobody sits there any more."""
        ledger.settle(self.board, place.seat)
        prometheus_files.forget_live(self.board.master_pid, place.seat)
        self.board.set(place.seat, Word.STATE, State.GONE)
        if self.board.get(place.seat, Word.BUS_LISTENS) and self.directory is not None:
            self.board.set(place.seat, Word.BUS_LISTENS, 0)
            bus_socket(self.directory, place.seat, place.generation).unlink(missing_ok=True)


def _make_directory(settings: Settings, cfg: Any, log: Any) -> Path | None:
    try:
        return make_directory(settings.dir, cfg.uid, cfg.gid)
    except OSError as error:
        log.warning(
            "No directory for the board: gunicorn-cluster finds nothing, and workers send each "
            "other no messages. Set cluster_dir to one that can be written. (%s)",
            error,
        )
        return None


def restart_policy(settings: Settings) -> RestartPolicy:
    limit, window = settings.restart_limit or (0, 0.0)
    return RestartPolicy(
        delay=settings.restart_delay,
        delay_max=settings.restart_delay_max,
        min_uptime=settings.min_uptime,
        limit=limit,
        window=window,
        halt=settings.restart_policy == "halt",
    )


def roll_policy(settings: Settings, cfg: Any, target: int, *, probing: bool) -> RollPolicy:
    """``target`` workers are wanted."""
    surge = _workers(settings.roll_surge, target, ceil)
    unavailable = _workers(settings.roll_unavailable, target, floor)
    return RollPolicy(
        target=target,
        surge=surge,
        # As in Kubernetes: percentages that come to nothing must not stop everything.
        unavailable=unavailable if surge else max(unavailable, 1),
        full=settings.roll_rollback == "full",
        observe=settings.roll_observe,
        startup=settings.startup_timeout,
        drain=settings.drain(cfg),
        probing=probing,
    )


def _workers(share: int | str, target: int, rounded: Any) -> int:
    if isinstance(share, int):
        return share
    return int(rounded(int(share.removesuffix("%")) * target / 100))
