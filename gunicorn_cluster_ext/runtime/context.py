"""The context of this process: the settings in force, and the worker that it is, if it is one.

A worker has the settings of its server. Other processes (a shell, a task queue) have the settings
of the environment, ``GUNICORN_CLUSTER_STORE`` and so on.
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

_server_settings: Settings | None = None


class CurrentWorker(NamedTuple):
    """The worker that this process is."""

    pid: int
    board: Board
    seat: int


_worker: CurrentWorker | None = None


def use(settings: Settings) -> None:
    """Use the server's settings from now on. The arbiter calls this, and so does each worker."""
    global _server_settings
    was_used_early = _server_settings is None and _environment_settings.cache_info().currsize
    is_named = settings.store_path is not None or settings.store_name is not None
    if was_used_early and settings.store == "embedded" and not is_named:
        log.warning(
            "The application used the store while it was imported (preload_app), before the "
            "server had named it, so it used another store. Set cluster_store_name."
        )
    _server_settings = settings


def join(settings: Settings, board: Board, seat: int) -> None:
    """Make this process the worker in ``seat``. The worker calls this after its fork."""
    global _worker
    use(settings)
    _worker = CurrentWorker(os.getpid(), board, seat)
    counters.publish(board, seat)


def board() -> Board | None:
    """Return the board of this worker's server; None outside a worker."""
    return _worker.board if _worker else None


def worker() -> CurrentWorker | None:
    """Return the worker that this process is, or that has forked it; None elsewhere."""
    return _worker


def settings() -> Settings:
    """Return the server's settings, or the environment's. Raise SettingError."""
    return _environment_settings() if _server_settings is None else _server_settings


def with_settings(changes: Mapping[str, Any]) -> Settings:
    """Return these settings with the application's own ``changes``. Raise SettingError."""
    return dataclasses.replace(settings(), **changes) if changes else settings()


@functools.cache
def _environment_settings() -> Settings:
    # This includes an executed configuration file: gunicorn imports a preloaded application
    # before any of our hooks runs.
    return read(executed_config(None), os.environ)
