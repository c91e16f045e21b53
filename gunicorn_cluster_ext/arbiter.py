"""Gunicorn's own arbiter, taught slots. All of this runs in the arbiter's process.

A running arbiter is *adopted*: its class becomes a subclass of what it was, because
``Arbiter.run`` calls everything through ``self``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from random import random
from typing import Any

from gunicorn.arbiter import Arbiter

from gunicorn_cluster_ext.cluster import Cluster
from gunicorn_cluster_ext.settings import SettingError, Settings, of_config

Install = Callable[[Any, Settings], None]


class ClusterArbiter(Arbiter):
    """An arbiter whose workers hold slots."""

    cluster: Cluster
    _last_logged_active_worker_count: int | None
    #: Chains our hooks into a configuration (hooks.install).
    install: Install
    #: When each worker that still lives was first told to finish, by its age.
    _told: dict[int, float]

    @property
    def num_workers(self) -> int:
        return int(self._get_num_workers() or 0)

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        """Set by TTIN, TTOU, a reload and the control socket alike."""
        capacity = self.cluster.table.capacity
        if value > capacity:
            self.log.error(
                "%d workers wanted, but there are %d slots: set cluster_slots and restart.",
                value,
                capacity,
            )
            value = capacity
        self.cluster.board.target = value
        self._set_num_workers(value)

    def setup(self, app: Any) -> None:
        """Take a new configuration. Our hooks go into it, for it knows only the user's."""
        try:
            self.cluster.settings = of_config(app.cfg)
        except SettingError as error:
            self.log.error("%s The cluster settings stay as they were.", error)
        self.install(app.cfg, self.cluster.settings)
        super().setup(app)
        app.cfg.set("workers", min(app.cfg.workers, self.cluster.table.capacity))

    def stop(self, graceful: bool = True) -> None:
        self.cluster.board.stopping = True
        super().stop(graceful)

    def reload(self) -> None:
        """Every process is succeeded by one in the same slot (gunicorn spawns them here)."""
        self._evict()
        self.cluster.table.retire_all()
        super().reload()

    def spawn_worker(self) -> int | None:
        """Fork a worker, if there is a slot for it; otherwise the next turn tries again."""
        if self.cluster.table.free(self.num_workers) is None:
            return None
        pid: int = super().spawn_worker()
        return pid

    def _evict(self) -> None:
        """Kill what outstays its welcome: two processes hold a slot at most.

        These were told to finish, did not within ``graceful_timeout``, and now a successor
        needs the seat.
        """
        crowding = self.cluster.table.crowding()
        limit = time.monotonic() - self.cfg.graceful_timeout
        victims = [
            pid
            for pid, worker in self.WORKERS.items()
            if worker.age in crowding and self._told.get(worker.age, limit) <= limit
        ]
        for pid in victims:
            self.log.warning("Worker (pid:%s) did not finish in time, and is killed", pid)
            self.kill_worker(pid, signal.SIGKILL)
        deadline = time.monotonic() + 1
        while any(pid in self.WORKERS for pid in victims) and time.monotonic() < deadline:
            self.reap_workers()
            time.sleep(0.01)

    def manage_workers(self) -> None:
        """Keep ``num_workers`` slots held.

        Unlike gunicorn's own, this counts a process that was told to finish no more (a crash
        while another drains would otherwise not be mended before that is gone), and retires
        the highest slots first, so that the slots stay 0 to n-1.
        """
        table = self.cluster.table
        holders = list(table.holders())
        for process in holders[self.num_workers :]:
            table.retire(process)
        # Again at each turn, as gunicorn does: a signal that comes before a new worker has
        # its handlers is lost.
        for pid, worker in list(self.WORKERS.items()):
            if not table.is_holder(worker.age):
                self._told.setdefault(worker.age, time.monotonic())
                self.kill_worker(pid, signal.SIGTERM)
        ages = {worker.age for worker in self.WORKERS.values()}
        self._told = {age: told for age, told in self._told.items() if age in ages}
        if len(holders) < self.num_workers and table.free(self.num_workers) is None:
            self._evict()
        for _ in range(self.num_workers - len(holders)):
            self.spawn_worker()
            time.sleep(0.1 * random())
        self._log_metrics()

    def _log_metrics(self) -> None:
        """What gunicorn's own manage_workers reports for statsd."""
        count = sum(1 for _ in self.cluster.table.holders())
        if self._last_logged_active_worker_count != count:
            self._last_logged_active_worker_count = count
            extra = {"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            self.log.debug("%d workers", count, extra=extra)
        if self.cfg.enable_backlog_metric:
            backlog = sum(sock.get_backlog() or 0 for sock in self.LISTENERS)
            extra = {"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"}
            self.log.debug("socket backlog: %d", backlog, extra=extra)


def adopt(server: Any, settings: Settings, install: Install) -> Cluster:
    """Make ``server``, a running arbiter, a ClusterArbiter, once. Returns its cluster."""
    if not isinstance(server, ClusterArbiter):
        kind = type(server)
        bases = (ClusterArbiter,) if kind is Arbiter else (ClusterArbiter, kind)
        server.cluster = Cluster(settings, server.cfg, server.log)
        server.install = install
        server._told = {}
        server.__class__ = type("ClusterArbiter", bases, {})
    cluster: Cluster = server.cluster
    return cluster
