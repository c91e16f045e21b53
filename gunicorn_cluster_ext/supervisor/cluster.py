"""What the arbiter makes once for its server, and removes when it ends."""

from __future__ import annotations

import atexit
import dataclasses
import os
import random
import shutil
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.directory import make_directory
from gunicorn_cluster_ext.runtime.event_log import Journal
from gunicorn_cluster_ext.runtime.shared import Shared
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.embedded import location
from gunicorn_cluster_ext.stores.embedded.shared_state import settle
from gunicorn_cluster_ext.supervisor.backoff import RestartPolicy
from gunicorn_cluster_ext.supervisor.lifecycle import Lifecycle
from gunicorn_cluster_ext.supervisor.reporter import Reporter

#: How long killed workers may take to exit.
_KILLED_TIMEOUT_S = 0.5


class Cluster:
    """The arbiter's side of one server: what it shares with the workers, and their life cycle."""

    def __init__(self, settings: Settings, cfg: Any, log: Any) -> None:
        self._store_name = f"{cfg.chdir} {cfg.default_proc_name} {' '.join(cfg.bind)}"
        settings = self._with_store(settings)
        capacity = settings.capacity(cfg.workers)
        self.lifecycle = Lifecycle(capacity, RestartPolicy.of(settings), random.random)
        self.shared = Shared(settings, _make_board(settings, capacity, cfg, log))
        self.board, self.directory = self.shared.board, self.shared.directory
        self.board.target = cfg.workers
        self.reporter = Reporter(log, Journal(self.directory, log))
        self._log = log
        self._pid, self._user = os.getpid(), (cfg.uid, cfg.gid)
        # Not gunicorn's on_exit, which does not run when the address is taken, for instance.
        atexit.register(self.close)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.shared.settings

    def take(self, settings: Settings) -> None:
        """Use other settings from now on. What exists already keeps its size until a restart."""
        self.lifecycle.use(RestartPolicy.of(settings))
        self.shared.apply(self._with_store(settings))

    def _with_store(self, settings: Settings) -> Settings:
        """Name an embedded store that has no name, the same over all reloads of this server, even
        if they change what the name was made of."""
        if settings.store_name is not None:
            return settings
        return dataclasses.replace(settings, store_name=self._store_name)

    def close(self) -> None:
        """Remove the server's files, and settle what killed workers have left in its store.

        Runs in the arbiter when it exits; it does nothing in a worker.
        """
        if os.getpid() != self._pid:
            return
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.settings.store != "embedded":
            return
        uid, gid = self._user
        try:
            # The store's directory belongs to the workers' user. The process ends after this, so
            # it need not become itself again.
            if os.geteuid() != uid:
                os.setegid(gid)
                os.seteuid(uid)
            for directory in location.existing(self.settings):
                settle(directory, _KILLED_TIMEOUT_S)
        except OSError as error:
            self._log.warning("The embedded store could not be flushed to disk: %s", error)


def _make_board(settings: Settings, capacity: int, cfg: Any, log: Any) -> Board:
    def make(directory: Path) -> Board:
        return Board.create(capacity, directory / "board")

    try:
        return make_directory(settings.dir, cfg.uid, cfg.gid, make)
    except OSError as error:
        log.warning(
            "No directory for the board: gunicorn-cluster cannot find this server, and its "
            "workers cannot send each other messages. Set cluster_dir to a writable one. (%s)",
            error,
        )
        return Board.create(capacity)
