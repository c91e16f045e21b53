"""How the workers that serve are: health, requests, age, memory. Runs in the arbiter."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.procfs import resident_memory
from gunicorn_cluster_ext.supervisor.actions import Action
from gunicorn_cluster_ext.supervisor.cluster import Cluster
from gunicorn_cluster_ext.supervisor.health import Prober
from gunicorn_cluster_ext.supervisor.recycling import SAMPLE_INTERVAL, Recycler
from gunicorn_cluster_ext.supervisor.slots import Process


class Checkup:
    """Looks at each worker, tells the supervisor, and yields what is to be done at once."""

    def __init__(self, cluster: Cluster, log: Any) -> None:
        self._cluster, self._log = cluster, log
        self._prober = Prober(cluster.shared.inboxes)
        self._sampled = 0.0
        self._rates = Rates()

    @property
    def is_waiting(self) -> bool:
        """Whether a worker's answer is awaited."""
        return self._prober.is_waiting

    def close(self) -> None:
        """Forget what is under way. Also called in each worker, which inherits it."""
        self._prober.close()

    def turn(
        self, pids: Mapping[int, int], address: Any, *, probing: bool, now: float
    ) -> Iterator[Action]:
        """``pids`` by the processes' keys; ``address`` is where the server listens."""
        table = self._cluster.supervisor.table
        serving = [each for each in table if each.serves and not each.blamed]
        if probing:
            yield from self._check_health(serving, address, now)
        self._check_age(serving, now)
        if self._rates.is_due(now):
            self._publish_rates(now)
        settings = self._cluster.settings
        if (settings.max_memory or settings.max_memory_hard) and now >= self._sampled:
            self._sampled = now + SAMPLE_INTERVAL
            yield from self._check_memory(serving, pids, now)

    def _check_health(self, serving: list[Process], address: Any, now: float) -> Iterator[Action]:
        settings = self._cluster.settings
        for process, reason in self._prober.turn(serving, settings, _plain(address), now):
            self._log.error("Worker %s %s", process.place.slot, reason)
            yield from self._cluster.supervisor.unhealthy(process, reason, now)

    @property
    def _recycler(self) -> Recycler:
        return Recycler(self._cluster.settings, random.random)

    def _check_age(self, serving: list[Process], now: float) -> None:
        board, recycler = self._cluster.board, self._recycler
        for process in serving:
            seat = process.place.seat
            requests, limit = board.get(seat, Word.REQUESTS), board.get(seat, Word.MAX_REQUESTS)
            why = recycler.served(requests, limit) or recycler.age(process, now)
            if why:
                self._cluster.supervisor.recycle(process, why, now)

    def _publish_rates(self, now: float) -> None:
        board = self._cluster.board
        seats = {each.key: each.place.seat for each in self._cluster.supervisor.table}
        requests = {key: board.get(seat, Word.REQUESTS) for key, seat in seats.items()}
        for key, rate in self._rates.turn(requests, now).items():
            board.set(seats[key], Word.RATE, int(rate * 1000))

    def _check_memory(
        self, serving: list[Process], pids: Mapping[int, int], now: float
    ) -> Iterator[Action]:
        supervisor, recycler = self._cluster.supervisor, self._recycler
        for process in serving:
            size = resident_memory(pids.get(process.key))
            reason, why = recycler.hard_memory(size), recycler.memory(process, size)
            if reason:
                yield from supervisor.kill(process, reason, now)
            elif why:
                supervisor.recycle(process, why, now)


def _plain(address: Any) -> Any:
    """An address as a message can carry it: abstract Unix names are bytes."""
    return address.decode("latin-1") if isinstance(address, bytes) else address


#: Seconds over which they are counted.
INTERVAL = 5.0


class Rates:
    """Counts again every INTERVAL seconds. The caller passes ``now``, and keys for processes."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._before: Mapping[int, int] = {}

    def is_due(self, now: float) -> bool:
        return now - self._counted >= INTERVAL

    def turn(self, requests: Mapping[int, int], now: float) -> dict[int, float]:
        """Requests per second, of each."""
        passed, self._counted = now - self._counted, now
        before, self._before = self._before, requests
        return {key: (count - before.get(key, 0)) / passed for key, count in requests.items()}
