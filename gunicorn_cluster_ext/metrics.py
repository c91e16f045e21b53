"""The board for Prometheus. Needs prometheus_client (the extra ``metrics``).

Every worker can answer for the whole server, because all of it stands on the board. Nothing is
counted for this: reading is all that it costs, when somebody asks.

``wsgi_app`` and ``asgi_app`` are applications to mount, for example under ``/metrics``; they also
show what the application itself counts, if ``PROMETHEUS_MULTIPROC_DIR`` is set.
``BoardCollector`` is for a registry of your own. What has a label ``worker`` has one series for
each slot, however many processes have held it, and counters go on where the last process left.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Metric, make_asgi_app, make_wsgi_app
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

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
#: How often, and after how many seconds, files are read again.
_TRIES: Final = 10
_PAUSE: Final = 0.002

#: Gauges of each worker: those of a slot's processes together.
_GAUGES: Final = {
    Word.BUSY: ("busy_threads", "Requests in progress."),
    Word.THREADS: ("threads", "Requests that can be in progress at once."),
    Word.CONNECTIONS: ("connections", "Open connections."),
    Word.WEBSOCKETS: ("websockets", "Open WebSockets."),
}
#: Counters of each worker.
_BY_WORKER: Final = {
    Word.REQUESTS: ("requests", "Requests served."),
    Word.HANDED_OUT: ("handoffs_sent", "Connections handed to another worker."),
    Word.HANDED_IN: ("handoffs_received", "Connections taken from another worker."),
    Word.SESSIONS: ("sticky_sessions", "Sessions begun that only their process can go on with."),
}
#: Counters of all workers together.
_OF_ALL: Final = {
    Word.INBOX_FULL: ("handoffs_refused", "Hand-offs for which the owner's inbox was full."),
    Word.TIMED_OUT: ("head_timeouts", "Request heads that did not end in time."),
    Word.CACHE_HITS: ("cache_hits", "Values found in the cache."),
    Word.CACHE_MISSES: ("cache_misses", "Values not found in the cache."),
    Word.CACHE_ERRORS: ("cache_errors", "Failures of the store, seen by the cache."),
    Word.SESSION_READS: ("session_reads", "Sessions read from the store."),
    Word.SESSION_WRITES: ("session_writes", "Sessions written to the store."),
    Word.SESSION_ERRORS: ("session_errors", "Failures of the store, seen by sessions."),
    Word.BUS_SENT: ("bus_messages_sent", "Messages to other workers, one for each of them."),
    Word.BUS_RECEIVED: ("bus_messages_received", "Messages from other workers."),
    Word.BUS_LOST: ("bus_messages_lost", "Messages to workers that read too slowly."),
}


class BoardCollector(Collector):
    """What stands on ``board``; without one, on that of the server whose worker this is.

    It has nothing to say in a process that is no worker.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        board = self._board or context.board()
        if board is not None:
            yield InfoMetricFamily("gunicorn_cluster", "This pack.", {"version": __version__})
            yield from _workers(board)
            yield from _load(board)
            yield from _counters(board)
            yield _exits(board)
            yield from _rolls(board)
            seconds = board.slowest_turn / 1e9
            yield _gauge("arbiter_slowest_turn_seconds", "The master's longest turn.", seconds)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, about, value)


def _workers(board: Board) -> Iterator[Metric]:
    states = [row.state for row in board.rows()]
    family = GaugeMetricFamily(_PREFIX + "workers", "Worker processes.", labels=["state"])
    for state in State:
        if state is not State.GONE:
            family.add_metric([state.name.lower()], states.count(state))
    yield family
    yield _gauge("workers_wanted", "How many workers there should be.", board.target)


def _load(board: Board) -> Iterator[Metric]:
    rows = list(board.rows())
    for word, (name, about) in _GAUGES.items():
        family = GaugeMetricFamily(f"{_PREFIX}worker_{name}", about, labels=["worker"])
        for slot in sorted({row.slot for row in rows}):
            value = sum(row.words[WORD_NAMES[word]] for row in rows if row.slot == slot)
            family.add_metric([str(slot)], value)
        yield family
    loads = board.loads().values()
    threads = sum(load.threads for load in loads)
    if threads:
        about = "Requests in progress, by threads, of the workers that serve."
        yield _gauge("busy_ratio", about, sum(load.busy for load in loads) / threads)


def _counters(board: Board) -> Iterator[Metric]:
    by_slot = ledger.totals(board)
    for word, (name, about) in _BY_WORKER.items():
        family = CounterMetricFamily(_PREFIX + name, about, labels=["worker"])
        for slot in board.used_slots():
            family.add_metric([str(slot)], by_slot[slot][word])
        yield family
    totals = {word: sum(counted[word] for counted in by_slot) for word in COUNTERS}
    for word, (name, about) in _OF_ALL.items():
        yield CounterMetricFamily(_PREFIX + name, about, totals[word])
    about = "Requests by the sticky rule that found their owner."
    family = CounterMetricFamily(_PREFIX + "routing_decisions", about, labels=["rule"])
    for rule, word in DECISION_WORDS.items():
        family.add_metric([rule], totals[word])
    yield family


def _exits(board: Board) -> Metric:
    about = "Processes that have ended, by what kind of end it was."
    family = CounterMetricFamily(_PREFIX + "worker_exits", about, labels=["worker", "reason"])
    for slot in board.used_slots():
        for cause, count in exits.of_slot(board, slot).counts.items():
            family.add_metric([str(slot), cause.name.lower()], count)
    return family


def _rolls(board: Board) -> Iterator[Metric]:
    family = CounterMetricFamily(_PREFIX + "rolls", "Rolls that have ended.", labels=["outcome"])
    for outcome, count in zip(("committed", "failed"), board.rolls, strict=True):
        family.add_metric([outcome], count)
    yield family
    roll = board.roll
    active = roll.state in (RollState.ROLLING, RollState.OBSERVING)
    yield _gauge("roll_in_progress", "Whether a roll is under way.", active)
    yield _gauge("roll_workers_replaced", "Workers that the last roll replaced.", roll.replaced)
    yield _gauge("roll_workers", "Workers that the last roll was to replace.", roll.total)


class _Files(Collector):
    """What the application itself counts, where ``PROMETHEUS_MULTIPROC_DIR`` says.

    Without that, prometheus_client knows of one process only, which says nothing of the server.
    """

    def collect(self) -> Iterator[Metric]:
        if prometheus_files.DIRECTORY_VARIABLE in os.environ:
            yield from self._read()

    def _read(self) -> list[Metric]:
        """A file that another process makes is empty for a moment, which prometheus_client cannot
        read."""
        files = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        for _ in range(_TRIES):
            try:
                return list(files.collect())  # type: ignore[no-untyped-call]
            except struct.error:
                time.sleep(_PAUSE)
        return list(files.collect())  # type: ignore[no-untyped-call]


_registry = CollectorRegistry()
_registry.register(BoardCollector())
_registry.register(_Files())
wsgi_app = make_wsgi_app(_registry)
asgi_app = make_asgi_app(_registry)
