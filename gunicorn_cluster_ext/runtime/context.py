"""What this process has of what all share: the server's settings, its stores, its counts.

A store is opened when it is first used, by the process that uses it: nothing of it may cross a
fork. In a worker the settings are those of the server; elsewhere (a shell, a task queue) those
of the environment, ``GUNICORN_CLUSTER_STORE`` and so on; to share a server's embedded store they
give it the same name or path (``cluster_store_name``, ``cluster_store_path``) as the server does.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from gunicorn_cluster_ext import stores
from gunicorn_cluster_ext.runtime.board.board import Board, Word
from gunicorn_cluster_ext.settings import Settings, executed_config, read

#: In a worker gunicorn's own error log; elsewhere whatever the application makes of it.
log = logging.getLogger("gunicorn.error")

_SAY_S = 10.0

_server: Settings | None = None


class Member(NamedTuple):
    """A worker's place among the others."""

    pid: int
    board: Board
    seat: int


_member: Member | None = None


def use(settings: Settings) -> None:
    """Those of this server, for what a preloaded application does. Called in the arbiter."""
    global _server
    if _server is None and settings.store == "embedded" and _of_environment.cache_info().currsize:
        _warn_of_early_use(settings)
    _server = settings


def join(settings: Settings, board: Board, seat: int) -> None:
    """This process is the worker in ``seat``. Called in the worker, after its fork."""
    global _member
    use(settings)
    _member = Member(os.getpid(), board, seat)
    for count in _COUNTS:
        count.publish(board, seat)


def board() -> Board | None:
    """The board of the server whose worker this process is; None outside a worker."""
    return _member.board if _member else None


def member() -> Member | None:
    """The worker that this process is, or was forked by; None in others."""
    return _member


def settings() -> Settings:
    """Those of the server that this process is of, or of the environment. Raises SettingError."""
    return _of_environment() if _server is None else _server


def with_settings(changes: Mapping[str, Any]) -> Settings:
    """Those, with some that the application has chosen. Raises SettingError."""
    return dataclasses.replace(settings(), **changes) if changes else settings()


@functools.cache
def _of_environment() -> Settings:
    """And of the file that gunicorn has executed: it imports a preloaded application before it
    asks us anything."""
    return read(executed_config(None), os.environ)


def _warn_of_early_use(settings: Settings) -> None:
    if settings.store_path is None and settings.store_name is None:
        log.warning(
            "The application has used the store while it was imported (preload_app), before there "
            "was a server to name it: that is another one. Set cluster_store_name."
        )


class Stores:
    """The stores of some settings: one for this process, and one for each event loop in it."""

    def __init__(self, settings: Callable[[], Settings] = settings) -> None:
        self._settings = settings
        self.forget()
        _everywhere.add(self)

    def forget(self) -> None:
        """Begin anew, after a fork."""
        self._lock = threading.Lock()
        self._store: stores.Store | None = None
        self._asynchronous: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @property
    def store(self) -> stores.Store:
        """Raises StoreError when it cannot be opened."""
        if self._store is None:
            with self._lock:
                if self._store is None:
                    self._store = stores.open_store(self._settings())
        return self._store

    @property
    def is_local(self) -> bool:
        """Whether it answers at once, without a network: then it may be asked in an event loop."""
        return self._settings().store == "embedded"

    @property
    def async_store(self) -> Any:
        """For the event loop that runs here. Raises StoreError when it cannot be opened."""
        # Here, because a gevent worker must be able to patch before asyncio is imported.
        import asyncio

        loop = asyncio.get_running_loop()
        store = self._asynchronous.get(loop)
        if store is None:
            store = self._asynchronous[loop] = stores.open_async_store(self._settings())
        return store


class Count:
    """How often something has happened in this process, published on the board."""

    def __init__(self, word: Word) -> None:
        self.word = word
        self.forget()

    def forget(self) -> None:
        """Begin anew, after a fork."""
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._seat = 0
        self.value = 0

    def publish(self, board: Board, seat: int) -> None:
        self._board, self._seat = board, seat

    def add(self, times: int = 1) -> None:
        with self._lock:
            self.value += times
            if self._board is not None:
                self._board.set(self._seat, self.word, self.value)


class Complaint:
    """Says what is wrong with the store, or with what clients send, but not with each request."""

    def __init__(self, level: int = logging.WARNING) -> None:
        self._level = level
        self._next = 0.0

    def __call__(self, error: Exception | str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SAY_S
            log.log(self._level, "%s (said at most every %g s)", error, _SAY_S)


_everywhere: WeakSet[Stores] = WeakSet()
complain = Complaint()
cache_hits = Count(Word.CACHE_HITS)
cache_misses = Count(Word.CACHE_MISSES)
cache_errors = Count(Word.CACHE_ERRORS)
bus_sent = Count(Word.BUS_SENT)
bus_received = Count(Word.BUS_RECEIVED)
bus_lost = Count(Word.BUS_LOST)
session_reads = Count(Word.SESSION_READS)
session_writes = Count(Word.SESSION_WRITES)
session_errors = Count(Word.SESSION_ERRORS)
websockets = Count(Word.WEBSOCKETS)
_COUNTS = (
    *(cache_hits, cache_misses, cache_errors),
    *(bus_sent, bus_received, bus_lost),
    *(session_reads, session_writes, session_errors),
    websockets,
)


def cache_failed(error: Exception) -> None:
    """Something that the cache wanted of its store."""
    cache_errors.add()
    complain(error)


def _after_fork() -> None:
    for opened in _everywhere:
        opened.forget()
    for count in _COUNTS:
        count.forget()


os.register_at_fork(after_in_child=_after_fork)
default = Stores()
