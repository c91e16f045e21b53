"""The board as metrics for Prometheus. This needs prometheus_client (the extra ``metrics``).

Every worker can answer for the whole server, because its metrics are computed from the board, and
only when a client asks for them.

``wsgi_app`` and ``asgi_app`` are applications to mount, for example under ``/metrics``; they also
show the application's own metrics, if ``PROMETHEUS_MULTIPROC_DIR`` is set. ``BoardCollector`` is
for a registry of your own. A metric with the label ``worker`` has one series for each slot, however
many processes have held it, and counters continue from the values of the last process.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Final

from gunicorn_cluster_ext.extras import missing

try:
    from prometheus_client import CollectorRegistry, Metric, make_asgi_app, make_wsgi_app
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector
except ImportError as error:
    raise missing("metrics", error) from None

from gunicorn_cluster_ext import __version__
from gunicorn_cluster_ext.runtime import context, prometheus_files
from gunicorn_cluster_ext.runtime.board import exits, ledger
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import (
    COUNTERS,
    DECISION_WORDS,
    WORD_NAMES,
    RollState,
    State,
    Word,
)

__all__ = ["BoardCollector", "asgi_app", "wsgi_app"]

_PREFIX: Final = "gunicorn_cluster_"
#: How often the application's files are read while one cannot be, and how long apart.
_READ_ATTEMPTS: Final = 10
_READ_PAUSE_S: Final = 0.002

#: Gauges of each slot: the sums over its processes.
_WORKER_GAUGES: Final = {
    Word.BUSY: ("busy_threads", "Requests in progress."),
    Word.THREADS: ("threads", "Requests that can be in progress at once."),
    Word.CONNECTIONS: ("connections", "Open connections."),
    Word.WEBSOCKETS: ("websockets", "Open WebSockets."),
}
#: Counters of each slot.
_WORKER_COUNTERS: Final = {
    Word.REQUESTS: ("requests", "Requests served."),
    Word.HANDED_OUT: ("handoffs_sent", "Connections handed to another worker."),
    Word.HANDED_IN: ("handoffs_received", "Connections taken from another worker."),
    Word.SESSIONS: ("sticky_sessions", "Sessions begun that only their process can continue."),
}
#: Counters of the whole server.
_SERVER_COUNTERS: Final = {
    Word.INBOX_FULL: ("handoffs_refused", "Hand-offs for which the owner's inbox was full."),
    Word.TIMED_OUT: ("head_timeouts", "Request heads that were not complete in time."),
    Word.CACHE_HITS: ("cache_hits", "Values found in the cache."),
    Word.CACHE_MISSES: ("cache_misses", "Values not found in the cache."),
    Word.CACHE_ERRORS: ("cache_errors", "Failures of the store, seen by the cache."),
    Word.SESSION_READS: ("session_reads", "Sessions read from the store."),
    Word.SESSION_WRITES: ("session_writes", "Sessions written to the store."),
    Word.SESSION_ERRORS: ("session_errors", "Failures of the store, seen by sessions."),
    Word.BUS_SENT: ("bus_messages_sent", "Messages to other workers, one for each of them."),
    Word.BUS_RECEIVED: ("bus_messages_received", "Messages from other workers."),
    Word.BUS_LOST: ("bus_messages_lost", "Messages between workers that were lost."),
}


class BoardCollector(Collector):
    """The metrics of ``board``, or of the server whose worker this process is.

    In a process that is no worker there are none.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        board = self._board or context.board()
        if board is not None:
            yield InfoMetricFamily("gunicorn_cluster", "This pack.", {"version": __version__})
            yield from _gauges(board)
            yield from _counters(board)


def _gauges(board: Board) -> Iterator[Metric]:
    rows = list(board.rows())
    states = [row.state for row in rows]
    family = GaugeMetricFamily(_PREFIX + "workers", "Worker processes.", labels=["state"])
    counts = {each.name.lower(): states.count(each) for each in State if each is not State.GONE}
    yield _by_label(family, counts)
    yield _gauge("workers_wanted", "How many workers there should be.", board.target)
    slots = sorted({row.slot for row in rows})
    for word, (name, about) in _WORKER_GAUGES.items():
        sums = {
            str(slot): sum(row.words[WORD_NAMES[word]] for row in rows if row.slot == slot)
            for slot in slots
        }
        family = GaugeMetricFamily(f"{_PREFIX}worker_{name}", about, labels=["worker"])
        yield _by_label(family, sums)
    loads = board.loads().values()
    threads = sum(load.threads for load in loads)
    if threads:
        about = "Requests in progress, by threads, of the workers that serve."
        yield _gauge("busy_ratio", about, sum(load.busy for load in loads) / threads)
    roll = board.roll
    active = roll.state in (RollState.ROLLING, RollState.OBSERVING)
    yield _gauge("roll_in_progress", "Whether a roll is in progress.", active)
    yield _gauge("roll_workers_replaced", "Workers that the last roll replaced.", roll.replaced)
    yield _gauge("roll_workers", "Workers that the last roll was to replace.", roll.total)
    slowest = board.slowest_turn / 1e9
    yield _gauge("arbiter_slowest_turn_seconds", "The master's longest turn.", slowest)


def _counters(board: Board) -> Iterator[Metric]:
    by_slot = ledger.totals(board)
    slots = board.used_slots()
    for word, (name, about) in _WORKER_COUNTERS.items():
        counts = {str(slot): by_slot[slot][word] for slot in slots}
        yield _by_label(CounterMetricFamily(_PREFIX + name, about, labels=["worker"]), counts)
    totals = {word: sum(counted[word] for counted in by_slot) for word in COUNTERS}
    for word, (name, about) in _SERVER_COUNTERS.items():
        yield CounterMetricFamily(_PREFIX + name, about, totals[word])
    about = "Requests by the sticky rule that found their owner."
    family = CounterMetricFamily(_PREFIX + "routing_decisions", about, labels=["rule"])
    yield _by_label(family, {rule: totals[word] for rule, word in DECISION_WORDS.items()})
    family = CounterMetricFamily(_PREFIX + "rolls", "Rolls that have ended.", labels=["outcome"])
    yield _by_label(family, dict(zip(("committed", "failed"), board.rolls, strict=True)))
    about = "Failures inside the master that have cost one piece of its work."
    yield CounterMetricFamily(_PREFIX + "arbiter_faults", about, board.faults)
    about = "Processes that have ended, by the reason."
    family = CounterMetricFamily(_PREFIX + "worker_exits", about, labels=["worker", "reason"])
    for slot in slots:
        for cause, count in exits.of_slot(board, slot).counts.items():
            family.add_metric([str(slot), cause.name.lower()], count)
    yield family


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, about, value)


def _by_label(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]
) -> Metric:
    """Give ``family``, which has one label, a series for each of its values, and return it."""
    for label, value in values.items():
        family.add_metric([label], value)
    return family


class _MultiprocessFiles(Collector):
    """The application's own metrics, from the files in ``PROMETHEUS_MULTIPROC_DIR``.

    Without that directory prometheus_client knows one process only, which says nothing about the
    server.
    """

    def collect(self) -> Iterator[Metric]:
        if prometheus_files.DIRECTORY_VARIABLE not in os.environ:
            return
        files = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        # prometheus_client cannot read a file that another process is creating: it is empty for a
        # moment.
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                yield from list(files.collect())  # type: ignore[no-untyped-call]
                return
            except struct.error:
                if attempt == _READ_ATTEMPTS:
                    raise
                time.sleep(_READ_PAUSE_S)


_registry = CollectorRegistry()
_registry.register(BoardCollector())
_registry.register(_MultiprocessFiles())
wsgi_app = make_wsgi_app(_registry)
asgi_app = make_asgi_app(_registry)
