"""What all processes of a server share, made by the arbiter before the first fork."""

from __future__ import annotations

import atexit
import os
import shutil
import time
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.board import SEATS_PER_SLOT, Board, State, Word, make_directory
from gunicorn_cluster_ext.handoff import Inboxes
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.slots import Place, SlotTable

_FEWEST_SLOTS = 16


class Cluster:
    """Board, inboxes and slot table of one server."""

    def __init__(self, settings: Settings, cfg: Any, log: Any) -> None:
        self.settings = settings
        capacity = max(settings.slots or max(_FEWEST_SLOTS, 2 * cfg.workers), cfg.workers)
        self.table = SlotTable(capacity)
        self.directory = self._make_directory(cfg, log)
        path = self.directory / "board" if self.directory else None
        self.board = Board.create(capacity, path)
        if path is not None and os.geteuid() == 0:
            os.chown(path, cfg.uid, cfg.gid)
        self.board.target = cfg.workers
        self.inboxes = Inboxes(capacity * SEATS_PER_SLOT)
        self._pid = os.getpid()
        # Not gunicorn's on_exit, which does not run when the address is taken, for instance.
        atexit.register(self.close)

    def _make_directory(self, cfg: Any, log: Any) -> Path | None:
        try:
            return make_directory(self.settings.dir, cfg.uid, cfg.gid)
        except OSError as error:
            log.warning("No directory for the board, so other processes cannot read it: %s", error)
            return None

    def seat(self, process: int) -> Place:
        """Give a process that is about to be forked its place. Called in the arbiter."""
        place = self.table.seat(process, self.board.target)
        self.board.clear(place.seat, place.generation, time.monotonic_ns())
        return place

    def leave(self, process: int) -> None:
        """A process was reaped. Called in the arbiter."""
        place = self.table.leave(process)
        if place is not None:
            self.board.set(place.seat, Word.STATE, State.GONE)

    def close(self) -> None:
        """Remove the server's files. Called in the arbiter; nothing happens in a worker."""
        if self.directory is not None and os.getpid() == self._pid:
            shutil.rmtree(self.directory, ignore_errors=True)
