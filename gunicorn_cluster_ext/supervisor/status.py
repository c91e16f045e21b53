"""Publishes how the server is: on the board, in the title, as metrics and in the log.

Runs in the arbiter.
"""

from __future__ import annotations

import time
from typing import Any

from gunicorn_cluster_ext.runtime import proctitle, server_info
from gunicorn_cluster_ext.runtime.board.layout import Roll
from gunicorn_cluster_ext.supervisor.arbiter_protocol import SupervisedArbiter
from gunicorn_cluster_ext.supervisor.cluster import Cluster


class Status:
    """The published status of the server of ``arbiter``."""

    def __init__(self, arbiter: SupervisedArbiter, cluster: Cluster) -> None:
        self._arbiter, self._cluster = arbiter, cluster
        self._lifecycle, self._board = cluster.lifecycle, cluster.board
        self._started_at, self._all_have_served = time.monotonic(), False
        self._roll: Roll | None = None
        self._described_cfg: Any = None
        self._active: int | None = None
        self._turn_began: float | None = None  # the start is no turn
        self._forked_before = 0.0

    # --- the turns of the arbiter's loop --------------------------------------------------------

    def turn_begins(self, fork_time: float) -> None:
        """``fork_time``: for how many seconds forks have kept the arbiter busy so far."""
        self._turn_began, self._forked_before = time.monotonic(), fork_time

    def turn_ends(self, fork_time: float) -> None:
        """Publish the longest turn, without its forks."""
        if self._turn_began is not None:
            duration = time.monotonic() - self._turn_began - (fork_time - self._forked_before)
            self._board.slowest_turn = max(self._board.slowest_turn, int(duration * 1e9))

    # --- in each turn ---------------------------------------------------------------------------

    def update(self, now: float) -> None:
        """Publish everything, and log what has changed."""
        self.publish()
        self._board.recent_exits = self._lifecycle.recent_exits(now)
        target = self._arbiter.num_workers
        if not self._all_have_served and self._lifecycle.serving >= target:
            self._all_have_served = True
            self._cluster.reporter.serving(target, now - self._started_at)
        self._log_metrics()

    def publish(self) -> None:
        """Publish the roll, and the configuration if it is a new one."""
        roll = self._lifecycle.roll
        if roll is not None:
            seen = Roll(roll.state, roll.version, roll.replaced, roll.total, roll.reason)
            if seen != self._roll:
                self._roll = self._board.roll = seen
                proctitle.show_roll(f"master [{self._arbiter.proc_name}]", seen)
        self.describe()

    def describe(self) -> None:
        """Write the file that describes the server, if its configuration is a new one."""
        directory, cfg = self._cluster.directory, self._arbiter.cfg
        if directory is not None and self._described_cfg is not cfg:
            self._described_cfg = cfg
            try:
                server_info.write(
                    directory, server_info.collect(self._arbiter, self._cluster.settings)
                )
            except OSError as error:
                log = self._arbiter.log
                log.warning("The server's description cannot be written: %s", error)

    def _log_metrics(self) -> None:
        """Log what gunicorn's manage_workers logs for statsd."""
        log, active = self._arbiter.log, self._lifecycle.active
        if self._active != active:
            self._active = active
            extra = {"metric": "gunicorn.workers", "value": active, "mtype": "gauge"}
            log.debug("%d workers", active, extra=extra)
        if self._arbiter.cfg.enable_backlog_metric:
            backlog = sum(sock.get_backlog() or 0 for sock in self._arbiter.LISTENERS)
            extra = {"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"}
            log.debug("socket backlog: %d", backlog, extra=extra)
