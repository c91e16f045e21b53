"""prometheus_client's files, one set for each seat instead of one for each process.

With ``PROMETHEUS_MULTIPROC_DIR`` prometheus_client keeps what a process counts in files that
are named by its pid, and sums up all files: every restart leaves some behind. A seat is held by
one process at a time, so its files go from each process to the next, with what they have counted.
(Not a slot: two processes of one slot write at once while one drains.) The master's pid is in the
name, for two servers may share the directory (USR2).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from gunicorn_cluster_ext.runtime.import_hook import when_imported

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class _Seat(NamedTuple):
    pid: int
    name: str


_mine = _Seat(0, "")


def watch() -> None:
    """Have prometheus_client ask us. Called in the arbiter, before it loads an application."""
    when_imported("prometheus_client.values", _name_by_seat)


def _name_by_seat(values: Any) -> None:
    """Runs in the process that imports it, the arbiter or a worker."""
    if DIRECTORY_VARIABLE in os.environ:
        values.ValueClass = values.MultiProcessValue(process_identifier=identifier)


def join(master: int, seat: int) -> None:
    """This process sits in ``seat``. Called in the worker, after its fork."""
    global _mine
    _mine = _Seat(os.getpid(), _name(master, seat))


def identifier() -> int | str:
    """What this process's files are named by; asked for each time that something is counted.

    A process that a worker has forked writes at the same time as the worker: it has its own.
    """
    pid = os.getpid()
    return _mine.name if pid == _mine.pid else pid


def _name(master: int, seat: int) -> str:
    return f"{master}-seat{seat}"


def forget_live(master: int, seat: int) -> None:
    """Remove the gauges that are to last as long as their process (``live...``).

    Called in the arbiter, when the process in ``seat`` is gone. The others go on.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        for path in Path(directory).glob(f"gauge_live*_{_name(master, seat)}.db"):
            path.unlink(missing_ok=True)
