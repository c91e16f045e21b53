"""The server that this process belongs to: its settings, and the worker that the process is.

In a worker the settings are those of the server; elsewhere (a shell, a task queue) those of the
environment, ``GUNICORN_CLUSTER_STORE`` and so on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.runtime import counters
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.settings import Settings, executed_config, read

_server: Settings | None = None


class CurrentWorker(NamedTuple):
    """The worker that this process is."""

    pid: int
    board: Board
    seat: int


_worker: CurrentWorker | None = None


def use(settings: Settings) -> None:
    """Take the server's settings, also for a preloaded application. Called in the arbiter."""
    global _server
    if _server is None and settings.store == "embedded" and _of_environment.cache_info().currsize:
        _warn_of_early_use(settings)
    _server = settings


def join(settings: Settings, board: Board, seat: int) -> None:
    """Make this process the worker in ``seat``. Called in the worker, after its fork."""
    global _worker
    use(settings)
    _worker = CurrentWorker(os.getpid(), board, seat)
    counters.publish(board, seat)


def board() -> Board | None:
    """Return the board of the server whose worker this process is; None outside a worker."""
    return _worker.board if _worker else None


def worker() -> CurrentWorker | None:
    """Return the worker that this process is, or was forked by; None in other processes."""
    return _worker


def settings() -> Settings:
    """Return the server's settings, or those of the environment. Raises SettingError."""
    return _of_environment() if _server is None else _server


def with_settings(changes: Mapping[str, Any]) -> Settings:
    """Return these settings with the application's own ``changes``. Raises SettingError."""
    return dataclasses.replace(settings(), **changes) if changes else settings()


@functools.cache
def _of_environment() -> Settings:
    # The executed config file counts too: gunicorn imports a preloaded application before any
    # of our hooks runs.
    return read(executed_config(None), os.environ)


def _warn_of_early_use(settings: Settings) -> None:
    if settings.store_path is None and settings.store_name is None:
        log.warning(
            "The application used the store while it was imported (preload_app), before the "
            "server had named it, so it used another store. Set cluster_store_name."
        )
