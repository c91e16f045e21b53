"""Watches the workers that serve: health, requests, age, memory. Runs in the arbiter."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.procfs import resident_memory
from gunicorn_cluster_ext.supervisor.actions import Action
from gunicorn_cluster_ext.supervisor.cluster import Cluster
from gunicorn_cluster_ext.supervisor.health import Prober
from gunicorn_cluster_ext.supervisor.recycling import Recycler

#: Time between two samples of the workers' memory.
MEMORY_INTERVAL_S = 2.0
#: Time over which requests are counted for a rate.
RATE_INTERVAL_S = 5.0


_MAX_RATE = 1 << 63


class Monitor:
    """Looks at each worker and reports to the life cycle. A turn yields what is to be done."""

    def __init__(self, cluster: Cluster, log: Any) -> None:
        self._cluster, self._log = cluster, log
        self._lifecycle, self._board = cluster.lifecycle, cluster.board
        self._prober = Prober(cluster.shared.inboxes)
        self._rates = Rates()
        self._sampled_at = 0.0

    @property
    def is_waiting(self) -> bool:
        """Return whether a worker has yet to answer a health check."""
        return self._prober.is_waiting

    def close(self) -> None:
        """Drop the checks that are under way. Each worker, which inherits them, calls it too."""
        self._prober.close()

    def turn(
        self, pids: Mapping[int, int], address: Any, *, probing: bool, now: float
    ) -> Iterator[Action]:
        """Look at the workers once.

        ``pids`` are by process key; ``address`` is where the server listens; ``probing``: health
        is checked.
        """
        settings = self._cluster.settings
        recycler = Recycler(settings, random.random)
        serving = [each for each in self._lifecycle if each.serves and not each.kill_reason]
        if probing:
            # As a message can carry it: abstract Unix names are bytes.
            address = address.decode("latin-1") if isinstance(address, bytes) else address
            for process, reason in self._prober.turn(serving, settings, address, now):
                self._log.error("Worker %s %s", process.place.slot, reason)
                yield from self._lifecycle.unhealthy(process, reason, now)
        for process in serving:
            requests = self._board.get(process.place.seat, Word.REQUESTS)
            limit = self._board.get(process.place.seat, Word.MAX_REQUESTS)
            if reason := recycler.served(requests, limit) or recycler.age(process, now):
                self._lifecycle.recycle(process, reason, now)
        self._publish_rates(now)
        limited = settings.max_memory or settings.max_memory_hard
        if limited and now - self._sampled_at >= MEMORY_INTERVAL_S:
            self._sampled_at = now
            for process in serving:
                size = resident_memory(pids.get(process.key))
                if reason := recycler.hard_memory(size):
                    yield from self._lifecycle.kill(process, reason, now)
                elif reason := recycler.memory(process, size):
                    self._lifecycle.recycle(process, reason, now)

    def _publish_rates(self, now: float) -> None:
        if not self._rates.is_due(now):
            return
        seats = {each.key: each.place.seat for each in self._lifecycle}
        requests = {key: self._board.get(seat, Word.REQUESTS) for key, seat in seats.items()}
        for key, rate in self._rates.count(requests, now).items():
            # A broken process may have counted anything.
            self._board.set(seats[key], Word.RATE, min(max(int(rate * 1000), 0), _MAX_RATE))


class Rates:
    """Requests per second by process key, counted every RATE_INTERVAL_S."""

    def __init__(self) -> None:
        self._counted_at = 0.0
        self._before: Mapping[int, int] = {}

    def is_due(self, now: float) -> bool:
        return now - self._counted_at >= RATE_INTERVAL_S

    def count(self, requests: Mapping[int, int], now: float) -> dict[int, float]:
        """Return each process's rate since the last count, given its ``requests`` so far."""
        passed, self._counted_at = now - self._counted_at, now
        before, self._before = self._before, requests
        return {key: (count - before.get(key, 0)) / passed for key, count in requests.items()}
